"""Native Attention over random attributes."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.graphs import load, model_of
from tests.onnx.compile.helpers import compare

TOLERANCE = 3e-6  # products of up to some ten terms, and a softmax
pytestmark = pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="this onnx has no Attention")


def attention_of(rng, case):
    """Return (model, feed) of a random Attention."""
    batch, kv_heads, groups, q_steps, k_steps, size, v_size = map(int, rng.integers(1, 6, 7))
    past, heads = (3 if case % 3 == 0 else 0), kv_heads * groups
    total = past + k_steps

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    feed = {
        "q": draw(batch, heads, q_steps, size),
        "k": draw(batch, kv_heads, k_steps, size),
        "v": draw(batch, kv_heads, k_steps, v_size),
    }
    attributes = {"is_causal": case % 2, "softcap": float(rng.choice([0, 2]))}
    if case % 4 == 1:
        attributes |= {"scale": 0.3}
    if case % 5 == 1:
        feed = {name: np.ascontiguousarray(x.swapaxes(1, 2)).reshape(batch, x.shape[2], -1) for name, x in feed.items()}
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    inputs = [*"qkv", "", "", ""]
    if case % 3 != 1:
        mask = rng.random((q_steps, total)) < 0.7 if case % 2 else draw(batch, heads, q_steps, total)
        mask[..., 0, :] = False if case % 2 else -np.inf  # the first query attends nothing
        feed["mask"], inputs[3] = mask, "mask"
    if past:
        feed |= {"pk": draw(batch, kv_heads, past, size), "pv": draw(batch, kv_heads, past, v_size)}
        inputs[4:] = "pk", "pv"
    node = helper.make_node("Attention", inputs, ["y", "k2", "v2"], **attributes)
    ends = [helper.make_node("Neg", [name], [f"{name}_"]) for name in ("y", "k2", "v2")]
    kinds = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in feed.items()}
    values = [(name, kinds[name], x.shape) for name, x in feed.items()]
    return load(model_of([node, *ends], values, [(f"{n}_", 1, None) for n in ("y", "k2", "v2")], opset=23)), feed


@pytest.mark.parametrize("case", range(24))
def test_attention(isa, case):
    model, feed = attention_of(np.random.default_rng(case), case)
    compare(model, TOLERANCE, **feed)


def test_a_row_has_the_bits_that_it_has_alone(isa):
    rng = np.random.default_rng(0)
    shape = 5, 3, 7, 8
    names = "qkv"
    node = helper.make_node("Attention", list(names), ["y"], is_causal=1)
    model = load(model_of([node], [(n, 1, ["b", *shape[1:]]) for n in names], [("y", 1, None)], opset=23))
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name in names}
    together = model(feed)["y"]
    for row in range(5):
        alone = model({name: x[row : row + 1] for name, x in feed.items()})["y"]
        np.testing.assert_array_equal(alone[0], together[row])
