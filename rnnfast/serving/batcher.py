"""The front of a service: frames of many live streams, or whole sequences, join batches that a thread of its own runs.

Frames wait until as many are there as a batch takes, until each open stream has one, or for `max_wait` seconds. A batch
holds the next frame of each stream, so that a stream's frames stay in order. A step of the pool that raises changes no
state: then the batch is run again in halves, down to the stream that is to blame.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import ClosedError, InputError, InputTypeError
from rnnfast.serving._requests import OpenStream, RequestQueue, soon, tell
from rnnfast.serving.sequences import ActiveSequence, Sequences
from rnnfast.streaming.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from rnnfast.model import Model
    from rnnfast.nn import Module

# Seconds: the upper bounds of the histograms of times. Those of sizes are powers of two.
TIMES = tuple(1e-4 * 2**i for i in range(18))
SIZES = tuple(2**i for i in range(17))
# Seconds between two looks of waiting sequences for a free stream, and between two looks for late ones among them.
PLACE_SECONDS = 0.005


class Histogram:
    """How often values occurred, by upper bounds; `counts` has one more entry for values beyond the last bound."""

    def __init__(self, bounds):
        self.bounds, self.sum = bounds, 0.0
        self._counts = np.zeros(len(bounds) + 1, np.int64)

    def add(self, values):
        """Count some values."""
        self._counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.bounds) + 1)
        self.sum += float(np.sum(values))

    def numbers(self):
        """The histogram as plain numbers."""
        counts = self._counts.tolist()
        return {"bounds": list(self.bounds), "counts": counts, "sum": self.sum, "count": sum(counts)}


class Batcher(RequestQueue):
    """Runs the frames of many streams in batches, in a thread of its own and without the GIL.

    Whole sequences join what runs and leave it as they end, so that a short one does not wait for a long one. Methods
    may be called from any thread and from asyncio; `open`, `close` and `state` wait for the batch that runs. The pool
    is for the batcher alone. `drain`, which leaving a `with` block calls, ends the thread. Do not write to a frame
    before its result is there.

    Args:
        pool: A Pool, or a model or layer, of which a pool of `max_batch` streams is made. A model without states takes
            whole sequences only: frame by frame where all of it runs forwards, else padded, with their lengths, to
            sequences of similar length.
        max_batch: The most frames in a batch.
        max_wait: The most seconds that a frame waits for others while the thread is free. A frame whose timeout is no
            longer does not wait for others.
        max_queue: The most frames that may wait; by default 8 batches, or 2 frames of each stream if that is more.
        idle: Seconds after which a stream without frames is closed; None for never.

    Raises:
        InputError: An argument is out of range.
        InputTypeError: `pool` is none of these.
        UnsupportedError: No way gives sequences of a model without states the bits of the model called with one
            sequence; the message says why.
    """

    def __init__(
        self,
        pool: Pool | Model | Module,
        max_batch: int = 256,
        max_wait: float = 0.001,
        *,
        max_queue: int | None = None,
        idle: float | None = None,
    ) -> None:
        for name, count in (("max_batch", max_batch), ("max_queue", max_queue)):
            if count is not None and (type(count) is not int or count < 1):
                raise InputError(f"Batcher: {name} is {count!r}, expected an int of at least 1")
        for name, value in (("max_wait", max_wait), *([] if idle is None else [("idle", idle)])):
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf") or name == "idle" and not value:
                raise InputError(f"Batcher: {name} is {value!r}, expected seconds")
        its_pool, self._sequence_runner = _pool_and_sequences(pool, max_batch)
        most = max(8 * max_batch, 2 * its_pool.max_streams) if max_queue is None else max_queue
        super().__init__(its_pool, most, max_wait)
        self._max_batch, self._idle = max_batch, idle
        self._lock = threading.Lock()  # for opening and closing streams
        # The next four belong to the thread.
        self._active: list[ActiveSequence] = []  # the ActiveSequences
        self._taken: list[Any] = []  # the batch that runs
        self._looked_through = 0.0  # when it last looked for late ones among the waiting sequences
        self._looked = time.monotonic()  # when it last looked for idle streams
        self._batch_sizes, self._queue_times, self._compute_times = Histogram(SIZES), Histogram(TIMES), Histogram(TIMES)
        self._thread = threading.Thread(target=self._work, name="rnnfast-batcher", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------ streams
    def open(self, state: Any = None, *, on_close: Callable[[int], object] | None = None, **fixed: ArrayLike) -> int:
        """Open a new stream.

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
        loop = _running_loop() if on_close is not None else None
        with self._lock:
            self._check_open()
            stream = self._pool.open(state, **fixed)
            self._streams[stream] = OpenStream(stream, on_close, loop)
            return stream

    def close(self, stream: int) -> None:
        """End a stream. Frames of it that no batch has taken fail with ClosedError.

        Raises:
            ClosedError: The stream is not open.
        """
        self._end(self._find_open(stream), "was closed")

    def state(self, stream: int) -> Any:
        """A copy of a stream's state between two batches, as the pool's `state` returns it.

        Raises:
            ClosedError: The stream is not open.
        """
        self._find_open(stream)
        return self._pool.state(stream)

    # ------------------------------------------------------------------------------------------ sequences
    def run(self, sequence: ArrayLike, timeout: float | None = None) -> Awaitable[Any]:
        """Take a whole sequence, from asyncio; it gets a stream of its own, which begins with zeros.

        Args:
            sequence: [T, ...], as the pool's `step` takes frames, with frames in place of streams. For a model without
                states, its input without the batch axis.
            timeout: Seconds after which a sequence that has not begun fails; None waits as long as it takes.

        Returns:
            An awaitable of the results [T, ...] in the same form.

        Raises:
            Overloaded: Too many frames and sequences wait already.
            ClosedError: The batcher is closed.
            InputError: The sequence does not fit.
            DeadlineError: (when awaited) The timeout passed.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._post(None, self._sequence_runner.validate(sequence), future, loop, timeout)
        return future

    def submit_run(self, sequence: ArrayLike, timeout: float | None = None) -> concurrent.futures.Future[Any]:
        """Take a whole sequence, from any thread: like `run`, but returns a concurrent.futures.Future.

        The Future can be cancelled until the sequence begins.
        """
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._post(None, self._sequence_runner.validate(sequence), future, None, timeout)
        return future

    # ------------------------------------------------------------------------------------------ the thread
    def _work(self):
        """The thread: run batches and sequences until the batcher is drained and nothing is left."""
        error = None
        try:
            while not self._draining or self.queued() or self._active:
                self._sort()
                if self._idle is not None:
                    self._close_idle()
                left = self._to_wait()
                if left == 0:
                    self._step(self._take(self._max_batch))
                if not self._advance() and left != 0:
                    self._sleep(left)
        except BaseException as e:  # There is no memory, or a defect: let nobody wait for ever.
            error = e
        self._draining = self._ended = True
        why = "" if error is None else f": {type(error).__name__}: {error}"
        self._refuse_all([*self._all(), *self._taken, *(sequence.request for sequence in self._active)], why)
        self._sweep(why)

    def _full(self):
        """The number of waiting frames that make a batch."""
        return max(min(self._max_batch, len(self._streams)), 1)

    def _to_wait(self):
        """Seconds until a batch is to run; None if that depends on a frame that has not come yet."""
        if self._ready() >= self._full() or self._draining and self._ready():
            return 0
        due = self._due()
        return None if due is None else max(due - time.monotonic(), 0)

    def _sleep(self, left):
        """Sleep until there may be work, `left` seconds at most if that is not None."""
        limits = [] if left is None else [left]
        if self._idle is not None:
            limits.append(self._idle / 4)
        if self._sequences:  # They wait for a free stream, which nothing announces.
            limits.append(PLACE_SECONDS)
        self._sleep_until(self._full() - self._ready() if self._ready() else 1, min(limits, default=None))

    def _step(self, batch):
        """Run a batch; if it fails, run its halves, until each frame has its result or its error."""
        if not batch:
            return
        begun = time.monotonic()
        self._queue_times.add([begun - request.arrived for request in batch])
        self._taken = batch
        for part, results, error in _in_halves([batch], self._run_frames):
            if error:
                open_stream = part[0].open_stream
                error = self._closed(open_stream) if open_stream.closed else error
            self._batch_sizes.add([len(part)])
            self._counters["failed" if error else "frames"] += len(part)
            if error:
                tell([(part[0], None, error)])
            else:
                self._answer(part, results)
        self._taken = []
        self._compute_times.add([time.monotonic() - begun])

    def _advance(self):
        """Run some frames of each active sequence; return False if there is none."""
        if not self._sequences and not self._active:
            return False
        now, outcomes = time.monotonic(), []
        self._begin_sequences(now, outcomes)
        for s in list(self._active):
            if self._is_over(s.request, 0 if s.taken else now, outcomes):  # The deadline holds until it begins.
                self._leave(s)
        tell(outcomes)
        if not self._active:
            return False
        for part, results, error in _in_halves(self._sequence_runner.batches(self._active), self._run_sequences):
            outcomes = []
            if error:
                self._counters["failed"] += 1
                self._finish(part[0], error, outcomes)
            else:
                self._batch_sizes.add([len(part)])
                for s, result in zip(part, results):
                    frames = self._sequence_runner.frames(s)
                    self._counters["frames"] += frames
                    s.results.append(result)
                    s.taken += frames
                    if s.taken == len(s.x):
                        self._finish(s, None, outcomes)
            tell(outcomes)
        self._compute_times.add([time.monotonic() - now])
        return True

    def _begin_sequences(self, now, outcomes):
        """Let waiting sequences begin, in order, while there are streams for them."""
        begun = []
        while self._sequences and len(self._active) < self._max_batch:
            state = self._sequence_runner.open()
            if state is None:
                break
            request = self._next_sequence()
            if self._is_over(request, now, outcomes) or not request.begin():
                self._sequence_runner.close(state)
            else:
                self._active.append(ActiveSequence(request, request.arrived, request.value, state))
                begun.append(now - request.arrived)
        if begun:
            self._queue_times.add(begun)
        refused = self._draining and not self._active
        if refused or now - self._looked_through >= PLACE_SECONDS:
            self._looked_through = now
            for _ in range(len(self._sequences)):
                request = self._next_sequence()
                if self._is_over(request, now, outcomes):
                    continue
                if refused:
                    why = "the batcher is closed, and all streams of the pool are open: nothing was taken"
                    outcomes.append((request, None, ClosedError(f"{self._pool.label}: {why}")))
                else:
                    self._put_back(request)

    def _run_sequences(self, part):
        """The results of the next frames of each sequence."""
        frames = [s.x[s.taken : s.taken + self._sequence_runner.frames(s)] for s in part]
        return self._sequence_runner.run([s.state for s in part], frames)

    def _finish(self, sequence, error, outcomes):
        """End an active sequence and note its result or error."""
        result = None
        if error is None:
            try:
                result = self._sequence_runner.joined(sequence.results)
            except MemoryError as e:
                error = e
        self._leave(sequence)
        outcomes.append((sequence.request, result, error))

    def _leave(self, sequence):
        """Free what an active sequence holds."""
        self._active.remove(sequence)
        self._sequence_runner.close(sequence.state)

    def _end(self, open_stream, why):
        """Close a stream; return False if that was done before."""
        with self._lock:
            if self._streams.pop(open_stream.id, None) is None:
                return False  # Another thread was first.
            open_stream.closed = why
            self._pool.close(open_stream.id)
        self._wake.set()
        return True

    def _close_idle(self):
        """Close the streams that had no frames for `idle` seconds, and tell their owners."""
        now = time.monotonic()
        if now - self._looked < self._idle / 4:
            return
        self._looked = now
        for open_stream in list(self._streams.values()):
            if now - open_stream.last > self._idle and not open_stream.waiting and self._end(open_stream, "was idle"):
                self._counters["idle"] += 1
                if open_stream.on_close is not None and open_stream.loop is not None:
                    soon(open_stream.loop, open_stream.on_close, open_stream.id)
                elif open_stream.on_close is not None:
                    with contextlib.suppress(
                        Exception
                    ):  # An error of the caller's function is not ours: other streams go on.
                        open_stream.on_close(open_stream.id)

    # ------------------------------------------------------------------------------------------ the whole
    def stats(self) -> dict[str, Any]:
        """Plain numbers for a metrics library.

        Returns:
            A dict with
            `streams`, `queued`: open streams and waiting frames now;
            `frames`, `batches`: how many were done since the beginning;
            `cancelled`, `expired`, `failed`, `overloaded`: frames that were cancelled, that waited past their timeout,
            that raised, and that were refused because too many waited;
            `idle`: streams that were closed for idleness;
            `mean_batch`: the mean number of frames in a batch;
            `batch_sizes`, `queue_seconds`, `compute_seconds`: histograms of the frames in a batch, of the seconds that
            frames waited, and of the seconds that batches took: upper `bounds`, `counts` (one more than bounds),
            `sum` and `count`.
        """
        sizes = self._batch_sizes.numbers()
        return {
            "streams": len(self._streams),
            "queued": self.queued(),
            **{
                name: self._counters[name]
                for name in ("frames", "cancelled", "expired", "failed", "overloaded", "idle")
            },
            "batches": sizes["count"],
            "mean_batch": sizes["sum"] / max(sizes["count"], 1),
            "batch_sizes": sizes,
            "queue_seconds": self._queue_times.numbers(),
            "compute_seconds": self._compute_times.numbers(),
        }

    def drain(self) -> None:
        """Take no more frames, finish those that wait, close all streams, and end the thread.

        In asyncio: ``await asyncio.to_thread(batcher.drain)``.
        """
        with self._lock:
            self._draining = True
        self._wake.set()
        self._thread.join()
        for open_stream in list(self._streams.values()):
            self._end(open_stream, "was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.drain()

    def __repr__(self):
        return f"<rnnfast.Batcher of {self._pool!r}>"


def _pool_and_sequences(source, most):
    """(pool, Sequences) for a Batcher of a Pool, a layer or a model; at most `most` sequences run at a time."""
    if isinstance(source, Pool):
        return source, Sequences(source)
    if not hasattr(source, "pool"):
        raise InputTypeError(f"Batcher: got a {type(source).__name__}, expected a pool, a model or a layer")
    try:
        pool = source.pool(most)
    except InputError as e:
        if not hasattr(source, "folded"):
            raise
        from rnnfast.serving.model_sequences import sequences_of

        return _NoStreams(source.source.label, most), sequences_of(source, e)
    return pool, Sequences(pool)


class _NoStreams:
    """Stands for the pool of a model without states, which has no streams."""

    why_no_streams = ": no input is a state, so there are no streams: run and submit_run take whole sequences"
    frame_pattern = None

    def __init__(self, label, max_streams):
        self.label, self.max_streams = label, max_streams

    def open(self, state=None, **fixed):
        raise InputError(self.label + self.why_no_streams)

    def __repr__(self):
        return f"sequences of {self.label}"


def _in_halves(parts, run):
    """Yield (part, run(part), None) for each part.

    A part that fails is cut in halves, which run instead. A part of one member that fails gives (part, None, error).
    """
    while parts:
        part = parts.pop()
        try:
            results = run(part)
        except Exception as e:
            if len(part) == 1:
                yield part, None, e
            else:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            yield part, results, None


def _running_loop():
    """The running event loop, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
