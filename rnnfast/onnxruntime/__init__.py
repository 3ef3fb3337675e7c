"""onnxruntime's names, on rnnfast.

`import rnnfast as onnxruntime` serves a program that can change its import; `rnnfast.as_onnxruntime()` one that cannot.
"""

from rnnfast.onnxruntime import capi as capi
