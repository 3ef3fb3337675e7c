import pytest

from rnnfast import _engine


@pytest.fixture(params=_engine.isas())
def isa(request):
    """Each instruction set that this machine has, in turn."""
    before = _engine.get_isa()
    _engine.set_isa(request.param)
    yield request.param
    _engine.set_isa(before)
