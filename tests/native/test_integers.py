"""Products with int8 weights: their exact definition, on every instruction set, and values that are not finite."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from rnnfast.native._engine import Cell, recurrent
from rnnfast.native._kernels import Matrix, isas, set_isa
from rnnfast.native.weight_types import integer_columns

# rows, K, N: one segment and several, odd sizes, one panel of each width, more rows than a group of them holds.
SIZES = [(1, 33, 50), (5, 100, 70), (13, 257, 130), (7, 1000, 48), (300, 2500, 53), (600, 64, 64), (2, 1025, 128)]
SEGMENT = 1024
LARGEST = {"int8": np.float32(16383), "int8_a8": np.float32(127)}


@pytest.fixture(autouse=True)
def best_isa_afterwards():
    yield
    set_isa(isas()[0])


def problem(rows, K, N):
    random = np.random.default_rng(K)
    x = random.standard_normal((rows, K)) * 10.0 ** random.integers(-3, 4, (rows, 1))
    x[rows // 2] = 0
    return (a.astype(np.float32) for a in (x, random.standard_normal((K, N)), random.standard_normal(N)))


def by_definition(x, weight, bias, most):
    """Each segment's exact sum of integers, rounded to float32, times both scales, added with one rounding."""
    integers, scales = integer_columns(weight)
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest == 0, np.float32(0), most / largest)
    rows = np.rint(x * inverse).astype(np.int64)
    y = np.broadcast_to(bias, (len(x), len(bias)))
    for k in range(0, x.shape[1], SEGMENT):
        exact = rows[:, k : k + SEGMENT] @ integers[k : k + SEGMENT].astype(np.int64)
        assert np.max(np.abs(exact), initial=0) < 2**31
        scaled = exact.astype(np.float32) * scales
        y = (scaled.astype(np.float64) * (largest / most) + y).astype(np.float32)
    return y


@pytest.mark.parametrize("weight_type", LARGEST)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_are_what_their_definition_says(size, weight_type, isa):
    x, weight, bias = problem(*size)
    y = Matrix(weight, bias, weight_type=weight_type).multiply(x)
    # A product in float64 rounds twice, which may differ in the last bit.
    np.testing.assert_allclose(y, by_definition(x, weight, bias, LARGEST[weight_type]), rtol=2e-7, atol=1e-30)


@pytest.mark.parametrize("weight_type", LARGEST)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_have_the_same_bits_on_every_instruction_set_and_alone(size, weight_type):
    x, weight, bias = problem(*size)
    matrix = Matrix(weight, bias, weight_type=weight_type)
    results = set()
    for isa in isas():
        set_isa(isa)
        y = matrix.multiply(x)
        results.add(y.tobytes())
        for i in range(0, len(x), 1 + len(x) // 5):
            assert matrix.multiply(x[i : i + 1]).tobytes() == y[i : i + 1].tobytes()
    assert len(results) == 1


def test_products_reach_the_ends_of_their_integers(isa):
    """1,024 products of the largest integers still fit a sum."""
    weight = np.full((SEGMENT, 64), -128, np.float32)
    weight[0] = np.where(np.arange(64) % 2, 127, -128)
    x = np.full((2, SEGMENT), 3, np.float32)
    x[1] = -3
    y = Matrix(weight, weight_type="int8").multiply(x)
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight, rtol=1e-6)


def test_rows_that_are_not_finite_give_what_float32_says(isa):
    random = np.random.default_rng(0)
    weight = (random.integers(-3, 4, (1100, 50)) / 8).astype(np.float32)
    weight[0, 0] = 127 / 8
    x = random.standard_normal((6, 1100)).astype(np.float32)
    expected = x @ weight
    x[0, 5], x[1, 1050], x[2, 7], x[3, 8] = np.nan, np.inf, -np.inf, np.inf
    x[3, 9] = -np.inf
    y = Matrix(weight, weight_type="int8").multiply(x)
    assert np.all(np.isnan(y[0]))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(y[1], np.inf * weight[1050])
        np.testing.assert_array_equal(y[2], -np.inf * weight[7])
        np.testing.assert_array_equal(y[3], np.inf * weight[8] - np.inf * weight[9])
    assert np.max(np.abs(y[4:] - expected[4:])) < 0.01


def test_tiny_and_huge_rows(isa):
    random = np.random.default_rng(1)
    weight = random.standard_normal((40, 64)).astype(np.float32)
    x = random.standard_normal((5, 40)).astype(np.float32)
    scale = np.array([1, 1e-24, 1e30, 1e-33, 1e-41], np.float32)[:, None]
    y = Matrix(weight, weight_type="int8").multiply((x * scale).astype(np.float32))
    expected = x.astype(np.float64) @ weight * scale
    for i in range(3):
        np.testing.assert_allclose(y[i], expected[i], atol=0.02 * np.max(np.abs(expected[i])))
    assert not np.any(y[3:])


