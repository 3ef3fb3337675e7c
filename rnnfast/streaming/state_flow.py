"""Tells whether the graph of a model uses and changes its states, as far as the graph alone shows it."""

import numpy as np

from rnnfast.onnx.ops.control import if_
from rnnfast.onnx.ops.numeric import is_half

# Operators whose results depend on the shape of their first input alone.
SHAPE_ONLY = {"EyeLike", "Shape", "Size"}
# Operators that keep all elements in their order.
KEEP_ORDER = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
# Operators with two inputs that keep the first one where all elements of the second one are this number.
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}


def idle_state(graph, states):
    """(state input, why it is no state) of the first one that the graph never uses or returns unchanged, or None.

    Args:
        graph: The folded graph.
        states: {state input: state output}.
    """
    for name, output in states.items():
        flow = _Flow(next(v for v in graph.inputs if v.name == name))
        used, same = flow.through(graph, {name: ()})
        if not used.intersection(v.name for v in graph.outputs):
            return name, "no output depends on its values"
        if same.get(output) == ():
            return name, f"the output {output!r} is the input unchanged"
    return None


class _Flow:
    """The flow of the values of one input, a Value, through a graph.

    A Cast keeps them if it is to the input's type, or from float16 or bfloat16 to float32, in which their graphs run.
    """

    def __init__(self, state):
        dtype = state.type.dtype
        self.name = state.name
        self.kept_types = (dtype, np.float32) if dtype is not None and is_half(dtype) else (dtype,)

    def through(self, graph, given):
        """(names that depend on the values of the input, {name: permutation of its axes} of those that are the input).

        The permutation is () where all elements are in their order.

        Args:
            graph: The Graph.
            given: The same mapping, of the graph's inputs and captures that are the input.
        """
        used, same = set(given), dict(given)
        for node in graph.nodes:
            if used.isdisjoint(node.needs):
                continue
            if node.function is None or node.function is if_ and node.inputs[0] in graph.constants:
                self._within(graph, node, used, same)
            elif not (node.op_type in SHAPE_ONLY and not node.domain):
                used.update(node.outputs)
                permutation = self._kept(graph, node, same)
                if permutation is not None and node.outputs[0]:
                    same[node.outputs[0]] = permutation
        return used, same

    def _within(self, graph, node, used, same):
        """Follow the values through a function's body, or through the branch that is always taken."""
        if node.function is None:
            body = node.attributes["body"]
            names = dict(zip((v.name for v in body.inputs), node.inputs))
        else:
            body = node.attributes["then_branch" if graph.constants[node.inputs[0]].all() else "else_branch"]
            names = {name: name for name in body.captures}
        # A value that only depends on the input is followed as one that has lost its order.
        given = {inner: same.get(name) for inner, name in names.items() if name in used}
        inner_used, inner_same = self.through(body, given)
        for value, name in zip(body.outputs, node.outputs):
            if value.name in inner_used:
                used.add(name)
            if inner_same.get(value.name) is not None:
                same[name] = inner_same[value.name]

    def _kept(self, graph, node, same):
        """The permutation of the input in the first output of a node; None if that is not the input."""
        if node.domain or same.get(node.inputs[0]) is None:
            return None
        op, permutation = node.op_type, same[node.inputs[0]]
        others = [graph.constants.get(name) for name in node.inputs[1:]]
        if op == "Transpose":
            order = node.attributes.get("perm")
            return None if order is None else _composed(permutation, order)
        if op in NEUTRAL:
            (other,) = others
            fits = other is not None and other.ndim <= 1 and other.size == 1
            return permutation if fits and bool(np.all(other == NEUTRAL[op])) else None
        if op == "Concat" and len(node.inputs) == 1 or op == "Dropout":
            return permutation
        if op == "Cast":
            return permutation if node.attributes["to"] in self.kept_types else None
        return permutation if op in KEEP_ORDER and not permutation else None


def _composed(before, after):
    """The permutation of two transposes; () if it changes nothing."""
    order = [before[i] for i in after] if before else list(after)
    return () if order == sorted(order) else tuple(order)
