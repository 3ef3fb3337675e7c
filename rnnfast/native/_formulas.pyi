from collections.abc import Mapping, Sequence

import numpy as np

def arranged(sizes: np.ndarray, sections: np.ndarray, values: np.ndarray, line: int, slack: int) -> np.ndarray: ...
def completed(
    words: np.ndarray,
    indices: np.ndarray,
    formulas: np.ndarray,
    sections: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
) -> np.ndarray: ...

class Polynomials:
    def __init__(self, polynomials: Sequence[Mapping[tuple[int, ...], int]]) -> None: ...
    def values(self, variables: np.ndarray) -> np.ndarray: ...
    def hold(self, variables: np.ndarray, says: np.ndarray) -> bool: ...
