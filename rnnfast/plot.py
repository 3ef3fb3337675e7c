"""Figures of networks: learning curves, gates over time, attention, and gradients over time.

`gate_values` and `gradient_norms` return the numbers and need only NumPy. The other functions draw and need matplotlib
(``pip install 'rnnfast[plot]'``). They return a ``matplotlib.figure.Figure``, which ``figure.savefig("name.svg")``
saves; pyplot is neither used nor changed. With ``figure=``, a Figure or SubFigure, they draw into that and return it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.nn.checks import as_array, as_generator, as_input, check_choice, check_shape, check_size
from rnnfast.nn.convert import suffix
from rnnfast.nn.recurrent_layer import MERGES
from rnnfast.reference import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from rnnfast.nn.recurrent_layer import RecurrentLayer
    from rnnfast.nn.types import FloatArray, Seed

COLOURS = ("#868e96", "#d6336c", "#1971c2", "#2f9e44", "#e8590c", "#5f3dc4")
"""Grey, then the colours of lines."""

_TITLES = {
    "i": "input gate i",
    "f": "forget gate f",
    "g": "candidate g",
    "o": "output gate o",
    "r": "reset gate r",
    "z": "update gate z",
    "n": "candidate n",
    "c": "cell state c",
    "h": "hidden state h",
}


def learning_curves(
    history: Any,
    *,
    metrics: Sequence[str] | None = None,
    monitor: str | None = None,
    mode: str = "min",
    figure: Any = None,
) -> Any:
    """Plot training and validation values over the epochs, one panel for each metric, with the best epoch marked.

    Args:
        history: A mapping of name to one number for each epoch, as `fit` returns it, or an object with such an
            attribute `history`, as Keras returns it. "val_loss" is the "loss" of the validation data. Epochs count
            from 1.
        metrics: The panels, such as ["loss"]; None is all names except "learning_rate".
        monitor: The name whose smallest value is at the best epoch; None is "val_loss", or "loss" without validation
            data.
        mode: "min", or "max" if the best epoch has the largest value.
        figure: A Figure or SubFigure to draw into; None makes one.

    Returns:
        The figure.

    Raises:
        InputError: A name, shape or value does not fit.
        InputTypeError: `history` has the wrong type.
        UnsupportedError: matplotlib is not installed.
    """
    curves = _curves(getattr(history, "history", history))
    if monitor is None:
        monitor = "val_loss" if "val_loss" in curves else "loss"
    check_choice(monitor, "monitor", tuple(curves))
    values = curves[monitor] if check_choice(mode, "mode", ("min", "max")) == "min" else -curves[monitor]
    best = None if np.isnan(values).all() else int(np.nanargmin(values))
    epochs = np.arange(1, len(values) + 1)

    known = tuple(dict.fromkeys(name.removeprefix("val_") for name in curves))
    if metrics is None:
        metrics = [name for name in known if name != "learning_rate"]
    for name in metrics:
        check_choice(name, "metrics", known)
    figure, panels = _panels(figure, 1, len(metrics), 3.6 * len(metrics) + 1, 3.2)
    for panel, metric in zip(panels, metrics):
        for name, label, colour in ((metric, "training", COLOURS[2]), (f"val_{metric}", "validation", COLOURS[1])):
            if name in curves:
                panel.plot(epochs, curves[name], "o-", color=colour, label=label, markersize=3, linewidth=1.5)
                if best is not None:
                    panel.plot(epochs[best], curves[name][best], "o", color=colour, fillstyle="none", markersize=9)
        if best is not None:
            panel.axvline(
                epochs[best],
                color=COLOURS[0],
                linewidth=1,
                linestyle=":",
                zorder=0,
                label=f"best epoch: {epochs[best]}",
            )
        panel.set_title(metric, fontsize=10)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    return figure


def _curves(history):
    """Return the history's values as float vectors of one length, by name."""
    if not isinstance(history, Mapping) or not history:
        raise InputTypeError(f"history: got {history!r:.60}, expected a mapping of name to one number for each epoch")
    curves = {}
    for name, values in history.items():
        values = as_array(values, f"history: {name}")
        if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf":
            raise InputError(
                f"history: {name} has dtype {values.dtype}, shape {list(values.shape)}, expected one "
                "number for each epoch"
            )
        curves[str(name)] = values.astype(float)
    counts = {name: len(values) for name, values in curves.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"history: {counts} epochs, expected as many of each")
    return curves


