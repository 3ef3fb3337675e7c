"""Engines are right, and those that are wrong, fail or are missing are reported and not timed."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import measure, problem
from bench.cases import select
from bench.engines import ENGINES, Numpy
from tests.bench.helpers import APART, EFFORT, SMALL


def reduced(case):
    """The same work with odd small sizes."""
    return dataclasses.replace(case, T=min(case.T, 5), B=min(case.B, 3), I=7, H=9)


@pytest.mark.parametrize(
    "engine", [engine for engine in ENGINES.values() if engine.name not in APART], ids=lambda engine: engine.name
)
def test_engines_are_right(engine):
    if not engine.installed():
        pytest.skip(f"{engine.name} is not installed")
    for case in map(reduced, select((), quick=True)):
        result = measure.measure(case, [engine], 1, **EFFORT)[engine.name]
        assert result["status"] == "ok" and 0 < result["error"] < engine.tolerance, (case, result)
        assert result["seconds"][1] > 0 and result["rounds"] == 2


class Altered(Numpy):
    """The NumPy engine with something done to its outputs."""

    name = "altered"

    def __init__(self, alter):
        self.alter, self.calls = alter, 0

    def prepare(self, case, state_dict, threads):
        right = super().prepare(case, state_dict, threads)

        def call(*inputs):
            self.calls += 1
            return self.alter(right(*inputs)[0])

        return call


def nan(y):
    y[-1, -1, -1] = np.nan
    return y


def one_value(y):
    y[1, 1, 1] += 1e-3
    return y


@pytest.mark.parametrize("alter", [nan, one_value, lambda y: y[:-1], lambda y: y[::-1], lambda y: (y, y)])
def test_a_wrong_engine_is_not_timed(alter):
    engine = Altered(alter)
    results = measure.measure(SMALL, [engine, ENGINES["numpy"]], 1, **EFFORT)
    assert results["altered"]["status"] == "wrong" and "seconds" not in results["altered"]
    assert engine.calls == 1 and results["numpy"]["status"] == "ok"
    json.dumps(results, allow_nan=False)


def test_weights_of_bfloat16_are_wrong():
    class Bfloat16(Numpy):
        def prepare(self, case, state_dict, threads):
            if state_dict["weight_ih_l0"].dtype == np.float32:  # float64 is the oracle's
                state_dict = {
                    n: (a.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32) for n, a in state_dict.items()
                }
            return super().prepare(case, state_dict, threads)

    assert measure.measure(SMALL, [Bfloat16()], 1, **EFFORT)["numpy"]["status"] == "wrong"


def test_engines_that_fail_or_are_missing_are_reported():
    def fail(y):
        raise RuntimeError("no such kernel")

    missing = Altered(fail)
    missing.name, missing.module = "missing", "no_such_package"
    results = measure.measure(SMALL, [Altered(fail), missing], 1, **EFFORT)
    assert results["missing"] == {"status": "missing"}
    assert results["altered"] == {"status": "failed", "message": "RuntimeError: no such kernel"}


def test_a_wrong_oracle_is_noticed():
    with pytest.raises(AssertionError, match="reference"):
        problem.expected(SMALL, problem.weights(SMALL), problem.inputs(SMALL), Altered(nan))
