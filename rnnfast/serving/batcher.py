"""The front of a service: frames of many live streams, or whole sequences, join batches that a thread of its own runs.

Frames wait until as many are there as a batch takes, until each active stream has one, or for `max_wait` seconds.
Active is a stream that was opened or sent a frame since the last batch but two began. A batch holds the next frame of
each stream, so that a stream's frames stay in order. A step of the pool that raises changes no
state: then the batch is run again in halves, down to the stream that is to blame.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.named_values import merge_inputs
from rnnfast.serving._requests import MAX_SECONDS, new_future, soon
from rnnfast.serving.sequences import NoSequences, Sequences
from rnnfast.serving.worker import Worker
from rnnfast.streaming.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from rnnfast.model import Model
    from rnnfast.named_values import Outputs
    from rnnfast.nn import Module


class Batcher:
    """Runs the frames of many streams in batches, in a thread of its own and without the GIL.

    Whole sequences join what runs and leave it as they end, so that a short one does not wait for a long one. Methods
    may be called from any thread and from asyncio; `open`, `close` and `state` wait for the batch that runs. The pool
    is for the batcher alone. Do not write to a frame before its result is there.

    `drain` finishes what waits and ends the thread. Leaving a `with` block ends it after the batch that runs: what
    waits still fails with ClosedError. A Batcher that is dropped finishes what waits. In a process that is
    forked, the copy begins anew, with the streams that were open and without the requests that waited.

    Args:
        pool: A Pool, or a model or layer, of which a pool of `max_batch` streams is made. A model without states takes
            whole sequences, frame by frame where all of it runs forwards, else padded, with their lengths, to sequences
            of similar length. Every model takes whole calls.
        max_batch: The most frames in a batch.
        max_wait: The most seconds that a frame waits for others while the thread is free. It waits for those of streams
            that are active: the next three batches wait for a stream that was opened or sent a frame. A frame whose
            timeout is no longer than `max_wait` does not wait for others.
        max_queue: The most frames that may wait; by default 8 batches, or 2 frames of each stream if that is more.
        idle: Seconds after which a stream without frames is closed; None for never.
        wait_from: The least number of open streams with which frames wait for others.
        max_inline: The most seconds for which asyncio's frames and calls may hold up their event loop. They run in the
            loop if their plans are there, the last batch of their size took no longer, and the thread sleeps and has
            nothing else to run. That saves two hand-overs between threads, which take longer than a small model. 0
            runs all in the thread.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: `pool` is none of these.
    """

    def __init__(
        self,
        pool: Pool | Model | Module,
        max_batch: int = 256,
        max_wait: float = 0.001,
        *,
        max_queue: int | None = None,
        idle: float | None = None,
        wait_from: int = 0,
        max_inline: float = 0.0,
    ) -> None:
        for name, count in (("max_batch", max_batch), ("max_queue", max_queue)):
            if count is not None and (type(count) is not int or not 1 <= count <= sys.maxsize):
                raise InputError(f"Batcher: {name} is {count!r}, expected an int of at least 1")
        seconds = {"max_wait": max_wait, "max_inline": max_inline} | ({} if idle is None else {"idle": idle})
        for name, value in seconds.items():
            if not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS or name == "idle" and not value:
                raise InputError(f"Batcher: {name} is {value!r}, expected seconds, {MAX_SECONDS:.0f} at most")
        if type(wait_from) is not int or not 0 <= wait_from <= sys.maxsize:
            raise InputError(f"Batcher: wait_from is {wait_from!r}, expected an int of at least 0")
        its_pool, self._sequence_runner, self._calls = _parts(pool, max_batch)
        most = max(8 * max_batch, 2 * its_pool.max_streams) if max_queue is None else max_queue
        self._worker = Worker(
            its_pool, self._sequence_runner, self._calls, max_batch, max_wait, most, idle, max_inline, wait_from
        )
        # stream -> (function, event loop or None). The worker, which outlives a Batcher that is dropped, has none of
        # them, because they may refer to the Batcher.
        self._on_close: dict[int, tuple[Callable[[int], object], asyncio.AbstractEventLoop | None]] = {}
        this = weakref.ref(self)
        self._worker.told = lambda stream: _tell(this(), stream)
        weakref.finalize(self, self._worker.finish).atexit = False
        self._worker._start()  # last: if this raises, the finalizer ends the thread

    # ------------------------------------------------------------------------------------------ streams
    def open(self, state: Any = None, *, on_close: Callable[[int], object] | None = None, **fixed: ArrayLike) -> int:
        """Open a new stream. Where this raises, by a signal's handler too, no stream is open that was not before.

        Args:
            state: As for the pool's `open`.
            on_close: A function that is called with the stream's id when the stream is closed for idleness: in the
                running event loop where there is one, else in the batcher's thread.
            **fixed: As for the pool's `open`.

        Returns:
            The stream's id.

        Raises:
            ClosedError: The batcher is closed.
            LimitError: All streams of the pool are open.
            InputError: A state or a fixed input does not fit, or the model has no states and so no streams.
        """
        loop, opened = _running_loop(), list[int]()
        try:
            self._worker.open(opened, state, fixed)
            if on_close is not None:
                self._on_close[opened[0]] = on_close, loop
            return opened[0]
        except BaseException:
            self._worker.take_back(opened)
            raise

    def close(self, stream: int) -> None:
        """End a stream. Frames of it that no batch has taken fail with ClosedError.

        Where the batcher itself is closed, and with it its streams, this does nothing.

        Raises:
            ClosedError: The stream is not open.
        """
        if self._worker._draining and stream not in self._worker._streams:
            return
        open_stream = self._worker._find_open(stream)
        self._on_close.pop(stream, None)
        self._worker.end(open_stream, "was closed")

    def state(self, stream: int) -> Any:
        """A copy of a stream's state between two batches, as the pool's `state` returns it.

        Raises:
            ClosedError: The stream is not open.
        """
        self._worker._find_open(stream)
        return self._worker._pool.state(stream)

    def frames(self, stream: int) -> int:
        """Return how many frames a stream's state has taken since it began: whether a cancelled one is among them.

        It waits for the batch that runs, if there is one, because that may have taken the frame.

        Raises:
            ClosedError: The stream is not open.
        """
        return self._worker.frames(stream)

    # ------------------------------------------------------------------------------------------ frames
    def step(
        self,
        stream: int,
        frame: Any = None,
        timeout: float | None = None,
        begin: Any = False,
        priority: int = 0,
        **inputs: ArrayLike,
    ) -> Awaitable[Any]:
        """Take a frame, from asyncio.

        A frame that is cancelled or fails before a batch takes it leaves its stream as it was; `frames` tells.

        Args:
            stream: The id that `open` returned.
            frame: The frame, in the form that a stream's `step` takes it: of a model with the batch axis of size 1, of
                a layer without. A first axis of size 1 may be left out, or be one too many.
            timeout: Seconds after which a frame that no batch has taken fails; None waits as long as it takes.
            begin: Whether the stream begins anew with this frame: True for zeros, or the state to begin with, as for
                the pool's `open`. Frames that were sent before run before, with the old state. If this frame is
                cancelled or fails, the state stays as it was, and later frames are refused until one of them begins.
            priority: 1, 2 or 3; 0 is 2, as in Triton. Where more frames wait than a batch takes, it takes those of a
                lower number first. A stream's frames stay in order: all that wait have the priority of the first among
                them.
            **inputs: The frame, by keyword.

        Returns:
            An awaitable of the result, in the form that a stream's `step` returns it.

        Raises:
            Overloaded: Too many frames wait already.
            ClosedError: The stream or the batcher is closed.
            InputError: The frame or the state does not fit, or no event loop runs; (when awaited) the frame with which
                the stream was to begin failed.
            DeadlineError: (when awaited) The timeout passed.
        """
        frame = merge_inputs("Batcher", frame, inputs) if inputs else frame
        return self._worker.step(stream, frame, timeout, begin, priority)

    def submit(
        self,
        stream: int,
        frame: Any = None,
        timeout: float | None = None,
        begin: Any = False,
        priority: int = 0,
        **inputs: ArrayLike,
    ) -> concurrent.futures.Future[Any]:
        """Take a frame, from any thread: like `step`, but returns a concurrent.futures.Future.

        The Future's callbacks run in the batcher's thread; they must not wait for another result.
        """
        frame = merge_inputs("Batcher", frame, inputs) if inputs else frame
        return self._worker.submit(stream, frame, timeout, begin, priority)

    # ------------------------------------------------------------------------------------------ sequences
    def run(self, sequence: ArrayLike, timeout: float | None = None, priority: int = 0) -> Awaitable[Any]:
        """Take a whole sequence, from asyncio; it gets a stream of its own, which begins with zeros.

        Args:
            sequence: [T, ...], as the pool's `step` takes frames, with frames in place of streams. For a model without
                states, its input without the batch axis.
            timeout: Seconds after which a sequence that has not begun fails; None waits as long as it takes.
            priority: 1, 2 or 3; 0 is 2. Those of a lower number begin first.

        Returns:
            An awaitable of the results [T, ...] in the same form.

        Raises:
            Overloaded: Too many frames and sequences wait already.
            ClosedError: The batcher is closed.
            InputError: The sequence does not fit, or no event loop runs.
            UnsupportedError: No way gives sequences of a model without states the bits of the model called with one
                sequence; the message says why.
            DeadlineError: (when awaited) The timeout passed.
        """
        loop = self._worker._running_loop("run", "submit_run")
        future = loop.create_future()
        self._worker._post(None, self._sequence_runner.validate(sequence), future, loop, timeout, priority)
        return future

    def submit_run(
        self, sequence: ArrayLike, timeout: float | None = None, priority: int = 0
    ) -> concurrent.futures.Future[Any]:
        """Take a whole sequence, from any thread: like `run`, but returns a concurrent.futures.Future.

        The Future can be cancelled until the sequence begins.
        """
        future = new_future()
        self._worker._post(None, self._sequence_runner.validate(sequence), future, None, timeout, priority)
        return future

    # ------------------------------------------------------------------------------------------ calls
    def call(
        self, feed: Mapping[str, ArrayLike], timeout: float | None = None, priority: int = 0
    ) -> Awaitable[Outputs]:
        """Take a whole call of the model, from asyncio; calls that wait together run as one where that is the same.

        The inputs of calls are joined along their batch axes, where these are proven and all else is equal, and the
        outputs are split again: bits and shapes are those of each call alone. Other calls run one by one. A call does
        not wait for others, and frames run between two of them.

        Args:
            feed: The inputs of the call by name, states included. Do not write to them before the result is there.
            timeout: Seconds after which a call that has not begun fails; None waits as long as it takes.
            priority: 1, 2 or 3; 0 is 2. Those of a lower number run first.

        Returns:
            An awaitable of the Outputs.

        Raises:
            Overloaded: Too many requests wait already.
            ClosedError: The batcher is closed.
            InputError: The inputs do not fit, the Batcher is of a layer, or no event loop runs.
            InputTypeError: An input has a wrong type.
            DeadlineError: (when awaited) The timeout passed.
            Error: (when awaited) As a call of the model raises it.
        """
        loop = self._worker._running_loop("call", "submit_call")
        future = loop.create_future()
        self._worker._post(None, self._calls.validate(feed), future, loop, timeout, priority, call=True)
        return future

    def submit_call(
        self, feed: Mapping[str, ArrayLike], timeout: float | None = None, priority: int = 0
    ) -> concurrent.futures.Future[Outputs]:
        """Take a whole call of the model, from any thread: like `call`, but returns a concurrent.futures.Future.

        The Future can be cancelled until the call begins.
        """
        future = new_future()
        self._worker._post(None, self._calls.validate(feed), future, None, timeout, priority, call=True)
        return future

    def sequence_of(self, feed: Mapping[str, Any]) -> NDArray[Any] | None:
        """The sequence that the inputs of a call are, for `run`.

        Args:
            feed: The inputs of a call by name, as arrays.

        Returns:
            The sequence; None if the inputs hold several, or less than a whole one, or if sequences of the model cannot
            share batches.
        """
        return self._sequence_runner.of_call(feed)

    def as_call(self, results: Any) -> Outputs:
        """The outputs of the call whose sequence `sequence_of` gave, from what `run` gave for it."""
        return self._sequence_runner.as_call(results)

    # ------------------------------------------------------------------------------------------ the whole
    def stats(self) -> dict[str, Any]:
        """Plain numbers for a metrics library.

        Returns:
            A dict with
            `streams`, `queued`: open streams and waiting frames now;
            `frames`, `batches`: how many were done since the beginning;
            `cancelled`, `expired`, `failed`, `overloaded`: requests that were cancelled, that waited past their
            timeout, that raised, and that were refused because too many waited;
            `calls`: whole calls that were done;
            `idle`: streams that were closed for idleness;
            `mean_batch`: the mean number of frames in a batch;
            `batch_sizes`, `call_sizes`, `queue_seconds`, `compute_seconds`: histograms of the frames in a batch, of the
            calls that ran as one, of the seconds that requests waited, and of the seconds that batches took: upper
            `bounds`, `counts` (one more than bounds),
            `sum` and `count`.
        """
        return self._worker.stats()

    def drain(self) -> None:
        """Take no more frames, finish those that wait, close all streams, and end the thread.

        In asyncio: ``await asyncio.to_thread(batcher.drain)``. Called in the batcher's own thread, from a callback of a
        Future say, it does not wait for the end.
        """
        self._worker.finish()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.abandon()
        self._worker.join()

    def __reduce__(self) -> NoReturn:
        raise InputTypeError(
            "Batcher: it cannot be pickled or copied: pickle the model or layer, and make a Batcher of it where it is "
            "used; the state of a stream is `state(id)`, which `open` takes"
        )

    def __repr__(self) -> str:
        return f"<rnnfast.Batcher of {self._worker._pool!r}>"


def _tell(batcher, stream):
    """Tell a stream's owner that it was closed for idleness, if its Batcher still lives."""
    on_close, loop = (batcher is not None and batcher._on_close.pop(stream, None)) or (None, None)
    if on_close is not None and loop is not None:
        soon(loop, on_close, stream)
    elif on_close is not None:
        with contextlib.suppress(BaseException):  # What the caller's function raises is not ours: other streams go on.
            on_close(stream)


