"""The pool of threads in C under load, on one core and under the thread sanitizer."""

import os
import shlex
import shutil
import subprocess
import sysconfig

import pytest

from tests.native.threaded import linux
from tests.paths import ROOT


def build(folder, *flags):
    """The stress program of the pool, or a skip where it cannot be built."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
    if shutil.which(compiler[0]) is None:
        pytest.skip("there is no C compiler")
    program = folder / "pool_stress"
    kernels = ROOT / "rnnfast/kernels"
    command = [
        *compiler,
        "-std=c11",
        "-O2",
        "-g",
        "-pthread",
        *flags,
        "-I",
        kernels,
        ROOT / "tests/native/pool_stress.c",
        kernels / "pool.c",
        "-o",
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and flags:
        pytest.skip(f"the compiler cannot build with {' '.join(flags)}")
    assert done.returncode == 0, done.stderr
    return program


def stress(program, *arguments, before=None, **environment):
    """LD_PRELOAD is that of `make sanitize`, which is not for this program."""
    environment = {**os.environ, "LD_PRELOAD": "", **environment}
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=300, env=environment, preexec_fn=before
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("ok"), done.stderr


def test_pool_under_load(tmp_path):
    stress(build(tmp_path), "200", "5")


@linux
def test_pool_under_load_on_one_core(tmp_path):
    core = min(os.sched_getaffinity(0))
    stress(build(tmp_path), "100", "2", before=lambda: os.sched_setaffinity(0, {core}))


@pytest.mark.slow
def test_pool_without_data_races(tmp_path):
    program = build(tmp_path, "-fsanitize=thread")
    probe = subprocess.run([program, "0", "0"], capture_output=True, text=True, env={**os.environ, "LD_PRELOAD": ""})
    if "FATAL" in probe.stderr or "unexpected memory mapping" in probe.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    stress(program, "100", "0")
    stress(program, "40", "1", TSAN_OPTIONS="die_after_fork=0")
