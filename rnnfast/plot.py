"""Pictures of networks: learning curves, gates over time, attention, and how far gradients flow.

The numbers have functions of their own, `gate_values` and `gradient_norms`, which need NumPy alone. Pictures need
matplotlib (``pip install 'rnnfast[plot]'``), else UnsupportedError. Functions that draw return a
``matplotlib.figure.Figure``, saved by ``figure.savefig("name.svg")``; pyplot is neither used nor changed. With
``figure=``, a Figure or SubFigure, they draw into that one and return it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.nn.checks import as_array, as_generator, as_input, check_choice, check_shape, check_size
from rnnfast.nn.convert import suffix
from rnnfast.nn.stack import _MERGES
from rnnfast.reference import ACTIVATIONS

COLOURS = ("#868e96", "#d6336c", "#1971c2", "#2f9e44", "#e8590c", "#5f3dc4")
"""Grey, then those of lines."""

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


def learning_curves(history, *, metrics=None, monitor=None, mode="min", figure=None):
    """A panel for each metric: training and validation over the epochs, the best epoch marked in all of them.

    history: name -> one number for each epoch, as `fit` returns it, or an object with such a `history`, as Keras's has;
        "val_loss" is the validation's "loss". Epochs count from 1.
    metrics: the panels, such as ["loss"]; None is all there are but "learning_rate".
    monitor: the name whose least value (largest with mode="max") tells the best epoch; None is "val_loss", or "loss"
        where there is no validation.
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


