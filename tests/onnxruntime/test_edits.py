"""Session options that change the file: sizes of dimensions, and values of initializers."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rnnfast
from rnnfast.errors import InputError, InputTypeError, ModelError
from tests.graphs import parse, random

W = random(0, 3, 2)
DATA = parse("g (float[b,3] x) => (float[b,2] y) { y = MatMul (x, w) }", w=W)
X = random(1, 4, 3)


@pytest.fixture(params=["rnnfast", "onnxruntime"])
def module(request):
    """Each of the two modules: what both are to do is tested on both."""
    return pytest.importorskip(request.param)


def session(module, options, data=DATA):
    return module.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_a_named_dimension_gets_a_size(module):
    options = module.SessionOptions()
    options.add_free_dimension_override_by_name("b", 4)
    options.add_free_dimension_override_by_name("unknown", 9)
    made = session(module, options)
    assert [v.shape for v in (*made.get_inputs(), *made.get_outputs())] == [[4, 3], [4, 2]]
    np.testing.assert_allclose(made.run(None, {"x": X})[0], X @ W, rtol=1e-5)
    with pytest.raises(module.capi.onnxruntime_pybind11_state.InvalidArgument):
        made.run(None, {"x": X[:2]})


def test_a_dimension_gets_a_size_by_its_denotation(module):
    model = onnx.load_model_from_string(DATA)
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    options = module.SessionOptions()
    options.add_free_dimension_override_by_denotation("DATA_BATCH", 4)
    made = session(module, options, model.SerializeToString())
    assert made.get_inputs()[0].shape == [4, 3]


def test_sizes_are_checked():
    options = rnnfast.SessionOptions()
    with pytest.raises(InputError, match="dimension 'b' is -1"):
        options.add_free_dimension_override_by_name("b", -1)
    with pytest.raises(InputTypeError, match="dimension 'b' is str"):
        options.add_free_dimension_override_by_denotation("b", "4")
    assert rnnfast.InferenceSession(DATA, options).get_inputs()[0].shape == ["b", 3]


def test_an_initializer_is_replaced(module):
    options = module.SessionOptions()
    other = module.OrtValue.ortvalue_from_numpy(2 * W)
    options.add_initializer("w", other)
    options.add_initializer("unknown", other)
    np.testing.assert_allclose(session(module, options).run(None, {"x": X})[0], 2 * X @ W, rtol=1e-5)


@pytest.mark.parametrize("value", [W[:2], W.astype(np.float64)])
def test_an_initializer_keeps_its_type_and_shape(value):
    options = rnnfast.SessionOptions()
    options.add_initializer("w", rnnfast.OrtValue(value))
    with pytest.raises(ModelError, match=r"initializer 'w' is float\[3, 2\], its new value tensor"):
        rnnfast.InferenceSession(DATA, options)
    with pytest.raises(InputTypeError, match="expected an OrtValue"):
        options.add_initializer("w", value)


def external(offset=0, length=W.nbytes):
    """The model with its matrix in a file that is not there."""
    model = onnx.load_model_from_string(DATA)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return model.SerializeToString()


def test_external_data_come_from_values(module):
    options = module.SessionOptions()
    options.add_external_initializers(["w"], [module.OrtValue.ortvalue_from_numpy(2 * W)])
    np.testing.assert_allclose(session(module, options, external()).run(None, {"x": X})[0], 2 * X @ W, rtol=1e-5)
    with pytest.raises(module.capi.onnxruntime_pybind11_state.Fail):
        session(module, options)  # w is in the file


def test_external_data_come_from_memory(module):
    options = module.SessionOptions()
    contents = bytes(8) + W.tobytes() + bytes(3)
    options.add_external_initializers_from_files_in_memory(["w.bin"], [contents], [len(contents)])
    np.testing.assert_allclose(session(module, options, external(8)).run(None, {"x": X})[0], X @ W, rtol=1e-5)


@pytest.mark.parametrize("offset, length", [(8, 24), (-1, 24), (1, "x"), (100, 0), (0, 12)])
def test_external_data_lie_within_the_memory(offset, length):
    options = rnnfast.SessionOptions()
    options.add_external_initializers_from_files_in_memory(["w.bin"], [W.tobytes()], [W.nbytes])
    with pytest.raises(ModelError, match="w"):
        rnnfast.InferenceSession(external(offset, length), options)


def test_lists_of_other_lengths_are_refused():
    options = rnnfast.SessionOptions()
    value = rnnfast.OrtValue(W)
    with pytest.raises(InputError, match="1 names of initializers and 2 values"):
        options.add_external_initializers(["w"], [value, value])
    with pytest.raises(InputError, match="1 names of files"):
        options.add_external_initializers_from_files_in_memory(["w"], [b"", b""], [0])
    with pytest.raises(InputError, match="have 2 bytes, fewer than 3"):
        options.add_external_initializers_from_files_in_memory(["w"], [b"ab"], [3])
    with pytest.raises(InputTypeError, match="are str, expected a buffer"):
        options.add_external_initializers_from_files_in_memory(["w"], ["ab"], [2])


def test_a_model_with_edits_is_still_a_model_that_pickles():
    import pickle

    options = rnnfast.SessionOptions()
    options.add_initializer("w", rnnfast.OrtValue(2 * W))
    made = pickle.loads(pickle.dumps(rnnfast.InferenceSession(DATA, options)))
    np.testing.assert_allclose(made.run(None, {"x": X})[0], 2 * X @ W, rtol=1e-5)
    assert numpy_helper.to_array(onnx.load_model_from_string(DATA).graph.initializer[0]).shape == W.shape
