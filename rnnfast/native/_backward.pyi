# Types of the extension module _backward.pyx.
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnnfast.native._engine import Cell

_Float32 = NDArray[np.float32]

class Gradient:
    def __init__(
        self, q: Cell, weight_ih: np.ndarray, weight_hh: np.ndarray, weight_hr: np.ndarray | None = None
    ) -> None: ...

class Tape:
    @property
    def x(self) -> _Float32: ...
    @property
    def y(self) -> _Float32: ...
    @property
    def nbytes(self) -> int: ...
    def backward(
        self, dy: Sequence[_Float32] | None, dh: _Float32, dc: _Float32 | None = None, dx: bool = True, threads: int = 1
    ) -> tuple[_Float32 | None, _Float32, _Float32 | None, list[dict[str, _Float32 | None]]]: ...

def record(
    cells: tuple[Cell, ...],
    reverse: tuple[bool, ...],
    x: np.ndarray,
    y: _Float32,
    initial_h: ArrayLike | None = None,
    initial_c: ArrayLike | None = None,
    sequence_lens: ArrayLike | None = None,
    threads: int = 1,
) -> tuple[_Float32, _Float32 | None, Tape]: ...
