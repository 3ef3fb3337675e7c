"""The front of a service: frames of many live streams, or whole sequences, join batches that a thread of its own runs.

Frames wait until as many are there as a batch takes, until each open stream has one, or for `max_wait`; a batch holds
the next frame of each stream, so that a stream's frames stay in order. The pool changes no state when a step raises:
then the batch is run again in halves, down to the stream that is to blame.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
import time

import numpy as np

from rnnfast.errors import ClosedError, InputError, InputTypeError
from rnnfast.serving._requests import OpenStream, RequestQueue, soon, tell
from rnnfast.serving.sequences import ActiveSequence, Sequences
from rnnfast.streaming.pool import Pool

# Seconds, the bounds of the histograms of times; those of sizes are powers of two.
TIMES = tuple(1e-4 * 2**i for i in range(18))
SIZES = tuple(2**i for i in range(17))
# How often sequences that wait for a place look for one, and those that are late are found among them.
PLACE_SECONDS = 0.005


class Histogram:
    """How often values received, by upper bounds: `counts` has one more for those beyond the last bound."""

    def __init__(self, bounds):
        self.bounds, self.sum = bounds, 0.0
        self._counts = np.zeros(len(bounds) + 1, np.int64)

    def add(self, values):
        self._counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.bounds) + 1)
        self.sum += float(np.sum(values))

    def numbers(self):
        counts = self._counts.tolist()
        return {"bounds": list(self.bounds), "counts": counts, "sum": self.sum, "count": sum(counts)}


class Batcher(RequestQueue):
    """Runs the frames of a Pool's streams in batches, in a thread of its own without the GIL; and whole sequences,
    which join what runs and leave it as they end, so that a short one does not wait for a long one.

    pool: a Pool, or a model or layer, of which a pool of `max_batch` streams is made. A model without states takes
    whole sequences alone: frame by frame where all of it runs forwards, else padded to those of similar length, with
    their lengths; UnsupportedError says why neither gives the bits of the model called with one sequence.
    max_batch: frames in a batch; max_wait: seconds that a frame waits at most for others while the thread is free: not
    at all if its timeout is no longer; max_queue: frames that may wait, by default 8 batches or 2 of each stream; idle:
    seconds after which a stream without frames is closed, None for never. Methods may be called from any thread and
    from asyncio; `open`, `close` and `state` wait for the batch that runs. The pool is for the batcher alone; `drain`,
    which leaving a `with` calls, ends the thread. Frames must not be written to before their results are there.
    """

    def __init__(self, pool, max_batch=256, max_wait=0.001, *, max_queue=None, idle=None):
        for name, value, least in (("max_batch", max_batch, 1), ("max_queue", max_queue, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"Batcher: {name} is {value!r}, expected an int of at least {least}")
        for name, value in (("max_wait", max_wait), *([] if idle is None else [("idle", idle)])):
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf") or name == "idle" and not value:
                raise InputError(f"Batcher: {name} is {value!r}, expected seconds")
        pool, self._of_sequences = _pool_and_sequences(pool, max_batch)
        super().__init__(pool, max(8 * max_batch, 2 * pool.max_streams) if max_queue is None else max_queue, max_wait)
        self._pool, self._max_batch, self._idle = pool, max_batch, idle
        self._lock = threading.Lock()  # of opening and closing
        self._running = []  # the thread's: sequences that are ActiveSequence
        self._looked_through = 0.0  # the thread's: when those that wait were, for late ones
        self._taken = []  # the thread's: the batch that runs
        self._looked = time.monotonic()
        self._batch_sizes, self._queue_times, self._compute_times = Histogram(SIZES), Histogram(TIMES), Histogram(TIMES)
        self._thread = threading.Thread(target=self._work, name="rnnfast-batcher", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------ streams
    def open(self, state=None, *, on_close=None, **fixed):
        """The id of a new stream. state, fixed: as `pool.open` takes them. on_close(id) is called when the stream is
        closed for idleness: in the running event loop where there is one, else in the batcher's thread."""
        loop = _running_loop() if on_close is not None else None
        with self._lock:
            self._check_open()
            stream = self._pool.open(state, **fixed)
            self._streams[stream] = OpenStream(stream, on_close, loop)
            return stream

    def close(self, stream):
        """End a stream. Frames of it that no batch has taken fail with ClosedError."""
        self._end(self._live(stream), "was closed")

    def state(self, stream):
        """A copy of a stream's state, as `pool.state` gives it, between two batches."""
        self._live(stream)
        return self._pool.state(stream)

    # ------------------------------------------------------------------------------------------ sequences
    def run(self, sequence, timeout=None):
        """For asyncio: an awaitable of the results [T, ..] of a whole sequence [T, ..] of a stream of its own, which
        begins with zeros: arrays as `pool.step` takes and gives them, with frames in the place of streams. Of a model
        without states: input and results as it takes and gives them, without the batch axis. timeout: as for `step`,
        until it begins."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._post(None, self._of_sequences.validate(sequence), future, loop, timeout)
        return future

    def submit_run(self, sequence, timeout=None):
        """The same for threads: a concurrent.futures.Future, which can be cancelled until it begins."""
        future = concurrent.futures.Future()
        self._post(None, self._of_sequences.validate(sequence), future, None, timeout)
        return future

    # ------------------------------------------------------------------------------------------ the thread
    def _work(self):
        error = None
        try:
            while not self._draining or self.queued() or self._running:
                self._sort()
                if self._idle is not None:
                    self._close_idle()
                left = self._to_wait()
                if left == 0:
                    self._step(self._take(self._max_batch))
                if not self._advance() and left != 0:
                    self._sleep(left)
        except BaseException as e:  # no memory, or a defect: nobody is left to wait for ever
            error = e
        self._draining = self._ended = True
        why = "" if error is None else f": {type(error).__name__}: {error}"
        self._refuse_all([*self._all(), *self._taken, *(sequence.call for sequence in self._running)], why)
        self._sweep(why)

    def _full(self):
        return max(min(self._max_batch, len(self._streams)), 1)

    def _to_wait(self):
        """Seconds until there is a batch; None for until a frame comes."""
        if self._ready() >= self._full() or self._draining and self._ready():
            return 0
        due = self._due()
        return None if due is None else max(due - time.monotonic(), 0)

    def _sleep(self, left):
        limits = [] if left is None else [left]
        if self._idle is not None:
            limits.append(self._idle / 4)
        if self._sequences:  # they wait for a place, which nobody announces
            limits.append(PLACE_SECONDS)
        self._sleep_until(self._full() - self._ready() if self._ready() else 1, min(limits, default=None))

    def _step(self, batch):
        """A batch, or if it fails its halves, until each frame has its result or error."""
        if not batch:
            return
        begun = time.monotonic()
        self._queue_times.add([begun - call.arrived for call in batch])
        self._taken = batch
        for part, results, error in _in_halves([batch], self._run_frames):
            if error:
                live = part[0].live
                error = self._closed(live) if live.closed else error
            self._batch_sizes.add([len(part)])
            self._counters["failed" if error else "frames"] += len(part)
            if error:
                tell([(part[0], None, error)])
            else:
                self._answer(part, results)
        self._taken = []
        self._compute_times.add([time.monotonic() - begun])

    def _advance(self):
        """Some frames of each sequence that runs; False where none does."""
        if not self._sequences and not self._running:
            return False
        now, outcomes = time.monotonic(), []
        self._begin_sequences(now, outcomes)
        for s in list(self._running):
            if self._is_over(s.call, 0 if s.taken else now, outcomes):  # its deadline is until it begins
                self._leave(s)
        tell(outcomes)
        if not self._running:
            return False
        for part, results, error in _in_halves(self._of_sequences.batches(self._running), self._run_sequences):
            outcomes = []
            if error:
                self._counters["failed"] += 1
                self._finish(part[0], error, outcomes)
            else:
                self._batch_sizes.add([len(part)])
                for s, result in zip(part, results):
                    frames = self._of_sequences.frames(s)
                    self._counters["frames"] += frames
                    s.results.append(result)
                    s.taken += frames
                    if s.taken == len(s.x):
                        self._finish(s, None, outcomes)
            tell(outcomes)
        self._compute_times.add([time.monotonic() - now])
        return True

    def _begin_sequences(self, now, outcomes):
        """Those that wait take the places that there are, in order."""
        begun = []
        while self._sequences and len(self._running) < self._max_batch:
            place = self._of_sequences.open()
            if place is None:
                break
            call = self._next_sequence()
            if self._is_over(call, now, outcomes) or not call.begin():
                self._of_sequences.close(place)
            else:
                self._running.append(ActiveSequence(call, call.arrived, call.value, place))
                begun.append(now - call.arrived)
        if begun:
            self._queue_times.add(begun)
        refused = self._draining and not self._running
        if refused or now - self._looked_through >= PLACE_SECONDS:
            self._looked_through = now
            for _ in range(len(self._sequences)):
                call = self._next_sequence()
                if self._is_over(call, now, outcomes):
                    continue
                if refused:
                    outcomes.append(
                        (
                            call,
                            None,
                            ClosedError(
                                f"{self._pool.label}: the batcher is closed, and streams "
                                "had all places: nothing was taken"
                            ),
                        )
                    )
                else:
                    self._put_back(call)

    def _run_sequences(self, part):
        """-> the results of the next frames of each."""
        frames = [s.x[s.taken : s.taken + self._of_sequences.frames(s)] for s in part]
        return self._of_sequences.run([s.place for s in part], frames)

    def _finish(self, sequence, error, outcomes):
        result = None
        if error is None:
            try:
                result = self._of_sequences.joined(sequence.results)
            except MemoryError as e:
                error = e
        self._leave(sequence)
        outcomes.append((sequence.call, result, error))

    def _leave(self, sequence):
        self._running.remove(sequence)
        self._of_sequences.close(sequence.place)

    def _end(self, live, why):
        with self._lock:
            if self._streams.pop(live.stream, None) is None:
                return False  # another thread was first
            live.closed = why
            self._pool.close(live.stream)
        self._wake.set()
        return True

    def _close_idle(self):
        now = time.monotonic()
        if now - self._looked < self._idle / 4:
            return
        self._looked = now
        for live in list(self._streams.values()):
            if now - live.last > self._idle and not live.waiting and self._end(live, "was idle"):
                self._counters["idle"] += 1
                if live.on_close is not None and live.loop is not None:
                    soon(live.loop, live.on_close, live.stream)
                elif live.on_close is not None:
                    with contextlib.suppress(Exception):  # the caller's: other streams go on
                        live.on_close(live.stream)

    # ------------------------------------------------------------------------------------------ the whole
    def stats(self):
        """Plain numbers for a metrics library: streams open and frames waiting now; counts of frames done, batches,
        frames cancelled, expired, failed, refused as too many, streams closed for idleness; the mean batch; histograms
        of batch sizes, of the seconds that frames waited and of those that batches took."""
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

    def drain(self):
        """Take no more frames, finish those that wait, close all streams, end the thread. In asyncio:
        ``await asyncio.to_thread(batcher.drain)``."""
        with self._lock:
            self._draining = True
        self._wake.set()
        self._thread.join()
        for live in list(self._streams.values()):
            self._end(live, "was closed")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.drain()

    def __repr__(self):
        return f"<rnnfast.Batcher of {self._pool!r}>"


def _pool_and_sequences(source, most):
    """(pool, Sequences) of a Batcher of a Pool, a layer or a model; most: sequences that run at a time."""
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
    """In the place of the pool of a model without states."""

    why_none = ": no input is a state, so there are no streams: run and submit_run take whole sequences"
    like = None

    def __init__(self, label, max_streams):
        self.label, self.max_streams = label, max_streams

    def open(self, state=None, **fixed):
        raise InputError(self.label + self.why_none)

    def __repr__(self):
        return f"sequences of {self.label}"


def _in_halves(parts, run):
    """(part, run(part), None) for each part; for the halves of one that fails, down to those of one member, for which
    it is (part, None, the error)."""
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
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
