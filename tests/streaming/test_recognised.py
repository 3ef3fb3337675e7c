"""Streams and pools of models whose cells were recognised."""

import numpy as np
import pytest

import rnnfast
from tests.graphs import random
from tests.onnx.test_cells import CELLS, H, I, looped


@pytest.mark.parametrize("form", ["Loop", "Scan"])
@pytest.mark.parametrize("name", ["torch's LSTMCell", "n + z (h - n)"])
def test_streams_and_pools(name, form):
    """The frames of a stream, alone and among others, have the bits of calls that hand the states on."""
    cell = CELLS[name]
    model = rnnfast.load(looped(cell, form))
    assert model.recognised_cells
    pairs = {"h0": "h", "c0": "c"} if cell.has_c else {"h0": "h"}
    pool, x = model.pool(4, states=pairs), random(0, 6, 3, I)
    ids, streams = [pool.open() for _ in range(3)], [model.stream(states=pairs) for _ in range(3)]
    states = [dict.fromkeys(pairs, np.zeros((1, H), np.float32)) for _ in range(3)]
    for t in range(len(x)):
        frames = [x[t : t + 1, k : k + 1] for k in range(3)]
        together = pool.step(dict(zip(ids, frames)))
        for k in range(3):
            expected = model({"x": frames[k], **states[k]})
            states[k] = {before: expected[after] for before, after in pairs.items()}
            for got in (streams[k].step(x=frames[k]), together[ids[k]]):
                got = got if isinstance(got, np.ndarray) else got.y
                np.testing.assert_array_equal(got.ravel(), expected["y"].ravel())
