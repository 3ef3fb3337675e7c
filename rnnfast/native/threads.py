"""The number of threads that a call may use: what it asks for, bounded by what the process is allowed.

RNNFAST_NUM_THREADS is the default for calls and layers that name no number (1 if it is not set), and the maximum for
all of them. The CPU quota of the process's cgroups (version 1 and 2) and its CPU affinity bound the number too.
"""

import numbers
import os

from rnnfast.errors import InputError, InputTypeError

VARIABLE = "RNNFAST_NUM_THREADS"

LARGEST = 1024
"""Upper bound of every thread count; larger requests are cut to it, as no machine's thread pool needs more."""


def check(threads):
    """Return the number of threads to use for the argument `threads`; None is the default.

    Raises:
        InputError: The number is less than 1, or RNNFAST_NUM_THREADS is invalid.
        InputTypeError: `threads` is no integer.
    """
    most = from_environment()
    if threads is None:
        return most or 1
    if isinstance(threads, bool) or not isinstance(threads, numbers.Integral):
        raise InputTypeError(f"threads: {threads!r} is no integer")
    if threads < 1:
        raise InputError(f"threads: {threads} is less than 1")
    return int(min(threads, most or LARGEST))


def from_environment():
    """Return the value of RNNFAST_NUM_THREADS, or None if it is not set."""
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
    """Return how many threads may work for the calling thread at once: its CPU affinity mask, bounded by `ceiling`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ceiling(root)
    return min(cpus, ceiling(root))


def ceiling(root="/"):
    """Return how many threads may work in this process at once, CPU affinity aside: CPUs, cgroup quota, environment."""
    return min(n for n in (os.cpu_count() or 1, quota(root), from_environment(), LARGEST) if n is not None)


# ------------------------------------------------------------------------------------------------- cgroups
def quota(root="/"):
    """Return the CPU quota that this process's cgroups grant it, in whole CPUs rounded up; None is no limit.

    A group gets no more than any of its ancestors. `root` is the folder that holds /proc and the mounted file systems.
    """
    return min((cpus for folder, read in _groups(root) if (cpus := read(folder)) is not None), default=None)


def _groups(root):
    """Yield (folder, function that reads its quota) for each cgroup of this process and for their ancestors."""
    paths = {}  # controller name, "" for version 2 -> path of the group
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
        # A container may see its own group mounted as the root, without its position in the host's tree.
        below = path[len(top) :] if path == top or path.startswith(f"{top}/") else ""
        names = [name for name in below.split("/") if name]
        if ".." in names:
            names = []
        for depth in range(len(names), -1, -1):
            yield _join(root, "/".join([point, *names[:depth]])), read


def _quota_v2(folder):
    """Read the quota from cpu.max: "quota period" in microseconds, or "max period" without a limit."""
    return _cpus(*(_read(folder, "cpu.max").split() + ["", ""])[:2])


def _quota_v1(folder):
    """Read the quota from cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is no limit."""
    return _cpus(_read(folder, "cpu.cfs_quota_us"), _read(folder, "cpu.cfs_period_us"))


def _cpus(quota, period):
    """Return quota / period rounded up, or None where either is no positive number."""
    try:
        quota, period = int(quota), int(period)
    except ValueError:
        return None
    return None if quota <= 0 or period <= 0 else -(-quota // period)


def _join(root, path):
    return os.path.join(root, path.lstrip("/"))


def _read(folder, name):
    """Return the contents of a file, or "" if it cannot be read."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def _lines(root, path):
    return _read(*os.path.split(_join(root, path))).splitlines()


def _unescape(field):
    """Decode a field of mountinfo, which writes white space and backslashes as octal numbers."""
    for code in (" ", "\t", "\n", "\\"):
        field = field.replace(f"\\{ord(code):03o}", code)
    return field
