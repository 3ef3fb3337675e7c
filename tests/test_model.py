"""Model: inputs and outputs of calls, initializers that are inputs, threads, the reference and summaries."""

import collections
import concurrent.futures
import itertools
import types
import warnings

import numpy as np
import pytest
from onnx import TensorProto, helper

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.native import _kernels, _plans, _programs
from tests.graphs import load, model_of, parse, random
from tests.model_graphs import GRU, H, X
from tests.paths import MODELS


# ------------------------------------------------------------------------------------------------ calls
def test_call_by_keyword_and_mapping():
    model = rnnfast.load(GRU)
    x, h = random(3, 5, 2, 4), random(4, 1, 2, 3)
    out = model(x=x, h=h)
    assert list(out) == ["y", "last"] and out.y is out["y"] and dict(out).keys() == out.keys()
    for other in (model({"x": x, "h": h}), model({"x": x}, h=h)):
        np.testing.assert_array_equal(other.y, out.y)
    with pytest.raises(AttributeError, match="'z'.*'last'"):
        out.z


def test_inputs_and_outputs_are_described():
    model = rnnfast.load(GRU)
    assert [(v.name, str(v.type), v.type.shape) for v in model.inputs] == [
        ("x", "tensor(float)", ("t", "b", 4)),
        ("h", "tensor(float)", (1, "b", 3)),
    ]
    assert [v.name for v in model.outputs] == ["y", "last"]
    assert "x: tensor(float)" in repr(model)


class Foreign:
    def __array__(self, *args, **kwargs):
        raise RuntimeError("on another device")


