"""Arithmetic operators against onnxruntime and against plain formulas, where ONNX's own node tests are thin."""

import contextlib
import itertools
import math
import random
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper

from rnnfast.errors import InputError, InputTypeError, LimitError, UnsupportedError
from rnnfast.onnx.ops import lookup

# Both sides compute in float32 and add up in different orders; the largest difference seen over these cases, relative
# to the largest output, is 6e-7.
TOLERANCE = 3e-6

WHOLE = np.array([-7, -3, -1, 0, 1, 4, 9])


def floats(rng, *shape, dtype=np.float32):
    x = rng.standard_normal(shape).astype(dtype)
    x.flags.writeable = False
    return x


def run(op_type, inputs, opset=20, **attributes):
    """With attributes as a file gives them: lists of integers are tuples."""
    attributes = {name: tuple(v) if isinstance(v, list) else v for name, v in attributes.items()}
    return lookup("", op_type, opset)(*inputs, **attributes)


def onnxruntime_outputs(op_type, inputs, opset=20, n_outputs=1, **attributes):
    """The outputs of a model of one node, or None where onnxruntime has no such kernel."""
    ort = pytest.importorskip("onnxruntime")
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    given = {name: x for name, x in zip(names, inputs) if name}
    outputs = [f"y{i}" for i in range(n_outputs)]
    node = helper.make_node(op_type, names, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options)
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    return session.run(None, given)


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_like_onnxruntime(op_type, inputs, opset=20, n_outputs=1, **attributes):
    expected = onnxruntime_outputs(op_type, inputs, opset, n_outputs, **attributes)
    if expected is None:
        pytest.skip(f"onnxruntime has no {op_type} for these types")
    actual = run(op_type, inputs, opset, **attributes)
    for y, z in zip(actual if isinstance(actual, tuple) else (actual,), expected):
        assert_close(y, z)


def window_attributes(choose, rank, size, kernel, padding=True):
    """Random strides, dilations and padding under which every window fits."""
    strides = [choose.randint(1, 3) for _ in range(rank)]
    mode = choose.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    # onnxruntime has no dilations with SAME, and pads by negative amounts where the stride exceeds the kernel.
    same = mode.startswith("SAME")
    dilations = [1 if same else choose.randint(1, 2) for _ in range(rank)]
    if same:
        strides = [min(s, k) for s, k in zip(strides, kernel)]
    attributes = dict(strides=strides, dilations=dilations, auto_pad=mode)
    pads = [0] * (2 * rank)
    if mode == "NOTSET" and padding:
        pads = [choose.randint(0, k - 1) for k in kernel * 2]
        attributes["pads"] = pads
    fits = same or all(
        n + a + b >= (k - 1) * d + 1 for n, k, d, a, b in zip(size, kernel, dilations, pads[:rank], pads[rank:])
    )
    return attributes, fits


def window_cases(count, seed):
    choose = random.Random(seed)
    while count:
        rank = choose.choice([1, 2, 2, 3])
        size = [choose.randint(2, 9 if rank < 3 else 5) for _ in range(rank)]
        kernel = [choose.randint(1, 4) for _ in range(rank)]
        attributes, fits = window_attributes(choose, rank, size, kernel)
        if fits:
            count -= 1
            yield choose, size, kernel, attributes


def test_conv():
    rng = np.random.default_rng(1)
    for choose, size, kernel, attributes in window_cases(40, seed=1):
        group, inputs, outputs = choose.randint(1, 3), choose.randint(1, 4), choose.randint(1, 3)
        x = floats(rng, choose.randint(1, 3), group * inputs, *size)
        w = floats(rng, group * outputs, inputs, *kernel)
        bias = floats(rng, group * outputs) if choose.random() < 0.5 else None
        assert_like_onnxruntime("Conv", [x, w, bias], group=group, kernel_shape=kernel, **attributes)


def test_conv_in_blocks(monkeypatch):
    from rnnfast.onnx.ops import convolution

    rng = np.random.default_rng(2)
    x, w = floats(rng, 3, 4, 9, 7), floats(rng, 6, 2, 3, 2)
    whole = run("Conv", [x, w], group=2, pads=(1, 0, 2, 1))
    for budget in (1, 2000, 9000):
        monkeypatch.setattr(convolution, "COLUMN_BYTES", budget)
        assert_close(run("Conv", [x, w], group=2, pads=(1, 0, 2, 1)), whole)


def test_conv_of_no_channels_is_its_bias():
    from rnnfast.onnx import lowering

    x, w, bias = np.zeros((2, 0, 5), np.float32), np.zeros((3, 0, 2), np.float32), np.float32([1, -2, 3])
    node = SimpleNamespace(
        op_type="Conv", domain="", inputs=("x", "w", "b"), attributes={}, function=lookup("", "Conv", 20)
    )
    expected = np.broadcast_to(bias[:, None], (2, 3, 4))
    np.testing.assert_array_equal(lowering.lower(node, [None, w, bias])(x, w, bias), expected)
    np.testing.assert_array_equal(run("Conv", [x, w, bias]), expected)


