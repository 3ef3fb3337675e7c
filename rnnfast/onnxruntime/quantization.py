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
from rnnfast.onnx.weights import RECURRENT_OPERATORS
from rnnfast.quantization.weight_types import BROADCASTING_SINCE, UINT8, WEIGHT_TYPES, WeightType
from rnnfast.quantization.weights import Reader, Rewriter, find_readers, graphs_of, opset_of, remove_unread

QUANTIZED = ("Gemm", "MatMul", *RECURRENT_OPERATORS)
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
    graphs = list(graphs_of(model.graph))
    unknown = sorted((only | never) - {node.name for graph in graphs for node in graph.node})
    if unknown:
        raise InputError(f"the model has no node {unknown[0]!r}")
    opset = opset_of(model)
    if opset < BROADCASTING_SINCE:
        raise UnsupportedError(f"the model has opset {opset}, which is too old: {BROADCASTING_SINCE} is the least")

    def chosen(node: Any) -> bool:
        named = node.name not in never and (not only or node.name in only)
        return node.op_type in kinds and node.domain in ("", "ai.onnx") and named

    weights = UINT8 if weight_type is QuantType.QUInt8 else WEIGHT_TYPES["int8"]
    own = list(model.graph.node)
    readers = [
        reader
        for reader in find_readers(model, overridable=True)
        if chosen(reader.node) and reader.index > 0 and (subgraphs or any(reader.node is node for node in own))
    ]
    _rewrite(model, readers, weights)
    if use_external_data_format:
        location = os.path.basename(os.fspath(model_output)) + ".data"
        onnx.save_model(model, model_output, save_as_external_data=True, location=location)
    else:
        write_whole(model_output, model.SerializeToString())


def _rewrite(model: Any, readers: Iterable[Reader], weights: WeightType) -> None:
    """Let the readers read quantised weights, and remove the constants that nothing reads any more."""
    opset, rewriter, quantised = opset_of(model), Rewriter(model), []
    for reader in readers:
        array = reader.array(opset)
        if array is not None:
            if not np.all(np.isfinite(array)):
                raise InputError(f"weights {reader.weights.name!r} are not finite")
            reader.node.input[reader.index] = rewriter.stored(reader, array, weights).output
            quantised.append(reader.weights)
    remove_unread(model, quantised)


def _names(what: str, names: Iterable[str] | None) -> set[str]:
    """A caller's names as a set."""
    found = [] if names is None else [names] if isinstance(names, (str, bytes)) else list(names)
    if isinstance(names, (str, bytes)) or not all(isinstance(name, str) for name in found):
        raise InputTypeError(f"{what} is {names!r}, expected a sequence of str")
    return set(found)