WRONG_INPUTS = {
    "missing": ({"x": X}, InputError, "input 'h' is missing"),
    "unknown": ({"x": X, "h": H, "z": H}, InputError, "no input 'z'"),
    "dtype": ({"x": X.astype(np.float64), "h": H}, InputTypeError, "input 'x' is double, expected float"),
    "integers": ({"x": np.zeros((5, 2, 4), int), "h": H}, InputTypeError, "input 'x' is int64"),
    "rank": ({"x": X[0], "h": H}, InputError, r"input 'x' has shape \(2, 4\), expected \(t, b, 4\)"),
    "fixed dimension": ({"x": X[..., :3], "h": H}, InputError, r"'x' has shape \(5, 2, 3\)"),
    "batch": ({"x": X, "h": random(0, 1, 3, 3)}, InputError, r"GRU.*initial_h has shape \(1, 3, 3\)"),
    "ragged list": ({"x": [[1.0], [1.0, 2.0]], "h": H}, InputError, "'x'"),
    "text": ({"x": "text", "h": H}, InputTypeError, "'x' is str, expected float"),
    "None": ({"x": None, "h": H}, InputTypeError, "'x' is NoneType, expected float"),
    "no array": ({"x": object(), "h": H}, InputTypeError, "'x' is object, expected float"),
    "texts": ({"x": ["a"], "h": H}, InputTypeError, "'x' is list of str, expected float"),
    "array of texts": ({"x": np.array(["a"]), "h": H}, InputTypeError, "'x' is an array of str, expected float"),
    "a None": ({"x": [1.0, None], "h": H}, InputTypeError, "'x' is list of NoneType and float, expected float"),
    "object": ({"x": X.astype(object), "h": H}, InputTypeError, "'x' is an array of object, expected float"),
    "foreign": ({"x": Foreign(), "h": H}, InputTypeError, "'x' is Foreign, .* RuntimeError: on another device"),
    "list of foreign": ({"x": [Foreign()], "h": H}, InputTypeError, "'x' is list, .* on another device"),
    "bool": ({"x": X > 0, "h": H}, InputTypeError, "'x' is bool"),
    "name": ({3: X, "h": H}, InputError, "no input 3"),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs(case):
    """Before and after calls that are right: what those checked is not taken for granted."""
    feed, error, message = WRONG_INPUTS[case]
    session = rnnfast.InferenceSession(GRU)
    for _ in range(2):
        for call in (session.model, lambda feed: session.run(None, feed)):
            with pytest.raises(error, match=f"<bytes>: .*{message}"):
                call(feed)
        session.run(None, {"x": X, "h": H})
    assert issubclass(error, (ValueError, TypeError))


def test_no_mapping():
    with pytest.raises(InputTypeError, match="expected a mapping"):
        rnnfast.load(GRU)([X, H])


@pytest.mark.parametrize("method", ["__call__", "reference", "summary"])
def test_inputs_given_twice(method):
    with pytest.raises(InputError, match="<bytes>: input 'x' is given twice"):
        getattr(rnnfast.load(GRU), method)({"x": X, "h": H}, x=X)


def identity(elem_type, shape=()):
    return load(
        model_of([helper.make_node("Identity", ["x"], ["y"])], [("x", elem_type, shape)], [("y", elem_type, shape)])
    )


@pytest.mark.parametrize(
    "elem_type, value",
    [
        (TensorProto.INT64, 16000),
        (TensorProto.INT64, np.int32(5)),
        (TensorProto.INT64, 3.0),
        (TensorProto.UINT8, 255),
        (TensorProto.FLOAT, 0.1),
        (TensorProto.FLOAT, 3),
        (TensorProto.FLOAT, float("nan")),
        (TensorProto.FLOAT16, 1.5),
        (TensorProto.FLOAT, float("inf")),
        (TensorProto.BOOL, True),
        (TensorProto.DOUBLE, 0.1),
        (TensorProto.BFLOAT16, 1.5),
        (TensorProto.STRING, "text"),
        (TensorProto.UINT64, 2**63),
        (TensorProto.INT64, -(2**63)),
        (TensorProto.INT4, -8),
        (TensorProto.FLOAT, 2**70),
    ],
)
def test_python_numbers_are_converted(elem_type, value):
    y = identity(elem_type)(x=value).y
    assert y.dtype == identity(elem_type).inputs[0].type.dtype and y.shape == ()
    if elem_type == TensorProto.STRING:
        assert y.item() == value
    else:
        np.testing.assert_array_equal(y, np.asarray(value).astype(y.dtype))


@pytest.mark.parametrize(
    "elem_type, value",
    [
        (TensorProto.INT64, float("nan")),
        (TensorProto.INT64, 0.5),
        (TensorProto.UINT8, 256),
        (TensorProto.UINT8, -1),
        (TensorProto.INT32, 2**40),
        (TensorProto.INT64, 2**70),
        (TensorProto.FLOAT, 1e300),
        (TensorProto.FLOAT16, 1e6),
        (TensorProto.BOOL, 1),
        (TensorProto.INT64, True),
        (TensorProto.INT64, float("inf")),
        (TensorProto.FLOAT, 1j),
        (TensorProto.INT64, 2**63),
        (TensorProto.INT64, 2.0**63),
        (TensorProto.UINT64, -1),
        (TensorProto.FLOAT, 10**400),
        (TensorProto.INT4, 8),
        (TensorProto.UINT4, -1),
        (TensorProto.FLOAT8E4M3FN, 1e6),
    ],
)
def test_python_numbers_that_do_not_fit(elem_type, value):
    with pytest.raises((InputError, InputTypeError), match="input 'x'"):
        identity(elem_type)(x=value)


@pytest.mark.parametrize(
    "elem_type, value, expected",
    [
        (TensorProto.FLOAT, [True, False], [1.0, 0.0]),
        (TensorProto.FLOAT, [np.array([False, True])], [[0.0, 1.0]]),
        (TensorProto.INT64, [True, 0], [1, 0]),
        (TensorProto.UINT4, (True, False), [1, 0]),
        (TensorProto.BOOL, [1, 0], [True, False]),
        (TensorProto.BOOL, [0.0, 1.0], [False, True]),
        (TensorProto.STRING, [b"a", b"\xc3\xa9"], ["a", "é"]),
        (TensorProto.STRING, np.array([b"ab", b"c"]), ["ab", "c"]),
        (TensorProto.STRING, np.array(["a", b"b"], object), ["a", "b"]),
    ],
)
def test_lists_are_converted_as_onnxruntime_does(elem_type, value, expected):
    model = identity(elem_type, None)
    for _ in range(2):
        y = model(x=value).y
        assert y.dtype == model.inputs[0].type.dtype and y.tolist() == expected


@pytest.mark.parametrize(
    "elem_type, value, error, message",
    [
        (TensorProto.BOOL, [2, 0], InputError, "holds a value that bool does not"),
        (TensorProto.BOOL, [0.5], InputError, "holds a value that bool does not"),
        (TensorProto.BOOL, [float("nan")], InputError, "holds a value that bool does not"),
        (TensorProto.BOOL, ["a"], InputTypeError, "list of str"),
        (TensorProto.FLOAT, [None], InputTypeError, "list of NoneType"),
        (TensorProto.STRING, [None], InputTypeError, "holds NoneType, expected string"),
        (TensorProto.STRING, ["a", 1.5, {}], InputTypeError, "holds (float|dict), expected string"),
        (TensorProto.STRING, np.array(["a", 2], object), InputTypeError, "holds int, expected string"),
        (TensorProto.STRING, [b"\xff"], InputError, "not UTF-8"),
        (TensorProto.STRING, {1}, InputTypeError, "holds set, expected string"),
        (TensorProto.STRING, [True], InputTypeError, "list of bool, expected string"),
    ],
)
def test_lists_that_hold_something_else(elem_type, value, error, message):
    model = identity(elem_type, None)
    for _ in range(2):
        with pytest.raises(error, match=f"input 'x' .*{message}"):
            model(x=value)
        model(x=np.zeros(len(value), model.inputs[0].type.dtype).astype(str).astype(model.inputs[0].type.dtype))


@pytest.mark.parametrize(
    "feed, error, message",
    [
        ({"q": 1}, InputError, "no input 'q'"),
        ({"x": "a"}, InputTypeError, "'x' is str"),
        ({"h": H[0]}, InputError, "'h' has shape"),
    ],
)
def test_wrong_inputs_of_a_summary(feed, error, message):
    with pytest.raises(error, match=message):
        rnnfast.load(GRU).summary(feed)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a[::-1],
        lambda a: a.T.copy().T,
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(">f4"),
        lambda a: unaligned(a),
        lambda a: np.ma.array(a),
    ],
)
def test_layouts_of_input_arrays(make):
    model = rnnfast.load(parse("g (float[n,3] x) => (float[n,4] y) { y = MatMul (x, w) }", w=random(0, 3, 4)))
    x = random(1, 5, 3)
    for _ in range(2):
        np.testing.assert_array_equal(model(x=make(x)).y, model(x=np.array(make(x), np.float32)).y)


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(np.float32).reshape(a.shape)
    view[:] = a
    return view


