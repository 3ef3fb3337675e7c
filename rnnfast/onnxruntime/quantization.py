"""onnxruntime.quantization: weights of products and recurrent nodes in 8 bits.

onnxruntime's own `quantize_dynamic` writes operators that round the activations too. Here a file keeps its nodes: the
weights are 8-bit integers with one scale for each row, and a DequantizeLinear stands before the node that reads them.
So only the weights are rounded, GRU and RNN can be quantised as well, and every engine reads the file.
"""

from __future__ import annotations

import abc
import enum
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from rnnfast.atomic_write import write_whole
from rnnfast.errors import InputError, InputTypeError, UnsupportedError

RECURRENT = ("GRU", "LSTM", "RNN")
QUANTIZED = ("Gemm", "MatMul", *RECURRENT)
# From this opset on DequantizeLinear has a scale for each row.
ROWS_SINCE = 13
# From this opset on Mul and Sub broadcast as they do today.
BROADCASTING_SINCE = 7
# Entries of extra_options that change nothing here: activations are not quantised, weights are symmetric, and weights
# that are computed stay as they are.
WITHOUT_EFFECT = {"ActivationSymmetric", "MatMulConstBOnly", "WeightSymmetric"}


class QuantType(enum.Enum):
    """onnxruntime's types of quantised values. Weights can be QInt8 or QUInt8, which hold the same."""

    QInt8 = 0
    QUInt8 = 1
    QFLOAT8E4M3FN = 2
    QInt16 = 3
    QUInt16 = 4
    QInt4 = 5
    QUInt4 = 6

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_string(t: str) -> QuantType:
        """Return the type of a name.

        Args:
            t: The name, such as "QInt8".

        Raises:
            InputError: There is none.
        """
        if t not in QuantType.__members__:
            raise InputError(f"there is no QuantType {t!r}, only {', '.join(QuantType.__members__)}")
        return QuantType[t]


class QuantFormat(enum.Enum):
    """onnxruntime's forms of files that `quantize_static` writes, which is refused."""

    QOperator = 0
    QDQ = 1


class CalibrationMethod(enum.Enum):
    """onnxruntime's ways to choose the ranges of activations, which are not quantised here."""

    MinMax = 0
    Entropy = 1
    Percentile = 2
    Distribution = 3


class CalibrationDataReader(abc.ABC):
    """A class for programs to derive theirs from; `quantize_static`, which would read them, is refused."""

    @abc.abstractmethod
    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs by name, or None."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.get_next, None)


def refused(name: str) -> Any:
    """Return a function that refuses what onnxruntime.quantization has under this name."""

    def refuse(*args: Any, **options: Any) -> NoReturn:
        raise UnsupportedError(f"onnxruntime.quantization.{name} is not offered, only quantize_dynamic")

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"""Refuse {name}.

    Raises:
        UnsupportedError: Always.
    """
    return refuse


# What else programs import from there.
REFUSED = (
    "DynamicQuantConfig",
    "StaticQuantConfig",
    "create_calibrator",
    "get_qdq_config",
    "quant_pre_process",
    "quantize",
    "quantize_static",
)


