"""Engines whose weights have 8 or 16 bits, beside those of float32, each in its own documented form.

The first word of a name is the package, the others say what is rounded. Besides what an Engine has, those that run
ONNX files have `model(data, threads)`, which returns run(feed), whose result is the list of outputs.
"""

import functools
import logging
import pathlib
import tempfile
import warnings

import numpy as np

from bench import engines, problem
from rnnfast.native.weight_types import WEIGHT_TYPES

# How far rnnfast's outputs may be from those that the rounded weights have in float64, relative to the largest. Weights
# of 16 bits are multiplied in float32. Activations of 15 bits add 1e-4 at a step, and recurrences may make more of it.
# Those of 8 bits are not compared: a wrong result could not be told from a rounded one.
COMPUTED = {"int8": 3e-3, "fp16": engines.TOLERANCE, "bf16": engines.TOLERANCE}

# The largest error with which an engine of low precision is timed. Recurrences may lose all digits of a trained model,
# and the tables have to show that; other shapes and NaN are wrong.
LOW_TOLERANCE = 10.0


class Rnnfast(engines.Rnnfast):
    """rnnfast with weights of this type; `activations` counts for int8."""

    tolerance = LOW_TOLERANCE

    def __init__(self, weights=None, activations=15):
        self.weights = {} if weights is None else {"weights": weights}
        self.name = "rnnfast" if weights is None else f"rnnfast {weights}"
        if weights is None:
            self.tolerance = engines.TOLERANCE
        elif activations != 15:
            self.weights["activations"] = activations
            self.name += f" activations={activations}"

    def computed(self, case, state_dict, values, outputs):
        """Raise ValueError if outputs are far from those of the rounded weights in float64."""
        tolerance = None if "activations" in self.weights else COMPUTED.get(self.weights.get("weights"))
        if tolerance is not None:
            rounded = rounded_weights(state_dict, self.weights["weights"])
            error = problem.difference(outputs, problem.expected(case, rounded, values, engines.ENGINES["numpy"]))
            if not error <= tolerance:
                raise ValueError(f"off by {error:.2g} from the results of the rounded weights")

    def model(self, data, threads):
        return functools.partial(self.session(data, threads).run, None)

    def pool(self, data, threads, streams, fixed):
        """Return the `step` of a pool with this many streams, all of which have a frame each time."""
        import rnnfast

        pool = rnnfast.load(data, threads=threads, **self.weights).pool(streams, **fixed)
        ids, y = np.array([pool.open() for _ in range(streams)]), None

        def step(x):
            nonlocal y
            y = pool.step(ids, x, out=y)
            return y

        return step


def rounded_weights(state_dict, weights):
    """Return a state_dict whose matrices are rounded to a type, by rows; biases stay as they are."""
    rounded = WEIGHT_TYPES[weights].rounded
    return {
        name: np.ascontiguousarray(rounded(np.ascontiguousarray(array.T)).T) if array.ndim == 2 else array
        for name, array in state_dict.items()
    }


class Onnxruntime(engines.Onnxruntime):
    def model(self, data, threads):
        return functools.partial(self.session(data, threads).run, None)


class DynamicOnnxruntime(Onnxruntime):
    """onnxruntime with the model that its quantize_dynamic makes, which has DynamicQuantizeLSTM and MatMulInteger."""

    tolerance = LOW_TOLERANCE

    def __init__(self, per_channel):
        self.per_channel = per_channel
        self.name = "onnxruntime int8" + " per channel" * per_channel

    def session(self, model, threads):
        return super().session(dynamic(model, self.per_channel), threads)


def dynamic(model, per_channel):
    """Return the bytes of what onnxruntime's quantize_dynamic makes of a model; ValueError if it quantises nothing."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "float.onnx"), pathlib.Path(folder, "int8.onnx")
        source.write_bytes(model)
        logging.disable(logging.WARNING)  # advice to prepare the model by another tool
        try:
            quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=per_channel)
        finally:
            logging.disable(logging.NOTSET)
        data = target.read_bytes()
    if not any(
        tensor.data_type == onnx.TensorProto.INT8 for tensor in _initializers(onnx.load_from_string(data).graph)
    ):
        raise ValueError("quantize_dynamic leaves all weights in float32")
    return data


def _initializers(graph):
    """Yield the initializers of a graph and of those within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _initializers(inner)


class DynamicTorch(engines.Torch):
    """torch with the layer that its quantize_dynamic makes."""

    name, tolerance = "torch int8", LOW_TOLERANCE

    def layer(self, case, state_dict):
        import torch

        layer = torch.nn.ModuleDict({"layer": super().layer(case, state_dict)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it will be removed
            return torch.ao.quantization.quantize_dynamic(layer, {type(layer["layer"])}, torch.qint8)["layer"]


class Openvino(engines.Openvino):
    def model(self, data, threads):
        compiled = self.compiled(data, threads)
        request, keys = compiled.create_infer_request(), compiled.outputs
        names = {value.any_name for value in compiled.inputs}

        def run(feed):
            results = request.infer(
                {name: value for name, value in feed.items() if name in names}, share_inputs=True, share_outputs=True
            )
            return [results[key] for key in keys]

        return run


class BfloatOpenvino(Openvino):
    """OpenVINO that may compute in bfloat16, on processors that have instructions for it."""

    name, precision, tolerance = "openvino bf16", "bf16", LOW_TOLERANCE

    def installed(self):
        return super().installed() and "BF16" in engines.openvino_core().get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        )


class CompressedOpenvino(Openvino):
    """OpenVINO with the file that `rnnfast quantize` writes: int8 weights that a DequantizeLinear reads.

    NNCF, its own compression of weights, leaves those of recurrent layers as they are.
    """

    name, tolerance = "openvino int8", LOW_TOLERANCE

    def compiled(self, model, threads):
        import rnnfast

        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "int8.onnx")
            rnnfast.quantize(model, path, "int8")
            return super().compiled(path.read_bytes(), threads)


OWN = [Rnnfast(), Rnnfast("int8"), Rnnfast("int8", 8), Rnnfast("fp16"), Rnnfast("bf16")]
PEERS = [
    Onnxruntime(),
    DynamicOnnxruntime(per_channel=False),
    DynamicOnnxruntime(per_channel=True),
    engines.ENGINES["torch"],
    DynamicTorch(),
    Openvino(),
    BfloatOpenvino(),
    CompressedOpenvino(),
]
ENGINES = {engine.name: engine for engine in OWN + PEERS}
