"""The environment of a measuring process."""

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import environment


def test_environment():
    given = {
        "PATH": "/bin",
        "RNNFAST_ISA": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENBLAS_L2_SIZE": "1",
        "OMP_NUM_THREADS": "8",
        "KMP_BLOCKTIME": "0",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "HOME": "/root",
    }
    cleaned, removed = environment.clean(given, 2)
    assert removed.keys() == given.keys() - {"PATH", "RNNFAST_ISA", "HOME"}
    assert cleaned["OMP_NUM_THREADS"] == "2" and cleaned["RNNFAST_ISA"] == "avx2"
    assert "OPENBLAS_CORETYPE" not in cleaned