def gate_values(
    layer: RecurrentLayer, x: ArrayLike, state: Any = None, *, index: int = 0, direction: int = 0
) -> dict[str, FloatArray]:
    """Compute the gates and states of an RNN, LSTM or GRU layer at each time step.

    The values are the terms of the formulas in the layer's docstring, after their activations: h for RNN; r, z, n, h
    for GRU; i, f, g, o, c, h for LSTM. They are computed from the state dict in float64 NumPy. Element t belongs to
    x[t] in both directions: c and h are the state after that time step.

    Args:
        layer: The layer.
        x: The input, as a call takes it.
        state: The initial state, as a call takes it; None is zeros.
        index: The layer in the stack; those below it run without dropout.
        direction: 0, or 1 for the second direction of a bidirectional layer.

    Returns:
        Name -> float32 of x's shape, with the last axis of size H, or for h the size of h.

    Raises:
        InputError: A shape or argument does not fit.
        InputTypeError: `layer` is no RNN, LSTM or GRU, or a dtype does not fit.
    """
    array, initial, batched = _arguments(layer, x, state)
    if check_size(index, "index", least=0) >= layer.num_layers:
        raise InputError(f"index: {index}, expected less than num_layers = {layer.num_layers}")
    check_choice(direction, "direction", tuple(range(len(layer.reversed_directions))))
    parameters = {name: value.astype(np.float64) for name, value in layer.state_dict().items()}
    inputs = array.astype(np.float64)
    directions: list[dict[str, np.ndarray]] = []
    for k in range(index + 1):
        directions = []
        for d, backwards in enumerate(layer.reversed_directions):
            order = slice(None, None, -1 if backwards else 1)
            weights = {
                name.removesuffix(f"_{suffix(k, d)}"): value
                for name, value in parameters.items()
                if name.endswith(f"_{suffix(k, d)}")
            }
            states = [s[k * len(layer.reversed_directions) + d] for s in initial]
            steps = list(_CELLS[layer.kind](layer, weights, _functions(layer, d), inputs[order], *states))
            directions.append({name: np.stack([step[name] for step in steps])[order] for name in steps[0]})
        outputs = [values["h"] for values in directions]
        inputs = outputs[0] if len(outputs) == 1 else MERGES[layer.merge][0](*outputs)
    results: dict[str, FloatArray] = {name: a.astype(np.float32) for name, a in directions[direction].items()}
    if batched and not layer.batch_first:
        return results
    return {name: a.swapaxes(0, 1) if batched else a[:, 0] for name, a in results.items()}


def _rnn(layer, weights, functions, x, h):
    """Yield the values of each time step of an RNN."""
    (f,) = functions
    R = weights["weight_hh"].T
    for xg in _input(weights, x):
        h = f(xg + h @ R + weights.get("bias_hh", 0.0))
        yield {"h": h}


def _gru(layer, weights, functions, x, h):
    """Yield the values of each time step of a GRU."""
    f, g = functions
    Rr, Rz, Rn = (R.T for R in np.split(weights["weight_hh"], 3))
    br, bz, bn = np.split(weights.get("bias_hh", np.zeros(3 * layer.hidden_size)), 3)
    for xg in _input(weights, x):
        xr, xz, xn = np.split(xg, 3, axis=-1)
        r = f(xr + h @ Rr + br)
        z = f(xz + h @ Rz + bz)
        n = g(xn + (r * (h @ Rn + bn) if layer.linear_before_reset else (r * h) @ Rn + bn))
        h = (1.0 - z) * n + z * h
        yield {"r": r, "z": z, "n": n, "h": h}


def _lstm(layer, weights, functions, x, h, c):
    """Yield the values of each time step of an LSTM."""
    f_act, g_act, h_act = functions
    R, V = weights["weight_hh"].T, weights.get("weight_hr")
    pi, pf, po = np.split(weights.get("weight_peephole", np.zeros(3 * layer.hidden_size)), 3)
    for xg in _input(weights, x):
        ai, af, ag, ao = np.split(xg + h @ R + weights.get("bias_hh", 0.0), 4, axis=-1)
        i = f_act(ai + pi * c)
        f = 1.0 - i if layer.input_forget else f_act(af + pf * c)
        g = g_act(ag)
        c = f * c + i * g
        o = f_act(ao + po * c)
        h = o * h_act(c) if V is None else (o * h_act(c)) @ V.T
        yield {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}


_CELLS: dict[str, Any] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
"""kind -> function that yields the values of each step, of x [T, B, I], h and c [B, size] and the weights by name,
which has no suffix here."""


def _input(weights, x):
    """Return the input's part of the pre-activations, for all time steps."""
    return x @ weights["weight_ih"].T + weights.get("bias_ih", 0.0)


