"""The rule of RNN, GRU and LSTM: the rows of their batch are apart, and frames follow each other in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnnfast.onnx.axes.rules.follower import Follower, check_shared
from rnnfast.onnx.axes.transcript import Event
from rnnfast.onnx.axes.values import Meets, Value

NONE = (None,) * 5  # for inputs that are absent at the end; X, W and R are needed
INITIAL = {5: "initial_h", 6: "initial_c"}


def recurrent(follower: Follower, event: Event, *values: Value | None) -> Any:
    X, W, R, B, lengths, h, c, P = (*values, *NONE)[:8]
    check_shared((W, R, B, P), "the weights")
    layout = event.node.attributes.get("layout", 0)
    batch, time = (0, 1) if layout else (1, 0)
    states = {i: state for i, state in ((5, h), (6, c)) if state is not None}
    if X is None or X.rows is None:
        raise Meets("its X is the same for all rows, its states or lengths are not")
    if X.rows.axis == 2:
        raise Meets("it multiplies along axis 2, along which the rows lie")
    if X.rows.axis == time:
        return _frames(follower, event, X, lengths, states.values(), layout)
    last = X.rows.moved(0 if layout else 1)
    for i, state in states.items():
        if state.rows != last:
            if state.shared and i in getattr(event.node.run, "dropped", ()):
                continue  # zeros for one row, which are there for any number of them
            raise Meets(f"its {INITIAL[i]} of shape {list(state.shape or ())} does not have the rows as X has them")
    if lengths is not None and lengths.rows != X.rows.moved(0):
        raise Meets("its sequence_lens do not lie along the rows")
    return [X.rows.moved(0 if layout else 2), last, last][: len(event.outputs)]


def _frames(
    follower: Follower, event: Event, X: Value, lengths: Value | None, states: Any, layout: int
) -> Sequence[Any]:
    """The outputs where rows are the steps of the node."""
    assert X.rows is not None
    frames, direction = follower.frames, event.node.attributes.get("direction", "forward")
    if frames is None or not X.rows.plain:
        raise Meets(f"it steps from row to row along axis {X.rows.axis}")
    check_shared(states, "the initial states")
    check_shared([lengths], "its sequence_lens")
    forward, ends = direction == "forward", lengths is not None and lengths.lengths
    if not (forward or frames.padded and ends):
        how = "backwards" if direction == "reverse" else "forwards and backwards"
        raise Meets(f"it runs {how} over the frames, {'without their lengths' if frames.padded else 'which go on'}")
    Y = X.rows.moved(1 if layout else 0)
    shapes = [traced.shape for traced in event.outputs[1:]]
    if not frames.padded:
        return [Y, *(Value(shape, last="state") for shape in shapes)]
    if ends:
        return [Y, *(Value(shape) for shape in shapes)]
    if any(event.node.outputs[1:]):
        raise Meets("it has no sequence_lens, so its last states follow from the padding")
    return [Y, *(Value(shape) for shape in shapes)]


RULES = dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent)
