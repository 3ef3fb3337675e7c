"""One step of a cell: the nodes that compute an RNN's, GRU's or LSTM's next state, in whatever order they are written.

The equations are those of the ONNX operator specification (RNN-14, GRU-14, LSTM-14).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rnnfast.onnx.cells.affine import Activation, Affine, Part, Source, Values
from rnnfast.onnx.graph import Node

GATES = {"RNN": "h", "GRU": "zrh", "LSTM": "iofc"}
SIGMOID = Activation("Sigmoid")


class Step(NamedTuple):
    """A step of a cell.

    Attributes:
        kind: RNN, GRU or LSTM.
        h: The name of the output.
        c: The name of the new cell state; "" but for an LSTM.
        before: The output of the step before, where it follows from the formula (GRU), else "".
        c_before: The cell state before; "" but for an LSTM.
        gates: What each gate takes before its activation, in ONNX's order.
        recurrent: For a GRU that resets behind the product, what the reset gate multiplies; None for others.
        activations: ONNX's activations f, g and h.
        negated: Whether the update gate z has the opposite sign: it is the sigmoid of the negative of its map.
    """

    kind: str
    h: str
    c: str
    before: str
    c_before: str
    gates: tuple[Affine, ...]
    recurrent: Affine | None
    activations: tuple[Activation, ...]
    negated: bool = False


class Matcher:
    """Finds steps among the values of a graph."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.readers: dict[str, list[Node]] = {}
        for node in values.graph.nodes:
            if values.copies(node):
                continue
            for name in set(map(values.origin, node.needs)):
                self.readers.setdefault(name, []).append(node)

    def steps(self, name: str) -> Iterator[Step]:
        """The steps whose new state, the cell state of an LSTM or the output of others, is this value."""
        node = self.values.maker(name)
        if node is None or len(self.values.fact(name).shape or ()) != 2:
            return
        if node.op_type == "Add":
            yield from self._lstm(node, name)
            yield from self._gru(node, name)
        else:
            yield from self._rnn(name)

    def _operands(self, name: str, op_type: str) -> tuple[str, str] | None:
        """The two inputs of the node that makes a value, if it is of this operator."""
        node = self.values.maker(self.values.origin(name))
        if node is None or node.op_type != op_type or len(node.inputs) != 2:
            return None
        one, other = map(self.values.origin, node.inputs)
        return one, other

    def _both_ways(self, name: str, op_type: str) -> list[tuple[str, str]]:
        """The same in both orders; none for other operators."""
        found = self._operands(name, op_type)
        return [] if found is None else [found, found[::-1]]

    # ------------------------------------------------------------------------------------------ LSTM
    def _lstm(self, node: Node, c: str) -> Iterator[Step]:
        """c = f * c_before + i * g, h = o * act(c)."""
        for kept, added in self._both_ways(c, "Add"):
            for forget, c_before in self._both_ways(kept, "Mul"):
                f = self.values.activated(forget)
                if f is None:
                    continue
                for first, second in self._both_ways(added, "Mul"):
                    i, g = self.values.activated(first), self.values.activated(second)
                    if i is None or g is None or i[0] != f[0]:
                        continue
                    for h, o, last in self._outputs(c):
                        if o[0] == f[0]:
                            gates = (i[1], o[1], f[1], g[1])
                            yield Step("LSTM", h, c, "", c_before, gates, None, (f[0], g[0], last))

    def _outputs(self, c: str) -> Iterator[tuple[str, tuple[Activation, Affine], Activation]]:
        """(h, the output gate, the activation of the cell state) for each value h = o * act(c)."""
        for reader in self.readers.get(c, ()):
            for name in reader.outputs[:1]:
                found = self.values.before_activation(name)
                if found is None or found[1] != c:
                    continue
                for product in self.readers.get(self.values.origin(name), ()):
                    for one, other in self._both_ways(product.outputs[0], "Mul"):
                        gate = self.values.activated(one) if other == self.values.origin(name) else None
                        if gate is not None:
                            yield self.values.origin(product.outputs[0]), gate, found[0]

    # ------------------------------------------------------------------------------------------ GRU
    def _gru(self, node: Node, h: str) -> Iterator[Step]:
        """h = (1 - z) * n + z * before, and the forms that are equal to it."""
        for z, n, before, negated in self._mixtures(h):
            update, new = self.values.activated(z), self.values.activated(n)
            if update is None or new is None or negated and update[0] != SIGMOID:
                continue
            yield from self._resets(h, before, update, new, negated)

    def _mixtures(self, h: str) -> Iterator[tuple[str, str, str, bool]]:
        """(z, n, before, negated) for h = (1 - z) n + z before; negated: h = z n + (1 - z) before."""
        for one, other in self._both_ways(h, "Add"):
            for rest, x in self._both_ways(one, "Mul"):
                subtracted = self._operands(rest, "Sub")
                if subtracted is None:
                    continue
                if self.values.single(subtracted[0]) == 1:
                    for z, y in self._both_ways(other, "Mul"):
                        if z == subtracted[1]:
                            yield z, x, y, False
                            yield z, y, x, True
                elif subtracted[1] == other:  # other + z * (y - other)
                    yield x, other, subtracted[0], False
                    yield x, subtracted[0], other, True

    def _resets(
        self, h: str, before: str, update: tuple[Activation, Affine], new: tuple[Activation, Affine], negated: bool
    ) -> Iterator[Step]:
        """The steps of a GRU whose new gate takes this map: with the reset before or behind the product."""
        for place, (source, part, columns) in enumerate(new[1].products):
            for r, x in self._both_ways(source.name, "Mul") if source.position is None else ():
                reset = self.values.activated(r)
                if reset is None or reset[0] != update[0]:
                    continue
                others = new[1]._replace(products=new[1].products[:place] + new[1].products[place + 1 :])
                activations = (update[0], new[0])
                if part is None:
                    recurrent = self.values.affine(x, *columns)
                    if recurrent is not None and _is_of(recurrent, before):
                        gates = (update[1], reset[1], others)
                        yield Step("GRU", h, "", before, "", gates, recurrent, activations, negated)
                elif x == before:
                    product = (Source(before), part, columns)
                    gates = (update[1], reset[1], others._replace(products=(*others.products, product)))
                    yield Step("GRU", h, "", before, "", gates, None, activations, negated)

    # ------------------------------------------------------------------------------------------ RNN
    def _rnn(self, h: str) -> Iterator[Step]:
        """h = act(x . W + before . R + b)."""
        if self.values.before_activation(h) is None:
            return
        found = self.values.activated(h)
        if found is not None:
            yield Step("RNN", h, "", "", "", (found[1],), None, (found[0],))