def test_conv_transpose():
    rng = np.random.default_rng(3)
    choose = random.Random(3)
    for _ in range(40):
        rank, group = choose.choice([1, 2, 2, 3]), choose.randint(1, 3)
        size = [choose.randint(1, 5) for _ in range(rank)]
        kernel = [choose.randint(1, 4) for _ in range(rank)]
        mode = choose.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
        strides = [choose.randint(1, k if mode.startswith("SAME") else 3) if k > 1 else 1 for k in kernel]
        dilations = [choose.randint(1, 2) for _ in range(rank)]
        full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, strides, kernel, dilations)]
        attributes = dict(strides=strides, dilations=dilations, auto_pad=mode, group=group)
        if choose.random() < 0.3:
            attributes["output_padding"] = [choose.randint(0, s - 1) for s in strides]
        if choose.random() < 0.3:
            attributes["output_shape"] = [choose.randint(max(1, n - 2), n) for n in full]
        elif mode == "NOTSET":
            attributes["pads"] = [choose.randint(0, (n - 1) // 2) for n in full * 2]
        x = floats(rng, choose.randint(1, 2), group * 2, *size)
        w = floats(rng, group * 2, choose.randint(1, 3), *kernel)
        bias = floats(rng, w.shape[1] * group) if choose.random() < 0.5 else None
        assert_like_onnxruntime("ConvTranspose", [x, w, bias], **attributes)


@pytest.mark.parametrize(
    "op_type, extra",
    [
        ("MaxPool", {}),
        ("AveragePool", dict(count_include_pad=0)),
        ("AveragePool", dict(count_include_pad=1)),
        ("LpPool", dict(p=3)),
    ],
)
def test_pooling(op_type, extra):
    rng = np.random.default_rng(4)
    for choose, size, kernel, attributes in window_cases(30, seed=4):
        if attributes["auto_pad"] != "VALID":
            attributes["ceil_mode"] = choose.randint(0, 1)
        x = floats(rng, 2, 3, *size)
        try:
            run(op_type, [x], kernel_shape=kernel, **attributes, **extra)
        except InputError as error:
            assert "without any input" in str(error)
            continue
        assert_like_onnxruntime(op_type, [x], kernel_shape=kernel, **attributes, **extra)


@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_indices(storage_order):
    """Of whole numbers with many ties, of which the first counts."""
    rng = np.random.default_rng(5)
    for choose, size, kernel, attributes in window_cases(20, seed=5):
        x = np.round(floats(rng, 2, 3, *size))
        try:
            y, indices = run(
                "MaxPool", [x], kernel_shape=kernel, storage_order=storage_order, n_outputs=2, **attributes
            )
        except InputError as error:
            assert "without any input" in str(error)
            continue
        expected = onnxruntime_outputs(
            "MaxPool", [x], n_outputs=2, kernel_shape=kernel, storage_order=storage_order, **attributes
        )
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize(
    "kernel, dilation, stride, pads",
    [
        (2, 1, 1, (1, 0)),
        (9, 1, 1, (8, 8)),
        (12, 2, 3, (7, 15)),
        (30, 3, 2, (29, 58)),
        (8, 3, 4, (15, 6)),
        (7, 1, 3, (6, 2)),
    ],
)
def test_pooling_of_windows_shorter_and_longer_than_the_input(kernel, dilation, stride, pads):
    """Against each window's own elements; onnxruntime refuses some."""
    x = np.round(floats(np.random.default_rng(22), 1, 1, 8))
    windows = [
        [i for i in range(o, o + kernel * dilation, dilation) if 0 <= i < 8]
        for o in range(-pads[0], 8 + pads[1] - (kernel - 1) * dilation, stride)
    ]
    attributes = dict(kernel_shape=(kernel,), dilations=(dilation,), strides=(stride,), pads=pads)
    if not all(windows):
        with pytest.raises(InputError, match="without any input"):
            run("MaxPool", [x], **attributes)
        return
    y, indices = run("MaxPool", [x], n_outputs=2, **attributes)
    assert indices[0, 0].tolist() == [max(window, key=lambda i: x[0, 0, i]) for window in windows]
    np.testing.assert_array_equal(y[0, 0], x[0, 0, indices[0, 0]])
    average = run("AveragePool", [x], **attributes)[0, 0]
    assert_close(average, np.array([x[0, 0, window].mean() for window in windows], np.float32))


@pytest.mark.parametrize(
    "error, attributes",
    [
        (None, dict(kernel_shape=(2**24,), auto_pad="SAME_UPPER")),
        (None, dict(kernel_shape=(2**16 + 1,), pads=(2**16, 2**16))),
        (None, dict(kernel_shape=(2,), dilations=(2**28,), pads=(2**28, 0))),
        (InputError, dict(kernel_shape=(3,), pads=(2**24, 2**24))),
        (InputError, dict(kernel_shape=(3,), pads=(2**62, 2**62))),
        (LimitError, dict(kernel_shape=(2**63 - 1,), pads=(2**62, 2**62))),
        (LimitError, dict(kernel_shape=(2**31,), pads=(2**31 - 1, 2**31 - 1))),
    ],
)
def test_huge_pooling_windows_take_the_inputs_memory(error, attributes):
    x = np.arange(8, dtype=np.float32)[None, None]
    tracemalloc.start()
    try:
        for op_type, outputs in (("MaxPool", dict(n_outputs=2)), ("AveragePool", {}), ("LpPool", {})):
            with pytest.raises(error) if error else contextlib.nullcontext():
                run(op_type, [x], **attributes, **outputs)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_pooling_of_too_much_work_is_refused():
    with pytest.raises(LimitError, match="operations"):
        run("MaxPool", [np.zeros((1, 1, 2**18), np.float32)], kernel_shape=(2**18,), auto_pad="SAME_UPPER")


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling_under_valid_ignores_ceil_mode(op_type):
    """As the spec's formula of the output's shape does; onnxruntime gives another window."""
    x = floats(np.random.default_rng(23), 1, 1, 7)
    for auto_pad, ceil_mode, count in (("VALID", 0, 3), ("VALID", 1, 3), ("NOTSET", 0, 3), ("NOTSET", 1, 4)):
        y = run(op_type, [x], kernel_shape=(2,), strides=(2,), auto_pad=auto_pad, ceil_mode=ceil_mode)
        assert (y[0] if isinstance(y, tuple) else y).shape == (1, 1, count)


def test_global_pooling():
    x = floats(np.random.default_rng(18), 2, 3, 4, 5)
    flat = np.abs(x.astype(np.float64)).reshape(2, 3, 1, -1)
    assert_close(run("GlobalLpPool", [x], p=3), ((flat**3).sum(-1, keepdims=True) ** (1 / 3)).astype(np.float32))
    assert_close(run("GlobalAveragePool", [np.abs(x)]), flat.mean(-1, keepdims=True).astype(np.float32))
    np.testing.assert_array_equal(run("GlobalMaxPool", [x]), x.max((2, 3), keepdims=True))


def test_max_pool_of_infinities_and_nan():
    x = np.array([[[-np.inf, -np.inf, 1, np.nan, 2]]], np.float32)
    y, indices = run("MaxPool", [x], kernel_shape=(2,), pads=(1, 0), n_outputs=2)
    np.testing.assert_array_equal(y, [[[-np.inf, -np.inf, 1, np.nan, np.nan]]])
    np.testing.assert_array_equal(indices, [[[0, 0, 2, 3, 3]]])


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
        ("ij->ji", [(3, 4)]),
        ("ij", [(3, 4)]),
        ("ba", [(3, 4)]),
        ("ii->i", [(4, 4)]),
        ("ii", [(4, 4)]),
        ("ij->", [(3, 4)]),
        ("a,b->ab", [(3,), (4,)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (2, 5, 4, 2)]),
        ("b...d,bd->b...", [(2, 3, 4, 5), (2, 5)]),
        (" i j , j -> i ", [(3, 4), (4,)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("i,ij,j->", [(3,), (3, 4), (4,)]),
        ("Aa,aB->BA", [(2, 3), (3, 4)]),
    ],
)
def test_einsum(equation, shapes):
    rng = np.random.default_rng(6)
    assert_like_onnxruntime("Einsum", [floats(rng, *shape) for shape in shapes], equation=equation)


REDUCTIONS = {
    "ReduceL1": lambda x, axis: np.abs(x).sum(axis),
    "ReduceL2": lambda x, axis: np.sqrt((x * x).sum(axis)),
    "ReduceLogSum": lambda x, axis: np.log(x.sum(axis)),
    "ReduceLogSumExp": lambda x, axis: np.log(np.exp(x).sum(axis)),
    "ReduceMax": lambda x, axis: x.max(axis),
    "ReduceMean": lambda x, axis: x.mean(axis),
    "ReduceMin": lambda x, axis: x.min(axis),
    "ReduceProd": lambda x, axis: x.prod(axis),
    "ReduceSum": lambda x, axis: x.sum(axis),
    "ReduceSumSquare": lambda x, axis: (x * x).sum(axis),
}


@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_reductions(op_type):
    rng = np.random.default_rng(7)
    x = np.abs(floats(rng, 3, 4, 5))
    exact = x.astype(np.float64)
    for axes, keepdims in itertools.product([(0,), (-1,), (1, -3), (2, 0, 1), None], [0, 1]):
        expected = REDUCTIONS[op_type](exact, axes)
        if keepdims:
            reduced = {a % 3 for a in axes or range(3)}
            expected = np.reshape(expected, [1 if a in reduced else n for a, n in enumerate(x.shape)])
        expected = np.asarray(expected, np.float32)
        attributes = {} if axes is None else dict(axes=axes)
        assert_close(run(op_type, [x], opset=11, keepdims=keepdims, **attributes), expected)
        inputs = [x] if axes is None else [x, np.array(axes)]
        assert_close(run(op_type, inputs, opset=18, keepdims=keepdims), expected)
        assert run(op_type, [exact, *inputs[1:]], opset=18, keepdims=keepdims).dtype == np.float64
    for nothing in (None, np.array([], np.int64)):
        kept = run(op_type, [x, nothing], opset=18, noop_with_empty_axes=1)
        assert_close(kept, np.asarray(REDUCTIONS[op_type](exact[..., None], -1), np.float32))
        assert run(op_type, [x, nothing], opset=18).shape == (1, 1, 1)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_integer_reductions(dtype):
    x = np.array([[7, 2, 9], [1, 2, 8]]).astype(dtype)
    for op_type, expected in dict(
        ReduceSum=[18, 11],
        ReduceMean=[6, 3],
        ReduceMax=[9, 8],
        ReduceMin=[2, 1],
        ReduceProd=[126, 16],
        ReduceL1=[18, 11],
        ReduceL2=[11, 8],
    ).items():
        y = run(op_type, [x, np.array([1])], opset=18, keepdims=0)
        assert y.dtype == dtype and y.tolist() == expected
    if dtype != np.uint32:
        assert run("ReduceMean", [-x, np.array([1])], opset=18, keepdims=0).tolist() == [-6, -3]
        assert run("ReduceSum", [np.array([np.iinfo(dtype).max, 1], dtype)], keepdims=0) == np.iinfo(dtype).min


def test_reductions_of_nothing():
    x = np.zeros((2, 0), np.float32)
    for op_type, expected in dict(
        ReduceSum=0, ReduceProd=1, ReduceMax=-math.inf, ReduceMin=math.inf, ReduceLogSumExp=-math.inf
    ).items():
        assert run(op_type, [x, np.array([1])], keepdims=0).tolist() == [expected] * 2
    assert run("ReduceMax", [x.astype(np.int32), np.array([1])], keepdims=0).tolist() == [-(2**31)] * 2


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp"])
def test_a_rows_bits_do_not_depend_on_the_batch(op_type):
    """Whether the batch is the first or a middle axis, and however narrow the rest."""
    rng = np.random.default_rng(8)
    for shape, axis in [((5, 300, 1), 1), ((300, 5, 1), 0), ((300, 5, 3), 0), ((5, 3, 300), 2)]:
        batch = shape.index(5)
        x = floats(rng, *shape)
        whole = run(op_type, [x, np.array([axis])])
        for row in range(5):
            alone = run(op_type, [x.take([row], batch), np.array([axis])])
            assert alone.tobytes() == whole.take([row], batch).tobytes()


# Inputs with a batch of 9 on axis 0, and a batch 1 row that differs in layout: every operator that adds up.
REDUCING = [
    ("LayerNormalization", [(9, 6, 37), (37,)], {}),
    ("LayerNormalization", [(9, 37, 6), (37, 6)], dict(axis=1)),
    ("RMSNormalization", [(9, 6, 37), (37,)], {}),
    ("InstanceNormalization", [(9, 6, 37), (6,), (6,)], {}),
    ("GroupNormalization", [(9, 6, 37), (6,), (6,)], dict(num_groups=2)),
    ("LpNormalization", [(9, 37, 6)], dict(axis=1, p=1)),
    ("LpNormalization", [(9, 6, 37)], dict(axis=-1)),
    ("MeanVarianceNormalization", [(9, 37, 6)], dict(axes=(1,))),
    ("LRN", [(9, 6, 37)], dict(size=3)),
    ("MeanVarianceNormalization", [(9, 6, 5, 7)], dict(axes=(2, 3))),
    ("Softmax", [(9, 37, 6)], dict(axis=1)),
    ("LogSoftmax", [(9, 6, 37)], dict(axis=-1)),
    ("GlobalAveragePool", [(9, 6, 37)], {}),
    ("GlobalLpPool", [(9, 6, 37)], {}),
    ("GlobalMaxPool", [(9, 6, 37)], {}),
    ("AveragePool", [(9, 6, 37)], dict(kernel_shape=(20,))),
    ("LpPool", [(9, 6, 37)], dict(kernel_shape=(20,))),
    ("MaxPool", [(9, 6, 37)], dict(kernel_shape=(20,))),
    ("ConvTranspose", [(9, 6, 37), (6, 4, 3)], {}),
    ("Einsum", [(9, 5, 37), (9, 5, 37)], dict(equation="btc,bsc->bts")),
    ("Einsum", [(9, 37, 6)], dict(equation="btc->bt")),
    ("Einsum", [(9, 37, 6)], dict(equation="btc->b")),
    ("Einsum", [(9, 37, 6), (6, 37)], dict(equation="btc,ct->b")),
    ("Einsum", [(9, 37), (37, 8, 6), (9, 6)], dict(equation="bi,ioj,bj->bo")),
    ("Einsum", [(9, 37, 6), (5, 6)], dict(equation="...c,dc->...d")),
    *((op, [(9, 37, 6)], dict(axes=axes)) for op in REDUCTIONS for axes in ((1,), (2,), (1, 2))),
]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("op_type, shapes, attributes", REDUCING)
def test_a_rows_bits_depend_neither_on_the_batch_nor_on_the_layout(op_type, shapes, attributes, zeros):
    """Transposed inputs, of which NumPy reshapes those of one row without a copy; `zeros` are of both signs."""
    rng = np.random.default_rng(19)
    inputs = [floats(rng, *shape) for shape in shapes]
    if zeros:
        inputs[0] = np.copysign(np.float32(0), inputs[0])
    opset = {"RMSNormalization": 23, "GroupNormalization": 21}.get(op_type, 17)
    if op_type.startswith("Reduce") and op_type != "ReduceSum":
        opset = 13
    elif op_type == "ReduceSum":
        inputs, attributes, opset = [inputs[0], np.array(attributes["axes"])], {}, 13

    def outputs(inputs):
        y = run(op_type, inputs, opset, **attributes)
        return y[0] if isinstance(y, tuple) else y

    whole = outputs(inputs)
    for order in itertools.permutations(range(inputs[0].ndim)):

        def stored(x):
            if x.ndim != len(order):
                return x
            return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))

        assert outputs([stored(x) for x in inputs]).tobytes() == whole.tobytes()
        for row in (0, 8):
            alone = outputs([stored(x[row : row + 1]) if x.shape[:1] == (9,) else x for x in inputs])
            assert alone.tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("op_type, axis", [("Softmax", 1), ("LogSoftmax", 2)])