CELLS = {
    "LSTM": ("LSTM", ("Sigmoid", "Tanh", "Tanh"), {}),
    "LSTM with a projection of few outputs": ("LSTM", ("Sigmoid", "Tanh", "Tanh"), {"P": 20}),
    "LSTM with a projection": ("LSTM", ("Sigmoid", "Tanh", "Tanh"), {"P": 70}),
    "LSTM with other activations": ("LSTM", ("HardSigmoid", "Tanh", "Relu"), {}),
    "GRU": ("GRU", ("Sigmoid", "Tanh"), {"linear_before_reset": True}),
    "GRU with reset first": ("GRU", ("Sigmoid", "Tanh"), {}),
    "RNN": ("RNN", ("Tanh",), {}),
    "RNN with Relu": ("RNN", ("Relu",), {}),
}
# Inputs and hidden units; in some only one of the products is computed in integers.
CELL_SIZES = [(33, 37), (64, 64), (5, 50), (130, 100), (1, 17)]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("size", CELL_SIZES, ids=str)
def test_sequences_have_the_same_bits_in_any_way(name, size, forced):
    """Whole or step by step, in a batch or alone, ragged or not, by threads, and on every instruction set."""
    kind, activations, options = CELLS[name]
    I, H = size
    random = np.random.default_rng(I)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    options = dict(options)
    P = options.pop("P", None)
    O = P or H

    def weights(*shape):
        return random.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(H))

    cell = Cell(
        kind,
        weights(gates * H, I),
        weights(gates * H, O),
        weights(2 * gates * H),
        activations=[(a, 0.2, 0.5) for a in activations],
        projection=None if P is None else weights(P, H),
        weight_type="int8",
        **options,
    )
    T, B = 6, 9
    x = (random.standard_normal((T, B, I)) * random.lognormal(0, 1, (T, B, 1)) * 0.1).astype(np.float32)
    h0 = (random.standard_normal((1, B, O)) * 2).astype(np.float32)
    c0 = random.standard_normal((1, B, H)).astype(np.float32) if kind == "LSTM" else None
    lens = random.integers(0, T + 1, B)

    def run(x, h0, c0, lens=None, threads=1):
        y = np.zeros((len(x), 1, x.shape[1], O), np.float32)
        return y, *recurrent((cell,), (False,), x, y, h0, c0, lens, threads)

    expected = run(x, h0, c0)[0]
    assert np.all(np.isfinite(expected))
    for isa in isas():
        set_isa(isa)
        for threads in (1, 3):
            assert run(x, h0, c0, None, threads)[0].tobytes() == expected.tobytes()
            ragged = run(x, h0, c0, lens, threads)[0]
            for b in range(B):
                assert ragged[: lens[b], 0, b].tobytes() == expected[: lens[b], 0, b].tobytes()
            h, c = h0, c0
            for t in range(T):
                y, h, c = run(x[t : t + 1], h, c, None, threads)
                assert y.tobytes() == expected[t : t + 1].tobytes()
            alone = run(x[:, 3:4], h0[:, 3:4], None if c0 is None else c0[:, 3:4], None, threads)[0]
            assert alone.tobytes() == expected[:, :, 3:4].tobytes()


def test_the_scale_of_bounded_outputs_is_that_of_1(isa):
    """A row whose values are at most 1 is rounded to multiples of 1 / 16383, so that no value decides about others."""
    H = 64
    R = np.eye(H, dtype=np.float32)
    cell = Cell("RNN", np.zeros((H, 40), np.float32), R, activations=[("Tanh", 0, 0)], weight_type="int8")
    h0 = np.linspace(-1, 1, H, dtype=np.float32).reshape(1, 1, H) * np.float32(0.01)
    y = np.zeros((1, 1, 1, H), np.float32)
    recurrent((cell,), (False,), np.zeros((1, 1, 40), np.float32), y, h0)
    np.testing.assert_allclose(y[0, 0, 0], np.tanh(np.rint(h0[0, 0] * LARGEST["int8"]) / LARGEST["int8"]), rtol=1e-6)


def test_kernels_fit_the_stack_of_a_small_thread(tmp_path):
    """Threads of musl have 128 KiB."""
    weight = np.random.default_rng(0).standard_normal((64, 70, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 70, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    program = f"""
import threading
import numpy as np
import rnnfast
from rnnfast import nn

model = rnnfast.load({str(path)!r}, weights="int8")
lstm = nn.LSTM(300, 200, rng=0).quantized("int8")
linear = nn.Linear(4000, 60, rng=0).quantized("int8")
calls = [
    (model, np.ones((2, 70, 9, 20), np.float32)),
    (lstm, np.ones((3, 40, 300), np.float32)),
    (linear, np.ones((5, 4000), np.float32)),
]
threading.stack_size(128 << 10)
for isa in rnnfast.isas():
    rnnfast.set_isa(isa)
    for call, x in calls:
        run = (lambda: model(x=x)) if call is model else (lambda: call(x))
        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
print("done")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_recurrent_weights_of_too_many_inputs_for_integers_beside_input_weights_of_the_most():
    """The integers of a row of inputs fit the memory of a group, whatever the size of a state that stays float32."""
    hidden, outputs, inputs = 16, 20_000, 1 << 12
    random = np.random.default_rng(0)
    shapes = (4 * hidden, inputs), (4 * hidden, outputs), (outputs, hidden), (1, 1, inputs)
    W, R, projection, x = (0.01 * random.standard_normal(shape, np.float32) for shape in shapes)
    results = []
    for weight_type in (None, "int8"):
        activations = [("Sigmoid", 0, 0), ("Tanh", 0, 0), ("Tanh", 0, 0)]
        cell = Cell("LSTM", W, R, activations=activations, projection=projection, weight_type=weight_type)
        results.append(np.empty((1, 1, 1, outputs), np.float32))
        recurrent((cell,), (False,), x, results[-1])
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=0.02 * np.max(np.abs(results[0])))