def test_outputs_are_fresh():
    """Nothing that a caller does to an output reaches inputs, constants or other outputs."""
    model = rnnfast.load(
        parse(
            """
        g (float[n,3] x) => (float[n,3] same, float[n,3] again, float[3,n] turned, float[3] row, float[2] k,
                             int64[2] shape) {
        same = Identity (x)  again = Identity (x)  turned = Transpose (x)  row = Gather <axis = 0> (x, zero)
        k = Identity (constant)  shape = Shape (x) }""",
            zero=np.int64(0),
            constant=np.array([1, 2], np.float32),
        )
    )
    x = random(0, 4, 3)
    before = x.copy()
    for _ in range(2):
        out = model(x=x)
        for a, b in itertools.combinations([x, *out.values()], 2):
            assert not np.may_share_memory(a, b)
        for value in out.values():
            assert value.flags.owndata and value.flags.c_contiguous and value.flags.writeable
            value[...] = 9
        np.testing.assert_array_equal(x, before)
        assert model(x=x).k.tolist() == [1, 2] and model(x=x).shape.tolist() == [4, 3]


ALIASES = {
    "native": ("float[t,1,b,3] y, float[1,b,3] last", "y, last = GRU <hidden_size = 3> (x, w, r, bias, , h)"),
    "the same twice": (
        "float[t,1,b,3] y, float[t,1,b,3] z, float[t,1,b,3] w2",
        "y, last = GRU <hidden_size = 3> (x, w, r, bias, , h)  z = Identity (y)  w2 = Identity (y)",
    ),
    "a view": (
        "float[t,1,b,3] y, float[t,b,3] z",
        "y, last = GRU <hidden_size = 3> (x, w, r, bias, , h)  z = Squeeze (y, one)",
    ),
    "an input": (
        "float[t,1,b,3] y, float[t,b,4] x, float[1,b,3] h2",
        "y, last = GRU <hidden_size = 3> (x, w, r, bias, , h)  h2 = Identity (h)",
    ),
    "a constant": (
        "float[t,1,b,3] y, float[1,9,4] w, float[1,9,3] r2",
        "y, last = GRU <hidden_size = 3> (x, w, r, bias, , h)  r2 = Identity (r)",
    ),
    "no node": ("float[t,b,4] y, float[1,9,4] w", "y = Identity (x)"),
}


