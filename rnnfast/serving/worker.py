"""The thread of a Batcher: it runs frames in batches and whole sequences, and answers those who wait.

It knows its Batcher by a weak reference alone, so that a Batcher that is dropped can end it.
"""

import atexit
import contextlib
import math
import os
import sys
import threading
import time
import weakref
from typing import Any

from rnnfast.errors import ClosedError, LimitError, raise_if_from_handler
from rnnfast.native._locks import Lock, is_inside
from rnnfast.serving._requests import Histogram, OpenStream, RequestQueue, settle, tell
from rnnfast.serving.sequences import ActiveSequence

# Seconds: the upper bounds of the histograms of times. Those of sizes are powers of two.
TIMES = tuple(1e-4 * 2**i for i in range(18))
SIZES = tuple(2**i for i in range(17))
# Seconds between two looks of waiting sequences for a free stream, and between two looks for late ones among them.
PLACE_SECONDS = 0.005
# The least seconds between two looks for idle streams.
LEAST_LOOK = 0.001
# Seconds between two looks for requests that their event loop did not run: it may have stopped, or a signal's handler
# that raised may have ended the call. Each look of an idle server takes some 0.1 ms.
LOST_SECONDS = 5.0
# The most seconds that the end of the interpreter waits for a batch.
EXIT_SECONDS = 10.0
# The most shapes of calls of which the time is noted.
MAX_NOTED = 1024
# A loop whose clock counts milliseconds may run a batch so many seconds too early.
EARLY = 0.0005
FORKED = "the batcher ended in this process, as it was forked: nothing was taken here"


