"""The operators: one NumPy function each, found by domain, name and opset."""

import functools
import importlib

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
)


@functools.cache
def table():
    """(domain, operator) -> {first opset: function} of all modules; a key without a domain is ONNX's own."""
    merged = {}
    for name in MODULES:
        for key, variants in importlib.import_module(f"rnnfast.onnx.ops.{name}").OPS.items():
            key = key if isinstance(key, tuple) else ("", key)
            assert key not in merged, f"{key} is in two modules"
            merged[key] = variants
    return merged


@functools.lru_cache(1024)
def lookup(domain, op_type, opset):
    """The function that computes an operator at an opset of its domain, or None."""
    variants = table().get(("" if domain == "ai.onnx" else domain, op_type), {})
    since = max((first for first in variants if first <= opset), default=None)
    return None if since is None else variants[since]
