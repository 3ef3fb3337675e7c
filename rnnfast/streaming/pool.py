"""Many live streams that advance together: their ids, and the sizes of the batches that they run in."""

import collections.abc
import threading

import numpy as np

from rnnfast.errors import InputError, LimitError
from rnnfast.named_values import merge_inputs
from rnnfast.native._arrays import is_like
from rnnfast.nn.checks import as_array, check_lengths
from rnnfast.streaming._pools import Slots

MAX_STREAMS = 2**24
# Of a step for each thread, so that one that comes late still has its share: Silero VAD, 256 streams, two threads: 1.7
# times one, in two parts each 1.65, in one 1.55.
PARTS = 4


def batch_sizes(count, largest, threads=1):
    """(size of the plan, first, count) of the parts of a batch: sizes are few, so that plans are, and parts are not
    filled up by more than a half."""
    if threads > 1 and count > 1:
        largest = min(largest, size_for(-(-count // (PARTS * threads))))
    parts, first = [], 0
    while first < count:
        size = min(size_for(count - first), largest)
        parts.append((size, first, min(size, count - first)))
        first += size
    return parts


def size_for(count):
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, .. that is not less."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power >= 4 else power


class Pool:
    """Live streams that advance together; `pool` of a model or of a layer makes it. Any thread may call it, one at a
    time is served.

    max_streams: that may be open at a time. A call that raises changes nothing. like: an array, or None; frames of its
    type and shape need no `validate`. why_none: for messages, where streams cannot be opened.
    """

    why_none = ""

    def __init__(self, label, max_streams):
        if type(max_streams) is not int or not 1 <= max_streams <= MAX_STREAMS:
            raise InputError(f"{label}: max_streams is {max_streams!r}, expected an int of 1 to {MAX_STREAMS}")
        self.max_streams, self.label = max_streams, label
        self._slots, self._lock = Slots(max_streams, label), threading.Lock()
        self._begun = {}  # slot -> initial states, where they are not zeros

    def open(self, state=None, **fixed):
        """The id of a new stream, an int. state: its initial one, in the form of `state(id)`; None is zeros. fixed:
        inputs that are the same at each step of this stream."""
        with self._lock:
            state, *kind = self._validated(state, fixed)
            stream = self._slots.open()
            if stream is None:
                raise LimitError(f"{self.label}: all {self.max_streams} streams are open")
            slot = stream % self.max_streams
            if state is not None:
                self._begun[slot] = state
            try:
                self._begin(slot, *kind)
            except BaseException:
                self._free(slot)
                raise
            return stream

    def close(self, stream):
        """End a stream: its place is free, its id never comes back."""
        with self._lock:
            (slot,) = self._slots.find([stream]).tolist()
            self._end(slot)
            self._free(slot)

    def _free(self, slot):
        self._begun.pop(slot, None)
        self._slots.close(slot)

    def reset(self, stream):
        """A stream as it began."""
        with self._lock:
            (slot,) = self._slots.find([stream]).tolist()
            self._restart(slot)

    def state(self, stream):
        """A copy of the state of a stream, as a stream alone has it; None before the first step where that settles the
        shape."""
        with self._lock:
            (slot,) = self._slots.find([stream]).tolist()
            return self._state(slot)

    @property
    def streams(self):
        """The ids of the open streams, an array."""
        with self._lock:
            return self._slots.opened()

    def __len__(self):
        return self._slots.count

    def step(self, streams, feed=None, /, *, out=None, **inputs):
        """One frame of each of some streams.

        step({id: frame}) -> {id: result}, of which each is as a stream alone has it: a frame is an array, or a mapping
        of arrays by the inputs' names. step(ids, **inputs), step(ids, mapping) or step(ids, array) -> result: arrays
        with the streams along the first axis, and then the axes of a frame without the batch. out: an array, or a
        mapping of arrays by the results' names, that the results are written to.
        """
        if isinstance(streams, collections.abc.Mapping):
            if feed is not None or inputs or out is not None:
                raise InputError(f"{self.label}: step takes a mapping of frames by stream alone, or ids and arrays")
            with self._lock:
                slots = self._slots.find(list(streams))
                like = self.like
                frames = [
                    frame if is_like(frame, like) else self.validate(stream, frame) for stream, frame in streams.items()
                ]
                return dict(zip(streams, self._step_frames(slots, frames)))
        with self._lock:
            slots = self._slots.find(streams)
            return self._step(slots, merge_inputs(self.label, feed, inputs, self._single(slots)), out)

    def run(self, streams, feed=None, /, *, lengths=None, **inputs):
        """Many frames of each of some streams, like as many steps: arrays [n, T, ..] as `step` takes and gives them,
        with the frames along the second axis. lengths [n]: how many of them each stream takes; results beyond are 0."""
        with self._lock:
            slots = self._slots.find(streams)
            feed = merge_inputs(self.label, feed, inputs, self._single(slots))
            feed = {name: as_array(value, name) for name, value in feed.items()}
            shapes = {name: np.shape(value)[:2] for name, value in feed.items()}
            for name, shape in shapes.items():
                if len(shape) < 2 or shape[0] != len(slots) or shape != next(iter(shapes.values())):
                    raise InputError(
                        f"{self.label}: input {name!r} begins with the axes {list(shape)}, expected "
                        f"[{len(slots)}, frames]"
                    )
            steps = next(iter(shapes.values()), (0, 0))[1]
            lengths = check_lengths(lengths, steps, len(slots))
            return self._run(slots, feed, np.full(len(slots), steps) if lengths is None else lengths)

    def validate_sequence(self, sequence):
        """Frames [T, ..] of one stream of a pool with one input, as `run` takes them for several."""
        if self._single(()) is None or len(self.outputs) != 1:
            raise InputError(
                f"{self.label}: sequences are of pools with one input and one result, this one has several"
            )
        x = np.asarray(sequence)
        if x.ndim == 0 or not len(x) or x.dtype.hasobject:
            raise InputError(
                f"{self.label}: a sequence is {x.dtype} {list(x.shape)}, expected frames along the first axis"
            )
        return x

    def step_validated(self, streams, frames):
        """A step of these streams with what `validate` made of their frames -> a list of their results."""
        with self._lock:
            return self._step_frames(self._slots.find(streams), frames)
