"""If, Loop and Scan (ONNX operator specification, If-1, Loop-1, Scan-8 and Scan-9).

A graph attribute is passed as a callable: it takes the graph's inputs and returns the list of its outputs. Its
`outputs` are the types of these, and its `budget` is the Budget of the call.
"""

from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError
from rnnfast.onnx.budget import owners
from rnnfast.onnx.ops.types import MAX_TENSOR_BYTES, Ints, Subgraph, check_size


def condition(value, name="cond"):
    """Return the truth of a bool tensor of one element."""
    if value.dtype != bool:
        raise InputTypeError(f"{name} is {value.dtype}, expected bool")
    if value.size != 1:
        raise InputError(f"{name} has shape {value.shape}, expected one element")
    return bool(value.item())


def if_(cond, *, then_branch: Subgraph, else_branch: Subgraph):
    """If: the outputs of the branch that the condition selects."""
    return tuple((then_branch if condition(cond) else else_branch)())


def loop(M=None, cond=None, *initial, body: Subgraph):
    """Loop: repeat body(iteration, cond, *states) -> cond, *states, *slices of the scan outputs, at most M times and
    while cond holds. Returns the last states and the stacked scan outputs.
    """
    if M is not None and (M.dtype != np.int64 or M.size != 1):
        raise InputError(f"M is {M.dtype} of shape {M.shape}, expected one int64")
    trips = None if M is None else M.item()
    going = cond is None or condition(cond)
    states, scan_outputs = list(initial), [_ScanOutput(t, body.budget) for t in body.outputs[1 + len(initial) :]]
    sequences = _CarriedSequences()
    i = 0
    while going and (trips is None or i < trips):
        body.budget.iterate()
        outputs = body(np.array(i, np.int64), np.array(True), *states)
        # Without the input cond, only the trip count ends the loop.
        going = condition(outputs[0], "the body's condition") or cond is None and trips is not None
        states = outputs[1 : 1 + len(states)]
        for scan_output, value in zip(scan_outputs, outputs[1 + len(states) :]):
            scan_output.append(value)
        sequences.check(i, states)
        i += 1
    if i == 0 and not _are_declared(scan_outputs):
        _learn_types(scan_outputs, body, np.array(0, np.int64), np.array(True), *states)
    return (*states, *(scan_output.stacked() for scan_output in scan_outputs))


def _are_declared(scan_outputs):
    """Return whether the body declares the types and shapes of all scan outputs."""
    return all(
        scan_output.type.dtype is not None and scan_output.type.shape is not None for scan_output in scan_outputs
    )


def _learn_types(scan_outputs, body, *args):
    """After a loop without iterations, take the types that the body does not declare from a trial iteration."""
    body.budget.iterate()
    outputs = body(*args)
    for scan_output, value in zip(scan_outputs, outputs[len(outputs) - len(scan_outputs) :]):
        scan_output.type = SliceType(value.dtype, value.shape)


class _CarriedSequences:
    """Limits the bytes of carried sequences; they are added up again when they may have grown by an eighth."""

    def __init__(self):
        self.due = 0  # the iteration from which on the sequences are added up again

    def check(self, i, states):
        """Raise LimitError if the sequences among the states of iteration i are too large."""
        if i < self.due:
            return
        sequences = [value for value in states if type(value) is list]
        if sum(array.nbytes for array in owners(sequences).values()) > MAX_TENSOR_BYTES:
            raise LimitError(f"a loop carries sequences of more than {MAX_TENSOR_BYTES} bytes")
        self.due = i + 1 + sum(map(len, sequences)) // 8


class SliceType(NamedTuple):
    """The type of one iteration's slice of a scan output."""

    dtype: np.dtype
    shape: tuple


