"""Fixtures of all tests."""

import os

import pytest

from rnnfast.native import _kernels
from tests.published import published_path

# Asserts of helper modules say what the two sides were, as those of tests do.
pytest.register_assert_rewrite(
    "tests.cases",
    "tests.playing",
    "tests.native",
    "tests.nn",
    "tests.onnx",
    "tests.serving",
    "tests.streaming",
    "tests.train",
)


@pytest.fixture(params=_kernels.isas())
def isa(request):
    """Each instruction set of this machine in turn."""
    before = _kernels.get_isa()
    _kernels.set_isa(request.param)
    yield request.param
    _kernels.set_isa(before)


@pytest.fixture
def forced():
    """Calls get as many threads as they ask for, up to eight, however small they are."""
    _kernels.force_threads(8)
    yield
    _kernels.force_threads(0)


@pytest.fixture
def unsanitized():
    """Skip tests that preload a library of their own, or whose processes have little memory, under a sanitizer."""
    if any(name in os.environ.get("LD_PRELOAD", "") for name in ("libasan", "libtsan")):
        pytest.skip("a sanitizer is preloaded")


@pytest.fixture
def published():
    """published(name): the path of a file or folder of ../shared; the test is skipped where it is absent."""
    return published_path