def _is_of(affine: Affine, name: str) -> bool:
    """Return whether an affine map is one product of a value with a matrix, and biases."""
    return not affine.diagonals and [(source, part is None) for source, part, _ in affine.products] == [
        (Source(name), False)
    ]


# ------------------------------------------------------------------------------------------------ weights
class Weights(NamedTuple):
    """The weights of a step, by what they multiply.

    Attributes:
        inputs: The sources of the input, each with its matrices for the gates.
        recurrent: The matrices of the output before, for the gates.
        peepholes: The vectors of an LSTM's cell states for i, o and f; empty if there are none.
    """

    inputs: tuple[tuple[Source, tuple[Part, ...]], ...]
    recurrent: tuple[Part, ...]
    peepholes: tuple[Part, ...]


def weights_of(step: Step, before: str) -> Weights | None:
    """The weights of a step whose output before is the value `before`; None if the step is no such cell."""
    count = len(step.gates)
    own: list[Part | None] = [None] * count
    peepholes: list[Part | None] = [None] * 3
    inputs: dict[Source, list[Part | None]] = {}
    for gate, affine in enumerate(step.gates):
        for source, part, _ in affine.products:
            if part is None:
                return None
            slots = own if source == Source(before) else inputs.setdefault(source, [None] * count)
            if slots[gate] is not None:
                return None
            slots[gate] = part
        for source, vector in affine.diagonals:
            seen = step.c if gate == 1 else step.c_before
            if step.kind != "LSTM" or gate == 3 or source != Source(seen) or peepholes[gate] is not None:
                return None
            peepholes[gate] = vector
    if step.recurrent is not None:
        if own[2] is not None or not _is_of(step.recurrent, before):
            return None
        own[2] = step.recurrent.products[0][1]
    # A gate that does not read a value has no weights of zero for it, which would make infinite values NaN.
    recurrent, seen_by = _all_or_none(own), _all_or_none(peepholes)
    read = [(source, _all_or_none(parts)) for source, parts in inputs.items()]
    if not recurrent or seen_by is None or any(parts is None for _, parts in read):
        return None
    ordered = sorted(
        ((source, parts) for source, parts in read if parts), key=lambda item: str([p.key for p in item[1]])
    )
    return Weights(tuple(ordered), recurrent, seen_by)


def _all_or_none(parts: Sequence[Part | None]) -> tuple[Part, ...] | None:
    """The parts of all gates, or an empty tuple if no gate has one; None if some have and some have not."""
    given = tuple(part for part in parts if part is not None)
    return given if len(given) in (0, len(parts)) else None


def signature(step: Step, weights: Weights) -> tuple[object, ...]:
    """Return what the steps of one cell have in common: the formula and the weights."""
    parts = [*weights.recurrent, *weights.peepholes, *itertools.chain(*(parts for _, parts in weights.inputs))]
    biases = [sorted(part.key for part in gate.biases) for gate in step.gates]
    behind = None if step.recurrent is None else sorted(part.key for part in step.recurrent.biases)
    keys = tuple(part.key for part in parts)
    return step.kind, step.activations, step.negated, keys, tuple(map(tuple, biases)), behind and tuple(behind)


def arrays(step: Step, weights: Weights, sizes: list[int]) -> dict[str, np.ndarray] | None:
    """The inputs W, R, B and P of the recurrent node of such steps; sizes: those of the sources of the input."""
    H = weights_size(weights)
    rows_w, rows_r, bias_w, bias_r = [], [], [], []
    for gate, affine in enumerate(step.gates):
        sign = -1.0 if step.negated and gate == 0 else 1.0
        parts = [given[gate].values() for _, given in weights.inputs]
        own_matrix = weights.recurrent[gate].values()
        if own_matrix.shape != (H, H) or any(p.shape != (size, H) for p, size in zip(parts, sizes)):
            return None
        rows_w.append(sign * np.concatenate(parts).T)
        rows_r.append(sign * own_matrix.T)
        bias_w.append(sign * affine.bias(H))
        bias_r.append(step.recurrent.bias(H) if step.recurrent is not None and gate == 2 else np.zeros(H))
    made = {
        "W": np.concatenate(rows_w)[None],
        "R": np.concatenate(rows_r)[None],
        "B": np.concatenate(bias_w + bias_r)[None],
    }
    if weights.peepholes:
        made["P"] = np.concatenate([part.values() for part in weights.peepholes])[None]
    return {name: np.ascontiguousarray(array, np.float32) for name, array in made.items()}


def weights_size(weights: Weights) -> int:
    """The number of hidden units."""
    return weights.recurrent[0].stop - weights.recurrent[0].start
