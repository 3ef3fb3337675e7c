"""Many live streams that advance together: their ids, and the sizes of the batches that they run in."""

from __future__ import annotations

import collections.abc
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, raise_if_from_handler, raises_limit_error
from rnnfast.named_values import merge_inputs
from rnnfast.native._arrays import is_like
from rnnfast.native._locks import Lock
from rnnfast.nn.checks import as_array, check_lengths
from rnnfast.streaming._pools import Slots, commit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MAX_STREAMS = 2**24
# The parts of a step for each thread: with several, a thread that comes late still has its share. Silero VAD with 256
# streams on two threads: 1.7 times as fast as on one thread, in two parts each 1.65, in one part each 1.55.
PARTS = 4


def batch_sizes(count, largest, threads=1):
    """Cut a batch into parts: (size of the plan, first stream, number of streams) of each.

    Sizes are few, so that plans are few, and no part is filled up by more than a half.
    """
    if threads > 1 and count > 1:
        largest = min(largest, size_for(-(-count // (PARTS * threads))))
    parts, first = [], 0
    while first < count:
        size = min(size_for(count - first), largest)
        parts.append((size, first, min(size, count - first)))
        first += size
    return parts


def size_for(count):
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... that is not less than `count`."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power >= 4 else power


def plan_sizes(most):
    """The sizes of the plans for batches of 1 to `most` streams."""
    return sorted({size_for(count) for count in range(1, most + 1)})


class Pool:
    """Live streams that advance together, each with the bits that it would get alone.

    `model.pool` and `layer.pool` make it. Any thread may call it; calls are served one at a time. A call that raises
    changes nothing.

    Attributes:
        max_streams: The number of streams that may be open at a time.
        label: The name of the model or layer, which begins every error message.
        outputs: The names of a step's results.
        frame_pattern: An array, or None. A frame of its type and shape needs no `validate`.
        why_no_streams: The end of the error message where streams cannot be opened.
    """

    max_streams: int
    label: str
    outputs: Any
    frame_pattern: Any
    why_no_streams = ""

    def __init__(self, label: str, max_streams: int) -> None:
        if type(max_streams) is not int or not 1 <= max_streams <= MAX_STREAMS:
            raise InputError(f"{label}: max_streams is {max_streams!r}, expected an int of 1 to {MAX_STREAMS}")
        self.max_streams, self.label = max_streams, label
        self._slots, self._lock = Slots(max_streams, label), Lock(label, "pool", True)
        # slot -> the states that its stream began with, where they are not zeros
        self._initial_states: dict[int, Any] = {}
        self._running: NDArray[np.intp] | None = None  # the slots of the step or run that began last
        self._forked: set[int] = set()  # those of a call that the parent of this process was in

    # ------------------------------------------------------------------------------------------ left to subclasses
    # A method whose name begins with _begin, _restart, _state, _step or _run has the lock: it calls nothing of a user's
    # but layers of the user's own.
    def _validate_opening(self, state, fixed):
        """(validated initial states or None, further arguments of `_begin`...) of a stream that is to be opened."""
        raise NotImplementedError

    def _begin(self, slot, state, *arguments):
        """Set up the stream in a slot."""
        raise NotImplementedError

    def _restart(self, slot):
        """Give the stream in a slot its initial states."""
        raise NotImplementedError

    def _state(self, slot):
        """A copy of the state of the stream in a slot."""
        raise NotImplementedError

    def _check_initial(self, slot, state):
        """Raise InputError where a validated state does not fit the stream in a slot."""

    def _tables(self, slot):
        """The StateTables that have states of the stream in a slot; none before its first step settles the shapes."""
        raise NotImplementedError

    def _single_input(self, slots):
        """The name of the only input of the streams in these slots; None where there are several."""
        raise NotImplementedError

    def _converted(self, slots, feed):
        """The feed with arrays in place of other values; `_step` raises what else is wrong with it."""
        raise NotImplementedError

    def _step(self, slots, feed, out):
        """Take a frame of each stream, as arrays with the streams along the first axis."""
        raise NotImplementedError

    def _step_frames(self, slots, frames):
        """Take a frame of each stream, as a list of validated frames; return the list of results."""
        raise NotImplementedError

    def _run(self, slots, feed, lengths):
        """Take `lengths` frames of each stream, which lie along the second axis."""
        raise NotImplementedError

    def _warm(self, frame, *opening):
        """Make the plans of all batches of streams, for frames like this one."""
        raise NotImplementedError

    def with_frame_axes(self, stream: int, frame: Any) -> Any:
        """Return a frame whose first axis of size 1 is left out, or is one too many, in the form of `validate`."""
        raise NotImplementedError

    def validate(self, stream: int, frame: Any) -> Any:
        """Check one stream's frame, in the form that `step` takes in a mapping, and convert it for `step_validated`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ streams
    def open(self, state: Any = None, **fixed: ArrayLike) -> int:
        """Open a new stream. Where this raises, by a signal's handler too, no stream is open that was not before.

        Args:
            state: Its initial state, in the form that `state(id)` returns; None begins with zeros.
            **fixed: Inputs that are the same at each step of this stream.

        Returns:
            The stream's id, which never comes back after `close`.

        Raises:
            LimitError: All `max_streams` streams are open.
            InputError: A state or a fixed input does not fit.
            InputTypeError: A state or a fixed input has another type.
        """
        opened: list[int] = []
        try:
            self.open_into(opened, state, fixed)
            return opened[0]
        except BaseException:
            self._slots.take_back(opened)
            raise

    @raises_limit_error
    def open_into(self, opened: list[int], state: Any, fixed: dict[str, Any]) -> None:
        """Open a stream as `open` does, and append its id to `opened`, which has it whatever a signal's handler raises.

        Whoever calls it gives `opened` to `take_back` of the slots where this or what follows raises.
        """
        self._lock.call(self._open, opened, self._validate_opening(state, fixed))
        if not opened:
            raise LimitError(f"{self.label}: all {self.max_streams} streams are open")

    def _open(self, opened, opening):
        self._tidy()
        self._slots.open(opened, self._begin_anew, *opening)

    def _begin_anew(self, slot, *opening):
        try:
            self._begin(slot, *opening)
        except BaseException:
            self._initial_states.pop(slot, None)
            raise

    def _tidy(self):
        """Free the slots of closed streams, and note what a fork interrupted."""
        if self._lock.interrupted:
            self._forked.update(() if self._running is None else self._running.tolist())
            self._lock.interrupted = False
        while self._slots.closed:
            slot = self._slots.closed_slot()
            self._initial_states.pop(slot, None)
            self._forked.discard(slot)
            self._slots.free(slot)

    def _find(self, ids):
        """The slots of these streams, which are open; InputError where a fork interrupted a call of one."""
        if self._slots.closed or self._lock.interrupted:
            self._tidy()
        slots = self._slots.find(ids)
        if self._forked:
            for stream, slot in zip(ids.tolist(), slots.tolist()):
                if slot in self._forked:
                    raise InputError(
                        f"{self.label}: stream {stream} was in a call of another thread when the process was forked: "
                        "reset it, or open another"
                    )
        return slots

    @raises_limit_error
    def warm(self, frame: Any, **fixed: ArrayLike) -> None:
        """Make the plans of all sizes of batches, so that no step has to wait for one. No stream is changed.

        Args:
            frame: A frame like those of the streams, as `step` takes it in a mapping. It settles types and shapes, as
                the first step does.
            **fixed: As for `open`: which streams the plans are for. Where no stream with these values is open, a stream
                that is opened with others may make the pool forget them.

        Raises:
            InputError: The frame or a fixed input does not fit.
            InputTypeError: The frame or a fixed input has another type.
            UnsupportedError: The model has no batch axis.
        """
        self._lock.call(self._warm, frame, *self._validate_opening(None, fixed)[1:])

    def close(self, stream: int) -> None:
        """End a stream and free its slot. It never waits; a step that is running ends as if the stream were open.

        Raises:
            ClosedError: The stream is closed already.
            InputError: It was never opened.
        """
        self._slots.close(self._slots.as_ids([stream]))

    def reset(self, stream: int) -> None:
        """Let a stream begin anew, with the state that it was opened with.

        Raises:
            ClosedError: The stream is closed.
            InputError: It was never opened.
        """
        self._lock.call(self._reset, self._slots.as_ids([stream]))

    def _reset(self, ids):
        self._tidy()
        (slot,) = self._slots.find(ids).tolist()
        self._restart(slot)
        self._forked.discard(slot)

    @raises_limit_error
    def state(self, stream: int) -> Any:
        """A copy of a stream's state, in the form that a stream alone has it.

        It is None before the first step where that step settles the shape.

        Raises:
            ClosedError: The stream is closed.
            InputError: It was never opened.
        """
        return self._lock.call(self._copied_state, self._slots.as_ids([stream]))

    def _copied_state(self, ids):
        (slot,) = self._find(ids).tolist()
        return self._state(slot)

    @property
    def streams(self) -> NDArray[np.intp]:
        """The ids of the open streams, an array [n]."""
        return self._slots.opened()

    def __len__(self) -> int:
        return self._slots.count

    # ------------------------------------------------------------------------------------------ steps
    @raises_limit_error
    def step(self, streams: Any, feed: Any = None, /, *, out: Any = None, **inputs: ArrayLike) -> Any:
        """Take one frame of each of some streams.

        It has two forms. `step({id: frame})` returns {id: result}; frames and results are those of a stream alone: an
        array, or a mapping of arrays by name. `step(ids, array)`, `step(ids, mapping)` and `step(ids, **inputs)` take
        and return arrays that have the streams along the first axis, followed by the axes of a frame without the batch.

        Args:
            streams: {id: frame}, or the ids [n].
            feed: The frames of all streams, an array or a mapping of arrays by the inputs' names.
            out: For the second form only: an array that the result is written to, or a mapping of arrays by the
                results' names.
            **inputs: The frames of all streams, by keyword.

        Raises:
            InputError: A stream is not open or comes twice; names, shapes or values do not fit.
            InputTypeError: A dtype does not fit, or a value is no array.
            UnsupportedError: At the first step, where the model has no batch axis.
        """
        if isinstance(streams, collections.abc.Mapping):
            if feed is not None or inputs or out is not None:
                raise InputError(f"{self.label}: step takes a mapping of frames by stream alone, or ids and arrays")
            ids, pattern = self._slots.as_ids(list(streams)), self.frame_pattern
            self._slots.find(ids)  # so that a stream that is not open is the first error
            frames = [
                frame if is_like(frame, pattern) else self.validate(stream, frame)
                for stream, frame in zip(ids.tolist(), streams.values())
            ]
            return dict(zip(streams, self.step_validated(ids, frames)))
        ids = self._slots.as_ids(streams)
        arrays = dict(out) if isinstance(out, collections.abc.Mapping) else out
        results = self._lock.call(self._step_ids, ids, self._arrays(ids, feed, inputs), arrays)
        return results if out is None else out

    def _arrays(self, ids, feed, inputs):
        """The arrays of a call by the inputs' names."""
        slots = self._slots.find(ids)
        return self._converted(slots, merge_inputs(self.label, feed, inputs, self._single_input(slots)))

    def _step_ids(self, ids, feed, out):
        self._running = slots = self._find(ids)
        return self._step(slots, feed, out)

    @raises_limit_error
    def run(self, streams: Any, feed: Any = None, /, *, lengths: ArrayLike | None = None, **inputs: ArrayLike) -> Any:
        """Take many frames of each of some streams: the same as that many steps.

        Args:
            streams: The ids [n].
            feed: Arrays [n, T, ...] as `step` takes them, with the frames along the second axis.
            lengths: [n] integers, 0 to T: how many frames each stream takes; None is all of them.
            **inputs: The frames, by keyword.

        Returns:
            The results as `step` returns them, with the frames along the second axis, and zeros beyond `lengths`.

        Raises:
            InputError: As for `step`; or the inputs have different numbers of streams or frames.
            InputTypeError: As for `step`.
        """
        ids = self._slots.as_ids(streams)
        feed = merge_inputs(self.label, feed, inputs, self._single_input(self._slots.find(ids)))
        feed = {name: as_array(value, name) for name, value in feed.items()}
        shapes = {name: np.shape(value)[:2] for name, value in feed.items()}
        for name, shape in shapes.items():
            if len(shape) < 2 or shape[0] != len(ids) or shape != next(iter(shapes.values())):
                raise InputError(
                    f"{self.label}: input {name!r} begins with the axes {list(shape)}, expected [{len(ids)}, frames]"
                )
        steps = next(iter(shapes.values()), (0, 0))[1]
        lengths = check_lengths(lengths, steps, len(ids))
        return self._lock.call(self._run_ids, ids, feed, np.full(len(ids), steps) if lengths is None else lengths)

    def _run_ids(self, ids, feed, lengths):
        self._running = slots = self._find(ids)
        return self._run(slots, feed, lengths)

    def validate_sequence(self, sequence: ArrayLike) -> NDArray[Any]:
        """Check the frames [T, ...] of one stream of a pool that has one input and one result.

        Raises:
            InputError: The pool has several inputs or results, or the sequence has no frames.
        """
        if self._single_input(()) is None or len(self.outputs) != 1:
            raise InputError(
                f"{self.label}: sequences are of pools with one input and one result, this one has several"
            )
        x = np.asarray(sequence)
        if x.ndim == 0 or not len(x) or x.dtype.hasobject:
            raise InputError(
                f"{self.label}: a sequence is {x.dtype} {list(x.shape)}, expected frames along the first axis"
            )
        return x

    def validate_state(self, state: Any) -> Any:
        """Check a state as `open` takes it, and convert it for `step_validated`."""
        return self._validate_opening(state, {})[0]

    def is_planned(self, streams: list[int]) -> bool:
        """Return whether a step of these streams makes no plans: all of them are there already."""
        return True

    @raises_limit_error
    def step_validated(self, streams: Any, frames: list[Any], starts: dict[int, Any] | None = None) -> list[Any]:
        """Take one frame of each of these streams, as `validate` returned them; return the list of their results.

        Args:
            streams: The ids [n].
            frames: The frames, n of them.
            starts: {index among the streams: state} of those that begin anew with this frame, as `validate_state`
                returned it; None begins with zeros. `reset` gives them this state later.
        """
        ids = self._slots.as_ids(streams)
        if starts:
            return self._lock.call(self._start, ids, frames, starts)
        return self._lock.call(self._step_ids_validated, ids, frames)

    def _start(self, ids, frames, starts):
        """Give some of the streams other states, and take a frame of each; if that fails, they have the old ones."""
        self._tidy()
        slots, before, steps = self._slots.find(ids).tolist(), [], self._slots.steps
        try:
            for i, state in starts.items():
                slot = slots[i]
                states = [(table, table.get(slot)) for table in self._tables(slot)]
                before.append((slot, self._initial_states.get(slot), states, slot in self._forked))
                if state is not None:
                    self._check_initial(slot, state)
                self._set_initial(slot, state)
                self._restart(slot)
                self._forked.discard(slot)
            return self._step_ids_validated(ids, frames)
        except BaseException:
            if self._slots.steps != steps:
                raise  # A signal's handler did, behind the step.
            for slot, initial, states, forked in before:
                self._set_initial(slot, initial)
                for table, values in states:
                    table.load(slot, values)
                    commit([(table, np.array([slot]))])
                if forked:
                    self._forked.add(slot)
            raise

    def _set_initial(self, slot, state):
        """Note the state that a stream begins with; None is zeros."""
        if state is None:
            self._initial_states.pop(slot, None)
        else:
            self._initial_states[slot] = state

    def _step_ids_validated(self, ids, frames):
        self._running = slots = self._find(ids)
        return self._step_frames(slots, frames)

    def __reduce__(self) -> NoReturn:
        raise InputTypeError(
            f"{self.label}: a pool cannot be pickled or copied: pickle the `state` of its streams and the model or "
            "layer, and give each state to `open` of a new pool"
        )


def with_rank(value: Any, rank: int | None) -> Any:
    """Return a value that has one axis too many or too few with `rank` axes, if its first one is or may be of size 1.

    Other values are returned as they are: to validate them says what is wrong.
    """
    try:
        shape = np.shape(value)
    except Exception as error:  # foreign types may raise anything
        raise_if_from_handler(error)
        return value
    if rank is None or not -1 <= len(shape) - rank <= 1 or len(shape) == rank:
        return value
    if len(shape) < rank:
        return [value] if isinstance(value, (list, tuple, int, float)) else np.asarray(value)[None]
    return value[0] if shape[0] == 1 else value
