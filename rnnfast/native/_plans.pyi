# Types of the extension module _plans.pyx.
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rnnfast.native._engine import Cell

def separate(outputs: list[Any], args: list[Any]) -> list[Any]: ...

class Plan:
    @property
    def pinned(self) -> tuple[tuple[int, np.ndarray], ...]: ...
    @property
    def initial_values(self) -> list[Any]: ...
    @property
    def steps(self) -> tuple[tuple[Any, ...], ...]: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...
    @property
    def unmetered_steps(self) -> tuple[Any, ...]: ...
    @property
    def results(self) -> tuple[Any, ...] | None: ...
    @property
    def work(self) -> int: ...
    @property
    def native(self) -> bool: ...
    @property
    def fresh(self) -> bool: ...
    @property
    def compiled(self) -> bool: ...
    @property
    def nbytes(self) -> int | None: ...
    def __init__(
        self,
        args: Sequence[Any],
        initial_values: list[Any],
        steps: tuple[tuple[Any, ...], ...],
        outputs: tuple[int, ...],
        budget: Callable[[list[Any]], Any] | None,
        folded: Any,
        pinned: Iterable[int],
        unmetered_steps: tuple[Any, ...],
        results: tuple[Any, ...] | None,
        work: int,
        seconds: float | None = None,
    ) -> None: ...
    def held(self) -> list[Any]: ...
    def unwarned(self, args: list[Any]) -> list[Any]: ...
    def shared(self, args: list[Any], budget: Any = None) -> list[Any]: ...

class Plans:
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def kept(self) -> tuple[Plan, ...]: ...
    @property
    def most(self) -> int: ...
    def __init__(self, names: Iterable[str], most: int) -> None: ...
    def find(self, args: list[Any]) -> Plan | None: ...
    def specialised(self, args: list[Any]) -> int: ...
    def add(self, plan: Plan, args: list[Any]) -> None: ...
    def run(self, feed: Any) -> list[Any] | None: ...

class RecurrentStep:
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    def __init__(
        self,
        cells: tuple[Cell, ...],
        reverse: tuple[bool, ...],
        T: int,
        rows: int,
        *,
        absent_h: bool,
        absent_c: bool,
        check_lengths: Callable[[Any, int, int], object],
        threads: int,
    ) -> None: ...
    def __call__(
        self,
        X: np.ndarray,
        W: Any,
        R: Any,
        B: Any = None,
        sequence_lens: ArrayLike | None = None,
        initial_h: ArrayLike | None = None,
        initial_c: ArrayLike | None = None,
        P: Any = None,
    ) -> tuple[np.ndarray, ...]: ...
