"""Type aliases for the annotations of rnnfast.nn and rnnfast.train. Only type checkers import this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]

Shape: TypeAlias = tuple[int, ...]
SummaryShape: TypeAlias = tuple["int | str", ...]
"""The shape of a summary's array: free axes are named, such as "T" and "B"."""

Seed: TypeAlias = int | np.random.Generator | None
"""A seed, a generator, or None for random numbers that no seed gives again."""

Matmul: TypeAlias = Literal["packed", "blas"] | None
Merge: TypeAlias = Literal["concat", "sum", "mul", "average"]

Activation: TypeAlias = str | tuple[str, float, float]
"""An activation of ONNX: its name, or (name, alpha, beta)."""

LSTMState: TypeAlias = tuple[FloatArray, FloatArray]
Weights: TypeAlias = dict[str, FloatArray]
Gradients: TypeAlias = dict[str, FloatArray]
StateDict: TypeAlias = Mapping[str, Any]