def test_softmax_over_trailing_axes_ignores_the_layout(op_type, axis):
    x = floats(np.random.default_rng(20), 1, 6, 37)
    view = np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert run(op_type, [view], 11, axis=axis).tobytes() == run(op_type, [x], 11, axis=axis).tobytes()


def test_einsum_of_random_equations():
    rng, choose = np.random.default_rng(21), random.Random(21)
    for _ in range(150):
        sizes = dict(zip("abcde", (choose.randint(0, 4) for _ in range(5))))
        terms = ["".join(choose.choices("abcde", k=choose.randint(0, 3))) for _ in range(choose.randint(1, 4))]
        used = sorted(set("".join(terms)))
        equation = ",".join(terms) + "->" + "".join(choose.sample(used, choose.randint(0, len(used))))
        xs = [floats(rng, *(sizes[letter] for letter in term)) for term in terms]
        expected = np.einsum(equation, *(x.astype(np.float64) for x in xs), optimize=False)
        assert_close(run("Einsum", xs, equation=equation), np.asarray(expected, np.float32))
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(run("Einsum", [x, x], equation="ij,kj->ik"), x @ x.T, strict=True)


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg_extremes_choose_among_ties(op_type):
    x = np.array([[3, 1, 3, 1], [2, 2, 2, 2]], np.float32)
    target = 3 if op_type == "ArgMax" else 1
    hits = [x[0] == target, x[1] == 2]
    for last in (0, 1):
        expected = [np.flatnonzero(hit)[-last] for hit in hits]
        y = run(op_type, [x], axis=-1, keepdims=0, select_last_index=last)
        assert y.dtype == np.int64 and y.tolist() == expected
        assert run(op_type, [x], axis=-1, select_last_index=last).shape == (2, 1)


