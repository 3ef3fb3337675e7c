"""Threads: the pool, how many may be used, and calls with several of them: same bits, no CPU when idle, forks."""

import multiprocessing
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import _kernels, threads
from tests.cases import DIRECTIONS, bits, cells, random_input, random_layer, run
from tests.native.test_bits import LAYERS
from tests.paths import ROOT

COUNTS = (1, 2, 3, 8)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


# ------------------------------------------------------------------------------------------------- the pool in C
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


# ------------------------------------------------------------------------------------------------- how many
@pytest.mark.parametrize(
    "value, error, message",
    [
        (0, InputError, "threads: 0 is less than 1"),
        (-3, InputError, "threads: -3 is less than 1"),
        (True, InputTypeError, "threads: True is no integer"),
        (2.0, InputTypeError, "threads: 2.0 is no integer"),
        ("2", InputTypeError, "threads: '2' is no integer"),
        (np.array([2, 3]), InputTypeError, "threads: .* is no integer"),
    ],
)
def test_wrong_threads_are_refused(value, error, message):
    for make in (
        threads.check,
        lambda n: nn.LSTM(5, 7, threads=n),
        lambda n: nn.RNN(5, 7, threads=n),
        lambda n: nn.GRU(5, 7, threads=n),
        lambda n: nn.Linear(5, 7, threads=n),
    ):
        with pytest.raises(error, match=message):
            make(value)