class _ScanOutput:
    """Collects the slices of one scan output, iteration by iteration."""

    def __init__(self, type_, budget):
        self.type, self.budget, self.values, self.nbytes = type_, budget, [], 0

    def append(self, value):
        """Add the slice of one iteration; InputError if its type changes, LimitError if all are too large."""
        if self.values and (value.shape != self.values[0].shape or value.dtype != self.values[0].dtype):
            raise InputError(f"a scan output's shape changes from {self.values[0].shape} to {value.shape}")
        self.nbytes += value.nbytes
        if self.nbytes > MAX_TENSOR_BYTES:
            raise LimitError(f"a scan output of more than {MAX_TENSOR_BYTES} bytes")
        value = value if value.base is None else value.copy()  # a view would keep the memory of the whole array
        self.budget.keep_row(value)
        self.values.append(value)

    def stacked(self, axis=0, backwards=False):
        """Return all slices stacked along a new axis, in reverse order if `backwards`."""
        if not self.values:
            shape = [n if isinstance(n, int) else 0 for n in self.type.shape]
            shape.insert(_position(axis, len(shape) + 1, "scan_output_axes"), 0)
            return np.empty(shape, self.type.dtype)
        _position(axis, self.values[0].ndim + 1, "scan_output_axes")
        self.budget.drop_rows(self.values)
        return np.stack(self.values[::-1] if backwards else self.values, axis)


def _position(axis, rank, name):
    """Return an axis counted from the front; InputError, which says `name`, if it is out of range."""
    if not -rank <= axis < rank:
        raise InputError(f"{name}: axis {axis} is out of range for rank {rank}")
    return axis % rank


def _flags(values, count, name):
    """Return an attribute of `count` values 0 or 1, all 0 if it is absent."""
    if values is None:
        return (0,) * count
    if len(values) != count or not set(values) <= {0, 1}:
        raise InputError(f"{name} = {list(values)}, expected {count} of 0 or 1")
    return values


def _axes(values, count, name):
    """Return an attribute of `count` axes, all 0 if it is absent."""
    if values is not None and len(values) != count:
        raise InputError(f"{name} = {list(values)}, expected {count} of them")
    return (0,) * count if values is None else values


class ScanSettings(NamedTuple):
    """How a Scan iterates.

    states: the initial states. inputs: the scanned inputs, with the scanned axis first and in the order of the
    iterations. output_axes: the axis of the iterations in each scan output. output_directions: 1 if they fill it
    backwards.
    """

    states: list
    inputs: list
    output_axes: tuple
    output_directions: tuple


def scan_settings(
    values,
    n_outputs,
    *,
    num_scan_inputs,
    scan_input_axes=None,
    scan_input_directions=None,
    scan_output_axes=None,
    scan_output_directions=None,
):
    """Return the ScanSettings of a node with n_outputs outputs, states included, for these input values."""
    count = len(values) - num_scan_inputs
    n_outputs -= count
    axes = _axes(scan_input_axes, num_scan_inputs, "scan_input_axes")
    directions = _flags(scan_input_directions, num_scan_inputs, "scan_input_directions")
    scanned = [np.moveaxis(x, _position(axis, x.ndim, "scan_input_axes"), 0) for x, axis in zip(values[count:], axes)]
    return ScanSettings(
        list(values[:count]),
        [x[::-1] if backwards else x for x, backwards in zip(scanned, directions)],
        _axes(scan_output_axes, n_outputs, "scan_output_axes"),
        _flags(scan_output_directions, n_outputs, "scan_output_directions"),
    )


def scan_9(
    *values,
    body: Subgraph,
    num_scan_inputs: int,
    scan_input_axes: Ints | None = None,
    scan_input_directions: Ints | None = None,
    scan_output_axes: Ints | None = None,
    scan_output_directions: Ints | None = None,
):
    """Scan: for each index of the scanned axis, body(*states, *slices of inputs) -> *states, *slices of outputs."""
    scan = scan_settings(
        values,
        len(body.outputs),
        num_scan_inputs=num_scan_inputs,
        scan_input_axes=scan_input_axes,
        scan_input_directions=scan_input_directions,
        scan_output_axes=scan_output_axes,
        scan_output_directions=scan_output_directions,
    )
    states, scan_outputs = _iterate(body, scan.states, scan.inputs)
    stacked = (
        scan_output.stacked(axis, backwards)
        for scan_output, axis, backwards in zip(scan_outputs, scan.output_axes, scan.output_directions)
    )
    return (*states, *stacked)


