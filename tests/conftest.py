import os

import pytest

from rnnfast.native import _kernels


@pytest.fixture(params=_kernels.isas())
def isa(request):
    """Each instruction set that this machine has, in turn."""
    before = _kernels.get_isa()
    _kernels.set_isa(request.param)
    yield request.param
    _kernels.set_isa(before)


@pytest.fixture
def forced():
    """Every call gets the threads that it asks for."""
    _kernels.force_threads(8)
    yield
    _kernels.force_threads(0)


@pytest.fixture
def unsanitized():
    """For tests that preload a library of their own, or whose processes have little memory."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("a sanitizer is preloaded")
