"""Ten minutes of mixed load: nothing is lost, memory is flat, and the server's numbers are what clients counted."""

import pytest

pytest.importorskip("httptools")
pytest.importorskip("grpc")

from tests.server.load import play


@pytest.mark.parametrize("processes", (1, 2))
@pytest.mark.slow
def test_a_short_mixed_load(processes):
    counts, _ = play(0.2, processes)
    assert all(counts[what] > 0 for what in ("answered", "ended", "idled", "replaced", "failed input"))


@pytest.mark.slow
def test_ten_minutes_of_mixed_load():
    play(10)