def _iterate(body, states, scanned):
    """Return the last states and the _ScanOutput of each scan output."""
    lengths = {len(x) for x in scanned}
    if len(lengths) != 1:
        raise InputError(f"scanned inputs of lengths {sorted(lengths)}, expected one length")
    scan_outputs = [_ScanOutput(t, body.budget) for t in body.outputs[len(states) :]]
    length = lengths.pop()
    for t in range(length):
        body.budget.iterate()
        outputs = body(*states, *(x[t, ...] for x in scanned))
        states = outputs[: len(states)]
        for scan_output, value in zip(scan_outputs, outputs[len(states) :]):
            scan_output.append(value)
    if length == 0 and not _are_declared(scan_outputs):
        _learn_types(scan_outputs, body, *states, *map(_zero_slice, scanned))
    return states, scan_outputs


def _zero_slice(x):
    """Return zeros of the shape of one slice of x."""
    check_size(x.shape[1:], x.dtype)
    return np.zeros(x.shape[1:], x.dtype)


def scan_8(sequence_lens=None, *values, body: Subgraph, num_scan_inputs: int, directions: Ints | None = None):
    """Scan-8: axis 0 of states and inputs is the batch, and axis 1 of inputs is scanned. Each sample has its own length
    in sequence_lens, and its outputs are zero beyond that.
    """
    count = len(values) - num_scan_inputs
    backwards = _flags(directions, num_scan_inputs, "directions")
    if any(x.ndim < 1 for x in values[:count]) or any(x.ndim < 2 for x in values[count:]):
        raise InputError(f"inputs of shapes {[x.shape for x in values]}, expected a batch axis and a scanned one")
    if len({len(x) for x in values}) != 1 or len({x.shape[1] for x in values[count:]}) != 1:
        raise InputError(f"inputs of shapes {[x.shape for x in values]} differ in batch or length")
    batch, length = values[count].shape[:2]
    lens = [length] * batch if sequence_lens is None else sequence_lens.tolist()
    if np.shape(lens) != (batch,) or any(not 0 <= n <= length for n in lens):
        raise InputError(f"sequence_lens {lens}, expected {batch} of 0 to {length}")
    results = []
    for b, n in enumerate(lens):
        scanned = [x[b, n - 1 :: -1] if flag and n else x[b, :n] for x, flag in zip(values[count:], backwards)]
        states, scan_outputs = _iterate(body, [x[b] for x in values[:count]], [x[:n] for x in scanned])
        results.append([*states, *(_padded(scan_output.stacked(), length) for scan_output in scan_outputs)])
    if not results:
        raise InputError("a batch of 0")
    return tuple(np.stack(column) for column in zip(*results))


def _padded(x, length):
    """Return x with zeros appended along axis 0 up to `length`."""
    check_size((length, *x.shape[1:]), x.dtype)
    padded = np.zeros((length, *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    return padded


def sequence_map(sequence, *others, body: Subgraph):
    """SequenceMap: body for each element of a sequence, with those of other sequences, and with tensors as they are."""
    if not isinstance(sequence, list):
        raise InputTypeError("the first input is a tensor, expected a sequence")
    for x in others:
        if isinstance(x, list) and len(x) != len(sequence):
            raise InputError(f"sequences of {len(sequence)} and {len(x)} elements, expected one length")
    results = [[] for _ in body.outputs]
    for i, element in enumerate(sequence):
        body.budget.iterate()
        outputs = body(element, *(x[i] if isinstance(x, list) else x for x in others))
        for result, value in zip(results, outputs):
            result.append(value)
    return tuple(results)


OPS = {"If": {1: if_}, "Loop": {1: loop}, "Scan": {8: scan_8, 9: scan_9}, "SequenceMap": {17: sequence_map}}
