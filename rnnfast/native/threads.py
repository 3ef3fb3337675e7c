"""How many threads a call may use: what it asks for, and what the process is allowed to.

RNNFAST_NUM_THREADS is the number of threads of calls and layers that do not name one (else 1), and the most that any
of them gets. The CPU quota of the process's cgroups (version 1 and 2) and the CPUs that it may run on bound it too.
"""

import numbers
import os

from rnnfast.errors import InputError, InputTypeError

VARIABLE = "RNNFAST_NUM_THREADS"

LARGEST = 1024
"""More threads are taken as so many: no pool of threads on one machine needs them."""


def check(threads):
    """The number of threads to use for the argument `threads`: None is the default. InputError, InputTypeError."""
    most = from_environment()
    if threads is None:
        return most or 1
    if isinstance(threads, bool) or not isinstance(threads, numbers.Integral):
        raise InputTypeError(f"threads: {threads!r} is no integer")
    if threads < 1:
        raise InputError(f"threads: {threads} is less than 1")
    return int(min(threads, most or LARGEST))


def from_environment():
    """RNNFAST_NUM_THREADS, or None if it is not set."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise InputError(f"{VARIABLE}: {value!r} is no integer from 1 on")
    return min(number, LARGEST)


def limit(root="/"):
    """The most threads that the calling thread may use at once."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ceiling(root)
    return min(cpus, ceiling(root))


def ceiling(root="/"):
    """The most threads that may work at once in this process; each thread's own affinity mask bounds it further."""
    return min(n for n in (os.cpu_count() or 1, quota(root), from_environment(), LARGEST) if n is not None)


# ------------------------------------------------------------------------------------------------- cgroups
def quota(root="/"):
    """CPUs' worth of time that the cgroups of this process grant it, rounded up; None: no limit.

    A group gets no more than each group above it. `root` is where /proc and the mounted file systems are.
    """
    return min((cpus for folder, read in _groups(root) if (cpus := read(folder)) is not None), default=None)


def _groups(root):
    """(folder, function that reads its quota) of each cgroup that this process is in, and of those above them."""
    paths = {}  # "" for version 2, else the name of a controller -> the path of the group
    for line in _lines(root, "/proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(root, "/proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        mount, source = mount.split(), source.split()
        if len(mount) < 5 or len(source) < 3:
            continue
        if source[0] == "cgroup2":
            path, read = paths.get(""), _quota_v2
        elif source[0] == "cgroup" and "cpu" in source[2].split(","):
            path, read = paths.get("cpu"), _quota_v1
        else:
            continue
        if path is None:
            continue
        top, point = (_unescape(field).rstrip("/") for field in mount[3:5])
        # A container may see its own group mounted as the top, and may not see where it is in the host's tree.
        below = path[len(top) :] if path == top or path.startswith(f"{top}/") else ""
        names = [name for name in below.split("/") if name]
        if ".." in names:
            names = []
        for depth in range(len(names), -1, -1):
            yield _join(root, "/".join([point, *names[:depth]])), read


def _quota_v2(folder):
    """cpu.max: "quota period" in microseconds, or "max period"."""
    return _cpus(*(_read(folder, "cpu.max").split() + ["", ""])[:2])


def _quota_v1(folder):
    """-1 is no quota."""
    return _cpus(_read(folder, "cpu.cfs_quota_us"), _read(folder, "cpu.cfs_period_us"))


def _cpus(quota, period):
    try:
        quota, period = int(quota), int(period)
    except ValueError:
        return None
    return None if quota <= 0 or period <= 0 else -(-quota // period)


def _join(root, path):
    return os.path.join(root, path.lstrip("/"))


def _read(folder, name):
    """The contents of a file; "" if it cannot be read."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def _lines(root, path):
    return _read(*os.path.split(_join(root, path))).splitlines()


def _unescape(field):
    """A field of mountinfo, which has spaces and the like as octal numbers."""
    for code in (" ", "\t", "\n", "\\"):
        field = field.replace(f"\\{ord(code):03o}", code)
    return field
