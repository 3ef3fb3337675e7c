"""The front of a service: frames of many live streams, or whole sequences, join batches that a thread of its own runs.

Frames wait until as many are there as a batch takes, until each open stream has one, or for `max_wait`; a batch holds
the next frame of each stream, so that a stream's frames stay in order. The pool changes no state when a step raises:
then the batch is run again in halves, down to the stream that is to blame.
"""
import asyncio
import collections
import concurrent.futures
import threading
import time

import numpy as np

from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError, Overloaded
from rnnfast.pool import Pool

# Seconds, the bounds of the histograms of times; those of sizes are powers of two.
TIMES = tuple(1e-4 * 2**i for i in range(18))
SIZES = tuple(2**i for i in range(17))


class Histogram:
    """How often values came, by upper bounds: `counts` has one more for those beyond the last bound."""
    def __init__(self, bounds):
        self.bounds, self.sum = bounds, 0.0
        self._counts = np.zeros(len(bounds) + 1, np.int64)

    def add(self, values):
        self._counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.bounds) + 1)
        self.sum += float(np.sum(values))

    def numbers(self):
        counts = self._counts.tolist()
        return {"bounds": list(self.bounds), "counts": counts, "sum": self.sum, "count": sum(counts)}


class _Live:
    """An open stream: the frames taken of it, those that wait, and whom to tell when it is closed for idleness."""
    __slots__ = ("stream", "frames", "waiting", "last", "on_close", "loop")

    def __init__(self, stream, now, on_close, loop):
        self.stream, self.last, self.on_close, self.loop = stream, now, on_close, loop
        self.frames, self.waiting = 0, collections.deque()


class _Call:
    """A frame that waits for its result."""
    __slots__ = ("frame", "future", "loop", "arrived", "deadline")

    def __init__(self, frame, future, loop, arrived, deadline):
        self.frame, self.future, self.loop, self.arrived, self.deadline = frame, future, loop, arrived, deadline


