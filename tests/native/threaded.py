"""A layer that is large enough for several threads, and the threads that help it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from rnnfast import nn
from tests.cases import bits

COUNTS = (1, 2, 3, 8)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def outputs(layer, x, lengths=None):
    y, state = layer(x, lengths=lengths)
    return bits([y, *(state if isinstance(state, tuple) else (state,))])


def model(kind="LSTM", count=2, **options):
    return getattr(nn, kind)(24, 160, 2, bidirectional=True, rng=3, threads=count, **options)


X = np.random.default_rng(0).standard_normal((40, 3, 24)).astype(np.float32)
"""`model` takes about a millisecond for it on one thread: enough to be shared."""


def run_all(workers):
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def pool_threads():
    """/proc/self/task of the workers."""
    return [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().strip() == "rnnfast"]