def _functions(layer, direction):
    """Return the activations of a direction. Those of gates clip their argument; the LSTM's h(c') does not."""
    limit = np.inf if layer.clip is None else layer.clip

    def bind(position, name, alpha, beta):
        bound = np.inf if position == 2 else limit
        return lambda a: ACTIVATIONS[name](np.clip(a, -bound, bound), alpha, beta)

    return [bind(position, *triple) for position, triple in enumerate(layer.resolved_activations[direction])]


def gates(
    layer: RecurrentLayer,
    x: ArrayLike,
    state: Any = None,
    *,
    row: int = 0,
    index: int = 0,
    direction: int = 0,
    labels: Sequence[Any] | None = None,
    figure: Any = None,
) -> Any:
    """Draw heat maps of `gate_values` for one row of the batch: units from top to bottom, time from left to right.

    Gates have a colour scale from 0 to 1. All other values have one from blue (negative) to red (positive), up to 1 or
    to the largest magnitude.

    Args:
        layer: As in `gate_values`.
        x: As in `gate_values`.
        state: As in `gate_values`.
        row: The row of the batch.
        index: As in `gate_values`.
        direction: As in `gate_values`.
        labels: One text for each time step, such as the characters of x.
        figure: A Figure or SubFigure to draw into; None makes one.

    Returns:
        The figure.

    Raises:
        InputError: A shape or argument does not fit.
        InputTypeError: `layer` is no RNN, LSTM or GRU, or a dtype does not fit.
        UnsupportedError: matplotlib is not installed.
    """
    values = gate_values(layer, x, state, index=index, direction=direction)
    if values["h"].ndim == 3:
        batch = 0 if layer.batch_first else 1
        if check_size(row, "row", least=0) >= values["h"].shape[batch]:
            raise InputError(f"row: {row}, expected less than the batch of {values['h'].shape[batch]}")
        values = {name: np.take(a, row, axis=batch) for name, a in values.items()}
    labels = _labels(labels, len(values["h"]), "labels")
    figure, panels = _panels(figure, len(values), 1, 8, 0.8 + 1.1 * len(values), sharex=True)
    for panel, (name, a) in zip(panels, values.items()):
        if name in "ifozr" and a.min() >= 0 and a.max() <= 1:
            scale: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1}
        else:
            largest = max(1.0, float(np.abs(a).max()))
            scale = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
        image = panel.imshow(a.T, aspect="auto", interpolation="nearest", **scale)
        figure.colorbar(image, ax=panel, pad=0.01)
        panel.set_title(_TITLES[name], fontsize=9, loc="left")
        panel.set_ylabel("unit", fontsize=8)
    _tick(panels[-1].xaxis, labels)
    panels[-1].set_xlabel("" if labels else "step")
    return figure


def attention(
    weights: ArrayLike, source: Sequence[Any] | None = None, target: Sequence[Any] | None = None, *, figure: Any = None
) -> Any:
    """Draw a heat map of attention weights: each row shows the weights of one target step over the source.

    Args:
        weights: Numbers [target steps, source steps].
        source: One text for each source step.
        target: One text for each target step.
        figure: A Figure or SubFigure to draw into; None makes one.

    Returns:
        The figure.

    Raises:
        InputError: A shape, dtype or number of texts does not fit.
        UnsupportedError: matplotlib is not installed.
    """
    values = as_array(weights, "weights")
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf":
        raise InputError(
            f"weights: dtype is {values.dtype}, shape is {list(values.shape)}, expected numbers "
            "[target steps, source steps]"
        )
    source = _labels(source, values.shape[1], "source")
    target = _labels(target, values.shape[0], "target")
    figure, (panel,) = _panels(
        figure, 1, 1, 2.2 + 0.28 * min(values.shape[1], 40), 1.2 + 0.28 * min(values.shape[0], 40)
    )
    image = panel.imshow(values, cmap="Blues", vmin=0, vmax=max(1.0, float(values.max())), interpolation="nearest")
    figure.colorbar(image, ax=panel, pad=0.02)
    panel.xaxis.tick_top()
    panel.xaxis.set_label_position("top")
    panel.set(xlabel="source", ylabel="target")
    _tick(panel.xaxis, source)
    _tick(panel.yaxis, target)
    return figure


