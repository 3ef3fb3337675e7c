"""The front of a service: frames of many live streams, or whole sequences, join batches that a thread of its own runs.

Frames wait until as many are there as a batch takes, until each open stream has one, or for `max_wait`; a batch holds
the next frame of each stream, so that a stream's frames stay in order. The pool changes no state when a step raises:
then the batch is run again in halves, down to the stream that is to blame.
"""
import asyncio
import collections
import concurrent.futures
import contextlib
import threading
import time

import numpy as np

from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError, LimitError, Overloaded
from rnnfast.pool import Pool

# Seconds, the bounds of the histograms of times; those of sizes are powers of two.
TIMES = tuple(1e-4 * 2**i for i in range(18))
SIZES = tuple(2**i for i in range(17))
# How often sequences that wait for a place look for one.
PLACE_SECONDS = 0.005
# Frames of each sequence in one batch: so long do sequences that come wait to join those that run.
SEQUENCE_FRAMES = 16


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
    """An open stream: how many frames its state has taken, the calls that wait, when the last came, whom to tell when
    it is closed for idleness, and why it was closed."""
    __slots__ = ("stream", "frames", "waiting", "last", "on_close", "loop", "closed")

    def __init__(self, stream, now, on_close, loop):
        self.stream, self.last, self.on_close, self.loop = stream, now, on_close, loop
        self.frames, self.waiting, self.closed = 0, collections.deque(), None


class _Sequence:
    """A whole sequence that runs: its call, the pool's stream that it is, the frames taken, their results."""
    __slots__ = ("call", "x", "stream", "taken", "results")

    def __init__(self, call, stream):
        self.call, self.x, self.stream, self.taken, self.results = call, call[1], stream, 0, []


