"""RNN, GRU and LSTM nodes of graphs: attributes, shapes, layouts, element types, and what is refused."""

import numpy as np
import pytest
from onnx import helper

import rnnfast
from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError
from tests.graphs import load, model_of, random

SIZES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(kind, T=5, B=2, layout=0, D=1, dtype=np.float32, states=True, I=4, H=3):
    """name -> array of every input of a recurrent node, in order."""
    G = SIZES[kind]
    arrays = {
        "x": random(0, *((T, B, I) if layout == 0 else (B, T, I))),
        "w": random(1, D, G * H, I),
        "r": random(2, D, G * H, H),
        "b": random(3, D, 2 * G * H),
        "lens": None,
    }
    state = (D, B, H) if layout == 0 else (B, D, H)
    arrays["h"] = random(4, *state) if states else None
    if kind == "LSTM":
        arrays |= {"c": random(5, *state) if states else None, "p": random(6, D, 3 * H)}
    arrays = {name: a if a is None else a.astype(dtype) for name, a in arrays.items()}
    return arrays


def recurrent_model(kind, arrays, constants, **attributes):
    names = [name if a is not None else "" for name, a in arrays.items()]
    node = helper.make_node(kind, names, ["y", "yh", "yc"][: 2 + (kind == "LSTM")], "cell", hidden_size=3, **attributes)
    free = [
        (n, helper.np_dtype_to_tensor_dtype(a.dtype), [f"{n}{i}" for i in range(a.ndim)])
        for n, a in arrays.items()
        if a is not None and n not in constants
    ]
    return model_of([node], free, [(n, 0, None) for n in node.output], {n: arrays[n] for n in constants}, opset=14)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("constants", [(), ("w", "r", "b"), ("w",)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_recurrent_nodes(kind, layout, direction, constants, dtype):
    arrays = recurrent(kind, layout=layout, D=2 if direction == "bidirectional" else 1, dtype=dtype)
    arrays["lens"] = np.array([3, 5], np.int32)
    model = load(recurrent_model(kind, arrays, constants, layout=layout, direction=direction))
    feed = {n: a for n, a in arrays.items() if n not in constants}
    out, reference = model(feed), model.reference(feed)
    for name, y in out.items():
        assert y.dtype == dtype and y.shape == reference[name].shape
        np.testing.assert_allclose(y, reference[name], rtol=0, atol=2e-3 if dtype == np.float16 else 1e-6)
    long = out.y[3:, ..., 0, :] if layout == 0 else out.y[0, 3:]
    assert not long.any()


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("lens", [None, [3, 5, 0], [5, 5, 5]])
def test_a_plan_gives_the_bits_of_the_checked_call(kind, direction, states, lens):
    arrays = recurrent(kind, B=3, D=2 if direction == "bidirectional" else 1, states=states)
    arrays["lens"] = None if lens is None else np.array(lens, np.int32)
    model = load(
        recurrent_model(kind, arrays, ("w", "r", "b", *("p" for _ in range(kind == "LSTM"))), direction=direction)
    )
    feed = {v.name: arrays[v.name] for v in model.inputs}
    planned, _ = model.prepare(feed)
    (node,) = planned.graph.nodes
    checked = node.run(*arrays.values())
    for _ in range(3):
        for ours, expected in zip(model(feed).values(), checked, strict=True):
            assert ours.tobytes() == expected.tobytes() and ours.shape == expected.shape
    (plan,) = planned.plans.kept
    assert plan.steps[0][0] is not node.run


def test_lengths_are_checked_at_every_call():
    arrays = recurrent("GRU", B=3, states=False)
    arrays["lens"] = np.array([4, 0, 5], np.int32)
    session = rnnfast.InferenceSession(recurrent_model("GRU", arrays, ("w", "r", "b")).SerializeToString())
    feed = {"x": arrays["x"], "lens": arrays["lens"]}
    expected = [y.tobytes() for y in session.run(None, feed)]
    for wrong, first in ([4, -1, 7], -1), ([4, 0, 6], 6):
        with pytest.raises(
            InputError, match=rf"<bytes>: node 'cell' \(GRU\): sequence_lens has {first}, expected 0 to 5"
        ):
            session.run(None, feed | {"lens": np.array(wrong, np.int32)})
        assert [y.tobytes() for y in session.run(None, feed)] == expected


WRONG_RECURRENT = {
    "hidden_size": (lambda a, k: k.update(hidden_size=5), ModelError, "hidden_size = 5"),
    "W rows": (lambda a, k: a.update(w=a["w"][:, 1:]), ModelError, "W has shape"),
    "R": (lambda a, k: a.update(r=a["r"][:, :, 1:]), ModelError, "R has shape|hidden_size"),
    "B": (lambda a, k: a.update(b=a["b"][:, 1:]), ModelError, "B has shape"),
    "P": (lambda a, k: a.update(p=a["p"][:, 1:]), ModelError, "P has shape"),
    "directions": (lambda a, k: k.update(direction="bidirectional"), ModelError, "bidirectional"),
    "direction": (lambda a, k: k.update(direction="sideways"), UnsupportedError, "'direction' = 'sideways'"),
    "layout": (lambda a, k: k.update(layout=2), UnsupportedError, "'layout' = 2"),
    "activation": (lambda a, k: k.update(activations=["Sigmoid", "Sine", "Tanh"]), UnsupportedError, "'Sine'"),
    "activations": (lambda a, k: k.update(activations=["Sigmoid"]), UnsupportedError, "expected 3"),
    "clip": (lambda a, k: k.update(clip=-1.0), UnsupportedError, "'clip' = -1.0"),
    "clip 0": (lambda a, k: k.update(clip=0.0), UnsupportedError, "'clip' = 0.0"),
    "input_forget": (lambda a, k: k.update(input_forget=2), UnsupportedError, "'input_forget' = 2"),
    "foreign": (lambda a, k: k.update(linear_before_reset=1), UnsupportedError, "'linear_before_reset'"),
}


@pytest.mark.parametrize("case", WRONG_RECURRENT)
def test_wrong_recurrent_nodes_are_refused_at_load(case):
    change, error, message = WRONG_RECURRENT[case]
    arrays, attributes = recurrent("LSTM"), {"hidden_size": 3}
    change(arrays, attributes)
    model = recurrent_model("LSTM", arrays, ("w", "r", "b", "p"))
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(helper.make_attribute(*item) for item in attributes.items())
    with pytest.raises(error, match=f"node 'cell' .LSTM.*({message})"):
        load(model)


@pytest.mark.parametrize(
    "lens, error",
    [
        ([5, 6], InputError),
        ([5, -1], InputError),
        ([5], InputError),
        ([[5, 5]], InputError),
        ([5.0, 5.0], InputTypeError),
    ],
)
def test_wrong_lengths(lens, error):
    arrays = recurrent("GRU")
    arrays["lens"] = np.array(lens, np.int32 if error is InputError else np.float32)
    with pytest.raises(error, match="GRU.*sequence_lens"):
        load(recurrent_model("GRU", arrays, ("w", "r", "b")))(
            {n: a for n, a in arrays.items() if n not in ("w", "r", "b") and a is not None}
        )


def test_activations_take_alpha_and_beta_in_order():
    arrays = recurrent("GRU", D=2)
    model = recurrent_model(
        "GRU",
        arrays,
        ("w", "r", "b"),
        direction="bidirectional",
        activations=["hardsigmoid", "TANH", "ScaledTanh", "LeakyRelu"],
        activation_alpha=[0.3, 0.7, -0.4],
        activation_beta=[0.4, -0.2],
    )
    out = load(model)({n: arrays[n] for n in ("x", "h")})
    triples = (
        (("HardSigmoid", np.float32(0.3), np.float32(0.4)), ("Tanh", 0, 0)),
        (("ScaledTanh", np.float32(0.7), np.float32(-0.2)), ("LeakyRelu", np.float32(-0.4), 0)),
    )
    y, last = rnnfast.reference.gru(
        arrays["x"],
        arrays["w"],
        arrays["r"],
        arrays["b"],
        None,
        arrays["h"],
        activations=triples,
        direction="bidirectional",
    )
    np.testing.assert_allclose(out.y, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("layout", [0, 1])
def test_a_zero_state_of_batch_1_fits_any_batch(kind, layout):
    arrays = recurrent(kind, B=3, layout=layout)
    constants = ("w", "r", "b", "h") + (("c",) if kind == "LSTM" else ())
    for name in constants[3:]:
        arrays[name] = np.zeros((1, 1, 3), np.float32)
    out = load(recurrent_model(kind, arrays, constants, layout=layout))
    without = arrays | dict.fromkeys(constants[3:])
    feed = {n: a for n, a in arrays.items() if n not in constants and a is not None}
    expected = load(recurrent_model(kind, without, ("w", "r", "b"), layout=layout))(feed)
    for name, y in out(feed).items():
        assert y.tobytes() == expected[name].tobytes()
        np.testing.assert_allclose(y, out.reference(feed)[name], rtol=0, atol=1e-6)
    arrays["h"] = np.full((1, 1, 3), 0.5, np.float32)
    with pytest.raises(InputError, match="initial_h"):
        load(recurrent_model(kind, arrays, constants, layout=layout))(feed)
