"""InferenceSession has onnxruntime's names and fields."""

import numpy as np
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
    for names in (None, [], ["last"], ["last", "y"]):
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
    # what belongs to other devices, to custom operators or to other files' weights
    device = {
        "add_external_initializers",
        "add_external_initializers_from_files_in_memory",
        "add_initializer",
        "add_free_dimension_override_by_denotation",
        "add_free_dimension_override_by_name",
        "add_provider",
        "add_provider_for_devices",
        "has_providers",
        "set_provider_selection_policy",
        "set_provider_selection_policy_delegate",
        "set_load_cancellation_flag",
        "sync_stream",
        "set_ep_context_data_read_func",
        "clear_ep_context_data_read_func",
        "add_active_adapter",
        "get_run_config_entry",
    }
    assert theirs - device <= set(dir(getattr(rnnfast, name)()))


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
        assert session.model.planned.plans.most == keywords.get("plans", 16)
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
