# Types of the extension module _kernels.pyx.
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")

ACTIVATIONS: dict[str, int]
FUNCTIONS: dict[str, int]
MATMULS: tuple[str, ...]

def isas() -> tuple[str, ...]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def default_matmul() -> str: ...
def check_matmul(matmul: T) -> T: ...
def force_threads(threads: int) -> None: ...

class AlignedFloats:
    @property
    def size(self) -> int: ...
    def __init__(self, size: int) -> None: ...

def unary(
    name: str, x: ArrayLike, alpha: float = 0.0, beta: float = 0.0, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]: ...
def adam(
    gradients: NDArray[np.float32],
    values: NDArray[np.float32],
    means: NDArray[np.float32],
    squares: NDArray[np.float32],
    b1: float,
    b2: float,
    eps: float,
    rate: float,
) -> None: ...

class Matrix:
    @property
    def K(self) -> int: ...
    @property
    def N(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def blas(self) -> bool: ...
    @property
    def address(self) -> int: ...
    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        matmul: str | None = None,
        gates: int = 1,
        weight_type: str | None = None,
        expanded: bool = False,
    ) -> None: ...
    def cost(self, rows: int) -> float: ...
    def multiply(
        self, x: ArrayLike, out: NDArray[np.float32] | None = None, threads: int = 1
    ) -> NDArray[np.float32]: ...
