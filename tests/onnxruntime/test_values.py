"""OrtValue and IOBinding do what onnxruntime's do."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from tests.model_graphs import GRU, H, X

MODULES = [rnnfast, pytest.param("onnxruntime", id="onnxruntime")]


@pytest.fixture(params=["rnnfast", "onnxruntime"])
def module(request):
    """Each of the two modules: what both are to do is tested on both."""
    return pytest.importorskip(request.param)


@pytest.fixture
def session(module):
    return module.InferenceSession(GRU, providers=["CPUExecutionProvider"])


EXPECTED = rnnfast.load(GRU).run({"x": X, "h": H})


def check(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
def test_a_value_is_on_the_memory_of_its_array(module, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = module.OrtValue.ortvalue_from_numpy(array)
    theirs = value.numpy()
    array[0, 0] = 1
    assert theirs[0, 0] == 1 and value.data_ptr() == array.ctypes.data
    assert (value.shape(), value.device_name(), value.is_tensor(), value.has_value()) == ([2, 3], "cpu", True, True)
    assert not value.is_tensor_sequence() and not value.is_sparse_tensor()
    assert value.tensor_size_in_bytes() == array.nbytes
    value.update_inplace(np.ones((2, 3), dtype))
    np.testing.assert_array_equal(array, np.ones((2, 3)))
    np.testing.assert_array_equal(np.from_dlpack(value), array)
    assert module.OrtValue.from_dlpack(array).data_ptr() == array.ctypes.data


def test_types_are_onnxruntimes():
    ort = pytest.importorskip("onnxruntime")
    for dtype in ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint32", "bool"):
        ours, theirs = (m.OrtValue.ortvalue_from_shape_and_type([2, 0], np.dtype(dtype).type) for m in (rnnfast, ort))
        assert ours.data_type() == theirs.data_type() and ours.element_type() == theirs.element_type()
        again = rnnfast.OrtValue.ortvalue_from_shape_and_type([2, 0], theirs.element_type())
        assert again.numpy().dtype == np.dtype(dtype)


def test_views_are_copied_as_contiguous_values(module):
    value = module.OrtValue.ortvalue_from_numpy(X[::-1, :, ::2])
    np.testing.assert_array_equal(value.numpy(), X[::-1, :, ::2])


def test_a_value_of_another_type():
    value = rnnfast.OrtValue.ortvalue_from_numpy_with_onnx_type(np.array([0x3F80, 0xC000], np.uint16), 16)
    assert value.data_type() == "tensor(bfloat16)"
    np.testing.assert_array_equal(value.numpy().astype(np.float32), [1, -2])
    with pytest.raises(InputError, match="elements of 2 bytes as float of 4"):
        rnnfast.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(2, np.uint16), 1)


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([1j]), [1, 2], "x", None, np.array([None])])
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises(InputTypeError, match="OrtValue of"):
        rnnfast.OrtValue.ortvalue_from_numpy(value)


def test_wrong_updates_and_devices_are_refused():
    value = rnnfast.OrtValue.ortvalue_from_numpy(np.zeros(3, np.float32))
    with pytest.raises(InputError, match="2 elements for an OrtValue of 3"):
        value.update_inplace(np.zeros(2, np.float32))
    with pytest.raises(InputTypeError, match="double for an OrtValue of float"):
        value.update_inplace(np.zeros(3))
    with pytest.raises(InputError, match="read-only"):
        rnnfast.OrtValue(np.broadcast_to(np.float32(1), (1,))).update_inplace(np.zeros(1, np.float32))
    with pytest.raises(UnsupportedError, match="'cuda'"):
        rnnfast.OrtValue.ortvalue_from_numpy(X, "cuda")
    with pytest.raises(UnsupportedError):
        rnnfast.OrtDevice.make("cuda", 0)
    with pytest.raises(InputError, match=r"\[-1\]"):
        rnnfast.OrtValue.ortvalue_from_shape_and_type([-1], np.float32)
    for element_type in ("nothing", 99, np.complex64, 8):
        with pytest.raises(InputTypeError, match="element type|expected a NumPy array of numbers"):
            rnnfast.OrtValue.ortvalue_from_shape_and_type([1], element_type)
    with pytest.raises(UnsupportedError, match="sparse"):
        rnnfast.SparseTensor.sparse_coo_from_numpy([1], X, X, None)


def test_sessions_run_on_values(module, session):
    values = {"x": module.OrtValue.ortvalue_from_numpy(X), "h": module.OrtValue.ortvalue_from_numpy(H)}
    check([v.numpy() for v in session.run_with_ort_values(None, values)], EXPECTED)
    check([v.numpy() for v in session.run_with_ort_values(["last"], values)], EXPECTED[1:])
    check(session.run(None, values), EXPECTED)
    check(session.run(None, {"x": values["x"], "h": H}), EXPECTED)
    with pytest.raises((AttributeError, InputTypeError)):
        session.run_with_ort_values(None, {"x": X, "h": H})


# ---------------------------------------------------------------------------------------------------- bindings
def test_outputs_come_in_the_order_of_their_binding(session):
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_cpu_input("h", H)
    for name in ("last", "y"):
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    check(binding.copy_outputs_to_cpu(), EXPECTED[::-1])
    check([v.numpy() for v in binding.get_outputs()], EXPECTED[::-1])
    binding.clear_binding_outputs()
    assert binding.get_outputs() == []
    with pytest.raises((RuntimeError, InputError)):
        session.run_with_iobinding(binding)


def test_memory_that_is_bound_once_serves_many_runs(session):
    """The state goes around in place: the output is bound to the memory of the input."""
    x, state, y = X[:1].copy(), H.copy(), np.zeros((1, 1, 2, 3), np.float32)
    binding = session.io_binding()
    for name, a in (("x", x), ("h", state)):
        binding.bind_input(name, "cpu", 0, np.float32, a.shape, a.ctypes.data)
    for name, a in (("y", y), ("last", state)):
        binding.bind_output(name, "cpu", 0, np.float32, a.shape, a.ctypes.data)
    for t in range(len(X)):
        x[...] = X[t]
        session.run_with_iobinding(binding)
        np.testing.assert_allclose(y[0], EXPECTED[0][t], rtol=0, atol=1e-6)
    np.testing.assert_allclose(state, EXPECTED[1], rtol=0, atol=1e-6)
    kept = binding.copy_outputs_to_cpu()
    session.run_with_iobinding(binding)
    np.testing.assert_allclose(kept[1], EXPECTED[1], rtol=0, atol=1e-6)


def test_values_are_bound(module, session):
    x, h = module.OrtValue.ortvalue_from_numpy(X), module.OrtValue.ortvalue_from_numpy(H)
    y = module.OrtValue.ortvalue_from_numpy(np.zeros_like(EXPECTED[0]))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_input("h", h)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    check([y.numpy()], EXPECTED[:1])
    assert binding.get_outputs()[0].data_ptr() == y.data_ptr()


def test_results_that_do_not_fit_change_nothing():
    session = rnnfast.InferenceSession(GRU)
    binding = session.io_binding()
    y, last = np.zeros_like(EXPECTED[0]), np.zeros((1, 3, 3), np.float32)
    binding.bind_cpu_input("x", X)
    binding.bind_cpu_input("h", H)
    binding.bind_ortvalue_output("y", rnnfast.OrtValue(y))
    binding.bind_ortvalue_output("last", rnnfast.OrtValue(last))
    with pytest.raises(InputError, match=r"output 'last' is \[1, 2, 3\], the memory bound to it \[1, 3, 3\]"):
        session.run_with_iobinding(binding)
    assert not y.any()


def test_wrong_bindings_are_refused():
    session = rnnfast.InferenceSession(GRU)
    binding = session.io_binding()
    memory = np.zeros(100, np.float32)
    at = memory.ctypes.data
    for call, error, text in (
        (lambda: binding.bind_cpu_input("z", X), InputError, "no input 'z'"),
        (lambda: binding.bind_cpu_input("x", X[0]), InputError, "input 'x'"),
        (lambda: binding.bind_cpu_input("x", X.astype(np.float64)), InputTypeError, "input 'x'"),
        (lambda: binding.bind_ortvalue_input("x", X), InputTypeError, "expected an OrtValue"),
        (lambda: binding.bind_input("x", "cuda", 0, np.float32, X.shape, at), UnsupportedError, "cuda"),
        (lambda: binding.bind_input("x", "cpu", 0, np.float64, X.shape, at), InputTypeError, "input 'x'"),
        (lambda: binding.bind_input("x", "cpu", 0, np.float32, X.shape, 0), InputError, "address of 'x' is 0"),
        (lambda: binding.bind_input("x", "cpu", 0, np.float32, X.shape, at + 1), InputError, "address of 'x'"),
        (lambda: binding.bind_input("x", "cpu", 0, np.float32, X.shape, None), InputTypeError, "address of 'x'"),
        (lambda: binding.bind_output("z"), InputError, "no output 'z'"),
        (lambda: binding.bind_output("y", "cpu", 0, np.int32, (1,), at), InputTypeError, "output 'y' is float"),
        (lambda: binding.bind_ortvalue_output("y", memory), InputTypeError, "expected an OrtValue"),
        (lambda: session.run_with_iobinding(binding), InputError, "no output is bound"),
        (lambda: session.run_with_iobinding(None), InputTypeError, "expected an IOBinding"),
    ):
        with pytest.raises(error, match=text):
            call()
    assert binding.inputs == {} and binding.targets == {}
