"""The calls of a Batcher: from callers, in any thread or event loop, to batches, and their answers back.

The GIL is held here, and nothing that would give it up runs between the lines that say so.
"""
cimport cython
from libc.math cimport INFINITY

import collections
import concurrent.futures
import threading
from asyncio import get_running_loop
from time import monotonic

from rnnfast.errors import ClosedError, DeadlineError, InputError, Overloaded

from rnnfast.native._arrays cimport is_like

MAX_SECONDS = 1e9


cdef class OpenStream:
    """An open stream: how many frames its state has taken, the calls that wait, when the first of them is due, when the
    last came, whom to tell when it is closed for idleness, and why it was closed."""
    cdef readonly object stream, on_close, loop
    cdef readonly object waiting        # a deque
    cdef readonly double last, due
    cdef public Py_ssize_t frames
    cdef public str closed

    def __init__(self, stream, on_close, loop):
        self.stream, self.last, self.on_close, self.loop = stream, monotonic(), on_close, loop
        self.frames, self.waiting, self.due, self.closed = 0, collections.deque(), INFINITY, None


@cython.no_gc       # nothing that a call holds leads back to it
@cython.freelist(1024)
cdef class Request:
    """A frame of a stream, or a sequence, where live is None: its Future, the event loop that it is of or None, when it
    came, the time from which it waits for no others, and that until which it may wait at all."""
    cdef readonly OpenStream live
    cdef readonly object value, future, loop
    cdef readonly double arrived, due, deadline

    def __cinit__(self, OpenStream live, value, future, loop, double arrived, double due, double deadline):
        self.live, self.value, self.future, self.loop = live, value, future, loop
        self.arrived, self.due, self.deadline = arrived, due, deadline

    def begin(self):
        """Whether somebody waits for it still; then a Future can be cancelled no more."""
        return not self.future.cancelled() if self.loop is not None else self.future.set_running_or_notify_cancel()


