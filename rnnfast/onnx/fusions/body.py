"""A fused operator's row of a table, and the body of ONNX's operators while it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import UnsupportedError

REQUIRED = object()  # in place of an attribute's default


class Fusion(NamedTuple):
    """A fused operator.

    Attributes:
        expand: function(body, attributes) that adds the nodes to a Body and returns the names of the outputs.
        inputs: How many inputs are required, and how many there may be.
        attributes: name -> default, REQUIRED if it must be given, or a type if it is optional.
        outputs: The most outputs.
    """

    expand: Callable[[Body, dict[str, Any]], Sequence[str]]
    inputs: tuple[int, int]
    attributes: Mapping[str, Any]
    outputs: int = 1


class Body:
    """The nodes and constants of a body while it is made."""

    def __init__(
        self, name: str, present: Sequence[bool], n_outputs: int, dtypes: Sequence[np.dtype | None] = ()
    ) -> None:
        self.name, self.n_outputs, self.dtypes = name, n_outputs, dtypes
        self.inputs = [f"input {i}" if there else "" for i, there in enumerate(present)]
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.n_values = 0

    def input(self, index: int) -> str:
        """The name of an input; "" if it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def dtype(self, index: int) -> np.dtype | None:
        """The dtype of an input, None if it is not known when the file is read."""
        return self.dtypes[index] if index < len(self.dtypes) else None

    def several(self, op_type: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Add a node; return the names of its outputs."""
        from onnx import helper

        outputs = [f"value {self.n_values} {i}" for i in range(count)]
        self.n_values += 1
        attributes = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, self.name, **attributes))
        return outputs

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        return self.several(op_type, inputs, 1, **attributes)[0]

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """Add what one of two functions adds, by a condition that shapes decide; return the name of the value."""
        from onnx import helper

        branches = []
        around = self.nodes
        for make in (then, otherwise):
            self.nodes = []
            result = helper.make_empty_tensor_value_info(make())
            branches.append(helper.make_graph(self.nodes, self.name, [], [result]))
        self.nodes = around
        return self.add("If", condition, then_branch=branches[0], else_branch=branches[1])

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant; return its name."""
        name = f"constant {len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def like(self, value: float, other: str) -> str:
        """Add a number of the type of another value; return its name."""
        return self.add("CastLike", self.constant(value, np.float32), other)

    def plus(self, x: str, y: str) -> str:
        """Add the sum of two values, of which one may be absent."""
        return self.add("Add", x, y) if x and y else x or y

    def rank(self, x: str) -> str:
        """Add the number of axes of a value."""
        return self.add("Size", self.add("Shape", x))

    def size(self, x: str, axis: int) -> str:
        """Add the size of an axis, as a tensor of one element."""
        return self.add("Shape", x, start=axis, end=axis + 1 or None)

    def number(self, x: str) -> str:
        """Add the only element of a value, as a scalar."""
        return self.add("Reshape", x, self.constant(np.zeros(0)))

    def counted(self, size: str) -> str:
        """Add the numbers from 0 to a size, a tensor of one element, without it."""
        return self.add("Range", self.constant(0), self.number(size), self.constant(1))

    def joined(self, *parts: str) -> str:
        """Add parts of a shape one after the other."""
        return self.add("Concat", *parts, axis=0)

    def refuse_inputs(self, first: int) -> None:
        """Raise UnsupportedError if one of the inputs from `first` on is given."""
        for i, name in enumerate(self.inputs[first:], first):
            if name:
                raise UnsupportedError(f"input {i} is not supported")


def refuse_unless(a: Mapping[str, Any], **expected: Any) -> None:
    """Raise UnsupportedError if an attribute has another value than expected."""
    for name, value in expected.items():
        if a[name] != value:
            raise UnsupportedError(f"attribute {name!r} = {a[name]} is not supported, expected {value}")
