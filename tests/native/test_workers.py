"""Workers sleep between calls, take their part of the work, and are no more than the machine has use for."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from rnnfast.native import threads
from tests.native.threaded import X, linux, model, outputs, pool_threads
from tests.paths import ROOT


def cpu_ticks(tasks):
    """User and system time of threads in 1/100 s, and how often each gave up the processor."""
    ticks = [(task / "stat").read_text().rpartition(")")[2].split()[11:13] for task in tasks]
    lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
    switches = [line for line in lines if "ctxt_switches" in line]
    return ticks, switches


@linux
def test_no_processor_time_between_calls(used):
    layer, _ = used
    for _ in range(3):
        outputs(layer, X)
    tasks, end = pool_threads(), time.monotonic() + 5
    assert tasks
    before = None
    while before != cpu_ticks(tasks) and time.monotonic() < end:  # until they sleep
        before = cpu_ticks(tasks)
        time.sleep(0.05)
    cpu = time.process_time()
    time.sleep(0.5)
    assert cpu_ticks(tasks) == before
    assert time.process_time() - cpu < 0.1  # the interpreter's own and that of what other tests left behind


def run_times(tasks):
    """Seconds that threads have run."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@linux
def test_workers_take_their_part():
    if threads.limit() < 2:
        pytest.skip("there is one processor")
    layer, x, end = model(), np.tile(X, (10, 1, 1)), time.monotonic() + 30
    layer(x)
    before = run_times(pool_threads())
    while run_times(pool_threads()) < before + 0.05 and time.monotonic() < end:
        layer(x)
    assert run_times(pool_threads()) >= before + 0.05


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from rnnfast.native import threads
from tests.native.threaded import X, model, outputs, pool_threads
alone = outputs(model(count=1), X)
assert all(outputs(model(count=n), X) == alone for n in (2, 8) for _ in range(3))
assert threads.limit() == 1
assert not pool_threads()
"""

LIMITED = """
import os
from tests.native.threaded import X, model, outputs, pool_threads
layer = model(count=None)
assert layer.thread_count == int(os.environ["RNNFAST_NUM_THREADS"])
assert model(count=64).thread_count == layer.thread_count
alone = outputs(model(count=1), X)
assert all(outputs(model(count=n), X) == alone for n in (None, 2, 64) for _ in range(3))
assert len(pool_threads()) < int(os.environ["RNNFAST_NUM_THREADS"])
"""


def python(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return done.returncode, done.stderr


@linux
def test_one_core_has_no_workers():
    assert python(ON_ONE_CORE) == (0, "")


@linux
@pytest.mark.parametrize("count", [1, 2])
def test_the_environment_limits_threads(count):
    assert python(LIMITED, RNNFAST_NUM_THREADS=str(count)) == (0, "")


CALLERS = """
import threading
from rnnfast.native import threads
from tests.native.threaded import X, model, outputs, pool_threads, run_all
outputs(model(count=64), X)
run_all([threading.Thread(target=outputs, args=(model(count=8), X)) for _ in range(6)])
assert len(pool_threads()) < max(2, threads.ceiling())
"""


@linux
def test_no_more_workers_than_the_machine_has_use_for():
    assert python(CALLERS) == (0, "")


def test_a_wrong_variable_is_refused_by_name():
    status, message = python("from rnnfast import nn; nn.LSTM(5, 7)", RNNFAST_NUM_THREADS="many")
    assert status == 1 and "InputError: RNNFAST_NUM_THREADS: 'many' is no integer from 1 on" in message


def test_the_limits_are_light_to_import():
    assert python("import sys, rnnfast.native.threads; sys.exit('numpy' in sys.modules)")[0] == 0