def quantize_dynamic(
    model_input: Any,
    model_output: str | os.PathLike[str],
    op_types_to_quantize: Iterable[str] | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    weight_type: QuantType = QuantType.QInt8,
    nodes_to_quantize: Iterable[str] | None = None,
    nodes_to_exclude: Iterable[str] | None = None,
    use_external_data_format: bool = False,
    extra_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a model whose weights of products and recurrent nodes are 8-bit integers, a quarter of their size.

    Only float32 weights that the file has as constants are quantised: the second input of MatMul and Gemm, W and R of
    LSTM, GRU and RNN. Each row, which is what is multiplied for one output, has a scale, so that its largest weight is
    127.

    Args:
        model_input: The path of an ONNX file, or an onnx.ModelProto.
        model_output: The path to write to.
        op_types_to_quantize: Which of Gemm, GRU, LSTM, MatMul and RNN; None or an empty one for all of them.
        per_channel: Accepted, with no effect: every row has its scale.
        reduce_range: Accepted, with no effect: no sum can saturate.
        weight_type: QInt8 or QUInt8.
        nodes_to_quantize: Names of the only nodes that are quantised; None or an empty one for all.
        nodes_to_exclude: Names of nodes that are not.
        use_external_data_format: Whether the weights go to a file of their own, `model_output` with `.data`.
        extra_options: `EnableSubgraph` says whether nodes in bodies of If, Loop and Scan are quantised too.
            `ActivationSymmetric`, `MatMulConstBOnly` and `WeightSymmetric` have no effect.

    Raises:
        InputError: The file cannot be read or written, or has no node of a given name.
        InputTypeError: An argument has a wrong type.
        UnsupportedError: Another operator, type of weights or option is asked for.
    """
    import onnx

    kinds = _names("op_types_to_quantize", op_types_to_quantize) or set(QUANTIZED)
    for kind in sorted(kinds - set(QUANTIZED)):
        raise UnsupportedError(f"{kind} is not quantised, only {', '.join(QUANTIZED)}")
    if weight_type not in (QuantType.QInt8, QuantType.QUInt8):
        raise UnsupportedError(f"weights of type {weight_type} are not offered, only QInt8 and QUInt8")
    options = dict(extra_options or {})
    subgraphs = bool(options.pop("EnableSubgraph", False))
    for name in sorted(options.keys() - WITHOUT_EFFECT):
        raise UnsupportedError(f"the extra option {name!r} is not offered")
    only, never = _names("nodes_to_quantize", nodes_to_quantize), _names("nodes_to_exclude", nodes_to_exclude)
    model = onnx.ModelProto()
    if isinstance(model_input, onnx.ModelProto):
        model.CopyFrom(model_input)
    else:
        try:
            model = onnx.load_model(model_input)
        except Exception as e:
            raise InputError(f"{model_input}: {type(e).__name__}: {e}") from e
    graphs = [model.graph, *_bodies(model.graph)]
    unknown = sorted((only | never) - {node.name for graph in graphs for node in graph.node})
    if unknown:
        raise InputError(f"the model has no node {unknown[0]!r}")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset < BROADCASTING_SINCE:
        raise UnsupportedError(f"the model has opset {opset}, which is too old: {BROADCASTING_SINCE} is the least")

    def chosen(node: Any) -> bool:
        named = node.name not in never and (not only or node.name in only)
        return node.op_type in kinds and node.domain in ("", "ai.onnx") and named

    taken = {name for graph in graphs for node in graph.node for name in (*node.input, *node.output)}
    weights = _Weights(weight_type, opset, taken | {value.name for graph in graphs for value in graph.initializer})
    weights.visit(model.graph, {}, chosen, subgraphs)
    weights.insert(model)
    if use_external_data_format:
        location = os.path.basename(os.fspath(model_output)) + ".data"
        onnx.save_model(model, model_output, save_as_external_data=True, location=location)
    else:
        write_whole(model_output, model.SerializeToString())


class _Weights:
    """The weights of a model that have been quantised."""

    def __init__(self, weight_type: QuantType, opset: int, taken: set[str]) -> None:
        self.offset = 128 if weight_type is QuantType.QUInt8 else 0
        self.opset, self.taken = opset, taken
        self.made: dict[tuple[int, str, str], str] = {}  # (id of the graph, name, operand's layout) -> the new name
        self.parts: list[tuple[Any, str, list[Any], list[Any]]] = []  # graph, old name, new nodes, new initializers

    def visit(self, graph: Any, outer: dict[str, Any], chosen: Any, subgraphs: bool) -> None:
        """Let the chosen nodes of a graph, and of the bodies in it, read quantised weights.

        `outer` has for each visible constant of the graphs around this one the graph and the array.
        """
        from onnx import numpy_helper

        own = {tensor.name: (graph, tensor) for tensor in graph.initializer}
        own |= {
            node.output[0]: (graph, attribute.t)
            for node in graph.node
            for attribute in node.attribute
            if node.op_type == "Constant" and attribute.name == "value"
        }
        computed = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        scope = {name: pair for name, pair in outer.items() if name not in computed} | own
        for node in list(graph.node):
            for index in (1, 2) if node.op_type in RECURRENT else (1,):
                if not chosen(node) or index >= len(node.input) or node.input[index] not in scope:
                    continue
                home, tensor = scope[node.input[index]]
                array = numpy_helper.to_array(tensor)
                if array.dtype == np.float32 and array.ndim > 1 and array.size:
                    node.input[index] = self._quantized(home, node.input[index], array, _layout(node))
            for body in _own_bodies(node) if subgraphs else ():
                self.visit(body, scope, chosen, subgraphs)

    def _quantized(self, graph: Any, name: str, array: np.ndarray, layout: str) -> str:
        """The name of the dequantised weight, which is made once for each graph that has such a constant."""
        key = id(graph), name, layout
        if key not in self.made:
            self.made[key] = self._make(graph, name, array, layout)
        return self.made[key]

    def _make(self, graph: Any, name: str, array: np.ndarray, layout: str) -> str:
        from onnx import TensorProto, helper, numpy_helper

        rows = array.reshape(-1, array.shape[-1]) if layout == "recurrent" else array
        axis = 0 if layout in ("recurrent", "rows") else array.ndim - 1
        if not np.all(np.isfinite(rows)):
            raise InputError(f"weights {name!r} are not finite")
        largest = np.max(np.abs(rows), axis=tuple(i for i in range(rows.ndim) if i != axis), keepdims=True)
        scale = largest / np.float32(127)
        scale[scale == 0] = 1
        integers = np.clip(np.rint(rows / scale), -127, 127) + self.offset
        zeros = np.full(scale.size, self.offset)
        kind = np.uint8 if self.offset else np.int8
        q, s, z, y = (self._name(f"{name}_{part}") for part in ("quantized", "scale", "zero_point", "dequantized"))
        flat = y if rows.shape == array.shape else self._name(f"{name}_rows")
        initializers = [numpy_helper.from_array(integers.astype(kind), q)]
        if self.opset >= ROWS_SINCE:
            initializers += [numpy_helper.from_array(scale.ravel(), s), numpy_helper.from_array(zeros.astype(kind), z)]
            nodes = [helper.make_node("DequantizeLinear", [q, s, z], [flat], axis=axis)]
        else:
            casted, centred = self._name(f"{name}_float"), self._name(f"{name}_centred")
            offset = np.array(self.offset, np.float32)
            initializers += [numpy_helper.from_array(scale, s), numpy_helper.from_array(offset, z)]
            nodes = [
                helper.make_node("Cast", [q], [casted], to=TensorProto.FLOAT),
                helper.make_node("Sub", [casted, z], [centred]),
                helper.make_node("Mul", [centred, s], [flat]),
            ]
        if flat != y:
            shape = self._name(f"{name}_shape")
            initializers.append(numpy_helper.from_array(np.array(array.shape), shape))
            nodes.append(helper.make_node("Reshape", [flat, shape], [y]))
        self.parts.append((graph, name, nodes, initializers))
        return y

    def _name(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def insert(self, model: Any) -> None:
        """Add the nodes, and remove the constants that nothing reads any more."""
        for graph, _, nodes, initializers in self.parts:
            graph.initializer.extend(initializers)
            for node in reversed(nodes):
                graph.node.insert(0, node)
        graphs = [model.graph, *_bodies(model.graph)]
        used = {name for graph in graphs for node in graph.node for name in node.input}
        used |= {value.name for graph in graphs for value in graph.output}
        for graph, name, _, _ in self.parts:
            if name not in used:
                for field in (graph.initializer, graph.input, graph.value_info):
                    for value in [value for value in field if value.name == name]:
                        field.remove(value)
                for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] == name]:
                    graph.node.remove(node)


def _layout(node: Any) -> str:
    """Say what a row of a node's weights is: "recurrent", "rows" of the matrix, or "columns"."""
    if node.op_type in RECURRENT:
        return "recurrent"
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return "rows" if transposed else "columns"


def _own_bodies(node: Any) -> list[Any]:
    """The graphs that are attributes of a node."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def _bodies(graph: Any) -> Iterator[Any]:
    """Yield all graphs inside of a graph."""
    for node in graph.node:
        for body in _own_bodies(node):
            yield body
            yield from _bodies(body)


def _names(what: str, names: Iterable[str] | None) -> set[str]:
    """A caller's names as a set."""
    found = [] if names is None else [names] if isinstance(names, (str, bytes)) else list(names)
    if isinstance(names, (str, bytes)) or not all(isinstance(name, str) for name in found):
        raise InputTypeError(f"{what} is {names!r}, expected a sequence of str")
    return set(found)
