"""Recurrent networks on CPUs: ONNX files in, the right answer out, the same bits everywhere."""

import importlib

from rnnfast import errors as errors
from rnnfast.errors import Error as Error

__version__ = "0.1.0"

# name -> where it lives: imported when first asked for, so that `import rnnfast` costs next to nothing
_LAZY = {
    **dict.fromkeys(("get_isa", "isas", "set_isa"), "rnnfast.native._kernels"),
    **dict.fromkeys(("Model", "load"), "rnnfast.model"),
    **dict.fromkeys(
        (
            "ExecutionMode",
            "GraphOptimizationLevel",
            "InferenceSession",
            "RunOptions",
            "SessionOptions",
            "get_available_providers",
            "get_device",
        ),
        "rnnfast.session",
    ),
    "Batcher": "rnnfast.serving.batcher",
    "Stream": "rnnfast.streaming.model_stream",
    **dict.fromkeys(("nn", "plot", "reference", "train"), "rnnfast"),
}
__all__ = ["Error", "errors", *_LAZY]


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
