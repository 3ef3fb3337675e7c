"""The servers that are measured: their commands, their processor time and their memory.

Each server runs on one core, the first one that this process may use.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from bench import environment

START = 120.0  # seconds that a server has until it is ready
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


class Server:
    """A server's process, as a context; `http` and `grpc` are its ports.

    Args:
        name: Its name, which is that of its folder of models.
        command: The command and its first arguments.
        folder: The folder with its models.
        log: The file for what it prints.
    """

    def __init__(self, name, command, folder, log):
        self.name, (self.http, self.grpc, metrics) = name, free_ports(3)
        self.log, self.process = log, None
        folder, http, grpc, metrics = map(str, (folder, self.http, self.grpc, metrics))
        if name == "rnnfast":
            rest = [folder, "--host", "127.0.0.1", "--http-port", http, "--grpc-port", grpc]
        else:
            rest = [folder, http, grpc, metrics]
        self.command = [*shlex.split(command), *rest]

    def __enter__(self):
        kept, _ = environment.clean(os.environ, 1)
        core = [server_core()]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=kept,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, core),
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self):
        """Wait until the server and its model are ready; raise OSError if it ends or takes too long."""
        end = time.monotonic() + START
        while self.process.poll() is None and time.monotonic() < end:
            try:
                for path in ("health/ready", "models/lstm/ready"):
                    urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/{path}", timeout=5).close()
                socket.create_connection(("127.0.0.1", self.grpc), timeout=5).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        tail = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        raise OSError(f"{self.name} is not ready: {' / '.join(tail)}")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):  # what it started may outlive a server that crashed
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def processes(self):
        """Return the ids of the server's process and of all that it has started."""
        parents = {}
        for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                text = file.read_text()
            except OSError:
                continue  # it has ended
            parents[int(file.parent.name)] = int(text.rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for number in found:
            found += [child for child, parent in parents.items() if parent == number]
        return found

    def cpu(self):
        """Return the seconds of processor time that the server has used."""
        total = 0
        for number in self.processes():
            for file in pathlib.Path(f"/proc/{number}/task").glob("*/schedstat"):
                try:
                    total += int(file.read_text().split()[0])
                except OSError:
                    continue  # the thread has ended
        return total / 1e9

    def memory(self):
        """Return the bytes of memory that are resident."""
        total = 0
        for number in self.processes():
            text = pathlib.Path(f"/proc/{number}/smaps_rollup").read_text()
            total += int(next(line for line in text.splitlines() if line.startswith("Rss:")).split()[1]) * 1024
        return total


def own_command():
    """Return the command of the server that is measured."""
    return f"{shlex.quote(sys.executable)} -m rnnfast serve"


def server_core():
    """Return the core of the servers; the generator has the next one."""
    return CORES[0]


@contextlib.contextmanager
def pinned():
    """Keep this thread on the generator's core, which is the servers' where there is no other."""
    os.sched_setaffinity(0, [CORES[min(1, len(CORES) - 1)]])
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def free_ports(count):
    """Return numbers of ports that are free at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
