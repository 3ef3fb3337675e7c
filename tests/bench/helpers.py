"""Small cases, and results as they are read from a file."""

import dataclasses
import json

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import measure
from bench.cases import MAIN, SWEEP, Case, Fit, Pooled
from bench.engines import ENGINES

EFFORT = {"rounds": 2, "duration": 1e-5, "limit": 1}
SMALL = Case("small", "LSTM", 4, 3, 5, 6)


# JAX and OpenVINO leave threads running, which a process that forks later must not have: they get their own process.
APART = ("openvino", "jax")


def stored():
    """Results as they are read from a file: rnnfast takes 2 us a step, each other engine 1 us more than the last."""
    records = []
    for case in [*MAIN, *SWEEP[:3]]:
        results = {}
        for position, name in enumerate(ENGINES):
            seconds = (2 + position) * case.T * 1e-6
            results[name] = {
                "status": "ok",
                "error": 1e-7,
                "seconds": [seconds] * 3,
                "least": seconds,
                "calls": 9,
                "relative": [seconds / case.T / 2e-6] * 3,
                "rounds": 5,
            }
        records.append(measure.record(case, results))
    records[0]["results"]["numpy"] = {"status": "wrong", "error": 0.5}
    records[1]["results"]["torch"] = {"status": "failed", "message": "no such kernel"}
    records[2]["results"]["jax"] = {"status": "missing"}
    machine = {
        "cpu": "some processor",
        "cores": 2,
        "caches": {"L1": 2**15, "L2": 2**20, "L3": 2**25},
        "system": "here",
        "isa": "avx2",
        "isas": ["avx2"],
        "python": "3.12",
        "compiler": "cc 1",
        "versions": {"rnnfast": "0.1"},
    }
    limits = {"fma": 100e9, "L1": 400e9, "L2": 100e9, "L3": 50e9, "DRAM": 10e9}
    run = {"threads": 1, "limits": limits, "rounds": 5, "others": 0.5}
    return json.loads(
        json.dumps(
            {"machine": machine, "removed": {"OPENBLAS_CORETYPE": "Haswell"}, "runs": [run | {"records": records}]}
        )
    )


SMALL_TRAINING = [
    dataclasses.replace(SMALL, group="training", targets={1: 1e-9, 2: 1e-9}, state=True),
    Case("gru", "GRU", 5, 3, 4, 7, group="training", targets={1: 1e9, 2: 1}),
    Case("both", "LSTM", 5, 3, 4, 7, directions=2, targets={1: 1e9, 2: 1}),
    Case("ragged", "LSTM", 6, 5, 4, 7, lengths=(2, 6, 1, 4, 6), against="torch", targets={1: 1e9, 2: 1}),
    Fit("fit", 20, 8, 9, {1: 1e9, 2: 1}),
]
LAYERS, FIT = SMALL_TRAINING[:-1], SMALL_TRAINING[-1]


def of_training(engines):
    """Return the engines that this process may run; Keras, which starts slowly, is left to the slow tests."""
    return [engine for engine in engines.values() if engine.name not in (*APART, "keras on torch")]


SMALL_POOLS = [
    Pooled(
        "lstm",
        "LSTM",
        5,
        7,
        {1: {"onnxruntime one by one": 1e-9, "share of FMA": 1e9, "us a frame": 1e9}, 2: {"rnnfast one thread": 1e9}},
    ),
    Pooled("gru", "GRU", 3, 9, {1: {"onnxruntime by hand": 1e9}}),
    Pooled("ragged", "LSTM", 4, 7, {1: {"rnnfast rectangle": 1e9, "torch packed": 1e-9}}, lengths=(1, 6, 2, 5)),
]
