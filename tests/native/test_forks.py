"""Forked children compute too, whatever the threads of their parent do."""

import multiprocessing
import os
import threading
import time

import pytest

from tests.native.threaded import X, forks, model, outputs


def exit_status_of_child(work, seconds=60):
    """Runs `work` in a forked child; 0 if it returned True in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "the child hangs"


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_too(used):
    layer, expected = used
    for _ in range(3):
        assert exit_status_of_child(lambda: outputs(layer, X) == expected) == 0
        assert outputs(layer, X) == expected
    assert exit_status_of_child(lambda: exit_status_of_child(lambda: outputs(layer, X) == expected) == 0) == 0


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_others_compute(used):
    layer, expected = used
    stop, wrong = threading.Event(), []

    def work():
        while not stop.is_set():
            if outputs(layer, X) != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(8):
            assert exit_status_of_child(lambda: outputs(layer, X) == expected) == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not wrong and outputs(layer, X) == expected


def in_pool(_):
    return outputs(model(), X)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_multiprocessing_by_fork(used):
    _, expected = used
    with multiprocessing.get_context("fork").Pool(3) as processes:
        assert processes.map_async(in_pool, range(6)).get(timeout=60) == [expected] * 6
