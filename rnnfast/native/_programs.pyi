# Types of the extension module _programs.pyx.
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from rnnfast.native._arenas import Arenas

LIMITS: dict[str, int]
COMMANDS: dict[str, int]

def address(view: np.ndarray) -> int: ...

class NativeProgram:
    @property
    def arena(self) -> int: ...
    @property
    def live(self) -> int: ...
    @property
    def inputs(self) -> tuple[Any, ...]: ...
    @property
    def outputs(self) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]: ...
    @property
    def notes(self) -> tuple[Any, ...]: ...
    @property
    def checks(self) -> tuple[tuple[int, type[Exception], str, str], ...]: ...
    @property
    def n_words(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def loops(self) -> bool: ...
    @property
    def code(self) -> np.ndarray: ...
    @property
    def keep(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    def __init__(
        self,
        program: Sequence[int] | np.ndarray,
        arena: int,
        live: int,
        inputs: Iterable[Any],
        outputs: Iterable[tuple[tuple[int, ...], DTypeLike]],
        keep: Any,
        notes: tuple[Any, ...] | Callable[[], tuple[Any, ...]],
        checks: Iterable[tuple[int, type[Exception], str, str]],
        threads: int,
        loops: bool,
        iterations: int,
        work: int,
        arenas: Arenas,
        seconds: float | None = None,
    ) -> None: ...
    def held(self) -> list[Any]: ...
    def __call__(self, *args: np.ndarray) -> tuple[np.ndarray, ...]: ...
    def times(self, *args: np.ndarray, rounds: int = 100) -> list[int]: ...
