"""A step costs nothing besides its arithmetic: it allocates nothing, and denormal numbers take no longer."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from tests.graphs import parse
from tests.paths import ROOT

COUNTER = r"""
/* Counts the allocations of the process it is loaded into; reset and read through ctypes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>

atomic_long allocations;

#define COUNTED(result, name, arguments, values)                     \
    result name arguments                                            \
    {                                                                \
        static result (*real) arguments;                             \
        if (!real)                                                   \
            *(void **)&real = dlsym(RTLD_NEXT, #name);               \
        allocations++;                                               \
        return real values;                                          \
    }
COUNTED(void *, malloc, (size_t n), (n))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(int, posix_memalign, (void **p, size_t a, size_t n), (p, a, n))
COUNTED(void *, aligned_alloc, (size_t a, size_t n), (a, n))
"""

PROGRAM = """
import ctypes, sys
import numpy as np
from rnnfast.native import _kernels
from rnnfast import nn

allocations = ctypes.c_long.in_dll(ctypes.CDLL(None), "allocations")
_kernels.force_threads(int(sys.argv[1]))
for make in (
    lambda **o: nn.LSTM(33, 50, 2, **o), lambda **o: nn.LSTM(33, 50, proj_size=20, bidirectional=True, **o),
    lambda **o: nn.GRU(33, 50, **o), lambda **o: nn.GRU(33, 50, linear_before_reset=False, **o),
    lambda **o: nn.RNN(33, 50, bidirectional=True, **o),
):
    layer, counts = make(rng=1, threads=int(sys.argv[1])), []
    inputs = [np.random.default_rng(2).standard_normal((T, 3, 33)).astype(np.float32) for T in (60, 600)]
    for x in inputs:
        layer(x), layer(x)
        before = allocations.value
        layer(x)
        counts.append(allocations.value - before)
    assert counts[0] == counts[1] < 60, counts
    assert counts[0] > 0, "nothing is counted"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_allocates_nothing(unsanitized, tmp_path, threads):
    """600 steps make as many allocations as 60: those of a call for its outputs."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "counter.c").write_text(COUNTER)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", "counter.c", "-o", "counter.so", "-ldl"],
        cwd=tmp_path,
        check=True,
    )
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": str(tmp_path / "counter.so"),
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)], env=environ, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_denormal_inputs_cost_no_more_than_others(kind):
    """Inputs, weights and states below 2^-126; a processor that computes with them takes many times as long."""
    layer = getattr(nn, kind)(64, 64, rng=3, bias=False)
    tiny = getattr(nn, kind)(64, 64, rng=3, bias=False)
    tiny.load_state_dict({name: w * np.float32(1e-39) for name, w in layer.state_dict().items()})
    rng = np.random.default_rng(4)
    x = (rng.uniform(0.5, 2, (50, 8, 64)) * rng.choice((-1, 1), (50, 8, 64))).astype(np.float32)
    small = x * np.float32(1e-39)
    assert np.all((np.abs(small) < 2**-126) & (small != 0))
    seconds = {"normal": [], "inputs": [], "weights": []}
    for _ in range(40):
        for name, call, value in (("normal", layer, x), ("inputs", layer, small), ("weights", tiny, x)):
            start = time.perf_counter()
            call(value)
            seconds[name].append(time.perf_counter() - start)
    for name in ("inputs", "weights"):
        assert min(seconds[name]) < 2 * min(seconds["normal"])


def fastest(call):
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind, gates", [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_padding_is_not_computed(kind, gates, direction, layout):
    """Rows of 1 step in a batch of 150 steps, in graphs and layers: about a tenth of the time, the zeros that are
    written included."""
    rng = np.random.default_rng(5)
    T, B, H = 150, 24, 96
    D = 1 + (direction == "bidirectional")
    w, r = (rng.standard_normal((D, gates * H, H), np.float32) / 10 for _ in range(2))
    model = rnnfast.load(
        parse(
            f"""g (float[a,b,i] x, int32[n] lens) => (y, h) {{
        y, h = {kind} <direction = "{direction}", hidden_size = {H}, layout = {layout}> (x, w, r, , lens) }}""",
            w=w,
            r=r,
        )
    )
    layer = getattr(nn, kind).from_onnx(w, r, direction=direction, layout=layout)
    x = rng.standard_normal((T, B, H) if layout == 0 else (B, T, H), np.float32)
    long, short = np.full(B, T, np.int32), np.ones(B, np.int32)
    assert fastest(lambda: model(x=x, lens=short)) < 0.5 * fastest(lambda: model(x=x, lens=long))
    assert fastest(lambda: layer(x, lengths=short)) < 0.5 * fastest(lambda: layer(x, lengths=long))