class Batcher:
    """Runs the frames of a Pool's streams in batches, in a thread of its own without the GIL; and whole sequences,
    which join what runs and leave it as they end, so that a short one does not wait for a long one.

    pool: a Pool, or a model or layer, of which a pool of `max_batch` streams is made.
    max_batch: frames in a batch; max_wait: seconds that a frame waits at most for others while the thread is free;
    max_queue: frames that may wait, by default 8 batches or 2 of each stream; idle: seconds after which a stream
    without frames is closed, None for never. Methods may be called from any thread and from asyncio. The pool is for
    the batcher alone; `drain`, which leaving a `with` calls, ends the thread. Frames must not be written to before
    their results are there.
    """
    def __init__(self, pool, max_batch=256, max_wait=0.002, *, max_queue=None, idle=None):
        for name, value, least in (("max_batch", max_batch, 1), ("max_queue", max_queue, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"Batcher: {name} is {value!r}, expected an int of at least {least}")
        for name, value in (("max_wait", max_wait), *([] if idle is None else [("idle", idle)])):
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf") or name == "idle" and not value:
                raise InputError(f"Batcher: {name} is {value!r}, expected seconds")
        if not isinstance(pool, Pool):
            if not hasattr(pool, "pool"):
                raise InputTypeError(f"Batcher: a {type(pool).__name__} came, expected a pool, a model or a layer")
            pool = pool.pool(max_batch)
        self._pool, self._max_batch, self._max_wait, self._idle = pool, max_batch, float(max_wait), idle
        self._max_queue = max(8 * max_batch, 2 * pool.max_streams) if max_queue is None else max_queue
        self._admit = pool.admit
        self._lock = threading.Lock()   # of opening and closing
        self._streams = {}
        # calls, tuples (_Live, frame, future, its event loop or None, when it came, its deadline or None): callers
        # append, the thread takes
        self._inbox = collections.deque()
        self._ready = {}                # the thread's: streams with a frame, _Live -> None in the order of their frames
        self._held = 0                  # the thread's: calls that are out of the inbox and in no batch yet
        self._sequences, self._running = collections.deque(), []    # the thread's: calls that wait, _Sequences that run
        self._taken = []                # the thread's: the batch that runs
        self._wake, self._wake_at = threading.Event(), 0    # the thread sleeps until the inbox is so long; 0: not
        self._draining, self._ended, self._looked = False, False, time.monotonic()
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
        """End a stream. Frames of it that no batch has taken fail with ClosedError."""
        self._end(self._live(stream), "was closed")

    def frames(self, stream):
        """How many frames of a stream its state has taken: what a call that was cancelled came to."""
        return self._live(stream).frames

    def state(self, stream):
        """A copy of a stream's state, as `pool.state` gives it, between two batches."""
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
        """The same for threads: a concurrent.futures.Future, whose callbacks run in the batcher's thread: they must not
        wait for another."""
        future = concurrent.futures.Future()
        self._put(stream, frame, future, None, timeout)
        return future

    def run(self, sequence, timeout=None):
        """For asyncio: an awaitable of the results [T, ..] of a whole sequence [T, ..] of a stream of its own, which
        begins with zeros: arrays as `pool.step` takes and gives them, with frames in the place of streams. timeout: as
        for `step`, until it begins."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._post(None, self._pool.admit_sequence(sequence), future, loop, timeout)
        return future

    def submit_run(self, sequence, timeout=None):
        """The same for threads: a concurrent.futures.Future, which can be cancelled until it begins."""
        future = concurrent.futures.Future()
        self._post(None, self._pool.admit_sequence(sequence), future, None, timeout)
        return future

    def _put(self, stream, frame, future, loop, timeout):
        live = self._streams.get(stream) or self._live(stream)
        self._post(live, self._admit(stream, frame), future, loop, timeout)

    def _post(self, live, value, future, loop, timeout):
        inbox = self._inbox
        if len(inbox) + self._held >= self._max_queue or self._draining:
            self._refuse()
        now = time.monotonic()
        if live is not None:
            live.last = now
        inbox.append((live, value, future, loop, now, None if timeout is None else now + timeout))
        if 0 < self._wake_at <= len(inbox):
            self._wake.set()
        if self._ended:         # between the check and here
            self._sweep()

    def _refuse(self):
        self._check_open()
        self._counters["overloaded"] += 1
        raise Overloaded(f"{self._pool.label}: {len(self._inbox) + self._held} frames wait already, no more than "
                         f"{self._max_queue} may")

    def _live(self, stream):
        live = self._streams.get(stream)
        if live is None:
            raise ClosedError(f"{self._pool.label}: stream {stream!r} is not open")
        return live

    def _check_open(self):
        if self._draining:
            raise ClosedError(f"{self._pool.label}: the batcher is closed")

    # ------------------------------------------------------------------------------------------ the thread
    def _work(self):
        error = None
        try:
            while not self._draining or self._inbox or self._ready or self._sequences or self._running:
                self._sort()
                if self._idle is not None:
                    self._close_idle()
                left = self._to_wait()
                if left == 0:
                    self._step(self._take())
                if not self._advance() and left != 0:
                    self._sleep(left)
        except BaseException as e:      # no memory, or a defect: nobody is left to wait for ever
            error = e
        self._draining = self._ended = True
        why = "" if error is None else f": {type(error).__name__}: {error}"
        self._refuse_all([call for live in self._ready for call in live.waiting]
                         + [*self._sequences, *self._taken, *(sequence.call for sequence in self._running)], why)
        self._sweep(why)

    def _sweep(self, why=""):
        """Answer the calls of the inbox when the thread has ended; each is told by whoever takes it out."""
        while True:
            try:
                call = self._inbox.popleft()
            except IndexError:
                return
            self._refuse_all([call], why)

    def _refuse_all(self, calls, why):
        for call in calls:
            _tell([(call, None, ClosedError(f"{self._pool.label}: the batcher ended{why}: nothing was taken"))])

    def _sort(self):
        """Calls from the inbox to their streams."""
        inbox, ready = self._inbox, self._ready
        count = len(inbox)
        for _ in range(count):
            call = inbox.popleft()
            live = call[0]
            if live is None:
                self._sequences.append(call)
            else:
                live.waiting.append(call)
                ready[live] = None
        self._held += count

    def _full(self):
        return max(min(self._max_batch, len(self._streams)), 1)

    def _to_wait(self):
        """Seconds until there is a batch; None for until a frame comes."""
        if not self._ready:
            return None
        if self._draining or len(self._ready) >= self._full():
            return 0
        *_, arrived, _ = next(iter(self._ready)).waiting[0]
        return max(arrived + self._max_wait - time.monotonic(), 0)

    def _sleep(self, left):
        limits = [] if left is None else [left]
        if self._idle is not None:
            limits.append(self._idle / 4)
        if self._sequences:         # they wait for a place, which nobody announces
            limits.append(PLACE_SECONDS)
        self._wake.clear()
        self._wake_at = self._full() - len(self._ready) if self._ready else 1
        if len(self._inbox) < self._wake_at and not self._draining:
            self._wake.wait(min(limits, default=None))
        self._wake_at = 0

    def _take(self):
        """The next call of each stream, as many as a batch takes."""
        now, batch, seen, outcomes = time.monotonic(), [], [], []
        for live in self._ready:
            if len(batch) == self._max_batch:
                break
            seen.append(live)
            while live.waiting:
                call = live.waiting.popleft()
                self._held -= 1
                if not self._is_over(call, now, outcomes) and _begun(call):
                    batch.append(call)
                    break
        for live in seen:
            del self._ready[live]
            if live.waiting:
                self._ready[live] = None
        _tell(outcomes)
        return batch

    def _is_over(self, call, now, outcomes):
        """Whether a call is not to run any more; what its caller is to be told is added to `outcomes`."""
        live, _, future, _, arrived, deadline = call
        if future.cancelled():
            self._counters["cancelled"] += 1
        elif live is not None and live.closed:
            outcomes.append((call, None, self._closed(live)))
        elif deadline is not None and now > deadline:
            self._counters["expired"] += 1
            of = "a sequence" if live is None else f"a frame of stream {live.stream}"
            outcomes.append((call, None, DeadlineError(
                f"{self._pool.label}: {of} waited {now - arrived:.3f} s, longer than it may: it was not taken, the "
                "stream is as it was")))
        else:
            return False
        return True

    def _closed(self, live):
        return ClosedError(f"{self._pool.label}: stream {live.stream} {live.closed}: the frame was not taken")

    def _step(self, batch):
        """A batch, or if it fails its halves, until each frame has its result or error."""
        if not batch:
            return
        begun = time.monotonic()
        self._queue_times.add([begun - arrived for *_, arrived, _ in batch])
        self._taken = batch
        for part, results, error in _in_halves([batch], self._run_frames):
            if error:
                live = part[0][0]
                results, error = [None], self._closed(live) if live.closed else error
            self._batch_sizes.add([len(part)])
            self._counters["failed" if error else "frames"] += len(part)
            for call in part if error is None else ():
                call[0].frames += 1
            _tell([(call, result, error) for call, result in zip(part, results)])
        self._taken = []
        self._compute_times.add([time.monotonic() - begun])

    def _run_frames(self, part):
        return self._pool.step_admitted([call[0].stream for call in part], [call[1] for call in part])

    def _advance(self):
        """Some frames of each sequence that runs; False where none does."""
        now, outcomes, places = time.monotonic(), [], True
        for _ in range(len(self._sequences)):
            call = self._sequences.popleft()
            self._held -= 1
            if self._is_over(call, now, outcomes):
                continue
            stream = self._place() if places and len(self._running) < self._max_batch else None
            places = stream is not None
            if places and _begun(call):
                self._running.append(_Sequence(call, stream))
                self._queue_times.add([now - call[4]])
            elif places:
                self._pool.close(stream)
            elif self._draining and not self._running:
                outcomes.append((call, None, ClosedError(f"{self._pool.label}: the batcher is closed, and streams had "
                                                         "all places: nothing was taken")))
            else:
                self._sequences.append(call)
                self._held += 1
        for sequence in [s for s in self._running if s.call[2].cancelled()]:
            self._counters["cancelled"] += 1
            self._finish(sequence, None, outcomes)
        _tell(outcomes)
        if not self._running:
            return False
        kinds = {}
        for sequence in self._running:
            kinds.setdefault((sequence.x.shape[1:], sequence.x.dtype), []).append(sequence)
        outcomes = []
        for part, results, error in _in_halves(list(kinds.values()), self._run_sequences):
            if error:
                self._counters["failed"] += 1
                self._finish(part[0], error, outcomes)
                continue
            self._batch_sizes.add([len(part)])
            for s, result in zip(part, results):
                self._counters["frames"] += len(result)
                s.results.append(result)
                s.taken += len(result)
                if s.taken == len(s.x):
                    self._finish(s, None, outcomes)
        self._compute_times.add([time.monotonic() - now])
        _tell(outcomes)
        return True

    def _place(self):
        try:
            return self._pool.open()
        except LimitError:
            return None         # streams have all places

    def _run_sequences(self, part):
        """-> the results of the next frames of each."""
        lengths = np.array([min(len(s.x) - s.taken, SEQUENCE_FRAMES) for s in part])
        x = np.zeros((len(part), lengths.max(), *part[0].x.shape[1:]), part[0].x.dtype)
        for row, s, n in zip(x, part, lengths):
            row[:n] = s.x[s.taken:s.taken + n]
        y = self._pool.run([s.stream for s in part], x, lengths=lengths)
        return [row[:n].copy() for row, n in zip(y, lengths)]

    def _finish(self, sequence, error, outcomes):
        result = None
        if error is None and sequence.taken == len(sequence.x):
            try:
                result = np.concatenate(sequence.results)
            except MemoryError as e:
                error = e
        self._running.remove(sequence)
        self._pool.close(sequence.stream)
        outcomes.append((sequence.call, result, error))

    def _end(self, live, why):
        with self._lock:
            if self._streams.pop(live.stream, None) is None:
                return False        # another thread was first
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
                    _soon(live.loop, live.on_close, live.stream)
                elif live.on_close is not None:
                    with contextlib.suppress(Exception):    # the caller's: other streams go on
                        live.on_close(live.stream)

    # ------------------------------------------------------------------------------------------ the whole
    def stats(self):
        """Plain numbers for a metrics library: streams open and frames waiting now; counts of frames done, batches,
        frames cancelled, expired, failed, refused as too many, streams closed for idleness; the mean batch; histograms
        of batch sizes, of the seconds that frames waited and of those that batches took."""
        sizes = self._batch_sizes.numbers()
        return {
            "streams": len(self._streams), "queued": len(self._inbox) + self._held,
            **{name: self._counters[name]
               for name in ("frames", "cancelled", "expired", "failed", "overloaded", "idle")},
            "batches": sizes["count"], "mean_batch": sizes["sum"] / max(sizes["count"], 1), "batch_sizes": sizes,
            "queue_seconds": self._queue_times.numbers(), "compute_seconds": self._compute_times.numbers()}

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
                parts += [part[len(part) // 2:], part[:len(part) // 2]]
        else:
            yield part, results, None


def _running_loop():
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _begun(call):
    """Whether somebody waits for it still; then a Future can be cancelled no more."""
    _, _, future, loop, _, _ = call
    return not future.cancelled() if loop is not None else future.set_running_or_notify_cancel()


def _tell(outcomes):
    """Give (call, result, error)s to those who wait: one message to each event loop."""
    of_loops = {}
    for call, result, error in outcomes:
        _, _, future, loop, _, _ = call
        if loop is None:
            _settle([(future, result, error)])
        else:
            of_loops.setdefault(loop, []).append((future, result, error))
    for loop, of_loop in of_loops.items():
        _soon(loop, _settle, of_loop)


def _soon(loop, function, argument):
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        pass        # the loop is closed: nobody waits there


def _settle(outcomes):
    for future, result, error in outcomes:
        if future.done():
            continue        # cancelled meanwhile
        try:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        except concurrent.futures.InvalidStateError:
            pass            # cancelled just now
        except BaseException:
            if not future.done():
                raise
            # a callback's, as sys.exit: the result is there, and the others wait for theirs
