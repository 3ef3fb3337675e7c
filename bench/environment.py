"""The environment of a measuring process, in which no setting favours an engine, and a description of the machine."""

import glob
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess

# Settings of numeric libraries, all of which are removed (OPENBLAS_CORETYPE, for one, halves OpenBLAS's speed) before
# the numbers of threads are set.
LIBRARIES = re.compile(
    r"(OPENBLAS|GOTO|BLIS|MKL|DNNL|ONEDNN|OMP|GOMP|KMP|LIBOMP|TBB|ORT|OV|TORCH|ATEN|NUMEXPR|JAX|XLA"
    r"|VECLIB|NVPL|NPY|KERAS)_|(NPY|NUMPY)_DISABLE|RNNFAST_NUM_THREADS$"
)
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
PACKAGES = ("rnnfast", "numpy", "scipy", "onnx", "onnxruntime", "torch", "openvino", "jax", "jaxlib", "keras")


def clean(environ, threads):
    """Return the environment of a measuring process, and the variables that were removed from it."""
    removed = {name: value for name, value in environ.items() if LIBRARIES.match(name)}
    kept = {name: value for name, value in environ.items() if name not in removed}
    return kept | settings(threads), removed


def settings(threads):
    """Return the variables that give every library this number of threads and keep JAX on the CPU."""
    eigen = "true" if threads > 1 else "false"
    return dict.fromkeys(THREADS, str(threads)) | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}",
    }


def machine():
    """Describe the hardware, the system and the installed versions."""
    import rnnfast

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "isas": list(rnnfast.isas()),
        "isa": rnnfast.get_isa(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": compiler(),
        "versions": versions(),
    }


def cpu_name():
    """Return the processor's name as the system gives it."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.M)
    return match[1] if match else platform.machine()


def caches():
    """Return the bytes of the first core's data caches, "L1", "L2" and "L3"; empty where the system does not say."""
    sizes = {}
    for folder in map(pathlib.Path, sorted(glob.glob("/sys/devices/system/cpu/cpu0/cache/index*"))):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            sizes[f"L{level}"] = int(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1)
    return sizes


def others():
    """Return the seconds of processor time of everything but this process, or None where the system does not say.

    Time that the host of a virtual machine took is counted too.
    """
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system


def compiler():
    """Return the first line of the C compiler's version, or None without a compiler."""
    try:
        return subprocess.run(
            [os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def versions():
    """Return each package's version, or None where it is not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
