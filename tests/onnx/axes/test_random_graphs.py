"""Where rows are proven apart, they are: random graphs with values of very different magnitudes, and several sizes."""

import numpy as np
import pytest

from tests.onnx.axes.helpers import check_rows, follow
from tests.onnx.axes.random_graphs import RandomGraph


@pytest.mark.parametrize("seed", range(80))
def test_rows_are_apart(seed):
    graph = RandomGraph(seed)
    for _ in range(14):
        graph.grow()
    outputs = [name for name in graph.values if name not in ("x", "k")]
    model = graph.model(outputs)
    values = follow(model, {name: graph.values[name] for name in ("x", "k")}, graph.axes)
    apart = [name for name, value in values.items() if value.meeting is None]
    if apart:
        model = graph.model(apart)
        check_rows(model, {name: values[name] for name in apart}, graph.axes, graph.feed, np.random.default_rng(seed))
