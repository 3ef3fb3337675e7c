"""Gradients are right, and those that are wrong are not timed."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import gradients, problem
from tests.bench.helpers import EFFORT, LAYERS, SMALL, of_training


@pytest.mark.parametrize("engine", of_training(gradients.ENGINES), ids=lambda engine: engine.name)
def test_gradients_are_right(engine):
    if not engine.installed():
        pytest.skip(f"{engine.name} is not installed")
    for case in [*LAYERS, dataclasses.replace(LAYERS[1], state=True), dataclasses.replace(LAYERS[3], kind="GRU")]:
        result = gradients.measure(case, [engine], 1, **EFFORT)[engine.name]
        assert result["status"] == "ok" and 0 < result["error"] < 2e-6, (case, result)
        assert result["seconds"][1] > 0
        assert ("saved" in result) == (engine.name == "rnnfast")


class AlteredGradients(gradients.Numpy):
    """The NumPy engine with something done to its named outputs."""

    name = "altered"

    def __init__(self, alter):
        self.alter, self.calls = alter, 0

    def prepare(self, case, state_dict, threads):
        right = super().prepare(case, state_dict, threads)

        def call(*values):
            self.calls += 1
            return right(*values)

        return call

    def named(self, case, outputs):
        found = super().named(case, outputs)
        self.alter(found)
        return found


@pytest.mark.parametrize("name", ["y", "dx", "dh0", "dc0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("what", ["value", "nan", "missing", "shape"])
def test_wrong_gradients_are_not_timed(name, what):
    def alter(found):
        found[name] = found[name].copy()
        if what == "value":
            found[name].flat[-1] += 1e-3 * np.abs(found[name]).max()
        elif what == "nan":
            found[name].flat[-1] = np.nan
        elif what == "missing":
            del found[name]
        else:
            found[name] = found[name][:-1]

    engine = AlteredGradients(alter)
    results = gradients.measure(LAYERS[0], [engine, gradients.ENGINES["numpy"]], 1, **EFFORT)
    assert results["altered"]["status"] == "wrong" and "seconds" not in results["altered"]
    assert engine.calls == 1 and results["numpy"]["status"] == "ok"


def test_a_wrong_oracle_of_gradients_is_noticed():
    def alter(found):
        found["dx"][0, 0, 0] += 1e-9

    values = gradients.inputs(SMALL)
    with pytest.raises(AssertionError, match="float64 gradients"):
        gradients.expected(SMALL, problem.weights(SMALL), values, AlteredGradients(alter))