@pytest.mark.parametrize("case", ALIASES)
def test_outputs_of_many_calls_share_nothing(case):
    outputs, nodes = ALIASES[case]
    constants = {"w": random(0, 1, 9, 4), "r": random(1, 1, 9, 3), "bias": random(2, 1, 18), "one": np.array([1])}
    session = rnnfast.InferenceSession(
        parse(f"g (float[t,b,4] x, float[1,b,3] h) => ({outputs}) {{ {nodes} }}", **constants)
    )
    feed = {"x": X.copy(), "h": H.copy()}
    calls = [session.run(None, feed) for _ in range(4)]
    expected = [y.tobytes() for y in calls[0]]
    arrays = [*feed.values(), *(y for call in calls for y in call)]
    for a, b in itertools.combinations(arrays, 2):
        assert not np.may_share_memory(a, b)
    for call in calls:
        assert [y.tobytes() for y in call] == expected
        for y in call:
            assert y.flags.owndata and y.flags.c_contiguous and y.flags.writeable
            y[...] = np.nan
    assert [y.tobytes() for y in session.run(None, feed)] == expected
    np.testing.assert_array_equal(feed["x"], X)


def test_every_way_to_call_gives_the_same_bits():
    """A dict of arrays takes the plan at once; other mappings and values are checked and converted first."""
    feed = {"x": X, "h": H}
    session = rnnfast.InferenceSession(GRU)
    model, expected = session.model, rnnfast.load(GRU)(feed)
    others = [
        feed,
        {"h": H, "x": X},
        types.MappingProxyType(feed),
        collections.OrderedDict(feed),
        {"x": X.tolist(), "h": H},
        {"x": np.asfortranarray(X), "h": H[..., ::-1][..., ::-1]},
    ]
    for other in others * 2:
        for y, last in (
            model(other).values(),
            session.run(["y", "last"], other),
            session.run(None, other),
            session.run(["last", "y"], other)[::-1],
        ):
            assert (y.tobytes(), last.tobytes()) == (expected.y.tobytes(), expected.last.tobytes())


