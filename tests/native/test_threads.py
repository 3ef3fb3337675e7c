"""How many threads a call gets: arguments, the environment, and the limits of control groups."""

import os
import pickle

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError
from rnnfast.native import threads


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
