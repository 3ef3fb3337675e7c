"""Recurrent networks on CPUs: ONNX files in, the right answer out, the same bits everywhere."""

import importlib
from typing import TYPE_CHECKING

from rnnfast import errors as errors
from rnnfast.errors import Error as Error

if TYPE_CHECKING:
    from rnnfast import nn as nn
    from rnnfast import plot as plot
    from rnnfast import reference as reference
    from rnnfast import train as train
    from rnnfast.limits import Limits as Limits
    from rnnfast.model import Model as Model
    from rnnfast.model import load as load
    from rnnfast.native._kernels import get_isa as get_isa
    from rnnfast.native._kernels import isas as isas
    from rnnfast.native._kernels import set_isa as set_isa
    from rnnfast.serving.batcher import Batcher as Batcher
    from rnnfast.session import ExecutionMode as ExecutionMode
    from rnnfast.session import GraphOptimizationLevel as GraphOptimizationLevel
    from rnnfast.session import InferenceSession as InferenceSession
    from rnnfast.session import RunOptions as RunOptions
    from rnnfast.session import SessionOptions as SessionOptions
    from rnnfast.session import get_available_providers as get_available_providers
    from rnnfast.session import get_device as get_device
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
    "Limits": "rnnfast.limits",
    "Pool": "rnnfast.streaming.pool",
    "Stream": "rnnfast.streaming.model_stream",
    **dict.fromkeys(("nn", "plot", "reference", "train"), "rnnfast"),
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