class Worker(RequestQueue):
    """The queue of a Batcher and the thread that takes out of it; Batcher documents the arguments.

    Attributes:
        told: Called with the id of a stream that was closed for idleness, or None.
    """

    def __init__(self, pool, runner, calls, max_batch, max_wait, max_queue, idle, max_inline, wait_from):
        super().__init__(pool, max_queue, max_wait, max_inline, wait_from)
        self.runner, self.calls, self.told = runner, calls, None
        self._thread: threading.Thread | None = None  # None where it is to be started, as after a fork
        self._max_batch, self._idle, self._max_inline = max_batch, idle, max_inline
        # The power of two of the number of frames, or the `key` of calls -> the time of the last ones.
        self._took: dict[Any, float] = {}
        self._abandoned = False
        self._starting = Lock(pool.label, "batcher", True)
        self._call_sizes = Histogram(SIZES)
        self._batch_sizes, self._queue_times, self._compute_times = Histogram(SIZES), Histogram(TIMES), Histogram(TIMES)
        self._reset()
        _WORKERS.add(self)

    def _reset(self):
        """Set what belongs to the thread as if it had not begun."""
        self._active: list[ActiveSequence] = []
        # A request that has left the queue is in one of these until it is answered, for a fork to find.
        self._taken: list[Any] = []  # the batch that runs
        self._outcomes: list[Any] = []  # (request, result, error) of those that are about to be told
        self._looked_through = 0.0  # when it last looked for late ones among the waiting sequences
        self._looked = time.monotonic()  # when it last looked for idle streams

    # ------------------------------------------------------------------------------------------ life
    def _start(self):
        """Start the thread, unless another call did."""
        self._starting.call(self._start_once)

    def _start_once(self):
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="rnnfast-batcher", daemon=True)
            try:
                thread.start()
            except RuntimeError as e:
                raise LimitError(f"{self._pool.label}: no thread for a batcher: {e}") from e
            self._claim(thread)

    def finish(self):
        """Let the thread end when the queue is empty; from anywhere, finalizers too."""
        self._draining = True
        self._wake_up()

    def abandon(self):
        """Let the thread end after the batch that runs, and refuse what waits."""
        self._abandoned = True
        self.finish()

    def join(self):
        """Wait until the thread has ended; where there is none, end without it.

        The thread itself, a finalizer in the midst of a step, which the thread may wait for, and an interpreter that
        ends, in which it stands still, do not wait.
        """
        thread = self._thread
        if thread is None:
            self._end_all(None)
        elif thread is not threading.current_thread() and not self._is_mine() and not sys.is_finalizing():
            thread.join()

    def _is_mine(self):
        """Whether this thread has what the batcher's thread may wait for."""
        return is_inside() or self._is_here()

    def after_fork(self):
        """In the child of a fork, where there is no thread: refuse the parent's requests, and begin with none."""
        waiting = [*self._all(), *self._taken, *(sequence.request for sequence in self._active), *self._inbox()]
        waiting += [request for request, _, _ in self._outcomes]
        for sequence in self._active:
            self.runner.close(sequence.state)
        self._empty()
        self._reset()
        self._thread, self._started, self._ended = None, False, self._draining
        for request in waiting:
            if request.loop is None:
                # Another thread may have held this lock, which nobody would free.
                request.future._condition._at_fork_reinit()
            with contextlib.suppress(BaseException):  # of a callback, or of a loop that is closed
                # Directly, for event loops too: no other thread is left, and waking one would wake the parent's.
                settle([request.future], [None], ClosedError(f"{self._pool.label}: {FORKED}"))
                request.future.exception()  # Nobody need ask for it.

    def open(self, opened, state, fixed):
        """Open a stream and append its id to `opened`, which its caller gives to `take_back` where this raises."""
        self._check_open()
        self._pool.open_into(opened, state, fixed)
        open_stream = OpenStream(opened[0])
        self.add(open_stream)
        if self._draining:
            self.end(open_stream, "was closed")
            self._check_open()

    # ------------------------------------------------------------------------------------------ the thread
    def _work(self):
        """The thread: run batches and sequences until nothing is left and no more comes."""
        if not self._claim(threading.current_thread()):
            return  # A signal's handler parted the start of this one, and another was started.
        error = None
        self.turn.acquire()
        try:
            while not self._abandoned and (not self._draining or self.queued() or self._active):
                self._sort()
                if self._idle is not None:
                    self._close_idle()
                left = self._to_wait()
                if left == 0:
                    self._step()
                if not self._abandoned and not self._turn() and left != 0:
                    self._sleep(left)
        except BaseException as e:  # There is no memory, or a defect: let nobody wait for ever.
            error = e
        try:
            self._end_all(error)
        finally:
            self.turn.release()

    def _end_all(self, error):
        """Refuse what waits, close all streams, and accept nothing any more."""
        self._draining = self._ended = True
        why = "" if error is None else f": {type(error).__name__}: {error}"
        waiting = [*self._all(), *self._taken, *(sequence.request for sequence in self._active)]
        self._refuse_all([*waiting, *(request for request, _, _ in self._outcomes)], why)
        self._sweep(why)
        for sequence in self._active:
            self.runner.close(sequence.state)
        self._reset()
        for open_stream in list(self._streams.values()):
            self.end(open_stream, "was closed")

    def _full(self):
        """The number of waiting frames that make a batch: no stream without one is worth waiting for."""
        return max(min(self._max_batch, self._active_streams()), 1)

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
            limits.append(max(self._idle / 4, LEAST_LOOK))
        if self._sequences:  # They wait for a free stream, which nothing announces.
            limits.append(PLACE_SECONDS)
        if self._max_inline:
            limits.append(LOST_SECONDS)
        self._sleep_until(self._full() - self._ready() if self._ready() else 1, min(limits, default=None))

    def _step(self):
        """Run a batch; if it fails, run its halves, until each frame has its result or its error."""
        begun, clock = time.monotonic(), self._clock()
        ran = clock()
        parts = self.computing.call(self._run_batch, begun)
        self._took[len(self._taken).bit_length()] = clock() - ran
        self._tell()
        for part, results, error in parts:
            if error:
                open_stream = part[0].open_stream
                error = self._closed(open_stream) if open_stream.closed else error
            self._batch_sizes.add(len(part))
            self._count("failed" if error else "frames", len(part))
            if error:
                self._outcomes.append((part[0], None, error))
                self._tell()
            else:
                self._answer(part, results)
        self._taken = []
        if parts:
            self._compute_times.add(time.monotonic() - begun)

    def _tell(self):
        """Tell callers what is to be told."""
        tell(self._outcomes)
        self._outcomes = []

    def _run_batch(self, begun):
        """Take a batch and run it: a list of (requests, results, error), as `_in_halves` gives them."""
        self._taken = batch = []
        self._take(self._max_batch, batch, self._outcomes)
        if not batch:
            return []
        for request in batch:
            self._queue_times.add(begun - request.arrived)
        return list(_in_halves([batch], self._run_frames))

    def _turn(self):
        """Run the calls that may run as one with the next, and some frames of each sequence; return False if none is.

        Between two turns waiting frames run, so that neither starves them.
        """
        called = self._run_calls()
        return (not self._abandoned and self._advance()) or called

    def _run_calls(self):
        """Run the next call, with others that may run as one with it; return False if none waits."""
        if not self._calls:
            return False
        begun, clock = time.monotonic(), self._clock()
        ran = clock()
        self._taken = part = []
        self._take_calls(part, begun)
        self._tell()
        for request in part:
            self._queue_times.add(begun - request.arrived)
        for members, results, error in _in_halves([part] if part else [], self._run_call):
            self._call_sizes.add(len(members))
            self._count("failed" if error else "calls", len(members))
            if error:
                self._outcomes.append((members[0], None, error))
                self._tell()
            else:
                self._answer(members, results)
        self._taken = []
        if part:
            self._compute_times.add(time.monotonic() - begun)
            if self._max_inline:
                self._note_calls(part, clock() - ran)
        return True

    def _take_calls(self, part, now):
        """Take calls that may run as one out of the queue; each is in `part` before it leaves the queue, for a fork."""
        for request in list(self._calls):
            if self._is_over(request, now, self._outcomes):
                self._drop_call(request)
            elif not part or self.calls.join([taken.value for taken in part], request.value):
                if request.begin():
                    part.append(request)
                self._drop_call(request)

    def _run_call(self, part):
        """The Outputs of each of these requests."""
        return self.calls.run([request.value for request in part])

    def _advance(self):
        """Run some frames of each active sequence; return False if there is none."""
        if not self._sequences and not self._active:
            return False
        now = time.monotonic()
        self._begin_sequences(now)
        for s in list(self._active):
            if self._is_over(s.request, 0 if s.taken else now, self._outcomes):  # The deadline holds until it begins.
                self._leave(s)
        self._tell()
        if not self._active:
            return False
        for part, results, error in _in_halves(self.runner.batches(self._active), self._run_sequences):
            if error:
                self._count("failed")
                self._finish(part[0], error)
            else:
                self._batch_sizes.add(len(part))
                for s, result in zip(part, results):
                    frames = self.runner.frames(s)
                    self._count("frames", frames)
                    s.results.append(result)
                    s.taken += frames
                    if s.taken == len(s.x):
                        self._finish(s, None)
            self._tell()
        self._compute_times.add(time.monotonic() - now)
        return True

    def _begin_sequences(self, now):
        """Let waiting sequences begin, in order, while there are streams for them."""
        while self._sequences and len(self._active) < self._max_batch:
            state = self.runner.open()
            if state is None:
                break
            request = self._sequences[0]
            if self._is_over(request, now, self._outcomes) or not request.begin():
                self.runner.close(state)
            else:
                self._active.append(ActiveSequence(request, request.arrived, request.value, state))
                self._queue_times.add(now - request.arrived)
            self._next_sequence()
        refused = self._draining and not self._active
        if refused or now - self._looked_through >= PLACE_SECONDS:
            self._looked_through = now
            for _ in range(len(self._sequences)):
                request = self._sequences[0]
                if not self._is_over(request, now, self._outcomes):
                    if refused:
                        why = "the batcher is closed, and all streams of the pool are open: nothing was taken"
                        self._outcomes.append((request, None, ClosedError(f"{self._pool.label}: {why}")))
                    else:
                        self._put_back(request)
                self._next_sequence()

    def _run_sequences(self, part):
        """The results of the next frames of each sequence."""
        frames = [s.x[s.taken : s.taken + self.runner.frames(s)] for s in part]
        return self.runner.run([s.state for s in part], frames)

    def _finish(self, sequence, error):
        """End an active sequence and note its result or error."""
        result = None
        if error is None:
            try:
                result = self.runner.joined(sequence.results)
            except MemoryError as e:
                error = e
        self._outcomes.append((sequence.request, result, error))
        self._leave(sequence)

    def _leave(self, sequence):
        """Free what an active sequence holds."""
        self._active.remove(sequence)
        self.runner.close(sequence.state)

    def _close_idle(self):
        """Close the streams that had no frames for `idle` seconds, and tell their owners."""
        now = time.monotonic()
        if now - self._looked < self._idle / 4:
            return
        self._looked = now
        for open_stream in list(self._streams.values()):
            if now - open_stream.last > self._idle and not open_stream.waiting and self.end(open_stream, "was idle"):
                self._count("idle")
                if self.told is not None:
                    self.told(open_stream.id)

    # ------------------------------------------------------------------------------------------ in an event loop
    def _run_short(self):
        """Run batches and calls of an event loop in it, while they are short and the loop is not held up for longer."""
        self._sort()
        deadline = time.monotonic() + self._max_inline
        while time.monotonic() < deadline:
            streams = self._next_streams(self._max_batch)
            if streams:
                if self._to_wait() > EARLY or not self._is_short(len(streams).bit_length()):
                    break
                if not self._pool.is_planned(streams):
                    break
                self._step()
            elif self._calls and self._are_short([request.value for request in self._calls]):
                self._run_calls()
            else:
                break

    def _clock(self):
        """The clock for the time of a batch. In the thread, which may wait for the GIL, it is that of the processor.

        In a loop that clock, a call of the system, would cost more than it tells: a batch that is interrupted only lets
        the next one run in the thread.
        """
        return time.monotonic if self._is_here() else time.thread_time

    def _is_short(self, what):
        """Whether the last frames or calls of this size took no longer than the loop may be held up."""
        return self._took.get(what, math.inf) <= self._max_inline

    def _are_short(self, calls):
        """Whether calls like these ran before in so short a time, and need no plans and proofs."""
        return self._is_short(self.calls.key(calls)) and self.calls.is_planned(calls)

    def _note_calls(self, part, seconds):
        """Note the processor time of calls that ran together."""
        if len(self._took) > MAX_NOTED:
            self._took.clear()
        self._took[self.calls.key([request.value for request in part])] = seconds

    def _break_off(self, error):
        """Answer what was about to run in an event loop, as a signal's handler raised there."""
        requests = [*self._taken, *(request for request, _, _ in self._outcomes)]
        self._taken, self._outcomes = [], []
        for request in requests:
            why = f"{type(error).__name__} interrupted it; `frames` tells whether it was taken"
            tell([(request, None, ClosedError(f"{self._pool.label}: {why}"))])

    # ------------------------------------------------------------------------------------------ the whole
    def stats(self):
        """The numbers that `Batcher.stats` documents."""
        sizes = self._batch_sizes.numbers()
        return {
            "streams": len(self._streams),
            "queued": self.queued(),
            **self._counted(),
            "batches": sizes["count"],
            "mean_batch": sizes["sum"] / max(sizes["count"], 1),
            "batch_sizes": sizes,
            "call_sizes": self._call_sizes.numbers(),
            "queue_seconds": self._queue_times.numbers(),
            "compute_seconds": self._compute_times.numbers(),
        }


def _in_halves(parts, run):
    """Yield (part, run(part), None) for each part.

    A part that fails is cut in halves, which run instead. A part of one member that fails gives (part, None, error).
    """
    while parts:
        part = parts.pop()
        try:
            results = run(part)
        except Exception as e:
            if threading.current_thread() is threading.main_thread():  # It may be a signal's, in an event loop.
                raise_if_from_handler(e)
            if len(part) == 1:
                yield part, None, e
            else:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            yield part, results, None


# All that live, for a fork and for the end of the interpreter.
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def _after_fork_in_child():
    for worker in list(_WORKERS):
        worker.after_fork()


def _at_exit():
    """Let nobody wait for a thread that the end of the interpreter stops."""
    for worker in list(_WORKERS):
        worker.abandon()
    for worker in list(_WORKERS):
        if worker._thread is not None:
            worker._thread.join(EXIT_SECONDS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
