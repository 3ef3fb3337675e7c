"""Diagnosis of diverged training: the first array that is not finite."""

from __future__ import annotations

import numpy as np

from rnnfast.nn.module import Sequential
from rnnfast.nn.seq2seq import Seq2Seq


def first_wrong(net, batch, state, rng):
    """Repeat a forward pass, and say in words which is the first of input, layers and targets that is not finite."""
    if not all(map(_finite, batch.x if isinstance(batch.x, tuple) else (batch.x,))):
        return "the input x is not finite"
    layer = _first_layer(net, batch.x, state, batch.lengths, rng, "")[1]
    if layer is not None:
        return f"the first output that is not finite is that of {layer}"
    if not _finite(batch.y):
        return "the target is not finite"
    return "all outputs are finite"


def _first_layer(net, x, state, lengths, rng, path):
    """Return y and, in words, the first layer whose output is not finite, or None; `path` leads to `net`."""
    if isinstance(net, Seq2Seq):
        outputs = net.outputs(x, lengths=lengths, rng=rng)
        wrong = next((name for name, y in outputs.items() if not _finite(y)), None)
        return outputs["output"], wrong and f"{wrong} {net.members().get(wrong, '')}".strip()
    if not isinstance(net, Sequential):
        y = net.forward(x, state, lengths=lengths, training=True, rng=rng)[0]
        return y, None if _finite(y) else f"layer {path} {net!r}".replace("  ", " ")
    for i, (layer, layer_state) in enumerate(zip(net.layers, net.split_state(state, "state"), strict=True)):
        x, wrong = _first_layer(layer, x, layer_state, lengths, rng, f"{path}.{i}" if path else f"{i}")
        if wrong is not None:
            return x, wrong
    return x, None


def _finite(array):
    """Return whether all elements are finite."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