def test_cumulative_sums():
    x = np.array([[1, 2, 4], [8, 16, 32]], np.int32)
    expected = {(0, 0): [1, 3, 7], (1, 0): [0, 1, 3], (0, 1): [7, 6, 4], (1, 1): [6, 4, 0]}
    for (exclusive, reverse), row in expected.items():
        y = run("CumSum", [x, np.array(-1)], exclusive=exclusive, reverse=reverse)
        assert y.dtype == np.int32 and y[0].tolist() == row


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
def test_integer_division_and_remainders(dtype):
    a, b = (WHOLE.astype(dtype)[:, None], WHOLE[WHOLE != 0].astype(dtype)[None])
    quotient, remainder, fmod = (
        run(op, [a, b], **attributes) for op, attributes in [("Div", {}), ("Mod", {}), ("Mod", dict(fmod=1))]
    )
    for i, j in np.ndindex(*quotient.shape):
        p, q = int(a[i, 0]), int(b[0, j])
        assert quotient[i, j] == abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
        assert remainder[i, j] == p % q
        assert fmod[i, j] == int(math.fmod(p, q))
    assert quotient.dtype == remainder.dtype == fmod.dtype == dtype
    if np.iinfo(dtype).min < 0:
        smallest = np.array([np.iinfo(dtype).min], dtype)
        assert run("Div", [smallest, np.array([-1], dtype)]) == smallest


