"""The share of published models' time that steps of NumPy take, as `rnnfast profile` prints it."""

import json
import re

import numpy as np
import pytest

import rnnfast
from rnnfast.cli.profile import measured
from tests.paths import SHARED
from tests.published import ABSENT

MOST = 0.05
RUNS = 5


def entries():
    """Parameters: (folder, entry of its models.json) of every model, or one that is skipped."""
    found = []
    for folder in ("models", "models-more"):
        file = SHARED / folder / "models.json"
        for entry in json.loads(file.read_text()) if file.exists() else ():
            found.append(pytest.param(folder, entry, id=entry["file"]))
    return found or [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=ABSENT))]


def feed_of(model, file):
    """The inputs of a stored call, in whose names other characters than letters and digits are `_`."""
    with np.load(file) as data:
        names = {v.name: f"in_{v.name}" for v in model.inputs}
        names |= {name: re.sub(r"[^A-Za-z0-9]", "_", key) for name, key in names.items() if key not in data}
        return {name: data[key] for name, key in names.items() if key in data}


@pytest.mark.slow
@pytest.mark.parametrize("folder, entry", entries())
def test_little_time_is_numpys(folder, entry):
    model = rnnfast.load(SHARED / folder / entry["file"])
    for name in [entry["reference"], *entry.get("more_calls", ())]:
        _, rows, _ = measured(model, feed_of(model, SHARED / folder / name), RUNS)
        steps = {row["op_type"]: row["share"] for row in rows if row["step"] == "numpy"}
        assert sum(steps.values()) <= MOST, (name, steps)