def gate_values(layer, x, state=None, *, index=0, direction=0):
    """What an RNN, LSTM or GRU layer does at each step: name -> float32 in the form of x, with H (h: its own size) for
    its last axis. Computed from the state dict in float64 NumPy.

    RNN: h. GRU: r, z, n, h. LSTM: i, f, g, o, c, h. They are the terms of the equations in the layer's docstring, after
    their activations. Element t belongs to x[t] in both directions: c and h are the state after that step.

    x, state: as a call of the layer takes them. index: which layer of a stack; those below run without dropout.
    direction: 1 is the second one of a bidirectional layer.
    """
    x, initial, batched = _arguments(layer, x, state)
    if check_size(index, "index", least=0) >= layer.num_layers:
        raise InputError(f"index: {index}, expected less than num_layers = {layer.num_layers}")
    check_choice(direction, "direction", tuple(range(len(layer._reverse))))
    parameters = {name: value.astype(np.float64) for name, value in layer.state_dict().items()}
    x = x.astype(np.float64)
    for k in range(index + 1):
        directions = []
        for d, backwards in enumerate(layer._reverse):
            order = slice(None, None, -1 if backwards else 1)
            of_cell = {
                name.removesuffix(f"_{suffix(k, d)}"): value
                for name, value in parameters.items()
                if name.endswith(f"_{suffix(k, d)}")
            }
            states = [s[k * len(layer._reverse) + d] for s in initial]
            steps = list(_CELLS[layer.kind](layer, of_cell, _functions(layer, d), x[order], *states))
            directions.append({name: np.stack([step[name] for step in steps])[order] for name in steps[0]})
        outputs = [values["h"] for values in directions]
        x = outputs[0] if len(outputs) == 1 else _MERGES[layer.merge][0](*outputs)
    form = (lambda a: a[:, 0]) if not batched else (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
    return {name: form(values.astype(np.float32)) for name, values in directions[direction].items()}


def _rnn(layer, weights, functions, x, h):
    (f,) = functions
    R = weights["weight_hh"].T
    for xg in _input(weights, x):
        h = f(xg + h @ R + weights.get("bias_hh", 0.0))
        yield {"h": h}


def _gru(layer, weights, functions, x, h):
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


_CELLS = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
"""kind -> the values of each step; x [T, B, I], h and c [B, size], weights without the end of their names"""


def _input(weights, x):
    return x @ weights["weight_ih"].T + weights.get("bias_ih", 0.0)


def _functions(layer, direction):
    """The activations; those of gates bound their argument by `clip`, the LSTM's h(c') does not."""
    limit = np.inf if layer.clip is None else layer.clip

    def bind(position, name, alpha, beta):
        bound = np.inf if position == 2 else limit
        return lambda a: ACTIVATIONS[name](np.clip(a, -bound, bound), alpha, beta)

    return [bind(position, *triple) for position, triple in enumerate(layer._activations[direction])]


def gates(layer, x, state=None, *, row=0, index=0, direction=0, labels=None, figure=None):
    """Heat maps of `gate_values` for one row of x: units down, time to the right.

    row: which row of the batch. labels: one text for each step, such as the characters of x. Gates are drawn on a scale
    from 0 to 1; all else from blue below 0 to red above it, to 1 or to the largest value.
    """
    values = gate_values(layer, x, state, index=index, direction=direction)
    if values["h"].ndim == 3:
        batch = 0 if layer.batch_first else 1
        if check_size(row, "row", least=0) >= values["h"].shape[batch]:
            raise InputError(f"row: {row}, expected less than the batch of {values['h'].shape[batch]}")
        values = {name: a.take(row, axis=batch) for name, a in values.items()}
    labels = _labels(labels, len(values["h"]), "labels")
    figure, panels = _panels(figure, len(values), 1, 8, 0.8 + 1.1 * len(values), sharex=True)
    for panel, (name, a) in zip(panels, values.items()):
        if name in "ifozr" and a.min() >= 0 and a.max() <= 1:
            scale = {"cmap": "viridis", "vmin": 0, "vmax": 1}
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


def attention(weights, source=None, target=None, *, figure=None):
    """Heat map of attention weights [target steps, source steps]: a row says where an output step looked.

    source, target: one text for each step.
    """
    weights = as_array(weights, "weights")
    if weights.ndim != 2 or not weights.size or weights.dtype.kind not in "iuf":
        raise InputError(
            f"weights: dtype is {weights.dtype}, shape is {list(weights.shape)}, expected numbers "
            "[target steps, source steps]"
        )
    source = _labels(source, weights.shape[1], "source")
    target = _labels(target, weights.shape[0], "target")
    figure, (panel,) = _panels(
        figure, 1, 1, 2.2 + 0.28 * min(weights.shape[1], 40), 1.2 + 0.28 * min(weights.shape[0], 40)
    )
    image = panel.imshow(weights, cmap="Blues", vmin=0, vmax=max(1.0, float(weights.max())), interpolation="nearest")
    figure.colorbar(image, ax=panel, pad=0.02)
    panel.xaxis.tick_top()
    panel.xaxis.set_label_position("top")
    panel.set(xlabel="source", ylabel="target")
    _tick(panel.xaxis, source)
    _tick(panel.yaxis, target)
    return figure


class GradientNorms(NamedTuple):
    """Norms by the number n of steps before the last one, n = 0 ... T - 1."""

    state: np.ndarray
    """[T, B]: of dL/d(h, c) after step T - 1 - n, for each row's own loss"""
    weights: np.ndarray
    """[T]: of what step T - 1 - n adds to dL/dW, all weights together, for the mean of the rows' losses"""
    total: float
    """The norm of dL/dW, the sum of what all steps add: what clipping by norm bounds"""


def gradient_norms(layer, x, state=None, *, dlast=None, rng=0):
    """GradientNorms of an RNN, LSTM or GRU layer for a loss on the output of its last step, in float64 [T, B] and [T].

    The chain rule, one step at a time: forward(x[t:t+1], state, training=True) from the first step to the last, then
    backward(None, dstate, saved[t]) from the last to the first. dstate after n of these is the gradient that reaches
    the state n steps before the last. It has gone through n Jacobians, so it falls or grows like the n-th power of a
    number. The state is (h, c) for an LSTM, and that of all layers of a stack.

    dlast: dL/dh of the top layer's last step [B, size]; None takes for each row a random direction of length 1, so that
    norms are factors by which a gradient shrinks or grows. rng: a seed or Generator for these, and for dropout.
    Norms below 1e-38, the end of float32, are 0; beyond its other end they are inf or nan.

    Raises UnsupportedError for directions that run backwards: their last step is not the last one.
    """
    x, initial, _ = _arguments(layer, x, state)
    if any(layer._reverse):
        raise UnsupportedError(f"gradient_norms of {layer!r}: a direction runs backwards, expected forwards only")
    generator = as_generator(rng)
    steps, rows, _ = x.shape
    if dlast is None:
        dlast = generator.standard_normal((rows, layer._widths[0]))
        dlast /= np.linalg.norm(dlast, axis=-1, keepdims=True)
    else:
        dlast = as_input(dlast, "dlast")
        check_shape(dlast, (rows, layer._widths[0]), "dlast", "batch, size of the output")

    saved, state = [], layer._as_state(tuple(initial))
    for t in range(steps):
        step = x[t : t + 1]
        _, state, of_step = layer.forward(
            step.swapaxes(0, 1) if layer.batch_first else step, state, training=True, rng=generator
        )
        saved.append(of_step)

    dstate = tuple(np.zeros_like(s) for s in initial)
    dstate[0][-1] = dlast
    dstate = layer._as_state(dstate)
    norms, of_weights, total = np.empty((steps, rows)), np.empty(steps), {}
    for n, of_step in enumerate(reversed(saved)):
        whole = np.concatenate([d.swapaxes(0, 1).reshape(rows, -1) for d in layer._states(dstate, "dstate")], axis=1)
        norms[n] = np.linalg.norm(whole.astype(np.float64), axis=1)
        _, dstate, dweights = layer.backward(None, dstate, of_step)
        dweights = {name: d.astype(np.float64) / rows for name, d in dweights.items()}
        of_weights[n] = _norm(dweights)
        total = {name: d + total.get(name, 0.0) for name, d in dweights.items()}
    return GradientNorms(norms, of_weights, _norm(total))


def _norm(arrays):
    return float(np.sqrt(sum(np.square(a).sum() for a in arrays.values())))


def gradient_flow(layers, x, state=None, *, clip=None, rng=0, figure=None):
    """`gradient_norms` of several layers against n, the number of steps back, on a log scale.

    Left, the gradient that reaches the state. Right, what each step adds to the gradient of the weights. Where the line
    falls the gradient vanishes: a step that far back teaches the weights nothing. Where it rises it explodes. Lines are
    medians, bands go from the 10th to the 90th percentile, over rows (left) and layers of a name.

    layers: name -> a layer, or a list of layers that differ in their seeds; all take the same x.
    clip: the norm to which the gradient of the weights is clipped. One factor, min(1, clip / total), scales the whole
        sum of the steps, so the clipped lines (right, dashed) are the plain ones moved down by it. It bounds an
        explosion; it cannot mend a vanished gradient, nor the proportion of near steps to far ones.
    """
    if not isinstance(layers, Mapping) or not layers:
        raise InputTypeError(f"layers: got {layers!r:.60}, expected a mapping of name to layer or list of layers")
    if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
        raise InputError(f"clip: {clip!r}, expected a number above 0")
    generator = as_generator(rng)
    results = {}
    for name, group in layers.items():
        group = group if isinstance(group, (list, tuple)) else [group]
        if not group:
            raise InputError(f"layers: {name} has none, expected one or more")
        results[str(name)] = [gradient_norms(layer, x, state, rng=generator) for layer in group]

    figure, (left, right) = _panels(figure, 1, 2, 9, 3.6)
    for position, (name, of_name) in enumerate(results.items()):
        colour = COLOURS[(position + 1) % len(COLOURS)]
        weights = np.stack([r.weights for r in of_name], axis=1)
        _line(left, np.concatenate([r.state for r in of_name], axis=1), colour, name)
        _line(right, weights, colour, name)
        if clip is not None:
            factors = np.array([min(1.0, clip / r.total) if r.total else 1.0 for r in of_name])
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
    """Median over the last axis and, where there is more than one, the band; what has no logarithm is left out."""
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    counted = ~np.isnan(values).any(axis=1)
    n = np.arange(len(values))[counted]
    low, middle, high = np.percentile(values[counted], (10, 50, 90), axis=1)
    panel.plot(n, middle, linestyle, color=colour, label=label, linewidth=1.8)
    if band and values.shape[1] > 1:
        panel.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)


