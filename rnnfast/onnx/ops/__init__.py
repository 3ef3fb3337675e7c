"""The operators: one NumPy function for each version of each, found by domain, name and opset.

Formulas are those of the ONNX operator specification.
"""

import functools
import importlib
from typing import TYPE_CHECKING

MODULES = (
    "elementwise",
    "cast",
    "activations",
    "reduce",
    "linear",
    "convolution",
    "pooling",
    "normalization",
    "quantize",
    "shape",
    "indexing",
    "sequence",
    "create",
    "control",
    "recurrent",
    "signal",
    "image",
    "random",
    "attention",
    "loss",
    "text",
    "vision",
)


if TYPE_CHECKING:  # Programs that freeze others read these imports; they do not see those by name in `table`.
    from rnnfast.onnx.ops import activations as activations
    from rnnfast.onnx.ops import attention as attention
    from rnnfast.onnx.ops import cast as cast
    from rnnfast.onnx.ops import control as control
    from rnnfast.onnx.ops import convolution as convolution
    from rnnfast.onnx.ops import create as create
    from rnnfast.onnx.ops import elementwise as elementwise
    from rnnfast.onnx.ops import image as image
    from rnnfast.onnx.ops import indexing as indexing
    from rnnfast.onnx.ops import linear as linear
    from rnnfast.onnx.ops import loss as loss
    from rnnfast.onnx.ops import normalization as normalization
    from rnnfast.onnx.ops import pooling as pooling
    from rnnfast.onnx.ops import quantize as quantize
    from rnnfast.onnx.ops import random as random
    from rnnfast.onnx.ops import recurrent as recurrent
    from rnnfast.onnx.ops import reduce as reduce
    from rnnfast.onnx.ops import sequence as sequence
    from rnnfast.onnx.ops import shape as shape
    from rnnfast.onnx.ops import signal as signal
    from rnnfast.onnx.ops import text as text
    from rnnfast.onnx.ops import vision as vision


@functools.cache
def table():
    """Return {(domain, operator): {first opset: function}} of all modules; the domain of ONNX itself is ""."""
    merged = {}
    for name in MODULES:
        for key, variants in importlib.import_module(f"rnnfast.onnx.ops.{name}").OPS.items():
            # A key without a domain is an operator of ONNX itself.
            key = key if isinstance(key, tuple) else ("", key)
            assert key not in merged, f"{key} is in two modules"
            merged[key] = variants
    return merged


@functools.lru_cache(1024)
def lookup(domain, op_type, opset):
    """Return the function that computes an operator at an opset of its domain, or None."""
    variants = table().get(("" if domain == "ai.onnx" else domain, op_type), {})
    since = max((first for first in variants if first <= opset), default=None)
    return None if since is None else variants[since]