class GradientNorms(NamedTuple):
    """Norms of gradients by n = 0, ..., T - 1, the number of time steps before the last one."""

    state: NDArray[np.float64]
    """[T, B]: the norm of dL/d(h, c) after time step T - 1 - n, for each row's own loss."""
    weights: NDArray[np.float64]
    """[T]: the norm of the contribution of time step T - 1 - n to dL/dW, where W is all weights together and L the mean
    of the rows' losses."""
    total: float
    """The norm of dL/dW, the sum of all contributions; clipping by norm bounds it."""


def gradient_norms(
    layer: RecurrentLayer, x: ArrayLike, state: Any = None, *, dlast: ArrayLike | None = None, rng: Seed = 0
) -> GradientNorms:
    """Compute the norms of the gradients of an RNN, LSTM or GRU layer for a loss on its last output.

    The chain rule is applied one time step at a time: forward(x[t:t+1], state, training=True) from the first step to
    the last, then backward(None, dstate, saved[t]) from the last to the first. After n of these, dstate is the gradient
    of the state n steps before the last. It is a product with n Jacobians, so it decays or grows exponentially in n.
    The state is (h, c) for an LSTM, and that of all layers of a stack.

    Args:
        layer: The layer; all its directions run forwards.
        x: The input, as a call takes it.
        state: The initial state, as a call takes it; None is zeros.
        dlast: dL/dh of the top layer's last time step, float32 [B, size]. None is a random unit vector for each row, so
            that norms are the factors by which a gradient shrinks or grows.
        rng: A seed or a numpy Generator for these vectors and for dropout.

    Returns:
        The norms, in float64. Those below 1e-38, the limit of float32, are 0; those above its other limit are inf or
        nan.

    Raises:
        InputError: A shape does not fit.
        InputTypeError: `layer` is no RNN, LSTM or GRU, or a dtype does not fit.
        UnsupportedError: A direction runs backwards, so that its last time step is the first one; or the layer has no
            gradient.
    """
    array, initial, _ = _arguments(layer, x, state)
    if any(layer.reversed_directions):
        raise UnsupportedError(f"gradient_norms of {layer!r}: a direction runs backwards, expected forwards only")
    generator = as_generator(rng)
    steps, rows, _ = array.shape
    if dlast is None:
        dtop = generator.standard_normal((rows, layer.state_widths[0]))
        dtop /= np.linalg.norm(dtop, axis=-1, keepdims=True)
    else:
        dtop = as_input(dlast, "dlast")
        check_shape(dtop, (rows, layer.state_widths[0]), "dlast", "batch, size of the output")

    saved, state = [], layer.join_state(tuple(initial))
    for t in range(steps):
        step = array[t : t + 1]
        _, state, step_saved = layer.forward(
            step.swapaxes(0, 1) if layer.batch_first else step, state, training=True, rng=generator
        )
        saved.append(step_saved)

    dstate = tuple(np.zeros_like(s) for s in initial)
    dstate[0][-1] = dtop
    dstate = layer.join_state(dstate)
    norms, contributions = np.empty((steps, rows)), np.empty(steps)
    total: dict[str, Any] = {}
    for n, step_saved in enumerate(reversed(saved)):
        whole = np.concatenate(
            [d.swapaxes(0, 1).reshape(rows, -1) for d in layer.split_state(dstate, "dstate")], axis=1
        )
        norms[n] = np.linalg.norm(whole.astype(np.float64), axis=1)
        _, dstate, dweights = layer.backward(None, dstate, step_saved)
        scaled = {name: d.astype(np.float64) / rows for name, d in dweights.items()}
        contributions[n] = _norm(scaled)
        total = {name: d + total.get(name, 0.0) for name, d in scaled.items()}
    return GradientNorms(norms, contributions, _norm(total))


def _norm(arrays):
    """Return the norm of all arrays of a dict together."""
    return float(np.sqrt(sum(np.square(a).sum() for a in arrays.values())))


