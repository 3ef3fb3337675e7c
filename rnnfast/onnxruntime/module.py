"""rnnfast in the place of the package `onnxruntime`, for programs that import it themselves."""

from __future__ import annotations

import functools
import importlib.machinery
import sys
import types
from typing import Any

import rnnfast
from rnnfast.errors import InputError
from rnnfast.onnxruntime import quantization
from rnnfast.onnxruntime.capi import onnxruntime_pybind11_state
from rnnfast.onnxruntime.environment import INTERFACE_VERSION

PACKAGE = "onnxruntime"
CAPI = "onnxruntime.capi"
# The modules besides the package itself that programs import from.
MODULES = [
    f"{CAPI}.{name}" for name in ("onnxruntime_pybind11_state", "_pybind_state", "onnxruntime_inference_collection")
]
QUANTIZATION = "onnxruntime.quantization"
QUANTIZATION_MODULES = [
    f"{QUANTIZATION}.{name}" for name in ("calibrate", "preprocess", "quant_utils", "quantize", "shape_inference")
]


@functools.cache
def names() -> dict[str, Any]:
    """Return onnxruntime's names with what rnnfast has under them."""
    homes = {name: home for name, home in rnnfast._LAZY.items() if home.startswith("rnnfast.onnxruntime.")}
    return {name: getattr(rnnfast, name) for name in homes if name != "as_onnxruntime"}


def quantization_names() -> dict[str, Any]:
    """Return the names of onnxruntime.quantization, of which most refuse."""
    offered = ("CalibrationDataReader", "CalibrationMethod", "QuantFormat", "QuantType", "quantize_dynamic")
    return {name: getattr(quantization, name) for name in offered} | {
        name: quantization.refused(name) for name in quantization.REFUSED
    }


def as_onnxruntime() -> types.ModuleType:
    """Put rnnfast in the place of the package `onnxruntime`, for this process.

    From then on `import onnxruntime` gives a module with rnnfast's session under onnxruntime's names, whether or not
    that package is installed. It has `onnxruntime.capi` with the errors and `onnxruntime.quantization` with
    `quantize_dynamic`, but no `tools`, `training` or `transformers`. `python -m rnnfast.as_onnxruntime PROGRAM` calls
    it before it runs a program.

    Returns:
        The module. Its `__version__` is that of the onnxruntime whose names it has.

    Raises:
        InputError: The real onnxruntime has been imported already, so that parts of the program may hold its names.
    """
    present = sys.modules.get(PACKAGE)
    if present is not None:
        if getattr(present, "InferenceSession", None) is rnnfast.InferenceSession:
            return present
        raise InputError("onnxruntime is imported already; call rnnfast.as_onnxruntime() before anything imports it")
    packages = (PACKAGE, CAPI, QUANTIZATION)
    made = {}
    for name in (*packages, *MODULES, *QUANTIZATION_MODULES):
        module = types.ModuleType(name, f"rnnfast {rnnfast.__version__} under the names of {name}.")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=name in packages)
        if name in packages:
            module.__path__ = []
        made[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
    errors = {name: value for name, value in vars(onnxruntime_pybind11_state).items() if isinstance(value, type)}
    for name in (PACKAGE, *MODULES):
        vars(made[name]).update(names())
    for name in MODULES:
        vars(made[name]).update(errors)
    for name in (QUANTIZATION, *QUANTIZATION_MODULES):
        vars(made[name]).update(quantization_names())
    vars(made[PACKAGE])["__version__"] = INTERFACE_VERSION
    sys.modules.update(made)
    return made[PACKAGE]
