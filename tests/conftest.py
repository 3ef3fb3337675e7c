"""Fixtures of all tests."""

import os
import shutil
import subprocess
import sys

import pytest

from rnnfast.native import _kernels
from tests.fetched import pip
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


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Skip unless pip can fetch packages."""
    done = pip(sys.executable, "download", "--no-deps", "--no-cache-dir", "-d", tmp_path_factory.mktemp("one"), "click")
    if done.returncode:
        pytest.skip(f"pip cannot fetch packages: {done.stderr.decode().strip().splitlines()[-1]}")


@pytest.fixture
def environment(tmp_path):
    """Return the folder of a virtual environment, which is removed afterwards."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    yield folder
    shutil.rmtree(folder)
