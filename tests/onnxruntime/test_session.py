"""InferenceSession has onnxruntime's names and fields."""

import queue

import numpy as np
import onnx
import pytest

import rnnfast
from rnnfast.errors import InputError, InputTypeError
from tests.model_graphs import GRU, H, X


def test_session_has_onnxruntime_names(tmp_path):
    path = tmp_path / "gru.onnx"
    path.write_bytes(GRU)
    options = rnnfast.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.graph_optimization_level = rnnfast.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = rnnfast.InferenceSession(str(path), options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    ort = pytest.importorskip("onnxruntime")
    theirs = ort.InferenceSession(GRU, providers=["CPUExecutionProvider"])
    for ours, other in ((session.get_inputs(), theirs.get_inputs()), (session.get_outputs(), theirs.get_outputs())):
        assert [(a.name, a.type, a.shape) for a in ours] == [(a.name, a.type, a.shape) for a in other]
    assert session.get_providers() == theirs.get_providers()
    feed = {"x": X, "h": H}
    for names in (None, [], ["last"], ["last", "y"], ("last",), ["y", "y"]):
        for a, b in zip(session.run(names, feed), theirs.run(names, feed), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="no output 'z'"):
        session.run(["z"], feed)
    with pytest.raises(InputTypeError):
        session.run(None, {"x": X.astype(np.float64), "h": H})
    for names in (5, "last"):
        with pytest.raises(InputTypeError, match="output names are (int|str)"):
            session.run(names, feed)


@pytest.mark.parametrize("name", ["SessionOptions", "RunOptions"])
def test_options_have_onnxruntime_fields(name):
    ort = pytest.importorskip("onnxruntime")
    theirs = {n for n in dir(getattr(ort, name)()) if not n.startswith("_")}
    device = {  # what belongs to other devices and their compilers, to adapters, and a flag that loading does not ask
        "add_provider_for_devices",
        "has_providers",
        "set_provider_selection_policy",
        "set_provider_selection_policy_delegate",
        "set_load_cancellation_flag",
        "sync_stream",
        "set_ep_context_data_read_func",
        "clear_ep_context_data_read_func",
        "add_active_adapter",
    }
    assert theirs - device <= set(dir(getattr(rnnfast, name)()))


class Holder:
    """An object of another package that gives an array, as tensors of torch and jax do."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


def reversed_memory(a):
    return a[::-1, :, ::-1].copy()[::-1, :, ::-1]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def torch_tensor(a):
    return pytest.importorskip("torch").from_numpy(a.copy())


# How an input is given -> whether onnxruntime takes it too.
GIVEN = {
    "read-only": (read_only, True),
    "of negative strides": (reversed_memory, True),
    "in Fortran's order": (np.asfortranarray, True),
    "of other strides": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], True),
    "transposed": (lambda a: a.T.copy().T, True),
    "of a subclass": (lambda a: a.view(np.recarray), True),
    "masked": (np.ma.array, True),
    "a list": (lambda a: a.tolist(), True),
    "a list of arrays": (list, True),
    "an OrtValue": (rnnfast.OrtValue, False),
    "a memoryview": (memoryview, False),
    "a memoryview of negative strides": (lambda a: memoryview(reversed_memory(a)), False),
    "tuples": (lambda a: tuple(map(tuple, a.tolist())), False),
    "of the other byte order": (lambda a: a.astype(">f4"), False),
    "by __array__": (Holder, False),
    "torch": (torch_tensor, False),
    "a torch view": (lambda a: torch_tensor(a).transpose(0, 2).contiguous().transpose(0, 2), False),
}


@pytest.mark.parametrize("how", GIVEN)
def test_inputs_as_onnxruntime_takes_them_or_better(how):
    make, theirs_too = GIVEN[how]
    session = rnnfast.InferenceSession(GRU)
    expected = session.run(None, {"x": X, "h": H})
    given = make(X)
    for _ in range(2):
        for a, b in zip(session.run(None, {"x": given, "h": make(H)}), expected, strict=True):
            assert type(a) is np.ndarray and a.flags.c_contiguous and a.flags.writeable
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(given.numpy() if hasattr(given, "numpy") else np.asarray(given, np.float32), X)
    if theirs_too:
        theirs = pytest.importorskip("onnxruntime").InferenceSession(GRU, providers=["CPUExecutionProvider"])
        for a, b in zip(theirs.run(None, {"x": make(X), "h": make(H)}), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_a_torch_tensor_that_needs_a_gradient_is_refused():
    tensor = torch_tensor(X).requires_grad_()
    with pytest.raises(InputTypeError, match="input 'x' is Tensor, which cannot be read as an array.*requires grad"):
        rnnfast.InferenceSession(GRU).run(None, {"x": tensor, "h": H})


def test_keywords_are_those_of_load_and_of_onnxruntime():
    feed = {"x": X, "h": H}
    expected = rnnfast.InferenceSession(GRU).run(None, feed)
    for keywords in (
        {"threads": 2},
        {"matmul": "packed"},
        {"plans": 3},
        {"threads": 2, "matmul": "packed", "plans": 3},
        {"disabled_optimizers": ["ConstantFolding"], "enable_fallback": 0, "read_config_from_model": 1},
        {"provider_options": [{}], "providers": ["CPUExecutionProvider"]},
    ):
        session = rnnfast.InferenceSession(GRU, **keywords)
        assert session.model.threads == keywords.get("threads", session.model.threads)
        assert session.model.matmul == keywords.get("matmul")
        assert session.model.planned.plans.most == keywords.get("plans")
        for a, b in zip(session.run(None, feed), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["thread", "num_threads", "session_options", "provider", "Threads", "matmuls", "path"])
def test_unknown_keywords_are_refused(name):
    with pytest.raises(InputTypeError, match=f"no argument {name!r}: its keywords are .*matmul.*plans.*threads"):
        rnnfast.InferenceSession(GRU, **{name: 1})
    with pytest.raises(TypeError):
        rnnfast.InferenceSession(GRU, **{name: 1, "threads": 2})


def test_keywords_are_checked_as_by_load():
    for keywords, error in (
        ({"threads": 0}, InputError),
        ({"threads": "2"}, InputTypeError),
        ({"matmul": "mkl"}, InputError),
        ({"plans": 0}, InputError),
    ):
        with pytest.raises(error):
            rnnfast.InferenceSession(GRU, **keywords)
    options = rnnfast.SessionOptions()
    options.intra_op_num_threads = 2
    assert rnnfast.InferenceSession(GRU, options, threads=2).model.threads == 2
    with pytest.raises(InputError, match="threads is 3, but 2 in sess_options"):
        rnnfast.InferenceSession(GRU, options, threads=3)
    options.matmul = "packed"
    with pytest.raises(InputError, match="matmul is 'blas', but 'packed' in sess_options"):
        rnnfast.InferenceSession(GRU, options, matmul="blas")


@pytest.mark.parametrize("options", [rnnfast.SessionOptions, rnnfast.RunOptions])
def test_fields_that_do_not_exist_are_refused(options):
    for name in ("intra_op_num_thread", "terminates", "log_level"):
        with pytest.raises(rnnfast.errors.FieldError, match=f"has no field '{name}', only .*log_severity_level"):
            setattr(options(), name, 1)
    assert issubclass(rnnfast.errors.FieldError, AttributeError)


def test_repeated_outputs_share_no_memory():
    a, b = rnnfast.InferenceSession(GRU).run(["y", "y"], {"x": X, "h": H})
    a[...] = 0
    assert np.any(b) and not np.shares_memory(a, b)


def test_metadata_is_onnxruntimes(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load_model_from_string(GRU)
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "house", 7
    model.doc_string, model.graph.doc_string, model.graph.name = "a model", "a graph", "name"
    model.metadata_props.add(key="k", value="v")
    data = model.SerializeToString()
    theirs = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).get_modelmeta()
    ours = rnnfast.InferenceSession(data).get_modelmeta()
    for name in (n for n in dir(theirs) if not n.startswith("_")):
        assert getattr(ours, name) == getattr(theirs, name), name


def refusals(module, path):
    """Return the classes of errors of a module for bad files, inputs and names, or None where there is no error."""
    state = module.capi.onnxruntime_pybind11_state
    kinds = [getattr(state, n) for n in ("Fail", "InvalidArgument", "InvalidProtobuf", "NoSuchFile")]
    session = module.InferenceSession(GRU, providers=["CPUExecutionProvider"])
    ended = module.RunOptions()
    ended.terminate = True
    feed = {"x": X, "h": H}
    calls = [
        lambda: module.InferenceSession(str(path / "none.onnx"), providers=["CPUExecutionProvider"]),
        lambda: module.InferenceSession(b"not a model", providers=["CPUExecutionProvider"]),
        lambda: session.run(None, feed | {"z": X}),
        lambda: session.run(None, feed | {"x": X.astype(np.float64)}),
        lambda: session.run(None, feed | {"x": X[0]}),
        lambda: session.run(["z"], feed),
        lambda: session.run(None, feed, ended),
    ]
    found = []
    for call in calls:
        try:
            call()
            found.append(None)
        except Exception as e:
            found.append([kind.__name__ for kind in kinds if isinstance(e, kind)])
    return found


def test_errors_are_onnxruntimes_too(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    ours, theirs = refusals(rnnfast, tmp_path), refusals(ort, tmp_path)
    assert all(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert set(b) <= set(a)
    with pytest.raises(FileNotFoundError, match="none.onnx"):
        rnnfast.load(tmp_path / "none.onnx")
    state = rnnfast.capi.onnxruntime_pybind11_state
    names = [
        n
        for n in dir(ort.capi.onnxruntime_pybind11_state)
        if isinstance(getattr(ort.capi.onnxruntime_pybind11_state, n), type)
    ]
    for name in names:
        if issubclass(getattr(ort.capi.onnxruntime_pybind11_state, name), Exception):
            assert issubclass(getattr(state, name), Exception), name


def test_onnxruntimes_own_format_is_named():
    with pytest.raises(rnnfast.errors.UnsupportedError, match=r"own format \(.ort\)"):
        rnnfast.InferenceSession(b"\x20\0\0\0ORTM" + bytes(100))


def test_functions_of_the_process_have_their_names():
    ort = pytest.importorskip("onnxruntime")
    assert set(rnnfast.get_all_providers()) <= set(ort.get_all_providers())
    assert rnnfast.get_device() == ort.get_device() and rnnfast.get_available_providers() == ["CPUExecutionProvider"]
    for severity in (-1, 5):
        for module in (rnnfast, ort):
            with pytest.raises((ValueError, RuntimeError, InputError)):
                module.set_default_logger_severity(severity)
    with pytest.raises(InputTypeError):
        rnnfast.set_seed("1")
    assert rnnfast.__version__ in rnnfast.get_build_info()


def test_run_async_hands_results_or_the_error_to_its_callback():
    session, done = rnnfast.InferenceSession(GRU), queue.Queue()
    expected = session.run(["last"], {"x": X, "h": H})
    session.run_async(["last"], {"x": X, "h": H}, lambda *given: done.put(given), "mine")
    outputs, user_data, error = done.get(timeout=60)
    np.testing.assert_array_equal(outputs[0], expected[0])
    assert (user_data, error) == ("mine", "")
    session.run_async(None, {"x": X[0], "h": H}, lambda *given: done.put(given), None)
    outputs, _, error = done.get(timeout=60)
    assert outputs == [] and "input 'x'" in error
    for names, feed in ((["z"], {"x": X, "h": H}), (None, {})):
        with pytest.raises(InputError):
            session.run_async(names, feed, lambda *given: done.put(given), None)
    assert done.empty()