def _arguments(layer, x, state):
    """-> x [T, B, I], the initial states [layers * directions, B, size], and whether x had a batch axis."""
    if not isinstance(layer, (nn.RNN, nn.LSTM, nn.GRU)):
        raise InputTypeError(
            f"layer: got a {type(layer).__name__}, expected RNN, LSTM or GRU (one of a Sequential's "
            "stands in its `layers`)"
        )
    x, batched = layer._batch(x)
    steps, rows, _ = x.shape
    if not steps or not rows:
        raise InputError(f"x: {steps} steps, {rows} rows, expected one or more of each")
    initial = []
    for given, name, size in zip(layer._states(state, "state"), ("h", "c"), layer._widths):
        shape = layer.num_layers * len(layer._reverse), rows, size
        if given is None:
            initial.append(np.zeros(shape, np.float32))
        else:
            given = as_input(given, name)
            initial.append(given if batched else given[:, None])
            check_shape(initial[-1], shape, name, "layers * directions, batch, size")
    return x, initial, batched


def _panels(figure, rows, columns, width, height, **options):
    """A figure, the one given or a new one, and its axes in a flat list."""
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
    if labels is None:
        return None
    labels = [str(label) for label in labels]
    if len(labels) != count:
        raise InputError(f"{name}: got {len(labels)}, expected {count}, one for each step")
    return labels


def _tick(axis, labels):
    if labels:
        axis.set_ticks(range(len(labels)), labels)
    else:
        axis.get_major_locator().set_params(integer=True)
