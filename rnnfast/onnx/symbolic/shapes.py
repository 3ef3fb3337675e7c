"""The types and shapes of the results of nodes whose inputs have symbolic shapes, and vectors computed from sizes.

A rule takes the node and its inputs and returns views like the results. It checks what the operator checks: a
comparison of sizes that the operator needs becomes a condition of the plan. Nodes without a rule have no symbolic plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnfast.onnx.graph import Node
from rnnfast.onnx.ops import normalization
from rnnfast.onnx.ops.arguments import broadcast_shapes, check_axes, check_axis, check_indices
from rnnfast.onnx.ops.numeric import check_broadcasts_to, is_floating
from rnnfast.onnx.ops.types import check_size
from rnnfast.onnx.result_shapes import TYPES, type_of
from rnnfast.onnx.symbolic.integers import NotSymbolic, is_symbolic
from rnnfast.onnx.symbolic.views import View, empty, made, repeated

LARGEST = 2**62  # of what is computed from sizes, so that an int64 holds it


class Vector:
    """A known scalar or vector of integers, some of which are symbolic. It has what operators read of an array."""

    def __init__(self, array: np.ndarray, dtype: Any) -> None:
        self.array, self.dtype = array, np.dtype(dtype)
        self.shape, self.ndim, self.size = array.shape, array.ndim, array.size

    def reshape(self, *shape: Any) -> Vector:
        return Vector(self.array.reshape(*shape), self.dtype)

    def ravel(self) -> Vector:
        return self.reshape(-1)

    def tolist(self) -> Any:
        return self.array.tolist()


def known(array: np.ndarray, dtype: Any) -> Any:
    """A Vector of these elements, or an array if none of them is symbolic."""
    array = np.asarray(array, object)
    if any(is_symbolic(n) for n in array.flat):
        return Vector(array, dtype)
    return np.array(array.tolist(), dtype).reshape(array.shape)


def known_results_of(node: Node, inputs: Sequence[Any], is_known: bool) -> list[Any] | None:
    """Return the results of a node that depend on constants and sizes alone; None if it has none.

    inputs: arrays, Vectors, views or None. is_known: whether all of them depend on constants and sizes alone.
    """
    rule = OF_SIZES.get(node.op_type) if not node.domain else None
    if rule is not None and (node.op_type in OF_SHAPES or is_known):
        result = rule(node, *inputs)
        if result is not None:
            return [result]
    one = inputs[0].repeated_element() if is_known and inputs and type(inputs[0]) is View else None
    if one is None or node.op_type not in MOVES or node.domain:
        return None
    return [repeated(one, view.shape) for view in results_of(node, inputs)]


def results_of(node: Node, inputs: Sequence[Any]) -> list[View]:
    """Return views like the results of a node. inputs: arrays, views or None, and Vectors for `TAKES_SIZES`."""
    if node.domain or node.function is None or node.graphs:
        raise NotSymbolic(node.op_type)
    rule = RULES.get(node.op_type)
    if rule is not None:
        results = rule(node, *inputs)
        return results if isinstance(results, list) else [results]
    if not hasattr(node.function, "shapes"):
        raise NotSymbolic(node.op_type)
    if node.op_type == "Mean" and not is_floating(inputs[0].dtype):
        raise NotSymbolic("a mean of integers, which is of another type")
    shapes = node.function.shapes(*inputs, **node.attributes)  # type: ignore[attr-defined]
    return [empty(shape, type_of(node, inputs)) for shape in shapes]


# ------------------------------------------------------------------------------------------------ of sizes
def _are_elements(*inputs: Any) -> bool:
    """Return whether all inputs are Vectors or arrays, not views."""
    return not any(type(x) is View for x in inputs)


def _elements(x: Any) -> np.ndarray:
    """The elements of a Vector or an array of integers, which is a scalar or a vector."""
    if type(x) is Vector:
        return x.array
    if not isinstance(x, np.ndarray) or x.dtype.kind != "i" or x.dtype.itemsize < 4 or x.ndim > 1 or x.size > 64:
        raise NotSymbolic("sizes together with other values")
    return x.astype(object)


def _shape(node: Node, x: Any) -> Any:
    sizes = x.shape[node.attributes.get("start", 0) : node.attributes.get("end")]
    return known(np.array(sizes, object), np.int64)


def _size(node: Node, x: Any) -> Any:
    return known(np.array(math.prod(x.shape), object), np.int64)


def _moved(node: Node, *inputs: Any) -> Any:
    """The elements that an operator moves, of its first input, or of all inputs for Concat."""
    if type(inputs[0]) is not Vector and node.op_type != "Concat":
        return None
    count = len(inputs) if node.op_type == "Concat" else 1
    dtype = next(x.dtype for x in inputs if type(x) is Vector)
    if any(x.dtype != dtype for x in inputs[:count]):
        raise NotSymbolic("types that differ")
    assert node.function is not None
    return known(node.function(*map(_elements, inputs[:count]), *inputs[count:], **node.attributes), dtype)


def _check_shapes(node: Node, *inputs: Any) -> None:
    """Raise what the operator raises for inputs of these shapes: those before opset 7 broadcast less than NumPy."""
    node.function.shapes(*inputs, **node.attributes)  # type: ignore[union-attr]
    if "axis" in node.attributes:
        raise NotSymbolic("inputs that meet at an axis")


def _arithmetic(node: Node, a: Any, b: Any) -> Any:
    if not _are_elements(a, b):
        return None
    _check_shapes(node, a, b)
    dtype, x, y = a.dtype, _elements(a), _elements(b)
    if b.dtype != dtype:
        raise NotSymbolic("types that differ")
    return known(_checked(np.array(np.frompyfunc(COMPUTE[node.op_type], 2, 1)(x, y), object), dtype), dtype)


def _checked(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The values, if a type can hold them: integers that are too large wrap around, but sizes do not."""
    largest = LARGEST if dtype.itemsize == 8 else 2**31
    if not all(-largest < n < largest for n in values.flat):
        raise NotSymbolic("a size that is too large")
    return values