def test_float_remainders():
    a = np.array([5.5, -5.5, 5.5, -5.5, 0.0, -0.0, 2, -2, math.inf], np.float32)
    b = np.array([3, 3, -3, -3, 2, 2, math.inf, math.inf, 2], np.float32)
    floored, truncated = run("Mod", [a, b], opset=28), run("Mod", [a, b], fmod=1)
    np.testing.assert_array_equal(floored, np.float32([2.5, 0.5, -0.5, -2.5, 0, 0, 2, math.inf, math.nan]))
    np.testing.assert_array_equal(truncated, np.float32([2.5, -2.5, 2.5, -2.5, 0, 0, 2, -2, math.nan]))


@pytest.mark.parametrize("base", [np.float32, np.float64, np.int32, np.int64, np.float16])
@pytest.mark.parametrize("exponent", [np.float32, np.float64, np.int8, np.int32, np.int64, np.uint32, np.uint64])
def test_power_keeps_the_type_of_its_base(base, exponent):
    x, y = np.array([1, 2, 3, 7, -3]).astype(base), np.array([[3], [0], [2]]).astype(exponent)
    z = run("Pow", [x, y])
    assert z.dtype == base
    np.testing.assert_array_equal(z, (np.array([1, 2, 3, 7, -3]) ** np.array([[3], [0], [2]])).astype(base))


def test_integers_to_negative_powers_are_truncated():
    x = np.array([1, -1, -1, 2, -5])
    assert run("Pow", [x, np.array([-3, -3, -2, -1, -1])]).tolist() == [1, -1, 1, 0, 0]
    with pytest.raises(InputError, match="negative power"):
        run("Pow", [np.array([0, 1]), np.array(-1)])


def test_clip():
    x = np.array([-math.inf, -2, 0.5, 3, math.inf, math.nan], np.float32)
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(run("Clip", [x], opset=6), [-largest, -2, 0.5, 3, largest, np.nan])
    np.testing.assert_array_equal(run("Clip", [x, None, np.array(1, np.float32)]), [-largest, -2, 0.5, 1, 1, np.nan])
    np.testing.assert_array_equal(run("Clip", [x, np.array(2, np.float32), np.array(-1, np.float32)])[:5], [-1] * 5)
    np.testing.assert_array_equal(run("Clip", [x], opset=10, min=0.0, max=1.0), [0, 0, 0.5, 1, 1, np.nan])
    assert run("Clip", [np.array([-3, 200], np.int16), None, np.array(7, np.int16)]).tolist() == [-3, 7]


def test_softmax_before_opset_13_spans_all_trailing_axes():
    x = floats(np.random.default_rng(9), 2, 3, 4)
    for axis, rows in [(0, 1), (1, 2), (2, 6), (-1, 6), (-2, 2)]:
        matrix = x.astype(np.float64).reshape(rows, -1)
        expected = np.exp(matrix) / np.exp(matrix).sum(1, keepdims=True)
        assert_close(run("Softmax", [x], opset=11, axis=axis), expected.reshape(x.shape).astype(np.float32))
        assert_close(run("LogSoftmax", [x], opset=7, axis=axis), np.log(expected).reshape(x.shape).astype(np.float32))
        assert run("Hardmax", [x], opset=11, axis=axis).sum() == rows
    for axis in (0, 1, 2, -1):
        expected = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis, keepdims=True)
        assert_close(run("Softmax", [x], opset=13, axis=axis), expected.astype(np.float32))
    assert run("Softmax", [np.float32([[1e4, -math.inf, 1e4]])]).tolist() == [[0.5, 0, 0.5]]
    assert run("Softmax", [np.zeros((2, 0), np.float32)]).shape == (2, 0)


