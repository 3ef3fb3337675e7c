"""RNN, GRU and LSTM nodes: attributes resolved, shapes and types checked, and their native form."""

import functools
import math
from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError, UnsupportedError
from rnnfast.native import _engine, _plans
from rnnfast.native.cell_activations import resolve


class Kind(NamedTuple):
    """gates: blocks of hidden_size rows in W and R; activations: the spec's, for the functions f, g, h."""

    gates: int
    activations: tuple


KINDS = {"RNN": Kind(1, ("Tanh",)), "GRU": Kind(3, ("Sigmoid", "Tanh")), "LSTM": Kind(4, ("Sigmoid", "Tanh", "Tanh"))}
REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class RecurrentAttributes(NamedTuple):
    """The attributes of a recurrent node, checked. `activations`: (name, alpha, beta) triples for each direction."""

    kind: str
    activations: tuple
    clip: float | None
    direction: str
    hidden_size: int | None
    layout: int
    input_forget: bool
    linear_before_reset: bool

    @property
    def directions(self):
        return len(REVERSED[self.direction])

    # ----------------------------------------------------------------------------------------- checks
    def check_weights(self, W, R, B=None, P=None):
        """Of those that are given (None: absent, or known only at run time); returns hidden_size where it is known."""
        D, gates = self.directions, KINDS[self.kind].gates
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

    def check_call(self, X, W, R, B=None, sequence_lens=None, initial_h=None, initial_c=None, P=None):
        """All that one call brings, weights apart; returns (T, B)."""
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


def check_lengths(sequence_lens, T, rows):
    """One int32 for each row, 0 to T."""
    if sequence_lens.dtype != np.int32:
        raise InputTypeError(f"sequence_lens is {sequence_lens.dtype}, expected int32")
    if sequence_lens.shape != (rows,):
        raise InputError(f"sequence_lens has shape {sequence_lens.shape}, expected ({rows},)")
    wrong = sequence_lens[(sequence_lens < 0) | (sequence_lens > T)]
    if wrong.size:
        raise InputError(f"sequence_lens has {wrong[0]}, expected 0 to {T}")


@functools.lru_cache(256)
def layer(
    kind,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    input_forget=0,
    linear_before_reset=0,
):
    """The RecurrentAttributes of a node's attributes."""
    if clip is not None and not clip > 0:
        raise UnsupportedError(f"attribute 'clip' = {clip} is not supported, expected more than 0")
    if hidden_size is not None and hidden_size < 1:
        raise InputError(f"attribute 'hidden_size' = {hidden_size}, expected at least 1")
    functions = _activations(kind, len(REVERSED[direction]), activations, activation_alpha, activation_beta)
    clip = None if clip is None or math.isinf(clip) else clip
    return RecurrentAttributes(
        kind, functions, clip, direction, hidden_size, layout, bool(input_forget), bool(linear_before_reset)
    )


def check_attributes(kind, attributes, where):
    """Raise ModelError or UnsupportedError for attributes that no RecurrentAttributes has."""
    try:
        layer(kind, **attributes)
    except InputError as e:
        raise ModelError(f"{where}: {e}") from None
    except UnsupportedError as e:
        raise UnsupportedError(f"{where}: {e}") from None


def _activations(kind, directions, names, alphas, betas):
    """The (name, alpha, beta) triples of each direction. Only activations that take an alpha or beta use one up."""
    standard = KINDS[kind].activations
    if names is None or kind == "RNN" and tuple(names) == ("Tanh", "Tanh"):
        names = standard * directions  # ("Tanh", "Tanh") is the spec's default, whatever the direction
    if len(names) != len(standard) * directions:
        raise UnsupportedError(f"attribute 'activations' = {list(names)}, expected {len(standard) * directions}")
    try:
        triples = resolve(names, alphas, betas)
    except UnsupportedError as e:
        raise UnsupportedError(f"attribute 'activations' = {list(names)}: {e}") from None
    return tuple(zip(*[iter(triples)] * len(standard)))


# ------------------------------------------------------------------------------------------------ lowering
def lower(node, constants, matmul=None, threads=1, native=True):
    """The callable of a recurrent node: the engine for float32, the reference for other types (and if not `native`)."""
    X, W, R, B, lens, initial_h, initial_c, P = constants + [None] * (8 - len(constants))
    of_node = layer(node.op_type, **node.attributes)
    H = of_node.check_weights(W, R, B, P)
    given = [bool(name) for name in node.inputs] + [False] * (8 - len(node.inputs))
    one_row = (of_node.directions, 1, H) if of_node.layout == 0 else (1, of_node.directions, H)
    zero = {i for i, s in ((5, initial_h), (6, initial_c)) if s is not None and s.shape == one_row and not np.any(s)}
    slow = functools.partial(_without, zero, functools.partial(node.function, **node.attributes))
    if not native:
        return slow
    cells = None
    if all(array is not None or not given[i] for i, array in ((1, W), (2, R), (3, B), (7, P))):
        if W.dtype == np.float32:
            cells = _cells(of_node, W, R, B, P, matmul)
    return _Native(of_node, cells, zero, slow, matmul, threads)


def with_states(node):
    """The callable of a lowered node whose initial states are no constants any more."""
    run = node.run
    return _Native(
        run.layer, run.cells, set(), functools.partial(node.function, **node.attributes), run.matmul, run.threads
    )


def _without(dropped, run, *inputs):
    """Runs without a constant state of zeros and one row, so that a graph exported at batch 1 takes any batch."""
    if dropped:
        inputs = [None if i in dropped else x for i, x in enumerate(inputs)]
    return run(*inputs)


def _cells(of_node, W, R, B, P, matmul):
    return tuple(
        _engine.Cell(
            of_node.kind,
            W[d],
            R[d],
            None if B is None else B[d],
            None if P is None else P[d],
            activations=functions,
            clip=of_node.clip,
            input_forget=of_node.input_forget,
            linear_before_reset=of_node.linear_before_reset,
            matmul=matmul,
        )
        for d, functions in enumerate(of_node.activations)
    )


class _Native:
    """A recurrent node on the engine. cells: packed from constant weights, else None; slow: for other types."""

    def __init__(self, layer, cells, dropped, slow, matmul, threads):
        self.layer, self.cells, self.dropped, self.slow = layer, cells, dropped, slow
        self.matmul, self.threads, self.reverse = matmul, threads, REVERSED[layer.direction]

    def __call__(self, X, *inputs):
        """One call, everything checked."""
        if X.dtype != np.float32:
            return self.slow(X, *inputs)
        return _without(self.dropped, self._run, X, *inputs)

    def bound(self, X, *inputs):
        """What does the same for inputs of these types and shapes, checked here and not again."""
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
        """With layout=1 it works on transposed views."""
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
