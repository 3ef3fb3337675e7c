"""Published models of other people and test suites of other engines.

They are not part of the repository. Where a folder `shared` lies beside the checkout, tests compare with them; else the
tests are skipped, saying why.
"""

import pytest

from tests.paths import SHARED

ABSENT = "real models and data lie in a folder `shared` beside the checkout, which is absent"


def published_models():
    """Parameters for a test of every real model: its path, or one skipped parameter where there are none."""
    files = sorted((SHARED / "models").glob("*.onnx"))
    return [pytest.param(file, id=file.stem) for file in files] or [
        pytest.param(None, id="none", marks=pytest.mark.skip(reason=ABSENT))
    ]


def published_path(name):
    """The path of a file or folder in `shared`, see above; the running test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(ABSENT if not SHARED.is_dir() else f"{name} is not in ../shared")
    return path