def _quotient(a: Any, b: Any) -> Any:
    if a < 0 or b <= 0:
        raise NotSymbolic("a quotient of negative sizes")
    return a // b


def _remainder(a: Any, b: Any) -> Any:
    return a - _quotient(a, b) * b


COMPUTE: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Div": _quotient,
    "Max": lambda a, b: b if a < b else a,
    "Min": lambda a, b: b if b < a else a,
    "Mod": _remainder,
    "Mul": lambda a, b: a * b,
    "Sub": lambda a, b: a - b,
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": lambda a, b: bool(a == b),
    "Greater": lambda a, b: bool(a > b),
    "GreaterOrEqual": lambda a, b: bool(a >= b),
    "Less": lambda a, b: bool(a < b),
    "LessOrEqual": lambda a, b: bool(a <= b),
}


def _comparison(node: Node, a: Any, b: Any) -> Any:
    if not _are_elements(a, b):
        return None
    _check_shapes(node, a, b)
    compared = np.frompyfunc(COMPARE[node.op_type], 2, 1)(_elements(a), _elements(b))
    return np.asarray(compared, bool)


def _cast(node: Node, x: Any) -> Any:
    dtype = np.dtype(node.attributes["to"])
    if type(x) is not Vector or dtype.kind != "i" or dtype.itemsize < 4:
        return None
    return known(_checked(x.array, dtype), dtype)


def _chosen(node: Node, condition: Any, x: Any, y: Any) -> Any:
    if not isinstance(condition, np.ndarray) or Vector not in (type(x), type(y)) or not _are_elements(x, y):
        return None
    _check_shapes(node, condition, x, y)
    return known(np.array(np.where(condition, _elements(x), _elements(y)), object), x.dtype)


def _product(node: Node, x: Any, axes: Any = None) -> Any:
    if type(x) is not Vector or x.ndim != 1 or not _axes_of(node, x, axes):
        return None
    total = math.prod(x.tolist()) if node.op_type == "ReduceProd" else sum(x.tolist())
    values = np.array(total, object)
    return known(_checked(values.reshape(1 if node.attributes.get("keepdims", 1) else ()), x.dtype), x.dtype)


