"""Real models and data of other people and suites of other engines, which lie in ../shared where they are to be had."""

import pytest

from tests.paths import SHARED

ABSENT = "real models and data lie in ../shared, which is not here"


def published_models():
    """Parameters for a test of every real model: its path, or one skipped parameter where there are none."""
    files = sorted((SHARED / "models").glob("*.onnx"))
    return [pytest.param(file, id=file.stem) for file in files] or [
        pytest.param(None, id="none", marks=pytest.mark.skip(reason=ABSENT))
    ]


def published_path(name):
    """The path of a file or folder of ../shared; the running test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(ABSENT if not SHARED.is_dir() else f"{name} is not in ../shared")
    return path