cdef class RequestQueue:
    """The calls of a Batcher, whose methods for callers are here: what they put in the inbox, its thread takes."""
    cdef readonly dict _streams         # id -> OpenStream
    cdef readonly object _sequences     # a deque of RequestQueue that wait
    cdef public bint _draining, _ended
    cdef readonly object _counters, _wake
    cdef list inbox
    cdef dict ready                     # streams with a frame, OpenStream -> None in the order of their frames
    cdef Py_ssize_t held                # calls that are out of the inbox and in no batch yet
    cdef Py_ssize_t limit, wake_at      # the thread sleeps until the inbox is so long; 0: it does not sleep
    cdef double max_wait
    cdef object pool
    cdef str label

    def __init__(self, pool, Py_ssize_t max_queue, double max_wait):
        self.pool, self.label, self.limit, self.max_wait = pool, pool.label, max_queue, max_wait
        self._streams, self._sequences, self._counters = {}, collections.deque(), collections.Counter()
        self._wake, self.wake_at = threading.Event(), 0
        self.inbox, self.ready, self.held = [], {}, 0

    # ------------------------------------------------------------------------------------------ callers
    def step(self, stream, frame, timeout=None):
        """For asyncio: an awaitable of the result of a frame, both as a Stream has them.

        timeout: seconds after which a frame that no batch has taken fails with DeadlineError. A frame that is cancelled
        or fails before a batch takes it leaves its stream as it was; `frames` tells. Overloaded where too many wait.
        """
        loop = get_running_loop()
        future = loop.create_future()
        self._post(self._live(stream), self.validated(stream, frame), future, loop, timeout)
        return future

    def submit(self, stream, frame, timeout=None):
        """The same for threads: a concurrent.futures.Future, whose callbacks run in the batcher's thread: they must not
        wait for another."""
        future = concurrent.futures.Future()
        self._post(self._live(stream), self.validated(stream, frame), future, None, timeout)
        return future

    cdef validated(self, stream, frame):
        return frame if is_like(frame, self.pool.like) else self.pool.validate(stream, frame)

    def frames(self, stream):
        """How many frames of a stream its state has taken: what a call that was cancelled came to."""
        return self._live(stream).frames

    cpdef OpenStream _live(self, stream):
        live = self._streams.get(stream)
        if live is None:
            raise ClosedError(f"{self.label}: stream {stream!r} is not open{self.pool.why_none}")
        return live

    cpdef _post(self, OpenStream live, value, future, loop, timeout):
        cdef double now = monotonic(), due = now + self.max_wait, deadline = INFINITY
        if timeout is not None:
            if not isinstance(timeout, (int, float)) or not 0 <= timeout <= MAX_SECONDS:
                raise InputError(f"{self.label}: timeout is {timeout!r}, expected seconds")
            deadline = now + <double>timeout
        cdef bint hurried = deadline <= due     # it cannot wait for others
        self._check_open()
        if len(self.inbox) + self.held >= self.limit:
            self._counters["overloaded"] += 1
            raise Overloaded(f"{self.label}: {self.queued()} frames wait already, no more than {self.limit} may")
        if live is not None:
            live.last = now
        self.inbox.append(Request(live, value, future, loop, now, now if hurried else due, deadline))
        if 0 < self.wake_at and (self.wake_at <= len(self.inbox) or hurried):
            self.wake_at = 0        # once is enough
            self._wake.set()
        if self._ended:         # between the check and here
            self._sweep()

    cpdef _check_open(self):
        if self._draining:
            raise ClosedError(f"{self.label}: the batcher is closed")

    def queued(self):
        """How many calls wait."""
        return len(self.inbox) + self.held

    # ------------------------------------------------------------------------------------------ the thread
    def _sort(self):
        """RequestQueue from the inbox to their streams."""
        cdef Request call
        cdef list calls = self.inbox
        self.inbox = []
        self.held += len(calls)
        for call in calls:
            if call.live is None:
                self._sequences.append(call)
            else:
                call.live.waiting.append(call)
                call.live.due = min(call.live.due, call.due)
                self.ready[call.live] = None

    def _due(self):
        """When a frame that waits is to run with what is there, or None."""
        cdef OpenStream live
        cdef double due = INFINITY
        for live in self.ready:
            due = min(due, live.due)
        return due if self.ready else None

    def _ready(self):
        """How many streams have a frame."""
        return len(self.ready)

    def _sleep_until(self, Py_ssize_t count, seconds):
        """Until so many calls are in the inbox, or for so many seconds, if not None."""
        self._wake.clear()
        self.wake_at = count
        if len(self.inbox) < count and not self._draining and not self._hurried():
            self._wake.wait(seconds)
        self.wake_at = 0

    cdef bint _hurried(self):
        cdef Request call
        for call in self.inbox:
            if call.due == call.arrived:
                return True
        return False

    def _take(self, Py_ssize_t most):
        """The next call of each stream, of so many."""
        cdef OpenStream live
        cdef Request call
        cdef double now = monotonic()
        cdef list batch = [], seen = [], outcomes = []
        for live in self.ready:
            if len(batch) == most:
                break
            seen.append(live)
            while live.waiting:
                call = live.waiting.popleft()
                self.held -= 1
                if not self._is_over(call, now, outcomes) and (call.loop is not None or call.begin()):
                    batch.append(call)
                    break
        for live in seen:
            del self.ready[live]
            live.due = INFINITY
            if live.waiting:
                self.ready[live] = None
            for call in live.waiting:
                live.due = min(live.due, call.due)
        tell(outcomes)
        return batch

    def _run_frames(self, list calls):
        """A step of the pool -> the results of these calls."""
        cdef Request call
        return self.pool.step_validated([call.live.stream for call in calls], [call.value for call in calls])

    def _answer(self, list calls, list results):
        """What a step made for each call."""
        cdef Request call
        cdef Py_ssize_t i
        cdef dict of_loops = {}
        for i, call in enumerate(calls):
            call.live.frames += 1
            if call.loop is None:
                settle([call.future], [results[i]])
                continue
            found = of_loops.get(call.loop)
            if found is None:
                found = of_loops[call.loop] = [], []
            (<list>(<tuple>found)[0]).append(call.future)
            (<list>(<tuple>found)[1]).append(results[i])
        for loop, (futures, values) in of_loops.items():
            soon(loop, settle, futures, values)

    def _next_sequence(self):
        """The Request of the sequence that waits longest."""
        self.held -= 1
        return self._sequences.popleft()

    def _put_back(self, Request call):
        """A sequence that waits on, behind the others."""
        self._sequences.append(call)
        self.held += 1

    cpdef bint _is_over(self, Request call, double now, list outcomes) except -1:
        """Whether a call is not to run any more; what its caller is to be told is added to `outcomes`."""
        if call.future.cancelled():
            self._counters["cancelled"] += 1
        elif call.live is not None and call.live.closed is not None:
            outcomes.append((call, None, self._closed(call.live)))
        elif now > call.deadline:
            self._counters["expired"] += 1
            of = "a sequence" if call.live is None else f"a frame of stream {call.live.stream}"
            outcomes.append((call, None, DeadlineError(
                f"{self.label}: {of} waited {now - call.arrived:.3f} s, longer than it may: it was not taken, the "
                "stream is as it was")))
        else:
            return False
        return True

    def _closed(self, OpenStream live):
        return ClosedError(f"{self.label}: stream {live.stream} {live.closed}: the frame was not taken")

    def _all(self):
        """The calls that wait outside of the inbox."""
        return [call for live in self.ready for call in live.waiting] + list(self._sequences)

    def _sweep(self, why=""):
        """Answer the calls of the inbox when the thread has ended; each is told by whoever takes it out."""
        cdef list calls = self.inbox
        self.inbox = []
        self._refuse_all(calls, why)

    def _refuse_all(self, calls, why):
        for call in calls:
            tell([(call, None, ClosedError(f"{self.label}: the batcher ended{why}: nothing was taken"))])


def tell(list outcomes):
    """Give (call, result, error)s to those who wait."""
    cdef Request call
    for call, result, error in outcomes:
        if call.loop is None:
            settle([call.future], [result], error)
        else:
            soon(call.loop, settle, [call.future], [result], error)


def soon(loop, function, *args):
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        pass        # the loop is closed: nobody waits there


def settle(list futures, list results, error=None):
    cdef Py_ssize_t i
    for i, future in enumerate(futures):
        if future.done():
            continue        # cancelled meanwhile
        try:
            if error is None:
                future.set_result(results[i])
            else:
                future.set_exception(error)
        except concurrent.futures.InvalidStateError:
            pass            # cancelled just now
        except BaseException:
            if not future.done():
                raise
            # a callback's, as sys.exit: the result is there, and the others wait for theirs
