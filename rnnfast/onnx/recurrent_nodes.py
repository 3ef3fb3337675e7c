"""RNN, GRU and LSTM nodes: their attributes, the checks of shapes and types, and their lowering to the engine."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.native import _engine, _plans
from rnnfast.native.cell_activations import resolve


class CellKind(NamedTuple):
    """A kind of recurrent cell, as the ONNX operator specification defines it."""

    gates: int  # blocks of hidden_size rows in W and R
    activations: tuple[str, ...]  # the default activations, for the functions f, g and h


CELL_KINDS = {
    "RNN": CellKind(1, ("Tanh",)),
    "GRU": CellKind(3, ("Sigmoid", "Tanh")),
    "LSTM": CellKind(4, ("Sigmoid", "Tanh", "Tanh")),
}
# Attribute `direction` -> for each direction whether it runs from the last step to the first
REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class RecurrentAttributes(NamedTuple):
    """The checked attributes of a recurrent node. `activations` has (name, alpha, beta) triples for each direction."""

    kind: str
    activations: tuple[tuple[tuple[str, float, float], ...], ...]
    clip: float | None
    direction: str
    hidden_size: int | None
    layout: int
    input_forget: bool
    linear_before_reset: bool

    @property
    def directions(self) -> int:
        """The number of directions, 1 or 2."""
        return len(REVERSED[self.direction])

    # ----------------------------------------------------------------------------------------- checks
    def check_weights(self, W, R, B=None, P=None) -> int | None:
        """Check the shapes of the weights that are given and return hidden_size, or None if it is not known yet.

        A weight is None if it is absent, or known only at run time.
        """
        D, gates = self.directions, CELL_KINDS[self.kind].gates
        for name, array, rank in (("W", W, 3), ("R", R, 3), ("B", B, 2), ("P", P, 2)):
            if array is not None and (array.ndim != rank or array.shape[0] != D):
                raise InputError(
                    f"{name} has shape {array.shape}, expected rank {rank} and {D} in front for "
                    f"direction {self.direction!r}"
                )
        H = self.hidden_size if R is None else R.shape[2]
        if H is None:
            return None
        if H < 1 or self.hidden_size not in (None, H):
            raise InputError(f"hidden_size = {self.hidden_size}, but R has shape {None if R is None else R.shape}")
        expected = {"R": (R, (D, gates * H, H)), "B": (B, (D, 2 * gates * H)), "P": (P, (D, 3 * H))}
        if W is not None:
            expected["W"] = W, (D, gates * H, W.shape[2])
        for name, (array, shape) in expected.items():
            if array is not None and array.shape != shape:
                raise InputError(f"{name} has shape {array.shape}, expected {shape} for hidden_size {H}")
        return H

    def check_call(
        self, X, W, R, B=None, sequence_lens=None, initial_h=None, initial_c=None, P=None
    ) -> tuple[int, int]:
        """Check all inputs of one call except the shapes of weights; return the numbers of steps and of rows."""
        for name, array in (("W", W), ("R", R), ("B", B), ("initial_h", initial_h), ("initial_c", initial_c), ("P", P)):
            if array is not None and array.dtype != X.dtype:
                raise InputTypeError(f"{name} is {array.dtype}, but X is {X.dtype}")
        if X.dtype.kind not in "fV":
            raise InputTypeError(f"X is {X.dtype}, expected a floating-point type")
        if X.ndim != 3 or X.shape[2] != W.shape[2]:
            raise InputError(f"X has shape {X.shape}, expected rank 3 and {W.shape[2]} inputs as W has")
        T, rows = X.shape[:2] if self.layout == 0 else X.shape[1::-1]
        D, H = self.directions, R.shape[2]
        state = (D, rows, H) if self.layout == 0 else (rows, D, H)
        for name, array in (("initial_h", initial_h), ("initial_c", initial_c)):
            if array is not None and array.shape != state:
                raise InputError(f"{name} has shape {array.shape}, expected {state}")
        if sequence_lens is not None:
            check_lengths(sequence_lens, T, rows)
        return T, rows


def check_lengths(sequence_lens: np.ndarray, T: int, rows: int) -> None:
    """Raise unless `sequence_lens` is int32 [rows] with values from 0 to T."""
    if sequence_lens.dtype != np.int32:
        raise InputTypeError(f"sequence_lens is {sequence_lens.dtype}, expected int32")
    if sequence_lens.shape != (rows,):
        raise InputError(f"sequence_lens has shape {sequence_lens.shape}, expected ({rows},)")
    wrong = sequence_lens[(sequence_lens < 0) | (sequence_lens > T)]
    if wrong.size:
        raise InputError(f"sequence_lens has {wrong[0]}, expected 0 to {T}")


@functools.lru_cache(256)
def recurrent_attributes(
    kind: str,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    input_forget: int = 0,
    linear_before_reset: int = 0,
) -> RecurrentAttributes:
    """Check the attributes of a node of this kind; raises InputError or UnsupportedError."""
    if clip is not None and not clip > 0:
        raise UnsupportedError(f"attribute 'clip' = {clip} is not supported, expected more than 0")
    if hidden_size is not None and hidden_size < 1:
        raise InputError(f"attribute 'hidden_size' = {hidden_size}, expected at least 1")
    functions = _activations(kind, len(REVERSED[direction]), activations, activation_alpha, activation_beta)
    clip = None if clip is None or math.isinf(clip) else clip
    return RecurrentAttributes(
        kind, functions, clip, direction, hidden_size, layout, bool(input_forget), bool(linear_before_reset)
    )


def check_attributes(kind: str, attributes: dict[str, Any], where: str) -> None:
    """Raise ModelError or UnsupportedError if the attributes of a node at `where` are wrong or not supported."""
    try:
        recurrent_attributes(kind, **attributes)
    except InputError as e:
        raise ModelError(f"{where}: {e}") from None
    except UnsupportedError as e:
        raise UnsupportedError(f"{where}: {e}") from None


def _activations(
    kind: str,
    directions: int,
    names: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> tuple[tuple[tuple[str, float, float], ...], ...]:
    """Return the (name, alpha, beta) triples of each direction.

    The values of `alphas` and `betas` go, in order, to the activations that take one.
    """
    standard = CELL_KINDS[kind].activations
    if names is None or kind == "RNN" and tuple(names) == ("Tanh", "Tanh"):
        # ("Tanh", "Tanh") is the default that ONNX gives for RNN, even with one direction
        names = standard * directions
    if len(names) != len(standard) * directions:
        raise UnsupportedError(f"attribute 'activations' = {list(names)}, expected {len(standard) * directions}")
    try:
        triples = resolve(names, alphas, betas)
    except UnsupportedError as e:
        raise UnsupportedError(f"attribute 'activations' = {list(names)}: {e}") from None
    return tuple(zip(*[iter(triples)] * len(standard)))


# ------------------------------------------------------------------------------------------------ lowering
def lower(
    node: Any,
    constants: list[Any],
    matmul: str | None = None,
    threads: int = 1,
    load_budget: Any = None,
    native: bool = True,
) -> Callable[..., Any]:
    """The callable of a recurrent node.

    It runs float32 on the engine and other types on the float64 reference, which runs all types if not `native`.
    """
    _, W, R, B, _, initial_h, initial_c, P = constants + [None] * (8 - len(constants))
    attributes = recurrent_attributes(node.op_type, **node.attributes)
    H = attributes.check_weights(W, R, B, P)
    given = [bool(name) for name in node.inputs] + [False] * (8 - len(node.inputs))
    one_row = (attributes.directions, 1, H) if attributes.layout == 0 else (1, attributes.directions, H)
    dropped = {i for i, s in ((5, initial_h), (6, initial_c)) if s is not None and s.shape == one_row and not np.any(s)}
    fallback = functools.partial(_without, dropped, _numpy_function(node))
    if not native:
        return fallback
    cells = None
    if all(array is not None or not given[i] for i, array in ((1, W), (2, R), (3, B), (7, P))):
        if W.dtype == np.float32:
            cells = load_budget.packed(
                (attributes, node.weight_type),
                (W, R, B, P),
                lambda: _cells(attributes, W, R, B, P, matmul, node.weight_type),
            )
    return _Lowered(attributes, cells, dropped, fallback, matmul, threads)


def without_constant_states(node: Any) -> Callable[..., Any]:
    """The callable of a lowered node whose initial states are to be inputs in place of constants."""
    run = node.run
    assert isinstance(run, _Lowered)
    return _Lowered(run.layer, run.cells, set(), _numpy_function(node), run.matmul, run.threads)


def _numpy_function(node: Any) -> Callable[..., Any]:
    return functools.partial(node.function, **node.attributes)


def _without(dropped: set[int], run: Callable[..., Any], *inputs: Any) -> Any:
    """Call `run` without the inputs at the indices `dropped`: constant initial states of zeros for one row.

    A graph that was exported at batch 1 then takes any batch.
    """
    return run(*[None if i in dropped else x for i, x in enumerate(inputs)] if dropped else inputs)


def _cells(
    attributes: RecurrentAttributes, W, R, B, P, matmul: str | None, weight_type: str | None = None
) -> tuple[Any, ...]:
    """The engine's cells with packed weights, one for each direction."""
    return tuple(
        _engine.Cell(
            attributes.kind,
            W[d],
            R[d],
            None if B is None else B[d],
            None if P is None else P[d],
            activations=functions,
            clip=attributes.clip,
            input_forget=attributes.input_forget,
            linear_before_reset=attributes.linear_before_reset,
            matmul=matmul,
            weight_type=weight_type,
        )
        for d, functions in enumerate(attributes.activations)
    )