def test_no_warnings_and_nothing_printed(capfd):
    model = rnnfast.load(
        parse(
            """g (float[n] x) => (float[n] y, float[n] z, float m) {
        l = Log (x)  y = Div (x, zero)  z = Sqrt (l)  m = ReduceMean <keepdims = 0> (empty) }""",
            zero=np.float32(0),
            empty=np.zeros((0,), np.float32),
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert np.isnan(model(x=[-1.0, 0.0]).y[1])
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ initializers
@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_may_be_overridden(ir_version):
    w, x, h = random(0, 1, 9, 4), random(3, 5, 2, 4), random(4, 1, 2, 3)
    node = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=3)
    model = model_of(
        [node],
        [("x", 1, ["t", "b", 4]), ("h", 1, [1, "b", 3]), ("w", 1, [1, 9, 4])],
        [("y", 1, ["t", 1, "b", 3])],
        {"w": w, "r": random(1, 1, 9, 3)},
        opset=14,
        ir_version=ir_version,
    )
    ours = load(model)
    assert ours.required_inputs == ["x", "h"]
    first = ours(x=x, h=h).y
    np.testing.assert_array_equal(ours(x=x, h=h, w=w).y, first)
    other = ours(x=x, h=h, w=-w).y
    assert np.abs(other - first).max() > 0.1
    np.testing.assert_array_equal(ours(x=x, h=h).y, first)
    for _ in range(2):
        assert ours(x=x, h=h, w=-w).y.tobytes() == other.tobytes() and ours(x=x, h=h).y.tobytes() == first.tobytes()
        with pytest.raises(InputError, match="'w' has shape"):
            ours(x=x, h=h, w=w[:, 1:])
    model.graph.initializer[0].raw_data = (-w).tobytes()
    np.testing.assert_array_equal(load(model)(x=x, h=h).y, other)


def test_first_call_and_later_calls_agree_to_the_bit():
    x, h = random(3, 50, 3, 4), random(4, 1, 3, 3)
    model = rnnfast.load(GRU)
    first = model(x=x, h=h)
    for other in (model(x=x, h=h), rnnfast.load(GRU)(x=x, h=h)):
        assert all(other[name].tobytes() == first[name].tobytes() for name in first)


def test_threads_share_a_model():
    model = rnnfast.load(GRU)
    feeds = [{"x": random(t, t % 7 + 1, 2, 4), "h": random(t + 50, 1, 2, 3)} for t in range(40)]
    expected = [rnnfast.load(GRU)(feed).y.tobytes() for feed in feeds]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [y.y.tobytes() for y in pool.map(model, feeds)] == expected


@pytest.mark.parametrize("file", ["tagger", "denoiser", "detector"])
def test_number_of_threads_does_not_change_the_bits(file, forced):
    feeds = {
        "tagger": {"tokens": [[3, 1, 4], [5, 9, 2]], "lengths": [3, 2]},
        "denoiser": {"bands": random(0, 5, 22), "state": random(1, 1, 5, 32)},
        "detector": {"audio": random(0, 2, 700), "rate": 16000},
    }
    path = MODELS / f"{file}.onnx"
    expected = [y.tobytes() for y in rnnfast.load(path)(feeds[file]).values()]
    for threads in (1, 2, 5):
        model = rnnfast.load(path, threads=threads)
        for _ in range(2):
            assert [y.tobytes() for y in model(feeds[file]).values()] == expected


def test_threads_reach_the_kernels(monkeypatch):
    """From `threads` and from onnxruntime's option to every native step."""

    class Matrix(_kernels.Matrix):
        def multiply(self, x, out=None, threads=1):
            asked.append(threads)
            return super().multiply(x, out, threads)

    def recurrent(*args):
        asked.append(args[-1])
        return engine(*args)

    asked, engine = [], _plans.recurrent
    monkeypatch.setattr(_kernels, "Matrix", Matrix)
    monkeypatch.setattr(_plans, "recurrent", recurrent)
    data = parse(
        """g (float[t,b,4] x, float[3,5] v) => (float[t,b,5] y, float[b,6] z, float[t,2,m] k) {
        rows, last = GRU <hidden_size = 3> (x, w, r)  s = Squeeze (rows, one)  y = MatMul (s, v)
        f = Squeeze (last, zero)  z = Gemm (f, a, c)  k = Conv (s, p) }""",
        w=random(0, 1, 9, 4),
        r=random(1, 1, 9, 3),
        a=random(2, 3, 6),
        c=random(3, 6),
        p=random(4, 2, 2, 3),
        one=np.array([1]),
        zero=np.array([0]),
    )
    options = rnnfast.SessionOptions()
    options.intra_op_num_threads = 3
    for model in (rnnfast.load(data, threads=3), rnnfast.InferenceSession(data, options).model):
        asked.clear()
        feed = {"x": X, "v": random(5, 3, 5)}
        model(feed)
        model.record(feed, lambda *_: None)  # runs what the native program does not need
        (plan,) = model.planned.plans.kept
        programs = [run for run, *_ in plan.steps if isinstance(run, _programs.NativeProgram)]
        assert set(asked) == {3} and {program.threads for program in programs} == {3}
    options.intra_op_num_threads = 0
    monkeypatch.delenv("RNNFAST_NUM_THREADS", raising=False)
    assert rnnfast.InferenceSession(data, options).model.threads == rnnfast.load(data).threads == 1
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "2")
    assert rnnfast.load(data).threads == 2


@pytest.mark.parametrize(
    "wrong, error", [(0, InputError), (-3, InputError), ("2", InputTypeError), (1.5, InputTypeError)]
)
def test_wrong_threads(wrong, error):
    with pytest.raises(error, match="threads"):
        rnnfast.load(GRU, threads=wrong)
    if wrong != 0:  # the default, there
        options = rnnfast.SessionOptions()
        options.intra_op_num_threads = wrong
        with pytest.raises(error, match="threads"):
            rnnfast.InferenceSession(GRU, options)


def test_blas_without_scipy_is_refused_at_load(monkeypatch):
    monkeypatch.setattr(_kernels, "find_spec", lambda name: None)
    for make in (rnnfast.load, rnnfast.InferenceSession):
        with pytest.raises(UnsupportedError, match="matmul: 'blas' needs SciPy"):
            make(GRU, matmul="blas")
    for matmul in (None, "packed"):
        rnnfast.load(GRU, matmul=matmul)


def test_matmul_engines_agree():
    pytest.importorskip("scipy")
    feed = {"x": X, "h": H}
    packed, blas = (rnnfast.load(GRU, matmul=m)(feed).y for m in ("packed", "blas"))
    np.testing.assert_allclose(packed, blas, rtol=0, atol=1e-6)
    for model in (GRU, parse("g (float[n] x) => (float[n] y) { y = Neg (x) }")):
        with pytest.raises(InputError, match="matmul: 'fast' is none of None, 'packed', 'blas'"):
            rnnfast.load(model, matmul="fast")


