"""All that the fuzzer ever found stays mended, and a short run of it finds nothing."""

import pathlib

import numpy as np
import onnx
import pytest

from tests.fuzz import by_onnxruntime, checks
from tests.fuzz.__main__ import in_onnxruntime
from tests.fuzz.cases import ZEROS, case_of, findings
from tests.fuzz.mutations import feed_of
from tests.graphs import parse, random

CORPUS = sorted((pathlib.Path(__file__).parent / "corpus").glob("*.onnx"))
CASES, IN_ONE_TEST = 120, 20


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """onnxruntime may crash, so that it is compared in processes of their own only; programs are verified."""
    monkeypatch.setattr(by_onnxruntime, "onnxruntime", None)
    monkeypatch.setenv("RNNFAST_VERIFY", "1")


def feed_beside(path):
    """The inputs that belong to a file of the corpus: those beside it, or random ones of the declared types."""
    if path.with_suffix(".npz").exists():
        with np.load(path.with_suffix(".npz")) as file:
            return dict(file)
    try:
        return feed_of(onnx.load(path, load_external_data=False), np.random.default_rng(0))
    except Exception:  # Whatever protobuf raises: the file is no model, and none of its inputs matters.
        return {}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_corpus_holds(path):
    weights = path.with_suffix(".weights")
    assert findings(path.read_bytes(), feed_beside(path), weights.read_bytes() if weights.exists() else ZEROS) == []


@pytest.mark.parametrize("first", range(0, CASES, IN_ONE_TEST))
def test_random_cases_hold(first):
    for seed in range(first, first + IN_ONE_TEST):
        assert findings(*case_of(seed)) == [], f"python -m tests.fuzz --seed {seed}"


def test_a_case_follows_from_its_seed():
    for seed in (5, 6):
        (data, feed, weights), (same, fed, beside) = case_of(seed), case_of(seed)
        assert data == same and weights == beside
        assert feed.keys() == fed.keys() and all(a.tobytes() == fed[name].tobytes() for name, a in feed.items())


def test_findings_are_found(monkeypatch):
    """The checks see another exception, other values, other bits and another refusal."""
    from rnnfast.model import Model
    from rnnfast.native import _kernels

    data = parse("g (float[a,b] x) => (float[a,c] z) { y = MatMul (x, w)  z = Tanh (y) }", w=random(0, 5, 7))
    feed = {"x": random(1, 3, 5)}
    assert findings(data, feed) == []
    whole = Model.run

    def kinds(run):
        monkeypatch.setattr(Model, "run", run)
        return {finding.kind for finding in findings(data, feed)}

    def raises(self, feed):
        raise KeyError("lost")

    def wrong(self, feed):
        return [value + 1 if value.dtype.kind == "f" else ~value for value in whole(self, feed)]

    def refuses(self, feed):
        from rnnfast.errors import InputError

        raise InputError("no")

    with monkeypatch.context() as patch:
        patch.setattr(checks, "run_onnxruntime", lambda model, path, feed: wrong(model, feed))
        assert kinds(whole) == {"onnxruntime"}
    assert kinds(raises) == {"exception"}
    assert kinds(refuses) == {"refusal"}
    assert "values" in kinds(wrong)
    if len(_kernels.isas()) > 1:
        usual = _kernels.get_isa()
        assert "bits" in kinds(lambda self, feed: (whole if _kernels.get_isa() == usual else wrong)(self, feed))
        rounded = lambda self: self.weights is not None and _kernels.get_isa() != usual
        assert kinds(lambda self, feed: (wrong if rounded(self) else whole)(self, feed)) == {"bits"}


def test_a_crash_is_of_onnxruntime_by_its_first_frame():
    text = 'Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  File "{}", line 1 in run\n'
    assert in_onnxruntime(text.format("/lib/onnxruntime/session.py") + '  File "/rnnfast/model.py", line 2 in run')
    assert not in_onnxruntime(text.format("/rnnfast/model.py") + '  File "/lib/onnxruntime/session.py", line 2 in run')
    assert not in_onnxruntime("Fatal Python error: Segmentation fault") and not in_onnxruntime("")


def test_a_wrong_proof_is_found(monkeypatch):
    """The checks see rows that change each other though the axes say that they do not, in a given and a made batch."""
    from rnnfast.model import Model
    from rnnfast.streaming.model_axes import BatchAxes

    data = parse("g (float[b,3] x) => (y) { m = ReduceMax <axes = [0]> (x)  y = Sub (x, m) }")
    for count in (1, 4):
        feed = {"x": random(1, count, 3)}
        assert findings(data, feed) == []
        with monkeypatch.context() as patch:
            patch.setattr(Model, "batch_axes", lambda self, feed: BatchAxes({"x": 0}, {"y": 0}, None))
            assert [finding.kind for finding in findings(data, feed)] == ["rows"]