def test_threads_asked_for(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert [threads.check(n) for n in (None, 1, 3, np.int64(2), 10**30)] == [1, 1, 3, 2, threads.LARGEST]
    monkeypatch.setenv(threads.VARIABLE, "2")
    assert [threads.check(n) for n in (None, 1, 2, 3)] == [2, 1, 2, 2]
    assert threads.limit() <= 2 and threads.ceiling() <= 2
    monkeypatch.setenv(threads.VARIABLE, "")
    assert threads.check(None) == 1
    for wrong in ("0", "-1", "two", "1.5", "9" * 5000):
        monkeypatch.setenv(threads.VARIABLE, wrong)
        with pytest.raises(InputError, match=f"{threads.VARIABLE}: '{wrong}' is no integer from 1 on"):
            threads.check(3)


def test_layers_keep_what_they_were_asked(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert repr(nn.LSTM(5, 7, rng=0)) == "LSTM(5, 7)" and repr(nn.Linear(5, 7)) == "Linear(5, 7)"
    layer = nn.GRU(5, 7, threads=np.int32(3))
    assert layer.threads == 3 and repr(layer) == "GRU(5, 7, threads=3)"
    assert pickle.loads(pickle.dumps(layer)).threads == 3
    W, R = np.zeros((1, 28, 5), np.float32), np.zeros((1, 28, 7), np.float32)
    assert nn.LSTM.from_onnx(W, R, threads=2).threads == 2
    assert nn.GRU.from_onnx(W[:, :21], R[:, :21], threads=2).threads == 2
    assert nn.RNN.from_onnx(W[:, :7], R[:, :7], threads=2).threads == 2
    for kind, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        weights = [np.zeros((5, gates * 7), np.float32), np.zeros((7, gates * 7), np.float32)]
        assert getattr(nn, kind).from_keras(weights, threads=2).threads == 2


CGROUPS = {
    "no /proc": ({}, None),
    "v2": (
        {
            "cgroup": "0::/a/b\n",
            "mounts": ["/ /sys/fs/cgroup cgroup2 rw"],
            "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "max 100000\n",
        },
        2,
    ),
    "v2, the parent is tighter": (
        {
            "cgroup": "0::/a/b\n",
            "mounts": ["/ /sys/fs/cgroup cgroup2 rw"],
            "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "v2, max": (
        {"cgroup": "0::/a\n", "mounts": ["/ /sys/fs/cgroup cgroup2 rw"], "sys/fs/cgroup/a/cpu.max": "max 100000\n"},
        None,
    ),
    "v2, a container's own group": (
        {"cgroup": "0::/\n", "mounts": ["/ /sys/fs/cgroup cgroup2 rw"], "sys/fs/cgroup/cpu.max": "20000 100000\n"},
        1,
    ),
    "v2, only the quota": (
        {"cgroup": "0::/\n", "mounts": ["/ /sys/fs/cgroup cgroup2 rw"], "sys/fs/cgroup/cpu.max": "200000\n"},
        None,
    ),
    "v2, outside of the namespace": (
        {
            "cgroup": "0::/../x\n",
            "mounts": ["/ /sys/fs/cgroup cgroup2 rw"],
            "sys/fs/cgroup/cpu.max": "400000 100000\n",
            "sys/fs/x/cpu.max": "100000 100000\n",
        },
        4,
    ),
    "v1": (
        {
            "cgroup": "5:cpu,cpuacct:/a/b\n4:memory:/m\n1:name=systemd:/\n",
            "mounts": ["/ /sys/fs/cgroup/memory cgroup rw,memory", "/ /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct"],
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "50000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/m/cpu.max": "100000 100000",
        },
        5,
    ),
    "v1, a container sees its group as the top": (
        {
            "cgroup": "5:cpu:/docker/x\n",
            "mounts": ["/docker/x /sys/fs/cgroup/cpu cgroup rw,cpu"],
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "both": (
        {
            "cgroup": "1:cpu:/a\n0::/b\n",
            "mounts": ["/ /sys/fs/cgroup/cpu cgroup rw,cpu", "/ /sys/fs/cgroup/my\\040groups cgroup2 rw"],
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "700000",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/my groups/b/cpu.max": "600000 100000",
        },
        6,
    ),
    "not mounted": ({"cgroup": "0::/a\n", "mounts": []}, None),
    "nonsense": ({"cgroup": "\n:\n0::\nx", "mounts": ["/", "/ /a cgroup2 rw"], "a/cpu.max": "0 0 0"}, None),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_cgroup_quota(case, tmp_path, monkeypatch):
    files, expected = CGROUPS[case]
    for name, text in files.items():
        if name == "mounts":
            name, lines = "proc/self/mountinfo", ["21 1 0:19 / /proc rw - proc proc rw"]
            for mount in text:
                top, _, rest = mount.partition(" ")
                point, _, rest = rest.partition(" ")
                kind, _, options = rest.partition(" ")
                lines.append(f"30 21 0:26 {top} {point} rw,nosuid shared:4 - {kind} cgroup {options}")
            text = "\n".join(lines)
        path = tmp_path / ("proc/self/cgroup" if name == "cgroup" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert threads.quota(tmp_path) == expected
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)), raising=False)
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert (threads.limit(tmp_path), threads.ceiling(tmp_path)) == (expected or 32, expected or 64)
    monkeypatch.setenv(threads.VARIABLE, "1")
    assert threads.limit(tmp_path) == 1


def test_this_machine():
    assert 1 <= threads.limit() <= threads.ceiling() <= (os.cpu_count() or 1)


# ------------------------------------------------------------------------------------------------- the same bits
SIZES = [(1, 1, 3, 2), (19, 37, 9, 1), (40, 130, 5, 3), (30, 260, 3, 3), (11, 23, 4, 67)]
"""input_size, hidden_size, T, B: less than a vector, odd, panels for each of 2 threads, of 8, rows for each of them."""


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_bits_do_not_depend_on_the_threads(name, direction, size, isa, forced):
    input_size, hidden_size, T, B = size
    rng = np.random.default_rng(hidden_size)
    options = LAYERS[name] | {"direction": direction}
    if "activations" in options:
        options["activations"] = options["activations"] * len(DIRECTIONS[direction])
    layer = random_layer(rng, input_size=input_size, hidden_size=hidden_size, **options)
    packed = cells(layer)
    for states, ragged in ((True, False), (False, True)):
        given = random_input(rng, layer, T, B, states=states, lens=rng.integers(0, T + 1, B) if ragged else None)
        expected = bits(run(packed, layer, *given))
        for count in COUNTS[1:]:
            assert bits(run(packed, layer, *given, threads=count)) == expected


def outputs(layer, x, lengths=None):
    y, state = layer(x, lengths=lengths)
    return bits([y, *(state if isinstance(state, tuple) else (state,))])


def model(kind="LSTM", count=2, **options):
    return getattr(nn, kind)(24, 160, 2, bidirectional=True, rng=3, threads=count, **options)


X = np.random.default_rng(0).standard_normal((40, 3, 24)).astype(np.float32)
"""`model` takes about a millisecond for it on one thread: enough to be shared."""


@pytest.mark.parametrize("lengths", [None, [40, 7, 0]])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("RNN", {}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": False}),
        ("LSTM", {}),
        ("LSTM", {"proj_size": 50}),
        ("LSTM", {"batch_first": True}),
        ("GRU", {"merge": "sum"}),
    ],
    ids=str,
)
def test_stacks_of_layers(kind, options, lengths, forced):
    x = np.ascontiguousarray(X.swapaxes(0, 1)) if "batch_first" in options else X
    expected = outputs(model(kind, 1, **options), x, lengths)
    for count in COUNTS[1:]:
        assert outputs(model(kind, count, **options), x, lengths) == expected


@pytest.mark.parametrize("size", [(1, 5, 7), (3, 64, 1000), (300, 70, 130), (1000, 33, 17)], ids=str)
def test_dense_layers(size, isa, forced):
    rows, k, n = size
    x = np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)
    expected = nn.Linear(k, n, rng=2)(x).tobytes()
    for count in COUNTS[1:]:
        assert nn.Linear(k, n, rng=2, threads=count)(x).tobytes() == expected


def test_many_threads_call_threaded_layers(forced):
    layer, wrong = model(), []
    expected = outputs(layer, X)

    def work():
        for _ in range(5):
            if outputs(layer, X) != expected:
                wrong.append(1)

    run_all([threading.Thread(target=work) for _ in range(6)])
    assert not wrong


def run_all(workers):
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


# ------------------------------------------------------------------------------------------------- forks
def exit_status_of_child(work, seconds=60):
    """Runs `work` in a forked child; 0 if it returned True in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "the child hangs"


@pytest.fixture
def used(forced):
    """A threaded layer that this process has used, and its output."""
    layer = model()
    return layer, outputs(layer, X)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_too(used):
    layer, expected = used
    for _ in range(3):
        assert exit_status_of_child(lambda: outputs(layer, X) == expected) == 0
        assert outputs(layer, X) == expected
    assert exit_status_of_child(lambda: exit_status_of_child(lambda: outputs(layer, X) == expected) == 0) == 0


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_others_compute(used):
    layer, expected = used
    stop, wrong = threading.Event(), []

    def work():
        while not stop.is_set():
            if outputs(layer, X) != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(8):
            assert exit_status_of_child(lambda: outputs(layer, X) == expected) == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not wrong and outputs(layer, X) == expected


def in_pool(_):
    return outputs(model(), X)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_multiprocessing_by_fork(used):
    _, expected = used
    with multiprocessing.get_context("fork").Pool(3) as processes:
        assert processes.map_async(in_pool, range(6)).get(timeout=60) == [expected] * 6


# ------------------------------------------------------------------------------------------------- idle, affinity
def pool_threads():
    """/proc/self/task of the workers."""
    return [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().strip() == "rnnfast"]


def cpu_ticks(tasks):
    """User and system time of threads in 1/100 s, and how often each gave up the processor."""
    ticks = [(task / "stat").read_text().rpartition(")")[2].split()[11:13] for task in tasks]
    lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
    switches = [line for line in lines if "ctxt_switches" in line]
    return ticks, switches


@linux
def test_no_processor_time_between_calls(used):
    layer, _ = used
    for _ in range(3):
        outputs(layer, X)
    tasks, end = pool_threads(), time.monotonic() + 5
    assert tasks
    before = None
    while before != cpu_ticks(tasks) and time.monotonic() < end:  # until they sleep
        before = cpu_ticks(tasks)
        time.sleep(0.05)
    cpu = time.process_time()
    time.sleep(0.5)
    assert cpu_ticks(tasks) == before
    assert time.process_time() - cpu < 0.1  # the interpreter's own and that of what other tests left behind


def run_times(tasks):
    """Seconds that threads have run."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@linux
def test_workers_take_their_part():
    if threads.limit() < 2:
        pytest.skip("there is one processor")
    layer, x, end = model(), np.tile(X, (10, 1, 1)), time.monotonic() + 5
    layer(x)
    before = run_times(pool_threads())
    while run_times(pool_threads()) < before + 0.05 and time.monotonic() < end:
        layer(x)
    assert run_times(pool_threads()) >= before + 0.05


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from tests.native.test_threads import *
alone = outputs(model(count=1), X)
assert all(outputs(model(count=n), X) == alone for n in (2, 8) for _ in range(3))
assert threads.limit() == 1
assert not pool_threads()
"""

LIMITED = """
from tests.native.test_threads import *
layer = model(count=None)
assert layer._threads == int(os.environ["RNNFAST_NUM_THREADS"])
assert model(count=64)._threads == layer._threads
alone = outputs(model(count=1), X)
assert all(outputs(model(count=n), X) == alone for n in (None, 2, 64) for _ in range(3))
assert len(pool_threads()) < int(os.environ["RNNFAST_NUM_THREADS"])
"""


def python(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return done.returncode, done.stderr


@linux
def test_one_core_has_no_workers():
    assert python(ON_ONE_CORE) == (0, "")


@linux
@pytest.mark.parametrize("count", [1, 2])
def test_the_environment_limits_threads(count):
    assert python(LIMITED, RNNFAST_NUM_THREADS=str(count)) == (0, "")


CALLERS = """
from tests.native.test_threads import *
outputs(model(count=64), X)
run_all([threading.Thread(target=outputs, args=(model(count=8), X)) for _ in range(6)])
assert len(pool_threads()) < max(2, threads.ceiling())
"""


@linux
def test_no_more_workers_than_the_machine_has_use_for():
    assert python(CALLERS) == (0, "")


def test_a_wrong_variable_is_refused_by_name():
    status, message = python("from rnnfast import nn; nn.LSTM(5, 7)", RNNFAST_NUM_THREADS="many")
    assert status == 1 and "InputError: RNNFAST_NUM_THREADS: 'many' is no integer from 1 on" in message


def test_the_limits_are_light_to_import():
    assert python("import sys, rnnfast.native.threads; sys.exit('numpy' in sys.modules)")[0] == 0


def test_the_instruction_set_changes_between_threaded_calls(forced):
    """Workers outlive the choice under which they were made."""
    layer, before = model(), _kernels.get_isa()
    expected = outputs(layer, X)
    try:
        for name in _kernels.isas():
            _kernels.set_isa(name)
            assert outputs(layer, X) == expected
    finally:
        _kernels.set_isa(before)
