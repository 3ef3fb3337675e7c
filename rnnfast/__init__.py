"""Recurrent networks on CPUs: ONNX files in, the right answer out, the same bits everywhere."""

import importlib
from typing import TYPE_CHECKING

from rnnfast import errors as errors
from rnnfast.errors import Error as Error

if TYPE_CHECKING:
    from rnnfast import nn as nn
    from rnnfast import plot as plot
    from rnnfast import ray as ray
    from rnnfast import reference as reference
    from rnnfast import train as train
    from rnnfast.limits import Limits as Limits
    from rnnfast.model import Model as Model
    from rnnfast.model import load as load
    from rnnfast.native._kernels import get_isa as get_isa
    from rnnfast.native._kernels import isas as isas
    from rnnfast.native._kernels import set_isa as set_isa
    from rnnfast.onnxruntime import capi as capi
    from rnnfast.onnxruntime.environment import disable_telemetry_events as disable_telemetry_events
    from rnnfast.onnxruntime.environment import enable_telemetry_events as enable_telemetry_events
    from rnnfast.onnxruntime.environment import get_all_providers as get_all_providers
    from rnnfast.onnxruntime.environment import get_available_providers as get_available_providers
    from rnnfast.onnxruntime.environment import get_build_info as get_build_info
    from rnnfast.onnxruntime.environment import get_device as get_device
    from rnnfast.onnxruntime.environment import get_version_string as get_version_string
    from rnnfast.onnxruntime.environment import preload_dlls as preload_dlls
    from rnnfast.onnxruntime.environment import set_default_logger_severity as set_default_logger_severity
    from rnnfast.onnxruntime.environment import set_default_logger_verbosity as set_default_logger_verbosity
    from rnnfast.onnxruntime.environment import set_seed as set_seed
    from rnnfast.onnxruntime.io_binding import IOBinding as IOBinding
    from rnnfast.onnxruntime.module import as_onnxruntime as as_onnxruntime
    from rnnfast.onnxruntime.options import ExecutionMode as ExecutionMode
    from rnnfast.onnxruntime.options import ExecutionOrder as ExecutionOrder
    from rnnfast.onnxruntime.options import GraphOptimizationLevel as GraphOptimizationLevel
    from rnnfast.onnxruntime.options import RunOptions as RunOptions
    from rnnfast.onnxruntime.options import SessionOptions as SessionOptions
    from rnnfast.onnxruntime.session import InferenceSession as InferenceSession
    from rnnfast.onnxruntime.session import ModelMetadata as ModelMetadata
    from rnnfast.onnxruntime.session import NodeArg as NodeArg
    from rnnfast.onnxruntime.values import OrtDevice as OrtDevice
    from rnnfast.onnxruntime.values import OrtValue as OrtValue
    from rnnfast.onnxruntime.values import SparseTensor as SparseTensor
    from rnnfast.quantization.quantizer import quantize as quantize
    from rnnfast.serving.batcher import Batcher as Batcher
    from rnnfast.streaming.model_stream import Stream as Stream
    from rnnfast.streaming.pool import Pool as Pool

__version__ = "0.1.0"

# Name -> the module that it lives in. A name is imported when it is first asked for, so that `import rnnfast` costs
# next to nothing. Type checkers, which cannot see that, read the imports above; tests/test_import.py compares the two.
_LAZY = {
    **dict.fromkeys(("get_isa", "isas", "set_isa"), "rnnfast.native._kernels"),
    **dict.fromkeys(("Model", "load"), "rnnfast.model"),
    **dict.fromkeys(
        (
            "disable_telemetry_events",
            "enable_telemetry_events",
            "get_all_providers",
            "get_available_providers",
            "get_build_info",
            "get_device",
            "get_version_string",
            "preload_dlls",
            "set_default_logger_severity",
            "set_default_logger_verbosity",
            "set_seed",
        ),
        "rnnfast.onnxruntime.environment",
    ),
    **dict.fromkeys(("IOBinding",), "rnnfast.onnxruntime.io_binding"),
    **dict.fromkeys(("as_onnxruntime",), "rnnfast.onnxruntime.module"),
    **dict.fromkeys(
        ("ExecutionMode", "ExecutionOrder", "GraphOptimizationLevel", "RunOptions", "SessionOptions"),
        "rnnfast.onnxruntime.options",
    ),
    **dict.fromkeys(("InferenceSession", "ModelMetadata", "NodeArg"), "rnnfast.onnxruntime.session"),
    **dict.fromkeys(("OrtDevice", "OrtValue", "SparseTensor"), "rnnfast.onnxruntime.values"),
    "Batcher": "rnnfast.serving.batcher",
    "Limits": "rnnfast.limits",
    "Pool": "rnnfast.streaming.pool",
    "Stream": "rnnfast.streaming.model_stream",
    "capi": "rnnfast.onnxruntime",
    "quantize": "rnnfast.quantization.quantizer",
    **dict.fromkeys(("nn", "plot", "ray", "reference", "train"), "rnnfast"),
}
__all__ = ["Error", "errors", *_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]

if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module 'rnnfast' has no attribute {name!r}")
        home = _LAZY[name]
        if home == "rnnfast":
            value = importlib.import_module(f"rnnfast.{name}")
        else:
            value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value

    def __dir__():
        return __all__
