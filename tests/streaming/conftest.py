"""Models of the tests of streams, and the two ways in which their steps run."""

import pytest

import rnnfast
from rnnfast.streaming.model_stream import Stream
from tests.graphs import parse
from tests.paths import ROOT
from tests.streaming.streams import GRAPH


@pytest.fixture(params=["native", "python"])
def way(request, monkeypatch):
    """Plans that are one NativeProgram run on a StreamRunner; all others as calls do."""
    if request.param == "python":
        monkeypatch.setattr(Stream, "_new_runner", lambda *args: None)
    return request.param


@pytest.fixture
def denoiser():
    return rnnfast.load(ROOT / "models" / "denoiser.onnx")


@pytest.fixture
def model():
    return rnnfast.load(parse(GRAPH))