@pytest.mark.parametrize(
    "op_type, formula",
    [
        ("Sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("Softplus", lambda x: math.log1p(math.exp(x))),
        ("Gelu", lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
        ("Erf", math.erf),
        ("Elu", lambda x: x if x > 0 else math.expm1(x)),
        ("Mish", lambda x: x * math.tanh(math.log1p(math.exp(x)))),
        ("Swish", lambda x: x / (1 + math.exp(-x))),
        ("Softsign", lambda x: x / (1 + abs(x))),
        ("HardSwish", lambda x: x * min(1, max(0, x / 6 + 0.5))),
    ],
)
def test_activations_in_both_precisions(op_type, formula):
    x = np.linspace(-20, 20, 161)
    expected = np.array([formula(value) for value in x])
    assert_close(run(op_type, [x], opset=24), expected, tolerance=1e-15)
    assert_close(run(op_type, [x.astype(np.float32)], opset=24), expected.astype(np.float32))
    extremes = run(op_type, [np.float32([-3e38, 3e38])], opset=24)
    assert np.isfinite(extremes).all()


def test_erf_is_within_one_ulp():
    x = np.concatenate(
        [
            np.random.default_rng(19).uniform(-7, 7, 20000),
            [0.0, 0.84375, -1.25, 1 / 0.35, 6, 1e-310, math.inf, -math.inf],
        ]
    )
    expected = np.array([math.erf(value) for value in x])
    assert (np.abs(run("Erf", [x]) - expected) <= np.spacing(np.abs(expected))).all()
    assert np.isnan(run("Erf", [np.array([math.nan])])).all()


def test_prelu_broadcasts_the_slope_only():
    x = floats(np.random.default_rng(10), 2, 3, 4)
    slope = np.float32([[0.5], [-2], [3]])
    np.testing.assert_array_equal(run("PRelu", [x, slope]), np.where(x < 0, x * slope, x))
    np.testing.assert_array_equal(run("PRelu", [x, slope[:, 0]], opset=6), np.where(x < 0, x * slope, x))
    with pytest.raises(InputError, match="does not broadcast"):
        run("PRelu", [x[0], x])


def test_broadcast_before_opset_7():
    a, b = floats(np.random.default_rng(11), 2, 3, 4), np.float32([1, 10, 100])
    np.testing.assert_array_equal(run("Mul", [a, b], opset=6, broadcast=1, axis=1), a * b[:, None])
    np.testing.assert_array_equal(run("Sub", [a, a[0, 0]], opset=6, broadcast=1), a - a[0, 0])
    with pytest.raises(InputError, match="broadcast = 1"):
        run("Add", [a, a[0]], opset=6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantize_rounds_ties_to_even_and_saturates(dtype):
    info = np.iinfo(dtype)
    zero = np.array(info.min + 13, dtype)
    x = np.float32([0, 0.25, 0.75, 1.25, -0.25, -0.75, 1e-40, 1e30, -1e30, math.inf, -math.inf])
    y = run("QuantizeLinear", [x, np.array(0.5, np.float32), zero], opset=21)
    steps = [0, 0, 2, 2, 0, -2, 0]
    assert y.dtype == dtype
    assert y.tolist() == [max(info.min, int(zero) + s) for s in steps] + [info.max, info.min] * 2


def test_quantize_by_axis_and_by_block():
    rng = np.random.default_rng(12)
    x = floats(rng, 3, 5, 4) * 10
    scale, zero = np.abs(floats(rng, 5)) + 0.1, rng.integers(-9, 9, 5).astype(np.int8)
    y = run("QuantizeLinear", [x, scale, zero], opset=13, axis=-2)
    for i in range(5):
        expected = np.clip(np.rint(x[:, i] / scale[i]) + zero[i], -128, 127)
        np.testing.assert_array_equal(y[:, i], expected)
    back = run("DequantizeLinear", [y, scale, zero], opset=13, axis=1)
    np.testing.assert_array_equal(back, (y.astype(np.float32) - zero[:, None]) * scale[:, None])
    scale, zero = np.abs(floats(rng, 3, 3, 4)) + 0.1, rng.integers(0, 99, (3, 3, 4)).astype(np.uint8)
    y = run("QuantizeLinear", [x, scale, zero], opset=21, axis=1, block_size=2)
    for i in range(5):
        np.testing.assert_array_equal(y[:, i], np.clip(np.rint(x[:, i] / scale[:, i // 2]) + zero[:, i // 2], 0, 255))
    back = run("DequantizeLinear", [y, scale, zero], opset=21, axis=1, block_size=2)
    for i in range(5):
        np.testing.assert_array_equal(back[:, i], (y[:, i].astype(np.float32) - zero[:, i // 2]) * scale[:, i // 2])


def test_quantizers_of_zeros_denormals_and_nan():
    zeros, zero = np.zeros(3, np.float32), np.zeros((), np.float32)
    assert run("QuantizeLinear", [zeros, zero]).tolist() == [0, 0, 0]
    y, scale, point = run("DynamicQuantizeLinear", [zeros])
    assert y.tolist() == [0, 0, 0] and scale == 1 and point == 0
    y, scale, point = run("DynamicQuantizeLinear", [np.float32([1e-40, -1e-41, 0])])
    assert y[0] == 255 and y[1] == 0 and y[2] == point
    for op_type, inputs in [
        ("QuantizeLinear", [np.float32([math.nan]), np.ones((), np.float32)]),
        ("DynamicQuantizeLinear", [np.float32([math.nan])]),
    ]:
        with pytest.raises(InputError, match="NaN"):
            run(op_type, inputs)


def test_integer_products():
    rng = np.random.default_rng(13)
    a = rng.integers(0, 256, (2, 3, 7)).astype(np.uint8)
    b = rng.integers(-128, 128, (7, 5)).astype(np.int8)
    rows, columns = np.uint8([3, 250, 9]), np.int8([1, -9, 0, 100, -128])
    wide = (a.astype(np.int64) - rows[:, None]) @ (b.astype(np.int64) - columns)
    y = run("MatMulInteger", [a, b, rows, columns])
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, wide)
    scales = [np.array(s, np.float32) for s in (0.02, 0.03, 0.7)]
    points = [np.array(7, np.uint8), np.array(-3, np.int8), np.array(101, np.uint8)]

    def arguments(b):
        return [a, scales[0], points[0], b, scales[1], points[1], scales[2], points[2]]

    exact = (a.astype(np.int64) - 7) @ (b.astype(np.int64) + 3) * (0.02 * 0.03 / 0.7) + 101
    np.testing.assert_array_equal(run("QLinearMatMul", arguments(b)), np.clip(np.rint(exact), 0, 255))
    # Without VNNI onnxruntime adds pairs of products in 16 bits and saturates, so that it is no oracle for all of int8.
    assert_like_onnxruntime("QLinearMatMul", arguments(b // 2))
    x, w = rng.integers(0, 256, (2, 4, 9)).astype(np.uint8), rng.integers(-128, 128, (6, 2, 3)).astype(np.int8)
    exact = run("Conv", [x.astype(np.float64) - 77, w.astype(np.float64)], group=2, pads=(1, 2), strides=(2,))
    y = run("ConvInteger", [x, w, np.array(77, np.uint8)], group=2, pads=(1, 2), strides=(2,))
    np.testing.assert_array_equal(y, exact)


def test_gemm():
    rng = np.random.default_rng(14)
    a, b = floats(rng, 3, 4), floats(rng, 4, 5)
    for c in (None, floats(rng, 5), floats(rng, 3, 1), floats(rng, 3, 5), floats(rng), floats(rng, 1)):
        for flip_a, flip_b in itertools.product([0, 1], repeat=2):
            expected = 0.3 * (a.astype(np.float64) @ b) + (0 if c is None else -1.7 * c.astype(np.float64))
            y = run(
                "Gemm",
                [a.T if flip_a else a, b.T if flip_b else b, c],
                alpha=0.3,
                beta=-1.7,
                transA=flip_a,
                transB=flip_b,
            )
            assert_close(y, expected.astype(np.float32))


def test_batch_normalization_forms():
    rng = np.random.default_rng(15)
    x = floats(rng, 4, 3, 5)
    scale, bias, mean, variance = (floats(rng, 3) for _ in range(4))
    variance = np.abs(variance)
    exact = x.astype(np.float64)
    column = [p.astype(np.float64)[:, None] for p in (scale, bias, mean, variance)]
    expected = ((exact - column[2]) / np.sqrt(column[3] + 0.1) * column[0] + column[1]).astype(np.float32)
    for opset, attributes in [(6, dict(is_test=1)), (7, {}), (8, dict(spatial=1)), (9, {}), (14, {}), (15, {})]:
        y = run("BatchNormalization", [x, scale, bias, mean, variance], opset, epsilon=0.1, **attributes)
        assert_close(y[0] if isinstance(y, tuple) else y, expected)
    place = [floats(rng, 3, 5) for _ in range(4)]
    y = run("BatchNormalization", [x, *place[:3], np.abs(place[3])], 7, spatial=0)
    assert_close(y, ((x - place[2]) / np.sqrt(np.abs(place[3]) + 1e-5) * place[0] + place[1]))
    y, running_mean, running_variance = run(
        "BatchNormalization",
        [x, scale, bias, mean, variance],
        15,
        epsilon=0.1,
        momentum=0.8,
        training_mode=1,
        n_outputs=3,
    )
    batch_mean, batch_variance = exact.mean((0, 2))[:, None], exact.var((0, 2))[:, None]
    assert_close(y, ((exact - batch_mean) / np.sqrt(batch_variance + 0.1) * column[0] + column[1]).astype(np.float32))
    assert_close(running_mean, (0.8 * mean + 0.2 * batch_mean[:, 0]).astype(np.float32))
    assert_close(running_variance, (0.8 * variance + 0.2 * batch_variance[:, 0]).astype(np.float32))
    with pytest.raises(UnsupportedError, match="training"):
        run("BatchNormalization", [x, scale, bias, mean, variance], 9, n_outputs=5)


def test_normalization_over_trailing_axes_and_groups():
    rng = np.random.default_rng(16)
    x, scale, bias = floats(rng, 2, 6, 5), floats(rng, 6, 5), floats(rng, 5)
    exact = x.astype(np.float64)
    mean, deviation = exact.mean((1, 2), keepdims=True), np.sqrt(exact.var((1, 2), keepdims=True) + 0.1)
    y, saved_mean, inverse = run("LayerNormalization", [x, scale, bias], axis=-2, epsilon=0.1)
    assert_close(y, ((exact - mean) / deviation * scale + bias).astype(np.float32))
    assert_close(saved_mean, mean.astype(np.float32))
    assert_close(inverse, (1 / deviation).astype(np.float32))
    groups = exact.reshape(2, 3, 10)
    normal = ((groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)).reshape(2, 6, 5)
    per_channel, per_group = floats(rng, 6), floats(rng, 3)
    y = run("GroupNormalization", [x, per_channel, per_channel], 21, num_groups=3)
    assert_close(y, ((normal + 1) * per_channel[:, None]).astype(np.float32))
    y = run("GroupNormalization", [x, per_group, per_group], 18, num_groups=3)
    assert_close(y, ((normal + 1) * np.repeat(per_group, 2)[:, None]).astype(np.float32))
    y = run("InstanceNormalization", [x, per_channel, per_channel])
    each = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + 1e-5)
    assert_close(y, ((each + 1) * per_channel[:, None]).astype(np.float32))


HALF_CASES = [
    ("Softmax", [(3, 400)], {}),
    ("ReduceSum", [(3, 400)], {}),
    ("ReduceMean", [(3, 400)], {}),
    ("Sigmoid", [(50,)], {}),
    ("Einsum", [(3, 90), (90,)], dict(equation="ab,b")),
    ("Gelu", [(50,)], {}),
    ("MatMul", [(3, 90), (90, 4)], {}),
    ("Gemm", [(3, 90), (90, 4), (4,)], {}),
    ("Conv", [(2, 6, 20), (4, 6, 5), (4,)], {}),
    ("AveragePool", [(2, 6, 20)], dict(kernel_shape=(9,))),
    ("LayerNormalization", [(3, 90), (90,), (90,)], {}),
    ("Add", [(3, 4), (4,)], {}),
]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("op_type, shapes, attributes", HALF_CASES, ids=[case[0] for case in HALF_CASES])
def test_half_precision_is_computed_in_float32_and_rounded_once(half, op_type, shapes, attributes):
    dtype = np.dtype(np.float16) if half == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    rng = np.random.default_rng(17)
    inputs = [floats(rng, *shape).astype(dtype) for shape in shapes]
    y = run(op_type, inputs, **attributes)
    expected = run(op_type, [x.astype(np.float32) for x in inputs], **attributes)
    y, expected = (z[0] if isinstance(z, tuple) else z for z in (y, expected))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected.astype(dtype))


def test_cast():
    x = np.array([300.7, -1.5, 2.5])
    assert run("Cast", [x], to=np.dtype(np.int32)).tolist() == [300, -1, 2]
    assert run("Cast", [np.array([200, -129], np.int16)], to=np.dtype(np.int8)).tolist() == [-56, 127]
    assert run("Cast", [np.float32([0, -0.0, math.nan, 0.1])], to=np.dtype(bool)).tolist() == [False, False, True, True]
    assert run("Cast", [np.array([1e300])], to=np.dtype(np.float32)) == math.inf
    assert run("Cast", [np.array(["-7", "12"], object)], to=np.dtype(np.int64)).tolist() == [-7, 12]
    assert run("Cast", [np.array(["+INF", "nan"], object)], to=np.dtype(np.float32))[0] == math.inf
    assert run("Cast", [np.float32([1.5, 0.1])], to=np.dtype(object)).tolist() == ["1.5", "0.1"]
    assert run("CastLike", [x, np.float32([1])]).dtype == np.float32


UNARY = (
    "Abs Ceil Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish IsNaN LeakyRelu Mish Neg Reciprocal Relu Round "
    "Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tan Tanh ReduceSum ReduceLogSumExp Sum Mean Max"
).split()


@pytest.mark.parametrize("op_type", UNARY)
def test_scalars_stay_arrays(op_type):
    for dtype in (np.float32, np.float64):
        x = np.array(0.75, dtype)
        x.flags.writeable = False
        y = run(op_type, [x])
        assert type(y) is np.ndarray and y.shape == () and y.dtype == (bool if op_type == "IsNaN" else dtype)


def array(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    "error, op_type, inputs, attributes",
    [
        (InputTypeError, "Add", [array(2), array(2, dtype=np.float64)], {}),
        (InputTypeError, "Mul", [array(2, dtype=bool), array(2, dtype=bool)], {}),
        (InputTypeError, "Sqrt", [array(2, dtype=np.int32)], {}),
        (InputTypeError, "And", [array(2), array(2)], {}),
        (InputTypeError, "Where", [array(2), array(2), array(2)], {}),
        (InputTypeError, "BitwiseAnd", [array(2), array(2)], {}),
        (ValueError, "Add", [array(2), array(3)], {}),
        (LimitError, "Add", [array(100000, 1), array(100000)], {}),
        (InputError, "Div", [array(2, dtype=np.int32), np.zeros(1, np.int32)], {}),
        (InputError, "Mod", [array(2, dtype=np.int32), np.zeros(1, np.int32)], {}),
        (InputError, "Clip", [array(2), array(2)], {}),
        (InputError, "Gemm", [array(2, 3), array(3, 4), array(3, 2, 4)], {}),
        (InputError, "Gemm", [array(2, 3, 1), array(3, 4)], {}),
        (ValueError, "MatMul", [array(2, 3), array(2, 3)], {}),
        (InputError, "Einsum", [array(2, 3), array(4, 5)], dict(equation="ij,jk->ik")),
        (InputError, "Einsum", [array(2, 3)], dict(equation="ij->k")),
        (InputError, "Einsum", [array(2, 3)], dict(equation="ijk")),
        (LimitError, "Einsum", [array(3000), array(3000), array(3000)], dict(equation="a,b,c->abc")),
        (ValueError, "Softmax", [array(2, 3)], dict(axis=2)),
        (ValueError, "ReduceSum", [array(2, 3), np.array([1, -1])], {}),
        (ValueError, "ReduceSum", [array(2, 3), np.array([2])], {}),
        (InputError, "ArgMax", [array(2, 0)], dict(axis=1)),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3), array(2)], {}),
        (InputError, "Conv", [array(1, 2, 5), array(3, 1, 3)], {}),
        (InputError, "Conv", [array(1, 2, 5), array(3, 1, 3)], dict(group=2)),
        (InputError, "Conv", [array(1, 2, 2), array(3, 2, 3)], {}),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(kernel_shape=(2,))),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(strides=(0,))),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(pads=(-1, 0))),
        (InputError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(pads=(1,))),
        (LimitError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(pads=(10**9, 10**9))),
        (UnsupportedError, "Conv", [array(1, 2, 5), array(3, 2, 3)], dict(auto_pad="SAME_UPPER", pads=(1, 1))),
        (InputError, "ConvTranspose", [array(1, 2, 5), array(2, 1, 3)], dict(output_padding=(1,))),
        (InputError, "ConvTranspose", [array(1, 2, 5), array(2, 1, 3)], dict(pads=(4, 4))),
        (
            UnsupportedError,
            "ConvTranspose",
            [array(1, 2, 5), array(2, 1, 2)],
            dict(strides=(3,), auto_pad="SAME_LOWER"),
        ),
        (LimitError, "ConvTranspose", [array(1, 2, 5), array(2, 1, 3)], dict(output_shape=(10**10,))),
        (InputError, "MaxPool", [array(1, 2, 3)], dict(kernel_shape=(4,))),
        (InputError, "MaxPool", [array(1, 2, 3)], dict(kernel_shape=(2,), pads=(2, 0))),
        (UnsupportedError, "MaxPool", [array(1, 2, 8)], dict(kernel_shape=(1,), strides=(4,), auto_pad="SAME_UPPER")),
        (InputError, "GlobalMaxPool", [array(2, 3, 0)], {}),
        (InputError, "LayerNormalization", [array(2, 3), array(4, 3)], {}),
        (InputError, "GroupNormalization", [array(2, 3, 4), array(2), array(2)], dict(num_groups=2)),
        (InputError, "QuantizeLinear", [array(2, 3), array(2)], {}),
        (InputError, "DequantizeLinear", [array(2, 3, dtype=np.int8), array(3), array(2, dtype=np.int8)], {}),
        (InputTypeError, "DequantizeLinear", [array(2, 3, dtype=np.int8), array(), array(dtype=np.uint8)], {}),
    ],
)
def test_refusals(error, op_type, inputs, attributes):
    with pytest.raises(error):
        run(op_type, inputs, **attributes)


def test_lookup():
    assert lookup("ai.onnx", "Clip", 13) is lookup("", "Clip", 11)
    assert lookup("", "Clip", 10) is lookup("", "Clip", 6)
    assert lookup("", "Clip", 10) is not lookup("", "Clip", 11)
    assert lookup("", "Gelu", 19) is None
    assert lookup("", "NoSuchOperator", 20) is None
    assert lookup("com.example", "Add", 20) is None
