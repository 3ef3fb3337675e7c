"""Runs the fuzzer for some seconds, in processes that may die, and keeps what it finds.

Findings are printed, and their files go to a folder (build/fuzz) as SEED-KIND.onnx and SEED-KIND.npz. The exit status
is 1 if there are any.
"""

import argparse
import collections
import faulthandler
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from rnnfast.native import _kernels
from tests.fuzz.by_onnxruntime import SANITIZED
from tests.fuzz.cases import SECONDS, ZEROS, case_of, findings

# A worker is replaced after so many cases, and killed if a case takes longer than this or needs more memory.
CASES_OF_A_WORKER = 2000
MOST_SECONDS = 3 * SECONDS
MOST_BYTES = 6 * 2**30


def work(first, count):
    """Run cases and print a line of JSON before and after each: what a process that dies was doing is then known."""
    faulthandler.enable()
    for seed in range(first, first + count):
        print(json.dumps({"begins": seed}), flush=True)
        found = findings(*case_of(seed))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"ends": seed, "found": [[f.kind, f.text] for f in found], "peak": peak}), flush=True)


def limit_memory():
    """Limit the address space of a worker, but of a sanitized build, which reserves terabytes."""
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


class Worker:
    """A process that runs cases; `read` returns its lines."""

    def __init__(self, first, isa):
        command = [sys.executable, "-m", "tests.fuzz", "--work", str(first), str(CASES_OF_A_WORKER)]
        environment = os.environ | ({"RNNFAST_ISA": isa} if isa else {})
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, preexec_fn=limit_memory, env=environment
        )
        self.first, self.seed, self.begun, self.rest = first, None, time.monotonic(), b""

    def read(self):
        """Return the lines that came within a second as dicts; None where the process has ended."""
        if not select.select([self.process.stdout], [], [], 1)[0]:
            if self.seed is not None and time.monotonic() - self.begun > MOST_SECONDS:
                self.process.kill()
            return []
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        made = [json.loads(line) for line in lines]
        for line in made:
            self.seed, self.begun = line.get("begins"), time.monotonic()
        return made

    def last_words(self):
        """Return the end of what the process wrote to standard error."""
        self.errors.seek(max(0, self.errors.tell() - 3000))
        return self.errors.read().decode(errors="replace")


def in_onnxruntime(text):
    """Return whether the process died in onnxruntime, by the first frame of what faulthandler wrote."""
    frames = [line for line in text.splitlines() if line.lstrip().startswith("File ")]
    return "Fatal Python error" in text and any("onnxruntime" in line for line in frames[:1])


def keep(folder, seed, kind, text):
    """Print a finding and write its file, inputs and external data."""
    print(f"{seed} {kind}: {text}", flush=True)
    data, feed, weights = case_of(seed)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{seed}-{kind.replace(' ', '-')}"
    (folder / f"{name}.onnx").write_bytes(data)
    np.savez(folder / f"{name}.npz", **feed)
    if weights != ZEROS:
        (folder / f"{name}.weights").write_bytes(weights)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--isa", help="the instruction set that runs; the others are compared with it")
    parser.add_argument("--seed", type=int, help="run this case alone, in this process")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/fuzz"))
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("RNNFAST_VERIFY", "1")
    if options.work:
        return work(*options.work)
    if options.seed is not None:
        found = findings(*case_of(options.seed))
        for finding in found:
            print(f"{options.seed} {finding.kind}: {finding.text}")
        return bool(found)
    kinds, cases, crashes_of_onnxruntime, peak, begun = collections.Counter(), 0, 0, 0, time.monotonic()
    worker = Worker(options.first, options.isa)
    while time.monotonic() - begun < options.seconds:
        lines = worker.read()
        if lines is None:
            status, seed = worker.process.wait(), worker.seed
            if status and seed is not None and in_onnxruntime(worker.last_words()):
                crashes_of_onnxruntime += 1
            elif status and seed is not None:
                what = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                kinds["crash"] += 1
                text = f"{what} after {time.monotonic() - worker.begun:.0f} s\n{worker.last_words()}"
                keep(options.folder, seed, "crash", text)
            elif status:
                sys.exit(f"a worker cannot start: exit status {status}\n{worker.last_words()}")
            first = worker.first + CASES_OF_A_WORKER if seed is None else seed + 1
            worker = Worker(first, options.isa)
        for line in lines or ():
            if "ends" in line:
                cases, peak = cases + 1, max(peak, line["peak"])
                for kind, text in line["found"]:
                    kinds[kind] += 1
                    keep(options.folder, line["ends"], kind, text)
    worker.process.kill()
    worker.process.wait()
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing found"
    isa = options.isa or _kernels.get_isa()
    print(
        f"{cases} cases from seed {options.first} on {isa} in {time.monotonic() - begun:.0f} s, at most "
        f"{peak / 2**20:.1f} GiB: {found}" + f" ({crashes_of_onnxruntime} crashes of onnxruntime)"
    )
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
