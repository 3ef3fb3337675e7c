# Types of the extension module _engine.pyx.
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnnfast.native._arenas import Arenas
from rnnfast.native._backward import Gradient

_Float32 = NDArray[np.float32]

GATES: dict[str, int]
WORKSPACES: Arenas

class Cell:
    gradient: Gradient | None
    @property
    def kind(self) -> str: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def output_size(self) -> int: ...
    @property
    def blas(self) -> bool: ...
    @property
    def saved_size(self) -> int: ...
    @property
    def differentiable(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def __init__(
        self,
        kind: str,
        W: ArrayLike,
        R: ArrayLike,
        B: ArrayLike | None = None,
        P: ArrayLike | None = None,
        *,
        activations: Sequence[tuple[str, float, float]],
        clip: float | None = None,
        input_forget: bool = False,
        linear_before_reset: bool = False,
        projection: np.ndarray | None = None,
        matmul: str | None = None,
        weight_type: str | None = None,
    ) -> None: ...

class Prepared:
    command: int
    @property
    def cells(self) -> tuple[Cell, ...]: ...
    @property
    def strides(self) -> tuple[int, int, int, int, int]: ...
    @property
    def T(self) -> int: ...
    @property
    def B(self) -> int: ...
    @property
    def workspace(self) -> int: ...
    @property
    def address(self) -> int: ...
    def __init__(
        self,
        cells: tuple[Cell, ...],
        reverse: tuple[bool, ...],
        T: int,
        B: int,
        strides: Sequence[int],
        threads: int,
        ragged: bool = False,
    ) -> None: ...

def recurrent(
    cells: tuple[Cell, ...],
    reverse: tuple[bool, ...],
    x: ArrayLike,
    y: _Float32,
    initial_h: ArrayLike | None = None,
    initial_c: ArrayLike | None = None,
    sequence_lens: ArrayLike | None = None,
    threads: int = 1,
    saved: Sequence[_Float32] | None = None,
    batch_sizes: ArrayLike | None = None,
) -> tuple[_Float32, _Float32 | None]: ...
def forward(
    stack: tuple[tuple[Cell, ...], ...],
    reverse: tuple[bool, ...],
    x: object,
    states: Sequence[object],
    batch_first: bool,
    threads: int = 1,
) -> tuple[_Float32, tuple[_Float32, ...]] | None: ...
