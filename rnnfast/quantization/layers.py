"""The layers of a model whose weights are constants, and files in which some of them are stored in fewer bits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from rnnfast.quantization import dynamic_lstm
from rnnfast.quantization.weight_types import Stored, WeightType
from rnnfast.quantization.weights import (
    OVERRIDABLE_SINCE,
    Reader,
    Rewriter,
    find_readers,
    fingerprint,
    opset_of,
    remove_unread,
)


class Member(NamedTuple):
    """A reader of a layer: its number among those that `find_readers` gives, the reader, and its weights."""

    number: int
    reader: Reader
    array: np.ndarray


@dataclasses.dataclass(eq=False)
class Layer:
    """Nodes that read the same weights.

    Attributes:
        members: Their readers, in the order of the file.
    """

    members: list[Member]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(dict.fromkeys(member.reader.name for member in self.members))

    @property
    def nbytes(self) -> int:
        """The bytes of the weights."""
        return sum(array.nbytes for array in self._distinct)

    @property
    def finite(self) -> bool:
        """True if all weights are finite."""
        return all(bool(np.all(np.isfinite(array))) for array in self._distinct)

    @property
    def norm(self) -> float:
        """The root of the sum of the weights' squares."""
        return root_of_squares(self._distinct)

    @functools.cached_property
    def _distinct(self) -> list[np.ndarray]:
        """The weights, equal ones once."""
        return list({fingerprint(member.array): member.array for member in self.members}.values())


@dataclasses.dataclass(eq=False)
class StoredLayer:
    """How a file stores the weights of a layer.

    Attributes:
        nbytes: The bytes of the tensors.
        lost: The root of the sum of the squares of the weights' changes.
        finite: Whether all weights are finite numbers.
    """

    nbytes: int
    lost: float
    finite: bool


def find_layers(model: Any) -> list[Layer]:
    """The layers of a ModelProto whose tensors are all in it, in the order of the file."""
    opset = opset_of(model)
    group: dict[Any, Layer] = {}  # the layer of each node and each constant that is known so far
    layers: list[Layer] = []
    arrays: dict[int, np.ndarray | None] = {}
    for number, reader in enumerate(find_readers(model)):
        if id(reader.weights) not in arrays:
            arrays[id(reader.weights)] = reader.array(opset)
        array = arrays[id(reader.weights)]
        if array is None:
            continue
        roots = [root for root in reader.weights.roots if root.floating]
        keys = [("node", id(reader.node)), *((id(root.graph), root.name) for root in roots)]
        found = list(dict.fromkeys(group[key] for key in keys if key in group))
        if not found:
            layers.append(Layer([]))
            found = layers[-1:]
        layer, *others = sorted(found, key=layers.index)
        for other in others:  # the reader joins layers that had nothing in common before
            layers.remove(other)
            layer.members = sorted(layer.members + other.members, key=lambda member: member.number)
            group.update({key: layer for key, value in group.items() if value is other})
        layer.members.append(Member(number, reader, array))
        group.update(dict.fromkeys(keys, layer))
    return layers


def with_stored(
    model: Any, layers: Collection[Layer], weight_type: WeightType, dynamic: bool
) -> tuple[bytes, list[StoredLayer]]:
    """The bytes of a file whose `layers` are stored as the weight type says, and how each is stored.

    Args:
        model: The ModelProto, which is not changed.
        layers: Some of its layers.
        weight_type: The type.
        dynamic: Whether LSTM nodes become DynamicQuantizeLSTM.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    readers = find_readers(copy)
    rewriter = Rewriter(copy)
    results = []
    for layer in layers:
        made: dict[int, tuple[np.ndarray, Stored]] = {}
        lstms: dict[int, tuple[Any, dict[int, Stored]]] = {}
        for number, _, array in layer.members:
            reader = readers[number]
            as_lstm = dynamic and reader.node.op_type == "LSTM"
            stored = rewriter.stored(reader, array, dynamic_lstm.WEIGHT_TYPE if as_lstm else weight_type)
            made[id(stored)] = array, stored
            if as_lstm:
                lstms.setdefault(id(reader.node), (reader.node, {}))[1][reader.index] = stored
            else:
                reader.node.input[reader.index] = stored.output
        for node, stored_inputs in lstms.values():
            dynamic_lstm.rewrite(copy, node, stored_inputs[1], stored_inputs[2])
        results.append(_facts(list(made.values())))
    copy.ir_version = max(copy.ir_version, OVERRIDABLE_SINCE)  # before it every initializer had to be an input
    remove_unread(copy, [readers[member.number].weights for layer in layers for member in layer.members])
    return copy.SerializeToString(), results


def _facts(made: list[tuple[np.ndarray, Stored]]) -> StoredLayer:
    """The facts of a layer whose arrays are stored like this."""
    finite = all(bool(np.all(np.isfinite(stored.values))) for _, stored in made)
    lost = root_of_squares(stored.values - array for array, stored in made) if finite else math.inf
    return StoredLayer(sum(len(tensor.raw_data) for _, stored in made for tensor in stored.tensors), lost, finite)


def root_of_squares(arrays: Any) -> float:
    """The root of the sum of the squares of all values of arrays, in float64."""
    return math.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in arrays))