def _filled(node: Node, shape: Any) -> Any:
    if type(shape) is not Vector or shape.ndim != 1:
        return None
    sizes = shape.tolist()
    if any(n < 0 for n in sizes):
        raise NotSymbolic("a negative size")
    value = node.attributes.get("value")
    array = np.zeros((), np.float32) if value is None else value.reshape(())
    check_size(sizes, array.dtype)
    return repeated(array, sizes)


def _expanded(node: Node, x: Any, shape: Any) -> Any:
    """The result of expanding a constant."""
    if not isinstance(x, np.ndarray):
        return None
    sizes = shape.tolist()
    if any(n < 0 for n in sizes):
        raise NotSymbolic("a negative size")
    result = broadcast_shapes(x.shape, sizes)
    check_size(result, x.dtype)
    return repeated(x, result)


def _counted(node: Node, start: Any, limit: Any, delta: Any) -> Any:
    """The constant of a Range."""
    if not _are_elements(start, limit, delta) or any(x.size != 1 for x in (start, limit, delta)):
        return None
    first, end, step = (_elements(x).reshape(-1)[0] for x in (start, limit, delta))
    if not isinstance(step, int) or step < 1:
        raise NotSymbolic("a step that is no number above 0")
    count = (end - first + step - 1) // step if end > first else 0
    check_size((count,), start.dtype)
    return made((count,), start.dtype, _range_of, first, end, step, start.dtype.char)


def _range_of(first: int, end: int, step: int, dtype: str) -> np.ndarray:
    return np.arange(first, end, step).astype(dtype)


def as_view(x: Vector) -> View:
    """A Vector as the view of a constant."""
    return made(x.shape, x.dtype, _array_of, x.ravel().tolist(), x.shape, x.dtype.char)


def as_made(x: Any) -> Any:
    """A value that depends on constants and sizes alone as an argument of what makes another one."""
    if type(x) is Vector:
        return as_view(x)
    if type(x) is View and x.memory.make is None:
        return made(x.shape, x.dtype, np.broadcast_to, x.memory.array, x.shape)
    return x


