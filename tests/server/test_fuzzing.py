"""Random bytes and changed requests at every port of a server find nothing in some seconds."""

import pytest

from tests.fuzz.server import fuzz


@pytest.mark.slow
def test_fuzzing():
    for package in ("httptools", "uvloop", "orjson", "grpc", "grpc_health", "websockets"):
        pytest.importorskip(package)
    assert fuzz(30)
