"""How `layer.map` runs sequences of a layer or Sequential."""

from __future__ import annotations

import numpy as np

from rnnfast.nn.checks import as_array, as_floats
from rnnfast.nn.module import is_recurrent, layers_of, takes_floats
from rnnfast.nn.recurrent_layer import RecurrentLayer
from rnnfast.serving.corpus import Way, length, mapped
from rnnfast.streaming._pools import cut, pad


def map_layer(layer, sequences, batch, threads, progress):
    """The results of sequences, lazily and in order; `Module.map` documents it."""
    layers = layers_of(layer)
    return mapped(LayerSequences(layer, layers), sequences, batch, threads, progress)


class LayerSequences(Way):
    """Sequences of a layer, padded in one call with their lengths where each layer keeps rows and steps apart.

    A layer that a user wrote, and one that mixes steps, runs them one by one.
    """

    def __init__(self, layer, layers):
        self.layer, self.label, self.is_sequential = layer, type(layer).__name__, layers != (layer,)
        self.read = as_floats if takes_floats(layer) else as_array
        recurrent = [member for member in layers if is_recurrent(member)]
        self.batched = (
            bool(recurrent)
            and all(type(member).__module__.startswith("rnnfast.nn.") and member.is_stepwise for member in layers)
            and all(isinstance(member, RecurrentLayer) for member in recurrent)
            and len({member.batch_first for member in recurrent}) == 1
        )
        if self.batched:
            before = layers[: layers.index(recurrent[0])]
            self.rank = 2 - sum((member.sizes() or ("",))[0] == "new" for member in before)
            self.batch_first = recurrent[0].batch_first
            self.returns_sequences = all(member.return_sequences for member in recurrent)

    def taken(self, sequence):
        if not self.batched:
            return sequence, length(sequence), None
        x = self.read(sequence, "x")
        if x.ndim != self.rank or not len(x):
            return x, length(x), None
        return x, len(x), (x.shape[1:], x.dtype)

    def alone(self, item):
        return self.layer(item)

    def together(self, items):
        lengths = [len(x) for x in items]
        lead = (len(items), lengths[0]) if self.batch_first else (lengths[0], len(items))
        x = np.empty((*lead, *items[0].shape[1:]), items[0].dtype)
        pad(items, x if self.batch_first else x.swapaxes(0, 1))
        if self.is_sequential:
            return self._rows(self.layer.call_in_sequence(x, lengths), lengths)
        y, state = self.layer(x, lengths=lengths)
        states = state if isinstance(state, tuple) else (state,)
        return [
            (y, self.layer.join_state(tuple(s[:, i].copy() for s in states)))
            for i, y in enumerate(self._rows(y, lengths))
        ]

    def _rows(self, y, lengths):
        """Copies of the rows of a result, of their lengths."""
        if not self.returns_sequences:
            return [row.copy() for row in y]
        return cut(y if self.batch_first else y.swapaxes(0, 1), lengths)
