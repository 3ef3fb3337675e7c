"""Fixtures of the tests of threads."""

import pytest

from tests.native.threaded import X, model, outputs


@pytest.fixture
def used(forced):
    """A threaded layer that this process has used, and its output."""
    layer = model()
    return layer, outputs(layer, X)