class Batcher:
    """Runs the frames of a Pool's streams in batches, in a thread of its own without the GIL.

    max_batch: frames in a batch; max_wait: seconds that a frame waits at most for others while the thread is free;
    max_queue: frames that may wait, 8 batches by default; idle: seconds after which a stream without frames is closed,
    None for never. Methods may be called from any thread and from asyncio. The pool is for the batcher alone. Frames
    must not be written to before their results are there.
    """
    def __init__(self, pool, max_batch=256, max_wait=0.002, *, max_queue=None, idle=None):
        if not isinstance(pool, Pool):
            raise InputTypeError(f"Batcher: a {type(pool).__name__} came, expected a pool")
        for name, value, least in (("max_batch", max_batch, 1), ("max_queue", max_queue, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"Batcher: {name} is {value!r}, expected an int of at least {least}")
        for name, value in (("max_wait", max_wait), ("idle", idle)):
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise InputError(f"Batcher: {name} is {value!r}, expected seconds")
        self._pool, self._max_batch, self._max_wait, self._idle = pool, max_batch, float(max_wait), idle
        self._max_queue = 8 * max_batch if max_queue is None else max_queue
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._streams = {}
        self._ready = {}                # streams that have a frame waiting: _Live -> None, in the order of their frames
        self._queued, self._asleep, self._draining, self._looked = 0, False, False, time.monotonic()
        self._counters = collections.Counter()
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
            self._streams[stream] = _Live(stream, time.monotonic(), on_close, loop)
            return stream

    def close(self, stream):
        """End a stream. Frames of it that still wait fail with ClosedError."""
        with self._lock:
            self._end(self._live(stream), "was closed")

    def frames(self, stream):
        """How many frames of a stream its state has taken: what a call that was cancelled came to."""
        with self._lock:
            return self._live(stream).frames

    def state(self, stream):
        """A copy of a stream's state, as `pool.state` gives it, between two batches."""
        with self._lock:
            self._live(stream)
        return self._pool.state(stream)

    # ------------------------------------------------------------------------------------------ frames
    def step(self, stream, frame, timeout=None):
        """For asyncio: an awaitable of the result of a frame, both as a Stream has them.

        timeout: seconds after which a frame that no batch has taken fails with DeadlineError. A frame that is cancelled
        or fails before a batch takes it leaves its stream as it was; `frames` tells. Overloaded where too many wait.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._put(stream, frame, future, loop, timeout)
        return future

    def submit(self, stream, frame, timeout=None):
        """The same for threads: a concurrent.futures.Future."""
        future = concurrent.futures.Future()
        self._put(stream, frame, future, None, timeout)
        return future

    def _put(self, stream, frame, future, loop, timeout):
        now = time.monotonic()
        with self._lock:
            self._check_open()
            live = self._live(stream)
            if self._queued >= self._max_queue:
                self._counters["overloaded"] += 1
                raise Overloaded(f"{self._pool.label}: {self._queued} frames wait already, no more than "
                                 f"{self._max_queue} may")
            frame = self._pool.admit(stream, frame)
            live.waiting.append(_Call(frame, future, loop, now, None if timeout is None else now + timeout))
            live.last = now
            self._queued += 1
            if len(live.waiting) == 1:
                self._ready[live] = None
                if self._asleep and (len(self._ready) == 1 or self._is_full()):
                    self._wake.notify()

    def _live(self, stream):
        live = self._streams.get(stream)
        if live is None:
            raise ClosedError(f"{self._pool.label}: stream {stream!r} is not open")
        return live

    def _check_open(self):
        if self._draining:
            raise ClosedError(f"{self._pool.label}: the batcher is closed")

    def _is_full(self):
        return bool(self._ready) and len(self._ready) >= min(self._max_batch, len(self._streams))

    # ------------------------------------------------------------------------------------------ the thread
    def _work(self):
        while True:
            with self._lock:
                self._wait()
                if self._draining and not self._ready:
                    return
                batch = self._take()
            if batch:
                self._run(batch)

    def _wait(self):
        """Until there is a batch, the batcher ends, or it is time to look for idle streams."""
        while not self._draining and not self._is_full():
            now = time.monotonic()
            left = None
            if self._ready:
                left = next(iter(self._ready)).waiting[0].arrived + self._max_wait - now
                if left <= 0:
                    return
            if self._idle is not None:
                self._close_idle(now)
                left = min(self._idle / 4 if left is None else left, self._idle / 4)
            self._asleep = True
            self._wake.wait(left)
            self._asleep = False

    def _take(self):
        """The next frame of each stream, as many as a batch takes: [(_Live, _Call)]."""
        now, batch, others = time.monotonic(), [], []
        for live in self._ready:
            if len(batch) == self._max_batch:
                break
            call = None
            while call is None and live.waiting:
                call = live.waiting.popleft()
                self._queued -= 1
                if _cancelled(call):
                    self._counters["cancelled"] += 1
                    call = None
                elif call.deadline is not None and now > call.deadline:
                    self._counters["expired"] += 1
                    _tell([(call, None, DeadlineError(
                        f"{self._pool.label}: a frame of stream {live.stream} waited {now - call.arrived:.3f} s, longer "
                        "than its deadline: it was not taken, the stream is as it was"))])
                    call = None
            others.append(live)
            if call is not None:
                batch.append((live, call))
        for live in others:
            del self._ready[live]
            if live.waiting:
                self._ready[live] = None
        self._queue_times.add([now - call.arrived for _, call in batch])
        return batch

    def _run(self, batch):
        """Batches and their halves, until each frame has its result or error."""
        parts = [batch]
        while parts:
            part = parts.pop()
            begun = time.perf_counter()
            try:
                results = self._pool.step_admitted([live.stream for live, _ in part], [call.frame for _, call in part])
            except Exception as e:
                if len(part) > 1:
                    parts += [part[len(part) // 2:], part[:len(part) // 2]]
                    continue
                results, error = [None], e
            else:
                error = None
            with self._lock:
                self._compute_times.add([time.perf_counter() - begun])
                self._batch_sizes.add([len(part)])
                self._counters["failed" if error else "frames"] += len(part)
                for live, _ in part if error is None else ():
                    live.frames += 1
            _tell([(call, result, error) for (_, call), result in zip(part, results)])

    def _end(self, live, why):
        """Close a stream; the lock is held."""
        del self._streams[live.stream]
        self._ready.pop(live, None)
        self._pool.close(live.stream)
        error = ClosedError(f"{self._pool.label}: stream {live.stream} {why}: the frame was not taken")
        self._queued -= len(live.waiting)
        _tell([(call, None, error) for call in live.waiting if not _cancelled(call)])
        live.waiting.clear()

    def _close_idle(self, now):
        if now - self._looked < self._idle / 4:
            return
        self._looked = now
        for live in [live for live in self._streams.values() if not live.waiting and now - live.last > self._idle]:
            self._end(live, "was idle")
            self._counters["idle"] += 1
            if live.on_close is not None and live.loop is not None:
                _soon(live.loop, live.on_close, live.stream)
            elif live.on_close is not None:
                live.on_close(live.stream)

    # ------------------------------------------------------------------------------------------ the whole
    def stats(self):
        """Plain numbers for a metrics library: streams open and frames waiting now; counts of frames done, batches,
        frames cancelled, expired, failed, refused as too many, streams closed for idleness; the mean batch; histograms
        of batch sizes, of the seconds that frames waited and of those that batches took."""
        with self._lock:
            sizes = self._batch_sizes.numbers()
            return {
                "streams": len(self._streams), "queued": self._queued,
                **{name: self._counters[name]
                   for name in ("frames", "cancelled", "expired", "failed", "overloaded", "idle")},
                "batches": sizes["count"], "mean_batch": sizes["sum"] / max(sizes["count"], 1), "batch_sizes": sizes,
                "queue_seconds": self._queue_times.numbers(), "compute_seconds": self._compute_times.numbers()}

    def drain(self):
        """Take no more frames, finish those that wait, close all streams, end the thread. In asyncio:
        ``await asyncio.to_thread(batcher.drain)``."""
        with self._lock:
            self._draining = True
            self._wake.notify()
        self._thread.join()
        with self._lock:
            for live in list(self._streams.values()):
                self._end(live, "was closed")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.drain()

    def __repr__(self):
        return f"<rnnfast.Batcher of {self._pool!r}>"


def _running_loop():
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _cancelled(call):
    """Whether nobody waits for it; else a Future can be cancelled no more."""
    return call.future.cancelled() if call.loop is not None else not call.future.set_running_or_notify_cancel()


def _tell(outcomes):
    """Give (call, result, error)s to those who wait: one message to each event loop."""
    of_loops = {}
    for outcome in outcomes:
        call, result, error = outcome
        if call.loop is not None:
            of_loops.setdefault(call.loop, []).append(outcome)
        elif error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)
    for loop, of_loop in of_loops.items():
        _soon(loop, _settle, of_loop)


def _soon(loop, function, argument):
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        pass        # the loop is closed: nobody waits there


def _settle(outcomes):
    for call, result, error in outcomes:
        future = call.future
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