class _Lowered:
    """A recurrent node on the engine.

    layer: its RecurrentAttributes. cells: the engine's cells, packed from constant weights; None if a weight is not
    constant. dropped: indices of the initial states that count as absent. fallback: the callable for other types than
    float32.
    """

    def __init__(
        self,
        layer: RecurrentAttributes,
        cells: tuple[Any, ...] | None,
        dropped: set[int],
        fallback: Callable[..., Any],
        matmul: str | None,
        threads: int,
    ) -> None:
        self.layer, self.cells, self.dropped, self.fallback = layer, cells, dropped, fallback
        self.matmul, self.threads, self.reverse = matmul, threads, REVERSED[layer.direction]

    def __call__(self, X: np.ndarray, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Check the inputs and run the node."""
        if X.dtype != np.float32:
            return self.fallback(X, *inputs)
        return _without(self.dropped, self._run, X, *inputs)

    def for_shapes(self, X: np.ndarray, *inputs: Any) -> Callable[..., Any]:
        """A callable that does the same for inputs of these types and shapes, which are checked here only."""
        if X.dtype != np.float32 or self.cells is None or self.layer.layout:
            return self
        T, rows = _without(self.dropped, self.layer.check_call, X, *inputs)
        return _plans.RecurrentStep(
            self.cells,
            self.reverse,
            T,
            rows,
            absent_h=5 in self.dropped,
            absent_c=6 in self.dropped,
            check_lengths=check_lengths,
            threads=self.threads,
        )

    def _run(self, X, W, R, B=None, sequence_lens=None, initial_h=None, initial_c=None, P=None):
        """Run the node; with layout 1 the engine works on transposed views."""
        if self.cells is None:
            self.layer.check_weights(W, R, B, P)
        T, rows = self.layer.check_call(X, W, R, B, sequence_lens, initial_h, initial_c, P)
        cells = self.cells or _cells(self.layer, W, R, B, P, self.matmul)
        D, H = self.layer.directions, R.shape[2]
        if self.layer.layout:
            Y = np.empty((rows, T, D, H), np.float32)
            y, X = Y.transpose(1, 2, 0, 3), X.swapaxes(0, 1)
            initial_h, initial_c = (None if s is None else s.swapaxes(0, 1) for s in (initial_h, initial_c))
        else:
            Y = y = np.empty((T, D, rows, H), np.float32)
        last = _engine.recurrent(cells, self.reverse, X, y, initial_h, initial_c, sequence_lens, self.threads)
        last = [s for s in last if s is not None]
        return (Y, *(s.swapaxes(0, 1) for s in last)) if self.layer.layout else (Y, *last)