def _array_of(elements: Sequence[int], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.array(elements, dtype).reshape(shape)


OF_SHAPES = {"Shape", "Size"}
OF_SIZES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("Concat", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"), _moved),
    **dict.fromkeys(COMPUTE, _arithmetic),
    **dict.fromkeys(COMPARE, _comparison),
    **dict.fromkeys(("ReduceProd", "ReduceSum"), _product),
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Range": _counted,
    "Shape": _shape,
    "Size": _size,
    "Where": _chosen,
}


# ------------------------------------------------------------------------------------------------ of tensors
def _like(node: Node, x: Any, *inputs: Any) -> View:
    return empty(x.shape, TYPES.get(node.op_type, x.dtype))


def _running(node: Node, x: Any, axis: Any) -> View:
    if not isinstance(axis, np.ndarray) or axis.size != 1:
        raise NotSymbolic("an axis that is not known")
    check_axis(axis.item(), len(x.shape))
    return _like(node, x)


def _along_axis(node: Node, x: Any) -> View:
    check_axis(node.attributes.get("axis", -1), len(x.shape))
    return _like(node, x)


def _triangle(node: Node, x: Any, k: Any = None) -> View:
    if len(x.shape) < 2 or k is not None and k.size != 1:
        raise NotSymbolic("no matrices")
    return _like(node, x)


def _by_operator(node: Node, x: Any, *inputs: Any) -> list[View]:
    """The results of an operator that moves or reshapes its first input, by its function on a view."""
    assert node.function is not None
    results = node.function(empty(x.shape, x.dtype), *inputs, **node.attributes)
    return [empty(y.shape, y.dtype) for y in (results if isinstance(results, tuple) else (results,))]


def _joined(node: Node, *inputs: Any) -> View:
    assert node.function is not None
    return node.function(*[empty(x.shape, x.dtype) for x in inputs], **node.attributes)  # type: ignore[no-any-return]


def _gathered(node: Node, x: Any, indices: Any) -> View:
    axis = check_axis(node.attributes.get("axis", 0), len(x.shape))
    if isinstance(indices, np.ndarray):
        low, high = (int(indices.min()), int(indices.max())) if indices.size else (0, -1)
        n = x.shape[axis]
        if not -n <= low or not high < n:
            raise NotSymbolic("an index that is out of range")
    check_indices(np.zeros(0, indices.dtype), 0)  # their type
    return empty((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _converted(node: Node, x: Any, *like: Any) -> View:
    return empty(x.shape, type_of(node, (x, *like)))


def _clipped(node: Node, x: Any, *bounds: Any) -> View:
    if any(bound is not None and bound.size != 1 for bound in bounds):
        raise NotSymbolic("bounds of several elements")
    return _like(node, x)


def _prelu(node: Node, x: Any, slope: Any) -> View:
    check_broadcasts_to(slope, x.shape, "slope")
    return _like(node, x)


def _padded(node: Node, x: Any, pads: Any = None, constant: Any = None, axes: Any = None) -> View:
    rank = len(x.shape)
    given = node.attributes.get("pads") if pads is None else pads.tolist()
    places = check_axes(None if axes is None else axes.tolist(), rank)
    if given is None or len(given) != 2 * len(places) or any(n < 0 for n in given):
        raise NotSymbolic("pads")
    if constant is not None and (constant.size != 1 or constant.dtype != x.dtype):
        raise NotSymbolic("a constant of several elements or of another type")
    shape = list(x.shape)
    for i, axis in enumerate(places):
        before, after = given[i], given[i + len(places)]
        if node.attributes.get("mode", "constant") != "constant" and not max(before, after) < shape[axis]:
            raise NotSymbolic("pads that are longer than an axis")
        shape[axis] = shape[axis] + before + after
    check_size(shape, x.dtype)
    return empty(shape, x.dtype)


def _axes_of(node: Node, x: Any, axes: Any) -> list[int]:
    """The axes that a reduction adds up."""
    rank = len(x.shape)
    given = node.attributes.get("axes") if axes is None else axes.ravel().tolist()
    if not given:
        given = () if node.attributes.get("noop_with_empty_axes") else range(rank)
    return check_axes(given, rank)  # type: ignore[no-any-return]


def _reduced(node: Node, x: Any, axes: Any = None) -> View:
    places = _axes_of(node, x, axes)
    if node.attributes.get("keepdims", 1):
        return empty([1 if i in places else n for i, n in enumerate(x.shape)], x.dtype)
    return empty([n for i, n in enumerate(x.shape) if i not in places], x.dtype)


def _extreme(node: Node, x: Any) -> View:
    axis = check_axis(node.attributes.get("axis", 0), len(x.shape))
    if x.shape[axis] == 0:
        raise NotSymbolic("an empty axis")
    kept = [1] if node.attributes.get("keepdims", 1) else []
    return empty([*x.shape[:axis], *kept, *x.shape[axis + 1 :]], np.int64)


def _ordered(node: Node, x: Any, k: Any = None) -> list[View]:
    axis = check_axis(node.attributes.get("axis", -1), len(x.shape))
    count = node.attributes["k"] if k is None else k.reshape(-1).tolist()[0]
    if not 0 <= count <= x.shape[axis]:
        raise NotSymbolic("more elements than there are")
    shape = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
    return [empty(shape, x.dtype), empty(shape, np.int64)]


def _reversed(node: Node, x: Any, lengths: Any) -> View:
    batch, time = node.attributes.get("batch_axis", 1), node.attributes.get("time_axis", 0)
    if len(x.shape) < 2 or batch == time or lengths.shape != (x.shape[batch],):
        raise NotSymbolic("lengths that do not fit")
    if isinstance(lengths, np.ndarray) and any(not 0 <= n <= x.shape[time] for n in lengths.tolist()):
        raise NotSymbolic("lengths that do not fit")
    return _like(node, x)


def _global(node: Node, x: Any) -> View:
    if len(x.shape) < 2 or math.prod(x.shape[2:]) == 0:
        raise NotSymbolic("channels without positions")
    return empty([*x.shape[:2], *[1] * (len(x.shape) - 2)], x.dtype)


def _layer_normalized(node: Node, x: Any, *parameters: Any) -> list[View]:
    axis = check_axis(node.attributes.get("axis", -1), len(x.shape))
    for name, parameter in zip(("scale", "bias"), parameters):
        if parameter is not None:
            check_broadcasts_to(parameter, x.shape, name)
    outer = (*x.shape[:axis], *[1] * (len(x.shape) - axis))
    moments = 0 if node.op_type == "RMSNormalization" else 2
    return [empty(x.shape, x.dtype), *[empty(outer, np.float32)] * moments]


def _channels_normalized(node: Node, x: Any, *parameters: Any) -> View:
    settings = {"is_test": 0, "spatial": 1, "training_mode": 0, "num_groups": 1} | node.attributes
    trains = (
        settings["training_mode"] or node.function is normalization.batch_normalization_1 and not settings["is_test"]
    )
    if trains or not settings["spatial"] or len(node.outputs) > 1:
        raise NotSymbolic("statistics of a batch, or of each position")
    groups = settings["num_groups"]
    if len(x.shape) < 2 or groups < 1 or x.shape[1] % groups:
        raise NotSymbolic("groups that do not fit")
    of_groups = node.function is normalization.group_normalization_18
    if any(p.shape != (groups if of_groups else x.shape[1],) for p in parameters):
        raise NotSymbolic("parameters that are not one per channel or group")
    return _like(node, x)


def _recurrent(node: Node, x: Any, *inputs: Any) -> list[View]:
    run: Any = node.run
    given = [*inputs, *[None] * (7 - len(inputs))]
    lengths = given[3]  # their values are checked when they are known
    given[3] = None
    if lengths is not None and (lengths.dtype != np.int32 or type(lengths) is Vector):
        raise NotSymbolic("lengths")
    given = [None if i + 1 in run.dropped else value for i, value in enumerate(given)]
    if run.cells is None:
        run.layer.check_weights(given[0], given[1], given[2], given[6])
    steps, rows = run.layer.check_call(x, *given)
    if lengths is not None and lengths.shape != (rows,):
        raise NotSymbolic("lengths")
    if isinstance(lengths, np.ndarray) and lengths.size and not (lengths.min() >= 0 and int(lengths.max()) <= steps):
        raise NotSymbolic("lengths")
    D, H = run.layer.directions, given[1].shape[2]
    shape, state = (steps, D, rows, H), (D, rows, H)
    if run.layer.layout:
        shape, state = (rows, steps, D, H), (rows, D, H)
    return [empty(shape, x.dtype), *[empty(state, x.dtype)] * (2 if node.op_type == "LSTM" else 1)]


# Operators whose later inputs may be Vectors; for others they are views of constants.
TAKES_SIZES = {"Expand", "Reshape", "Slice"}
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip
MOVES = ("DepthToSpace", "Expand", "Flatten", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
         "Transpose", "Unsqueeze")  # fmt: skip
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("IsInf", "IsNaN", "Not"), _like),
    **dict.fromkeys(("Cast", "CastLike"), _converted),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(MOVES, _by_operator),
    **dict.fromkeys(("ArgMax", "ArgMin"), _extreme),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_normalized),
    **dict.fromkeys(("BatchNormalization", "GroupNormalization", "InstanceNormalization"), _channels_normalized),
    "Clip": _clipped,
    "Concat": _joined,
    "CumSum": _running,
    "Gather": _gathered,
    "LpNormalization": _along_axis,
    "PRelu": _prelu,
    "Pad": _padded,
    "ReverseSequence": _reversed,
    "TopK": _ordered,
    "Trilu": _triangle,
}
