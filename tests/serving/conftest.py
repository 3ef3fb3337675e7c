"""All tests of Batchers run twice: with batches in the thread alone, and with those of asyncio in their event loop."""

import pytest

import rnnfast


@pytest.fixture(autouse=True, params=(0.0, 1.0), ids=("thread", "inline"))
def default_of_max_inline(request, monkeypatch):
    monkeypatch.setitem(rnnfast.Batcher.__init__.__kwdefaults__, "max_inline", request.param)
