"""Measure the machine's limits with probe.c, compiled for this processor, on as many cores as the engines get."""

import ctypes
import hashlib
import os
import pathlib
import platform
import subprocess
import tempfile
import threading
import time

import numpy as np

SOURCE = pathlib.Path(__file__).with_name("probe.c")
CACHE = pathlib.Path(__file__).parent.parent / "build" / "probe"
FLAGS = ["-O3", "-shared", "-fPIC", "-ffp-contract=fast"]
NATIVE = {"x86_64": "-march=native", "AMD64": "-march=native"}
CHAINS, ALIGNMENT = 12, 64
# Sizes of caches where the system does not say.
USUAL_CACHES = {"L1": 2**15, "L2": 2**20, "L3": 2**24}
MAX_BUFFER = 2**28
SAMPLES, SAMPLE_SECONDS = 7, 0.02


def build():
    """Return the compiled probe; raise OSError or CalledProcessError without a C compiler."""
    command = [os.environ.get("CC", "cc"), *FLAGS, NATIVE.get(platform.machine(), "-mcpu=native")]
    source = SOURCE.read_bytes()
    # The processor is part of the name, as machines with different ones may share a checkout.
    key = hashlib.sha256(source + repr((command, _flags())).encode()).hexdigest()[:16]
    library = CACHE / f"probe-{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = os.path.join(folder, library.name)
            subprocess.run([*command, "-o", made, str(SOURCE)], check=True, capture_output=True, text=True)
            os.replace(made, library)
    probe = ctypes.CDLL(str(library))
    probe.probe_lanes.restype = ctypes.c_size_t
    probe.probe_fma.restype = probe.probe_load.restype = ctypes.c_float
    probe.probe_fma.argtypes = [ctypes.c_size_t]
    probe.probe_load.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return probe


def _flags():
    """Return the features of the processor as text."""
    try:
        return next((line for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def limits(caches, threads):
    """Return "fma" in FLOP/s and "L1", "L2", "L3", "DRAM" in bytes/s: all cores together, the best of some samples."""
    probe = build()
    flops = 2 * CHAINS * probe.probe_lanes()
    found = {"fma": _best(lambda: probe.probe_fma, flops, threads)}
    for level, size in buffers(USUAL_CACHES | caches, threads).items():
        unit = CHAINS * ALIGNMENT
        size = max(1, size // unit) * unit

        def prepare(size=size):
            whole = np.ones(size + ALIGNMENT, np.uint8)  # all pages of zeros would be one and the same
            start = -whole.ctypes.data % ALIGNMENT
            part = whole[start : start + size]
            return lambda n: probe.probe_load(part.ctypes.data, part.nbytes, n)

        found[level] = _best(prepare, size, threads)
    return found


def buffers(caches, threads):
    """Return the bytes that each core reads to measure a level.

    These are half of a core's own caches, and of the shared cache as much as weights that do not fit the second level
    need: of a large cache that other machines share, less is available than the system says.
    """
    beyond = min(4 * caches["L2"], max(2 * caches["L2"], caches["L3"] // 2 // threads))
    return {"L1": caches["L1"] // 2, "L2": caches["L2"] // 2, "L3": beyond, "DRAM": min(4 * caches["L3"], MAX_BUFFER)}


def _best(prepare, amount, threads):
    """Return the largest sum of the cores' rates.

    prepare() returns run; run(n) does amount * n. Each core runs its own, and all begin each sample together.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else [None] * threads
    rates = np.zeros((SAMPLES, threads))
    barrier = threading.Barrier(threads)

    def work(position, core):
        if core is not None:
            os.sched_setaffinity(0, {core})
        run = prepare()
        n = 1
        while (elapsed := _seconds(run, n)) < SAMPLE_SECONDS / 4:
            n *= 2
        n = max(1, round(n * SAMPLE_SECONDS / elapsed))
        for sample in range(SAMPLES):
            barrier.wait()
            rates[sample, position] = amount * n / _seconds(run, n)

    workers = [threading.Thread(target=work, args=pair) for pair in enumerate(cores)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return float(rates.sum(1).max())


def _seconds(run, n):
    """Return the seconds that run(n) takes."""
    start = time.perf_counter()
    run(n)
    return time.perf_counter() - start
