"""Stores a model's weights in fewer bits, and measures the error of each layer and of the whole."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from rnnfast.atomic_write import write_whole
from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.model import Model
from rnnfast.quantization import dynamic_lstm
from rnnfast.quantization.layers import Layer, StoredLayer, find_layers, with_stored
from rnnfast.quantization.model_files import converted, inlined
from rnnfast.quantization.weight_types import WEIGHT_TYPES
from rnnfast.quantization.weights import opset_of

T = TypeVar("T")

FORMS = ("onnx", "onnxruntime")
# How far results may be apart, relative to the largest, after a model was converted to a newer opset: its formulas are
# the same, but an operator that is spelled out may round in another order. Measured: 0 on all models at hand.
CONVERTED_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """A layer of a quantised model: the nodes that read the same weights.

    Attributes:
        names: The names of the nodes; of a node without one the name of its first output.
        op_type: The operator of the first node.
        bytes_before: The bytes of the weights in float32.
        bytes_after: The bytes of what is stored in their place; equal to `bytes_before` if nothing is.
        weights_error: The root of the mean square of the weights' changes, relative to that of the weights; None if
            the weights were not stored.
        output_error: The error of the model's outputs if only this layer is quantised; None if it was not measured.
        kept: Why the layer is left as it is; empty if it is quantised.
        over_tolerance: Whether that is because of the tolerance.
    """

    names: tuple[str, ...]
    op_type: str
    bytes_before: int
    bytes_after: int
    weights_error: float | None
    output_error: float | None
    kept: str = ""
    over_tolerance: bool = False


@dataclasses.dataclass(frozen=True)
class Quantized:
    """The result of `rnnfast.quantize`.

    Attributes:
        layers: The layers whose weights are constants, in the order of the file.
        bytes_before: The bytes of the model, with its external data.
        bytes_after: The bytes of the file that was written.
        weights_error: The root of the mean square of the changes of the layers' weights, relative to that of the
            weights.
        output_error: The error of the outputs; None if it was not measured.
    """

    layers: tuple[QuantizedLayer, ...]
    bytes_before: int
    bytes_after: int
    weights_error: float
    output_error: float | None


def quantize(
    source: str | os.PathLike[str] | bytes,
    path: str | os.PathLike[str],
    weights: Literal["int8", "fp16", "bf16"],
    *,
    feed: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    keep: Iterable[str] = (),
    form: Literal["onnx", "onnxruntime"] = "onnx",
) -> Quantized:
    """Write a model whose float32 weights are stored in 8 or 16 bits.

    Layers are RNN, LSTM, GRU, MatMul, Gemm and Conv nodes, also in branches and bodies, whose weights are constants.
    Nodes that read the same weights are one layer. `"int8"` stores a symmetric integer for each weight and a scale for
    each row, which is what is multiplied for one output; a DequantizeLinear, or Cast and Mul before opset 13, makes
    float32 of them. `"fp16"` and `"bf16"` have a Cast. All other tensors and all activations stay as they are.

    The error of outputs is the largest difference to the model's own outputs, relative to the largest value of each
    output; of outputs that are no floats it is the share of values that differ.

    Args:
        source: The path of an ONNX file, or the file's bytes.
        path: The path to write to. The file is written completely or not at all, and has no external data.
        weights: How weights are stored.
        feed: Inputs on which the error of outputs is measured; None does not measure it.
        tolerance: The largest error of outputs. A layer that alone has a larger one is left as it is, and then those of
            the largest errors until the whole model's is not larger. None allows any error.
        keep: Names of nodes that are left as they are, with those that read the same weights; nodes without a name go
            by that of their first output.
        form: `"onnxruntime"` writes LSTM nodes as `com.microsoft.DynamicQuantizeLSTM`, which onnxruntime computes in
            integers, rounding activations too. Weights must be `"int8"`. Other nodes are as in the form `"onnx"`.

    Returns:
        The layers, with what was done to each, and the errors.

    Raises:
        ModelError: The source cannot be read or is not a correct ONNX model.
        UnsupportedError: rnnfast cannot compute the model, no layer has constant weights, the model has more than 2 GB,
            its opset is too old and cannot be raised, or an LSTM cannot be a DynamicQuantizeLSTM.
        InputError: An argument has a value that is not allowed, `keep` names no node of a layer, a tolerance is given
            and no feed, or the file cannot be written.
        InputTypeError: `keep` is no sequence of names, or `tolerance` no number.
    """
    quantizer = Quantizer(source, weights, keep, form)
    result, data = quantizer.run(feed, tolerance)
    write_whole(path, data)
    return result


class Quantizer:
    """A model with its layers; `quantize` documents the arguments.

    Attributes:
        model: The model as it is.
    """

    def __init__(
        self, source: str | os.PathLike[str] | bytes, weights: str, keep: Iterable[str] = (), form: str = "onnx"
    ) -> None:
        if weights not in WEIGHT_TYPES:
            raise InputError(f"weights is {weights!r}, expected one of {', '.join(WEIGHT_TYPES)}")
        if form not in FORMS:
            raise InputError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
        if form == "onnxruntime" and weights != "int8":
            raise InputError(f"weights is {weights!r}, but the form 'onnxruntime' has int8 only")
        kept = [keep] if isinstance(keep, (str, bytes)) else list(keep)
        if isinstance(keep, (str, bytes)) or not all(isinstance(name, str) for name in kept):
            raise InputTypeError(f"keep is {keep!r}, expected a sequence of names")
        self._type, self._dynamic = WEIGHT_TYPES[weights], form == "onnxruntime"
        self.model, self._proto, self._bytes_before = inlined(source)
        label = self.model.source.label
        self._original, self._converted = self._proto, opset_of(self._proto) < self._type.least_opset
        if self._converted:
            self._proto = converted(self._proto, self._type.least_opset, label, weights)
        self._layers = find_layers(self._proto)
        if not self._layers:
            raise UnsupportedError(f"{label}: no layer has float32 weights that are constants")
        self._keep = set(kept)
        unknown = sorted(self._keep - {name for layer in self._layers for name in layer.names})
        if unknown:
            raise InputError(f"{label}: no layer with constant weights has a node {unknown[0]!r}")
        if self._dynamic:
            _check_lstms([layer for layer in self._layers if not self._keep.intersection(layer.names)])

    def run(
        self,
        feed: Mapping[str, Any] | None,
        tolerance: float | None,
        track: Callable[[Sequence[Layer]], Iterable[Layer]] = lambda layers: layers,
    ) -> tuple[Quantized, bytes]:
        """Measure each layer and choose those that are quantised; return the facts and the bytes of the new file.

        `track` shows the progress through the layers.
        """
        if tolerance is not None and not isinstance(tolerance, numbers.Real):
            raise InputTypeError(f"tolerance is {tolerance!r}, expected a number or None")
        if tolerance is not None and not tolerance >= 0:
            raise InputError(f"tolerance is {tolerance!r}, expected a number of at least 0, or None")
        if tolerance is not None and feed is None:
            raise InputError("a tolerance is given, but no feed on which errors could be measured")
        expected = None if feed is None else self.model(feed)
        measure = functools.partial(self._error, feed, expected)
        plain = self._proto.SerializeToString()
        if self._converted:
            error = measure(plain)
            if error is not None and not error <= CONVERTED_TOLERANCE:
                raise UnsupportedError(
                    f"{self.model.source.label}: {self._type.name} needs opset {self._type.least_opset}, and the "
                    f"model gives other results after it was converted: an error of {error:.2g}"
                )
        measured = [self._measured(layer, measure, tolerance, len(plain)) for layer in track(self._layers)]
        while True:
            chosen = [i for i, layer in enumerate(measured) if not layer.kept]
            data, stored = with_stored(self._proto, [self._layers[i] for i in chosen], self._type, self._dynamic)
            if not chosen:
                data = self._original.SerializeToString()
            whole = measure(data)
            if tolerance is None or whole is None or whole <= tolerance or not chosen:
                break
            worst = max(chosen, key=lambda i: measured[i].output_error or 0.0)
            measured[worst] = _over_tolerance(measured[worst], "the whole model's error would be over the tolerance")
        norm = math.hypot(*(layer.norm for layer in self._layers if layer.finite))
        lost = math.hypot(*(layer.lost for layer in stored)) / norm if norm else 0.0
        return Quantized(tuple(measured), self._bytes_before, len(data), lost, whole), data

    def _measured(
        self, layer: Layer, measure: Callable[[bytes], float | None], tolerance: float | None, n_plain: int
    ) -> QuantizedLayer:
        """The facts of a layer, of which the others are left as they are; `n_plain` are the bytes without any."""
        facts = QuantizedLayer(
            layer.names, layer.members[0].reader.node.op_type, layer.nbytes, layer.nbytes, None, None
        )
        if self._keep.intersection(layer.names):
            return dataclasses.replace(facts, kept="as asked for")
        infinite = dataclasses.replace(facts, kept=f"weights are not finite in {self._type.name}")
        if not layer.finite:
            return infinite
        data, (stored,) = with_stored(self._proto, [layer], self._type, self._dynamic)
        if not stored.finite:
            return infinite
        if len(data) >= n_plain:
            return dataclasses.replace(facts, kept="the file would not be smaller")
        return self._judged(facts, layer, stored, measure(data), tolerance)

    def _judged(
        self, facts: QuantizedLayer, layer: Layer, stored: StoredLayer, error: float | None, tolerance: float | None
    ) -> QuantizedLayer:
        """The facts with the errors, and whether they are within the tolerance."""
        lost = stored.lost / layer.norm if layer.norm else 0.0
        facts = dataclasses.replace(facts, bytes_after=stored.nbytes, weights_error=lost, output_error=error)
        if tolerance is not None and error is not None and not error <= tolerance:
            return _over_tolerance(facts, "its error is over the tolerance")
        return facts

    def _error(self, feed: Mapping[str, Any] | None, expected: Mapping[str, Any] | None, data: bytes) -> float | None:
        """The error of the outputs of a changed model, which is loaded in any case; None without a feed."""
        model = Model(data, threads=self.model.threads, limits=self.model.limits)
        return None if feed is None or expected is None else outputs_error(model(feed), expected)


def _over_tolerance(layer: QuantizedLayer, why: str) -> QuantizedLayer:
    """The facts of a layer that is left as it is because of the tolerance."""
    return dataclasses.replace(layer, kept=why, over_tolerance=True, bytes_after=layer.bytes_before)


def _check_lstms(layers: Iterable[Layer]) -> None:
    """Raise UnsupportedError if an LSTM node of layers cannot be a DynamicQuantizeLSTM."""
    for layer in layers:
        for _, reader, _ in layer.members:
            if reader.node.op_type == "LSTM":
                same = {member.reader.index for member in layer.members if member.reader.node is reader.node}
                dynamic_lstm.check(reader.node, same)


def outputs_error(ours: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest error of outputs, as `quantize` says; infinite where shapes or NaNs differ."""
    return max((_error(ours[name], value) for name, value in expected.items()), default=0.0)


def _error(ours: Any, expected: Any) -> float:
    """The error of an output, which may be a sequence or absent."""
    if expected is None or ours is None:
        return 0.0 if expected is ours else math.inf
    if isinstance(expected, list):
        if len(ours) != len(expected):
            return math.inf
        return max(map(_error, ours, expected), default=0.0)
    a, b = np.asarray(ours), np.asarray(expected)
    if a.shape != b.shape:
        return math.inf
    if b.dtype.kind not in "fVc":
        return float(np.mean(a != b)) if b.size else 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | np.isnan(a) & np.isnan(b)
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    if not np.all(np.isfinite(difference)):
        return math.inf
    scale = float(np.max(np.abs(b), where=np.isfinite(b), initial=0.0))
    return float(np.max(difference, initial=0.0)) / (scale or 1.0)