def _parts(source, most):
    """(pool, Sequences, Calls) for a Batcher of a Pool, a layer or a model; at most `most` sequences run at a time."""
    from rnnfast.serving.calls import Calls, NoCalls

    if isinstance(source, Pool):
        model = getattr(source, "model", None)
        return source, Sequences(source), NoCalls(source.label) if model is None else Calls(model, most)
    if not hasattr(source, "pool"):
        raise InputTypeError(f"Batcher: got a {type(source).__name__}, expected a pool, a model or a layer")
    if not hasattr(source, "folded"):
        pool = source.pool(most)
        return pool, Sequences(pool), NoCalls(pool.label)
    calls = Calls(source, most)
    try:
        pool = source.pool(most)
    except InputError as unclear:
        from rnnfast.serving.model_sequences import sequences_of

        try:
            sequences = sequences_of(source, unclear)
        except UnsupportedError as e:
            sequences = NoSequences(str(e))
        return _NoStreams(source.source.label, most), sequences, calls
    return pool, Sequences(pool), calls


class _NoStreams:
    """Stands for the pool of a model without states, which has no streams."""

    why_no_streams = (
        ": no input is a state, so there are no streams: run and submit_run take whole sequences, call and submit_call "
        "whole calls"
    )
    frame_pattern = None

    def __init__(self, label, max_streams):
        self.label, self.max_streams = label, max_streams

    def open_into(self, opened, state, fixed):
        raise InputError(self.label + self.why_no_streams)

    def __repr__(self):
        return f"sequences of {self.label}"


def _running_loop():
    """The running event loop, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
