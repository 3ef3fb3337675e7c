"""Finds what is known of a graph's values before any run: types, shapes, and small vectors computed from shapes.

A size is an integer, a name that stands for one size of one input, several such names joined by "|" for what results
from broadcasting them, or None if nothing is known. What is said here holds for each run that does not fail.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import raise_if_from_handler
from rnnfast.onnx.graph import Graph, Node
from rnnfast.onnx.ops.shape_inputs import SHAPE_INPUTS
from rnnfast.onnx.result_shapes import type_of

Size = int | str | None
MAX_DATA = 16  # elements of a vector whose values are followed
MAX_NAMES = 8  # in one size
LARGEST = 2**31 - 1  # of what is computed, so that nothing is beyond the range of a type


class Fact(NamedTuple):
    """The facts of one value.

    dtype: its type, or None. shape: its sizes, or None if not even their number is known. data: an object array of its
    elements, each like a size; None if they are not followed.
    """

    dtype: Any = None
    shape: tuple[Size, ...] | None = None
    data: np.ndarray | None = None


UNKNOWN = Fact()


def facts_of(
    graph: Graph, around: Mapping[str, Fact] | None = None, given: Mapping[str, Fact] | None = None
) -> dict[str, Fact]:
    """The Facts of all values that a folded graph sees.

    around: those of the values that it captures. given: those of its inputs; None for a whole model, whose calls must
    have the shapes that it declares.
    """
    facts = first_facts(graph, around, given)
    for node in graph.nodes:
        note_results(facts, node)
    return facts


def first_facts(
    graph: Graph, around: Mapping[str, Fact] | None = None, given: Mapping[str, Fact] | None = None
) -> dict[str, Fact]:
    """The Facts of the values that a graph sees before any of its nodes."""
    facts = {name: around[name] for name in graph.captures if name in around} if around else {}
    facts |= {**dict.fromkeys((v.name for v in graph.inputs), UNKNOWN), **(given or {})}
    facts |= {name: _of_constant(value) for name, value in graph.constants.items()}
    for place, v in enumerate(graph.inputs if given is None else ()):
        declared = v.type.shape if v.type.kind == "tensor" else None
        # A name in a declaration says nothing; each size of each input gets a name of its own.
        shape = declared and tuple(n if isinstance(n, int) else f"{place}:{i}" for i, n in enumerate(declared))
        facts[v.name] = Fact(v.type.dtype, shape)
    return facts


def note_results(facts: dict[str, Fact], node: Node) -> None:
    """Add what is known of the results of a node, after those of the nodes before it."""
    rule = RULES.get(node.op_type) if not node.domain and not node.graphs and node.function is not None else None
    results: Any = UNKNOWN
    if rule is not None or hasattr(node.function, "shapes"):
        inputs = [facts.get(name, UNKNOWN) if name else None for name in node.inputs]
        try:
            results = (rule or _by_its_shapes)(node, inputs)
        except Exception as e:
            raise_if_from_handler(e)
            results = UNKNOWN  # the node fails when it runs
    results = results if isinstance(results, list) else [results]
    facts.update(dict.fromkeys(filter(None, node.outputs), UNKNOWN))
    facts.update((name, fact) for name, fact in zip(node.outputs, results) if name)


def _of_constant(value: Any) -> Fact:
    if not isinstance(value, np.ndarray):
        return UNKNOWN
    small = value.dtype.kind == "i" and value.size <= MAX_DATA and value.ndim <= 1
    return Fact(value.dtype, value.shape, value.astype(object) if small else None)


def broadcast(shapes: Iterable[tuple[Size, ...] | None]) -> tuple[Size, ...] | None:
    """The shape of what results from broadcasting."""
    known = list(shapes)
    if any(shape is None for shape in known):
        return None
    rank = max(len(shape) for shape in known if shape is not None)
    padded = [(1,) * (rank - len(shape)) + shape for shape in known if shape is not None]
    return tuple(map(_common, zip(*padded)))


def _common(sizes: Sequence[Size]) -> Size:
    others = {n for n in sizes if n != 1}
    if not others:
        return 1
    fixed = [n for n in others if isinstance(n, int)]
    if len(fixed) > 1:
        raise ValueError(f"sizes {fixed} do not broadcast")
    if fixed:
        return fixed[0]
    if None in others:
        return None
    names = sorted({name for n in others if isinstance(n, str) for name in n.split("|")})
    return "|".join(names) if len(names) <= MAX_NAMES else None


def _axis(axis: int, shape: tuple[Size, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(axis)
    return axis % len(shape)


def _integers(fact: Fact | None) -> list[int] | None:
    """The elements of a vector, if all are known integers."""
    if fact is None or fact.data is None:
        return None
    values = fact.data.ravel().tolist()
    return values if all(isinstance(n, int) for n in values) else None


def _by_its_shapes(node: Node, facts: list[Any]) -> Any:
    """The results of a node whose inputs have known shapes, by the rule of its operator."""
    if node.domain or node.op_type in SHAPE_INPUTS or any(fact is not None and not _is_fixed(fact) for fact in facts):
        return UNKNOWN
    arrays = [
        None if fact is None else np.ndarray(fact.shape, fact.dtype, bytes(16), 0, (0,) * len(fact.shape))
        for fact in facts
    ]
    shapes = node.function.shapes(*arrays, **node.attributes)  # type: ignore[union-attr]
    return [Fact(type_of(node, arrays), tuple(shape)) for shape in shapes]


def _is_fixed(fact: Fact) -> bool:
    return fact.dtype is not None and fact.shape is not None and all(isinstance(n, int) for n in fact.shape)


# ------------------------------------------------------------------------------------------------ rules
def _same(node: Node, facts: list[Any]) -> Fact:
    return Fact(facts[0].dtype, facts[0].shape)


def _identity(node: Node, facts: list[Any]) -> Fact:
    return facts[0]


def _binary(node: Node, facts: list[Any]) -> Fact:
    x, y = facts
    data = None
    if x.data is not None and y.data is not None:
        pairs: Any = np.broadcast_arrays(x.data, y.data)
        data = np.empty(pairs[0].shape, object)
        for i in np.ndindex(data.shape):
            data[i] = _computed(node.op_type, pairs[0][i], pairs[1][i])
    return Fact(x.dtype or y.dtype, broadcast([x.shape, y.shape]), data)


def _computed(op_type: str, a: Size, b: Size) -> Size:
    """An element of a sum and the like."""
    if not isinstance(a, int) or not isinstance(b, int) or max(abs(a), abs(b)) > LARGEST:
        return a if (op_type, b) in (("Add", 0), ("Mul", 1), ("Sub", 0), ("Div", 1)) else None
    if op_type == "Div":
        return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    result = {"Add": a + b, "Sub": a - b, "Mul": a * b}[op_type]
    return result if abs(result) <= LARGEST else None


def _logical(node: Node, facts: list[Any]) -> Fact:
    return Fact(np.dtype(bool), broadcast([fact.shape for fact in facts]))


def _where(node: Node, facts: list[Any]) -> Fact:
    return Fact(facts[1].dtype, broadcast([fact.shape for fact in facts]))


def _cast(node: Node, facts: list[Any]) -> Fact:
    dtype, data = np.dtype(node.attributes["to"]), facts[0].data
    fits = data is not None and all(not isinstance(n, int) or abs(n) <= LARGEST for n in data.ravel())
    return Fact(dtype, facts[0].shape, data if dtype.kind == "i" and dtype.itemsize >= 4 and fits else None)


def _shape(node: Node, facts: list[Any]) -> Fact:
    shape = facts[0].shape
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    if shape is None:
        return Fact(np.dtype(np.int64), (None,))
    data = np.array(shape, object)[start:end]
    return Fact(np.dtype(np.int64), data.shape, data)


def _gather(node: Node, facts: list[Any]) -> Fact:
    x, index = facts
    if x.shape is None or index.shape is None:
        return Fact(x.dtype)
    if index.dtype not in (None, np.int32, np.int64):
        raise TypeError(index.dtype)
    axis = _axis(node.attributes.get("axis", 0), x.shape)
    at, data = _integers(index), None
    if x.data is not None and x.data.ndim == 1 and at is not None:
        data = x.data[np.array(at, int).reshape(index.data.shape)]
        data = data if isinstance(data, np.ndarray) else np.array(data, object)
    return Fact(x.dtype, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), data)


def _axes_of(node: Node, facts: list[Any]) -> list[int] | None:
    if len(facts) > 1:
        return _integers(facts[1])
    axes = node.attributes.get("axes")
    return None if axes is None else list(axes)


def _unsqueeze(node: Node, facts: list[Any]) -> Fact:
    x, axes = facts[0], _axes_of(node, facts)
    if x.shape is None or axes is None:
        return Fact(x.dtype)
    rank = len(x.shape) + len(axes)
    places, sizes = {axis % rank for axis in axes if -rank <= axis < rank}, iter(x.shape)
    if len(places) < len(axes):
        raise ValueError(axes)
    shape = tuple(1 if i in places else next(sizes) for i in range(rank))
    return Fact(x.dtype, shape, x.data.reshape(1) if x.data is not None and shape == (1,) else None)


def _squeeze(node: Node, facts: list[Any]) -> Fact:
    x, axes = facts[0], _axes_of(node, facts)
    if x.shape is None or axes is None:
        return Fact(x.dtype)
    places = {_axis(axis, x.shape) for axis in axes}
    shape = tuple(n for i, n in enumerate(x.shape) if i not in places)
    return Fact(x.dtype, shape, x.data.reshape(()) if x.data is not None and shape == () else None)


def _concat(node: Node, facts: list[Any]) -> Fact:
    shapes = [fact.shape for fact in facts]
    if any(shape is None for shape in shapes):
        return Fact(facts[0].dtype)
    axis = _axis(node.attributes["axis"], shapes[0])
    sizes = [shape[axis] for shape in shapes]
    total = sum(sizes) if all(isinstance(n, int) for n in sizes) else None
    merged = [next((n for n in column if n is not None), None) for column in zip(*shapes)]
    merged[axis] = total
    data = None
    if all(fact.data is not None and fact.data.ndim == 1 for fact in facts) and (total or 0) <= MAX_DATA:
        data = np.concatenate([fact.data for fact in facts])
    return Fact(facts[0].dtype, tuple(merged), data)


def _slice(node: Node, facts: list[Any]) -> Fact:
    x = facts[0]
    if x.shape is None:
        return Fact(x.dtype)
    given = slice_of(node, facts)
    if given is None:
        return Fact(x.dtype, (None,) * len(x.shape))
    shape, data = list(x.shape), x.data
    for axis, start, end, step in given:
        n = shape[axis]
        if isinstance(n, int):
            shape[axis] = len(range(n)[start:end:step])
        elif not (start == 0 and end >= 2**30 and step == 1):
            shape[axis] = None
        data = data[start:end:step] if data is not None and data.ndim == 1 else None
    return Fact(x.dtype, tuple(shape), data)


def slice_of(node: Node, facts: Sequence[Any]) -> list[tuple[int, int, int, int]] | None:
    """The (axis, start, end, step) of a Slice, if they are known."""
    rank = len(facts[0].shape)
    if len(facts) > 1:
        values = [_integers(fact) if fact is not None else None for fact in facts[1:]] + [None] * 2
        if any(fact is not None and value is None for fact, value in zip(facts[1:], values)):
            return None
        starts, ends, axes, steps = values[:4]
    else:
        starts, ends, axes = (node.attributes.get(name) for name in ("starts", "ends", "axes"))
        steps = None
    if starts is None or ends is None:
        return None
    places = range(len(starts)) if axes is None else [axis % rank for axis in axes if -rank <= axis < rank]
    if len(places) != len(starts):
        return None
    return list(zip(places, starts, ends, [1] * len(starts) if steps is None else steps))


def _split(node: Node, facts: list[Any]) -> Any:
    x, count = facts[0], len(node.outputs)
    sizes = parts_of(node, facts)
    if x.shape is None or sizes is None:
        return [Fact(x.dtype, None if x.shape is None else (None,) * len(x.shape))] * count
    axis = _axis(node.attributes.get("axis", 0), x.shape)
    return [Fact(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes]


def parts_of(node: Node, facts: Sequence[Any]) -> list[int] | None:
    """The sizes of the parts of a Split, if they are known."""
    x, count = facts[0], len(node.outputs)
    given = _integers(facts[1]) if len(facts) > 1 else node.attributes.get("split")
    if given is not None:
        return list(given)
    if len(facts) > 1 and facts[1] is not None or x.shape is None:
        return None
    n = x.shape[_axis(node.attributes.get("axis", 0), x.shape)]
    return [n // count] * count if isinstance(n, int) and n % count == 0 else None


def _transpose(node: Node, facts: list[Any]) -> Fact:
    x = facts[0]
    if x.shape is None:
        return Fact(x.dtype)
    perm = node.attributes.get("perm") or range(len(x.shape))[::-1]
    return Fact(x.dtype, tuple(x.shape[i] for i in perm))


def _matmul(node: Node, facts: list[Any]) -> Fact:
    a, b = facts
    if a.shape is None or b.shape is None or len(a.shape) < 2 or len(b.shape) != 2:
        return Fact(a.dtype)
    _check_inner(a.shape[-1], b.shape[0])
    return Fact(a.dtype, (*a.shape[:-1], b.shape[1]))


def _check_inner(size: Size, other: Size) -> None:
    """Raise ValueError if sizes over which a product sums are known to differ."""
    if isinstance(size, int) and isinstance(other, int) and size != other:
        raise ValueError(f"{size} and {other} do not multiply")


def _gemm(node: Node, facts: list[Any]) -> Fact:
    a, b = facts[:2]
    (rows, inner) = (None, None) if a.shape is None else a.shape[:: -1 if node.attributes.get("transA") else 1]
    (other, columns) = (None, None) if b.shape is None else b.shape[:: -1 if node.attributes.get("transB") else 1]
    _check_inner(inner, other)
    return Fact(a.dtype, (rows, columns))


def _filled(node: Node, facts: list[Any]) -> Fact:
    value = node.attributes.get("value")
    dtype = np.dtype(np.float32) if value is None else value.dtype
    return Fact(dtype, None if facts[0].data is None else tuple(facts[0].data.tolist()))


def _expand(node: Node, facts: list[Any]) -> Fact:
    wanted = None if facts[1].data is None else tuple(facts[1].data.tolist())
    return Fact(facts[0].dtype, broadcast([facts[0].shape, wanted]))


def _reshape(node: Node, facts: list[Any]) -> Fact:
    x, wanted = facts[0], node.attributes.get("shape") if len(facts) < 2 else facts[1].data
    if wanted is None or node.attributes.get("allowzero"):
        return Fact(x.dtype)
    own = x.shape or ()
    shape = [(own[i] if i < len(own) else None) if n == 0 else n for i, n in enumerate(np.ravel(wanted).tolist())]
    if -1 in shape:
        place, known = shape.index(-1), None
        others: list[Any] = [n for i, n in enumerate(shape) if i != place]
        if x.shape is not None and all(isinstance(n, int) for n in (*x.shape, *others)) and math.prod(others):
            known, rest = divmod(math.prod(x.shape), math.prod(others))
            if rest:
                raise ValueError(f"{x.shape} as {shape}")
        shape[place] = known
    return Fact(x.dtype, tuple(shape))


def _recurrent(node: Node, facts: list[Any]) -> Any:
    x, r = facts[0], facts[2]
    if x.shape is None or r.shape is None or node.attributes.get("layout"):
        return UNKNOWN
    steps, rows, _ = x.shape
    state = Fact(x.dtype, (r.shape[0], rows, r.shape[2]))
    return [Fact(x.dtype, (steps, r.shape[0], rows, r.shape[2])), state, state]


def _pad(node: Node, facts: list[Any]) -> Fact:
    x = facts[0]
    pads = node.attributes.get("pads") if len(facts) < 2 else _integers(facts[1])
    if x.shape is None or pads is None or len(facts) > 3 and facts[3] is not None:
        return Fact(x.dtype, x.shape and (None,) * len(x.shape))
    both = [a + b for a, b in zip(pads[: len(x.shape)], pads[len(x.shape) :])]
    return Fact(x.dtype, tuple(n + m if isinstance(n, int) else n if m == 0 else None for n, m in zip(x.shape, both)))


def _reduce(node: Node, facts: list[Any]) -> Fact:
    x, keepdims = facts[0], node.attributes.get("keepdims", 1)
    given = len(facts) > 1 and facts[1] is not None
    axes = _integers(facts[1]) if given else node.attributes.get("axes")
    if x.shape is None or given and axes is None:
        return Fact(x.dtype)
    if not axes:
        if node.attributes.get("noop_with_empty_axes"):
            return Fact(x.dtype, x.shape)
        axes = range(len(x.shape))
    places = {_axis(axis, x.shape) for axis in axes}
    if keepdims:
        return Fact(x.dtype, tuple(1 if i in places else n for i, n in enumerate(x.shape)))
    return Fact(x.dtype, tuple(n for i, n in enumerate(x.shape) if i not in places))


def _range(node: Node, facts: list[Any]) -> Fact:
    start, limit, step = (_integers(fact) for fact in facts)
    if not start or not limit or not step or not step[0]:
        return Fact(facts[0].dtype, (None,))
    values = range(start[0], limit[0], step[0])
    return Fact(facts[0].dtype, (len(values),), np.array(values, object) if len(values) <= MAX_DATA else None)


def _power(node: Node, facts: list[Any]) -> Fact:
    return Fact(facts[0].dtype, broadcast([fact.shape for fact in facts]))


def _conv(node: Node, facts: list[Any]) -> Fact:
    """The result keeps the samples; its other sizes follow where those of the input are known."""
    x, w = facts[:2]
    if x.shape is None or w.shape is None or None in w.shape or not all(isinstance(n, int) for n in x.shape[1:]):
        return Fact(x.dtype, x.shape and (None,) * len(x.shape))
    fixed = [fact and fact._replace(shape=(1, *fact.shape[1:]) if fact is x else fact.shape) for fact in facts]
    (found,) = _by_its_shapes(node, fixed)
    return Fact(x.dtype, (x.shape[0], *found.shape[1:]))


UNARY = ("Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "LeakyRelu", "Log", "Neg", "Reciprocal",
         "Relu", "Round", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Sqrt", "Tanh", "LayerNormalization",
         "Dropout")  # fmt: skip
LOGICAL = ("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
RULES: dict[str, Callable[[Node, list[Any]], Any]] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _binary),
    **dict.fromkeys(LOGICAL, _logical),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), _reduce),
    **dict.fromkeys(("PRelu", "Scatter", "ScatterElements", "ScatterND", "Trilu", "BatchNormalization"), _same),
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "Not": lambda node, facts: Fact(np.dtype(bool), facts[0].shape),
    "Pad": _pad,
    "Pow": _power,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}


def with_known_sizes(graph: Graph, facts: Mapping[str, Fact]) -> Graph:
    """Return a graph in which integer vectors that declared shapes decide are constants."""
    constants, nodes = dict(graph.constants), []
    for node in graph.nodes:
        values = [_known(facts.get(name, UNKNOWN)) for name in node.outputs]
        if node.graphs or any(value is None for value in values):
            nodes.append(node)
        else:
            constants.update(zip(node.outputs, values))
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=constants)


def _known(fact: Fact) -> np.ndarray | None:
    """The array of a value whose elements are all known."""
    values = _integers(fact)
    if values is None or fact.data is None or fact.dtype is None or fact.dtype.kind != "i":
        return None
    array = np.array(values, fact.dtype).reshape(fact.data.shape)
    array.flags.writeable = False
    return array
