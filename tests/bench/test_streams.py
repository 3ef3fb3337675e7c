"""Pools of streams and ragged batches are right, and those that are wrong are not timed."""

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import streams
from bench.cases import Pooled
from tests.bench.helpers import EFFORT, SMALL_POOLS


@pytest.mark.parametrize("case", SMALL_POOLS, ids=lambda case: case.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_pools_are_right(case, threads):
    for name, result in streams.measure(case, threads, *EFFORT.values()).items():
        if result["status"] == "missing":
            assert name.startswith(("onnxruntime", "torch"))
        else:
            assert result["status"] == "ok" and 0 < result["error"] < 2e-6 and result["seconds"][1] > 0, (name, result)


def test_a_pool_of_silero():
    case = Pooled("silero", "Silero", 3, 128)
    if streams.unavailable(case):
        pytest.skip(streams.unavailable(case))
    results = streams.measure(case, 1, *EFFORT.values())
    assert results["rnnfast"]["error"] == results["rnnfast mapping"]["error"] == 0
    assert {result["status"] for result in results.values()} <= {"ok", "missing"}


@pytest.mark.parametrize("case", [SMALL_POOLS[1], SMALL_POOLS[2]], ids=lambda case: case.name)
@pytest.mark.parametrize(
    "peer, factor, said",
    [(True, 1.001, "wrong"), (False, 1 + 1e-6, "ValueError: the bits are not those of each stream alone")],
)
def test_wrong_pools_are_not_timed(case, peer, factor, said):
    engine = (streams.Ragged if case.lengths else streams.Rnnfast)()
    prepare, calls = engine.prepare, []

    def prepared(*args):
        call = prepare(*args)

        def wrong(x):
            calls.append(x)
            return call(x) * np.float32(factor)

        return wrong

    engine.prepare, engine.peer = prepared, peer
    measured = streams.measure_ragged if case.lengths else streams.measure_live
    result = measured(case, [engine], 1, *EFFORT.values())["rnnfast"]
    assert said in (result["status"], result.get("message")) and "seconds" not in result
    assert len(calls) == (1 if case.lengths else streams.STEPS)