def gradient_flow(
    layers: Mapping[str, Any],
    x: ArrayLike,
    state: Any = None,
    *,
    clip: float | None = None,
    rng: Seed = 0,
    figure: Any = None,
) -> Any:
    """Plot `gradient_norms` of several layers against n, the number of time steps back, on a log scale.

    The left panel shows the gradient of the state, the right one the contribution of each time step to the gradient of
    the weights. Where a line falls the gradient vanishes: a time step that far back teaches the weights nothing. Where
    it rises the gradient explodes. Lines are medians, and bands go from the 10th to the 90th percentile, over rows
    (left) and over layers of one name.

    Args:
        layers: Name -> a layer, or a list of layers that differ in their seeds; all take the same x.
        x: The input, as a call of each layer takes it.
        state: The initial state, as a call takes it; None is zeros.
        clip: The norm to which the gradient of the weights is clipped. One factor, min(1, clip / total), scales the sum
            over all time steps, so the clipped lines (right, dashed) are the others moved down by it. Clipping bounds
            an explosion; it restores neither a vanished gradient nor the proportion of near time steps to far ones.
        rng: A seed or a numpy Generator, as in `gradient_norms`.
        figure: A Figure or SubFigure to draw into; None makes one.

    Returns:
        The figure.

    Raises:
        InputError: A shape or argument does not fit.
        InputTypeError: An argument has the wrong type.
        UnsupportedError: A layer runs backwards or has no gradient, or matplotlib is not installed.
    """
    if not isinstance(layers, Mapping) or not layers:
        raise InputTypeError(f"layers: got {layers!r:.60}, expected a mapping of name to layer or list of layers")
    if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
        raise InputError(f"clip: {clip!r}, expected a number above 0")
    generator = as_generator(rng)
    results: dict[str, list[GradientNorms]] = {}
    for name, group in layers.items():
        group = group if isinstance(group, (list, tuple)) else [group]
        if not group:
            raise InputError(f"layers: {name} has none, expected one or more")
        results[str(name)] = [gradient_norms(layer, x, state, rng=generator) for layer in group]

    figure, (left, right) = _panels(figure, 1, 2, 9, 3.6)
    for position, (name, norms) in enumerate(results.items()):
        colour = COLOURS[(position + 1) % len(COLOURS)]
        weights = np.stack([r.weights for r in norms], axis=1)
        _line(left, np.concatenate([r.state for r in norms], axis=1), colour, name)
        _line(right, weights, colour, name)
        if clip is not None:
            factors = np.array([min(1.0, clip / r.total) if r.total else 1.0 for r in norms])
            _line(right, weights * factors, colour, "_clipped", linestyle="--", band=False)
    left.set_ylabel("norm")
    left.set_title("gradient of the state", fontsize=10)
    right.set_title(
        "gradient of the weights, from each step" + ("" if clip is None else f"\n(dashed: clipped to norm {clip:g})"),
        fontsize=10,
    )
    for panel in (left, right):
        panel.set(yscale="log", xlabel="steps back from the loss")
        panel.grid(alpha=0.25)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def _line(panel, values, colour, label, linestyle="-", band=True):
    """Draw the median over the last axis and, for more than one column, the band; skip rows without a logarithm."""
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    counted = ~np.isnan(values).any(axis=1)
    n = np.arange(len(values))[counted]
    low, middle, high = np.percentile(values[counted], (10, 50, 90), axis=1)
    panel.plot(n, middle, linestyle, color=colour, label=label, linewidth=1.8)
    if band and values.shape[1] > 1:
        panel.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)


def _arguments(layer, x, state):
    """Return x [T, B, I], the initial states [layers * directions, B, size], and whether x has a batch axis."""
    if not isinstance(layer, (nn.RNN, nn.LSTM, nn.GRU)):
        raise InputTypeError(
            f"layer: got a {type(layer).__name__}, expected RNN, LSTM or GRU (one of a Sequential's "
            "stands in its `layers`)"
        )
    x, batched = layer.validate_batch(x)
    steps, rows, _ = x.shape
    if not steps or not rows:
        raise InputError(f"x: {steps} steps, {rows} rows, expected one or more of each")
    initial = []
    for given, name, size in zip(layer.split_state(state, "state"), ("h", "c"), layer.state_widths):
        shape = layer.num_layers * len(layer.reversed_directions), rows, size
        if given is None:
            initial.append(np.zeros(shape, np.float32))
        else:
            given = as_input(given, name)
            initial.append(given if batched else given[:, None])
            check_shape(initial[-1], shape, name, "layers * directions, batch, size")
    return x, initial, batched


def _panels(figure, rows, columns, width, height, **options):
    """Return the figure, which is made unless one is given, and its axes in a flat list."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError(
            "rnnfast.plot: pictures need matplotlib, which is not installed: pip install 'rnnfast[plot]'"
        ) from None
    if figure is None:
        figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
    return figure, panels


def _labels(labels, count, name):
    """Return the labels as texts, one for each step; None stays None."""
    if labels is None:
        return None
    labels = [str(label) for label in labels]
    if len(labels) != count:
        raise InputError(f"{name}: got {len(labels)}, expected {count}, one for each step")
    return labels


def _tick(axis, labels):
    """Label each step of an axis, or use integers without labels."""
    if labels:
        axis.set_ticks(range(len(labels)), labels)
    else:
        axis.get_major_locator().set_params(integer=True)
