"""The place where programs look for onnxruntime's errors."""

from rnnfast.onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_pybind11_state