# ------------------------------------------------------------------------------------------------ reference, summary
def test_reference_is_float64_everywhere():
    """Casts to float, constants and defaults of type float are float64 there."""
    model = rnnfast.load(
        parse(
            """g (float[n] x, int64[n] i) => (float[n] y, int64[1] s) {
        f = Cast <to = 1> (i)  k = ConstantOfShape (s)  c = Constant <value_float = 0.1> ()
        a = Mul (x, c)  b = Div (a, f)  d = Add (b, third)  y = Add (d, k)  s = Shape (x) }""",
            third=np.float32(1 / 3),
        )
    )
    x, i = random(0, 4), np.arange(4) + 3
    y = model.reference(x=x, i=i).y
    assert y.dtype == np.float64
    tenth, third = np.float64(np.float32(0.1)), np.float64(np.float32(1 / 3))
    np.testing.assert_array_equal(y, x.astype(np.float64) * tenth / i + third)


def test_summary():
    summary = rnnfast.load(GRU).summary(x=X, h=H)
    (layer,) = summary.layers
    assert (layer.op_type, layer.shape, layer.parameters, layer.nbytes) == ("GRU", (5, 1, 2, 3), 27 + 36 + 18, 4 * 81)
    assert layer.flops == summary.flops == 2 * 5 * 2 * (27 + 36)
    text = str(summary)
    assert "5x1x2x3" in text and "81" in text and summary.problem is None


def test_summary_where_zeros_do_not_run():
    model = rnnfast.load(parse("g (float[b,1,t] x) => (float[b,2,u] y) { y = Conv (x, w) }", w=random(0, 2, 1, 9)))
    summary = model.summary()
    assert summary.layers[0].shape is None and "shorter than a window" in str(summary)
    assert model.summary(x=random(0, 1, 1, 20)).layers[0].shape == (1, 2, 12)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, np.int32])
def test_lengths_may_be_integers_of_any_type(tmp_path, dtype):
    """An input that is nothing but lengths takes integers; NumPy makes int64 of a list, and ONNX's LSTM wants int32."""
    net = nn.Sequential(nn.LSTM(4, 3, bidirectional=True, rng=1), nn.GRU(6, 2, rng=2))
    net.save(tmp_path / "net.onnx", lengths=True)
    model = rnnfast.load(tmp_path / "net.onnx")
    lengths = np.array([3, 5], dtype)
    x = np.random.default_rng(3).standard_normal((5, 2, 4), dtype=np.float32)
    for _ in range(2):  # with a new plan, and with one that is kept
        np.testing.assert_array_equal(model(x=x, lengths=lengths).y, net(x, lengths=lengths))
    np.testing.assert_array_equal(model.reference(x=x, lengths=lengths).y, model.reference(x=x, lengths=[3, 5]).y)
    with pytest.raises(InputTypeError, match="input 'x' is double, expected float"):
        model(x=x.astype(np.float64), lengths=lengths)


@pytest.mark.parametrize("lengths", [[3, 2**40], [3.0, 5.0], [True, False], [6, 1], [-1, 1]])
def test_lengths_that_are_none(tmp_path, lengths):
    nn.LSTM(4, 3, rng=1).save(tmp_path / "net.onnx", lengths=True)
    with pytest.raises(rnnfast.Error):
        rnnfast.load(tmp_path / "net.onnx")(x=np.ones((5, 2, 4), np.float32), lengths=np.array(lengths))


def test_lengths_that_are_used_otherwise_too_keep_their_type():
    text = """g (float[t,n,1] x, int32[n] lens) => (float[t,1,n,1] y, int32[n] twice) {
            w = Constant <value_floats = [0.5]> ()  s = Constant <value_ints = [1, 1, 1]> ()  r = Reshape (w, s)
            y = RNN <hidden_size = 1> (x, r, r, "", lens)  twice = Add (lens, lens) }"""
    model = load(parse(text))
    x = np.ones((2, 1, 1), np.float32)
    assert model(x=x, lens=[1]).twice.tolist() == [2]
    with pytest.raises(InputTypeError, match="input 'lens' is int64, expected int32"):
        model(x=x, lens=np.array([1]))
