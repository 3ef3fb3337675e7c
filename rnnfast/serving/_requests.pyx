"""The requests of a Batcher: they go from callers, in any thread or event loop, to batches, and their answers go back.

What callers and the thread share is used in critical sections of the queue, which are the GIL where there is one, or is
atomic; the rest belongs to whoever has the `turn`: the thread while it is awake, or an event loop that runs short
batches of its own while the thread sleeps. Callers may be finalizers in the midst of anything here, so nothing here
waits but the thread for work and its turn, and `frames` for the batch that runs.
"""
cimport cython
from libc.math cimport INFINITY

import collections
import concurrent.futures
import itertools
import queue
import threading
from asyncio import get_running_loop
from bisect import bisect_left
from concurrent.futures import _base
from threading import get_ident
from time import monotonic

from rnnfast.errors import ClosedError, DeadlineError, InputError, InputTypeError, Overloaded

from rnnfast.native._arrays cimport is_like
from rnnfast.native._locks cimport Lock

cdef extern from *:
    """
    #define LOAD(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    #define ADD(p, n) __atomic_fetch_add(p, n, __ATOMIC_RELAXED)
    static double load_time(double *p)
    {
        double value;
        __atomic_load(p, &value, __ATOMIC_RELAXED);
        return value;
    }
    static void store_time(double *p, double value) { __atomic_store(p, &value, __ATOMIC_RELAXED); }
    """
    bint load "LOAD"(bint *)
    void store "STORE"(bint *, bint)
    Py_ssize_t load_count "LOAD"(Py_ssize_t *)
    unsigned long load_thread "LOAD"(unsigned long *)
    void store_thread "STORE"(unsigned long *, unsigned long)
    void add "ADD"(Py_ssize_t *, Py_ssize_t)
    double load_time(double *)
    void store_time(double *, double)

cdef enum:
    N_COUNTS = 7
    LEVELS = 3                  # of priority: 1, 2, ...
    DEFAULT_PRIORITY = 2
    KEPT = 3                    # The next so many batches wait for a stream that is opened or sends a frame.

# A loop whose clock counts milliseconds may be so much too early.
cdef double EARLY = 0.0005

cdef Py_ssize_t NEVER = -KEPT, GONE = -KEPT - 1     # for `seen` of a stream: before all batches, and closed

# What a RequestQueue counts.
COUNTS = ("frames", "calls", "cancelled", "expired", "failed", "overloaded", "idle")
MAX_SECONDS = 1e9           # A clock's sum with more loses its fractions.
MAX_SLEEP = 1e6             # Some systems wait for no longer; the thread then looks and sleeps again.


def enter(self):
    """Threading's Condition.__enter__, compiled."""
    return self._lock.__enter__()


def leave(self, *exception):
    """Threading's Condition.__exit__, compiled."""
    return self._lock.__exit__(*exception)


class Condition(threading.Condition):
    """A Condition that no signal leaves locked.

    A handler that raises in the Python code of `Condition.__enter__`, in a caller's `future.done()` say, would leave a
    Future locked, and the Batcher's thread would wait for ever to set its result.
    """
    __enter__ = enter
    __exit__ = leave


class Future(concurrent.futures.Future):
    """A Future whose methods are compiled, as signals come between `with` and its block as of Python 3.14."""
    def cancel(self):
        with self._condition:
            if self._state in (_base.RUNNING, _base.FINISHED):
                return False
            if self._state != _base.PENDING:
                return True
            self._state = _base.CANCELLED
            self._condition.notify_all()
        self._invoke_callbacks()
        return True

    def cancelled(self):
        with self._condition:
            return self._state in (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED)

    def running(self):
        with self._condition:
            return self._state == _base.RUNNING

    def done(self):
        with self._condition:
            return self._state not in (_base.PENDING, _base.RUNNING)

    def add_done_callback(self, fn):
        with self._condition:
            if self._state in (_base.PENDING, _base.RUNNING):
                self._done_callbacks.append(fn)
                return
        super().add_done_callback(fn)       # It calls the function.

    def result(self, timeout=None):
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._result

    def exception(self, timeout=None):
        with self._condition:
            if self._state in (_base.PENDING, _base.RUNNING):
                self._condition.wait(timeout)
            if self._state in (_base.PENDING, _base.RUNNING):
                raise concurrent.futures.TimeoutError()
            if self._state != _base.FINISHED:
                raise concurrent.futures.CancelledError()
            return self._exception


def new_future():
    """Return a new Future."""
    future = Future()
    future._condition.__class__ = Condition
    return future


cdef class Histogram:
    """How often values occurred, by upper bounds; `counts` has one more entry for values beyond the last bound.

    Attributes:
        bounds: The upper bounds, in order.
    """
    cdef readonly tuple bounds
    cdef list counts
    cdef double total

    def __init__(self, tuple bounds):
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, double value):
        """Count a value."""
        cdef Py_ssize_t i = bisect_left(self.bounds, value)
        with cython.critical_section(self):
            self.counts[i] += 1
            self.total += value

    def numbers(self):
        """Return the histogram as plain numbers, whose counts and sum fit."""
        with cython.critical_section(self):
            counts, total = list(self.counts), self.total
        return {"bounds": list(self.bounds), "counts": counts, "sum": total, "count": sum(counts)}


cdef class OpenStream:
    """An open stream of a Batcher.

    Attributes:
        id: The id of the stream in the pool.
        waiting: The deque of its Requests that no batch has taken.
        due: When its first waiting frame is to run; infinity if none waits.
        level: The least level of its waiting frames, where one waits; the thread's.
        frames: How many frames its state has taken since it began.
        lost: Whether a frame with which it was to begin was not taken; the thread's.
    """
    cdef readonly object id
    cdef readonly object waiting
    cdef readonly double due
    cdef int level
    cdef public Py_ssize_t frames
    cdef public bint lost
    cdef double came            # when its last frame came, in seconds of the monotonic clock
    cdef Py_ssize_t seen        # how many batches there had been when it was opened or its last frame was sorted
    cdef str why

    def __init__(self, id):
        self.id, self.came, self.seen = id, monotonic(), NEVER
        self.level, self.lost = LEVELS, False
        self.frames, self.waiting, self.due, self.why = 0, collections.deque(), INFINITY, None

    @property
    def last(self):
        """When its last frame came, in seconds of the monotonic clock."""
        return load_time(&self.came)

    @property
    def closed(self):
        """Why it was closed; None while it is open."""
        return self.why_closed()

    cdef str why_closed(self):
        with cython.critical_section(self):
            return self.why

    @closed.setter
    def closed(self, str why):
        with cython.critical_section(self):
            self.why = why


@cython.no_gc       # A request holds nothing that leads back to it.
@cython.freelist(1024)
cdef class Request:
    """A frame of a stream, a whole sequence or a whole call that waits for a batch.

    Attributes:
        open_stream: The OpenStream of a frame; None for others.
        call: Whether it is a call.
        value: The validated frame, sequence or Call.
        start: The tuple of the state with which the stream begins anew (None: zeros), or None where it goes on.
        future, loop: The caller's Future, and its event loop; None for a Future of threads.
        arrived: When the request came, in seconds of the monotonic clock.
        due: When it is to run at the latest, with whatever else is there.
        deadline: Until when it may wait; then it fails.
        level: Its priority, from 0 on: lower ones are taken first.
    """
    cdef readonly OpenStream open_stream
    cdef readonly object value, future, loop
    cdef readonly double arrived, due, deadline
    cdef readonly int level
    cdef readonly bint call
    cdef readonly tuple start

    def __cinit__(self, OpenStream open_stream, value, future, loop, double arrived, double due, double deadline,
                  int level, tuple start=None, bint call=False):
        self.open_stream, self.value, self.future, self.loop = open_stream, value, future, loop
        self.level, self.start, self.call = level, start, call
        self.arrived, self.due, self.deadline = arrived, due, deadline

    def begin(self):
        """Return whether somebody still waits for the answer; then the Future can be cancelled no more."""
        return not self.future.cancelled() if self.loop is not None else self.future.set_running_or_notify_cancel()


cdef class RequestQueue:
    """The waiting requests of a Batcher: callers put them in the inbox, and the Batcher's thread takes them out.

    `_start` of a subclass starts the thread, `_run_short` runs what is short in an event loop, and `_break_off` answers
    what was to run there when an exception ends it.

    Attributes:
        turn: A lock; whoever has it runs requests. The thread has it while it is awake.
    """
    cdef readonly dict _streams         # id -> OpenStream
    cdef readonly object _sequences     # the deque of waiting Requests of whole sequences
    cdef readonly object _calls         # the deque of waiting Requests of calls
    cdef bint draining, ended, started
    cdef Py_ssize_t[N_COUNTS] counts
    cdef object wake                    # a SimpleQueue with an item for each call of `_wake_up` since the last sleep
    cdef readonly Lock computing                 # held while a batch is taken, run, and counted
    cdef list inbox
    cdef Py_ssize_t batches             # how many were taken
    cdef Py_ssize_t[KEPT] active        # how many active streams there are, by their `seen` modulo KEPT
    cdef list ready                     # level -> {OpenStream: None}: streams with a waiting frame, in their order
    cdef Py_ssize_t held                # the number of requests that have left the inbox and are in no batch yet
    cdef Py_ssize_t limit               # the most requests that may wait
    cdef Py_ssize_t wake_at             # the length of the inbox that wakes the thread; 0 while it is awake
    cdef double max_wait, max_inline
    cdef readonly object turn
    cdef unsigned long here             # the thread of the event loop that has the turn; 0 if none has it
    cdef object scheduled               # the event loop that will run `run_here`, None if none will
    cdef Py_ssize_t full_here           # the length of the inbox with which it is to run at once; 0 if it will anyway
    cdef Py_ssize_t wait_from           # the least number of open streams with which frames wait for others
    cdef readonly object _pool
    cdef str label

    def __init__(self, pool, Py_ssize_t max_queue, double max_wait, double max_inline, Py_ssize_t wait_from):
        self._pool, self.label, self.limit, self.max_wait = pool, pool.label, max_queue, max_wait
        self.max_inline, self.wait_from = max_inline, wait_from
        self._streams, self._sequences, self._calls, self.batches = {}, collections.deque(), collections.deque(), 0
        self.computing = Lock(self.label, "batcher", True, True)
        self._empty()

    @property
    def _draining(self):
        """Return whether no more requests are accepted."""
        return load(&self.draining)

    @_draining.setter
    def _draining(self, bint value):
        store(&self.draining, value)

    @property
    def _ended(self):
        """Return whether the thread takes no more requests."""
        return load(&self.ended)

    @_ended.setter
    def _ended(self, bint value):
        store(&self.ended, value)

    @property
    def _started(self):
        """Return whether there is a thread; else a request starts it, as after a fork."""
        return load(&self.started)

    @_started.setter
    def _started(self, bint value):
        store(&self.started, value)

    def _count(self, str what, Py_ssize_t n=1):
        """Count n of what COUNTS names."""
        add(&self.counts[<Py_ssize_t>COUNTS.index(what)], n)

    def _counted(self):
        """Return {name: number} of what COUNTS names."""
        return {name: load_count(&self.counts[i]) for i, name in enumerate(COUNTS)}

    def _empty(self):
        """Forget all requests."""
        cdef OpenStream open_stream
        for open_stream in self._streams.values():
            open_stream.waiting.clear()
            open_stream.due, open_stream.level = INFINITY, LEVELS
        self.wake, self.wake_at = queue.SimpleQueue(), 0
        self.turn, self.here, self.scheduled, self.full_here = threading.Lock(), 0, None, 0
        self.inbox, self.ready, self.held = [], [{} for _ in range(LEVELS)], 0
        self._sequences.clear()
        self._calls.clear()

    def _inbox(self):
        """Return the requests of the inbox."""
        with cython.critical_section(self):
            return list(self.inbox)

    def _wake_up(self):
        """Wake the thread if it sleeps, from anywhere."""
        self.wake.put(None)

    def _claim(self, thread):
        """Make this the thread of the queue if there is none; return whether it is."""
        with cython.critical_section(self):
            if self._thread is None:
                self._thread = thread
                store(&self.started, True)
            return self._thread is thread

    # ------------------------------------------------------------------------------------------ callers
    def end(self, OpenStream open_stream, str why):
        """Close a stream; return False if that was done before. No signal parts this."""
        if self._streams.pop(open_stream.id, None) is None:
            return False            # Another thread was first.
        open_stream.closed = why
        self.forget(open_stream)
        self._pool._slots.take_back([open_stream.id])
        self._wake_up()
        return True

    def add(self, OpenStream open_stream):
        """Enter a stream that was opened."""
        self._streams[open_stream.id] = open_stream
        self.see(open_stream)

    cdef int see(self, OpenStream open_stream) except -1:
        """Note that a stream is active, unless it was closed."""
        with cython.critical_section(self):
            if open_stream.seen != self.batches and open_stream.seen != GONE:
                if open_stream.seen > self.batches - KEPT:
                    self.active[open_stream.seen % KEPT] -= 1
                open_stream.seen = self.batches
                self.active[self.batches % KEPT] += 1
        return 0

    cdef int forget(self, OpenStream open_stream) except -1:
        """Note that a stream was closed."""
        with cython.critical_section(self):
            if open_stream.seen > self.batches - KEPT:
                self.active[open_stream.seen % KEPT] -= 1
            open_stream.seen = GONE
        return 0

    def _active_streams(self):
        """Return how many streams were opened, or had a frame, since the last batch but two began."""
        cdef Py_ssize_t i, n = 0
        with cython.critical_section(self):
            for i in range(KEPT):
                n += self.active[i]
        return n

    def take_back(self, list opened):
        """Close those of these streams that are open. No signal parts this."""
        for stream in opened:
            open_stream = self._streams.get(stream)
            if open_stream is not None:
                self.end(open_stream, "was closed")
        if opened:
            self._pool._slots.take_back(opened)

    def step(self, stream, frame, timeout=None, begin=False, priority=0):
        """See `Batcher.step`."""
        loop = self._running_loop("step", "submit")
        future = loop.create_future()
        self._post(self._find_open(stream), self.validated(stream, frame), future, loop, timeout, priority,
                   self.start(begin))
        return future

    def submit(self, stream, frame, timeout=None, begin=False, priority=0):
        """See `Batcher.submit`."""
        future = new_future()
        self._post(self._find_open(stream), self.validated(stream, frame), future, None, timeout, priority,
                   self.start(begin))
        return future

    cdef tuple start(self, begin):
        """Return the `start` of a Request from what the caller gave."""
        if begin is False:
            return None
        if begin is None:
            raise InputTypeError(f"{self.label}: begin is None, expected True, False or a state")
        return (None if begin is True else self._pool.validate_state(begin),)

    cdef validated(self, stream, frame):
        if is_like(frame, self._pool.frame_pattern):
            return frame
        return self._pool.validate(stream, self._pool.with_frame_axes(stream, frame))

    def _running_loop(self, str method, str other):
        """Return the running event loop; `other` is the method for callers that have none."""
        try:
            return get_running_loop()
        except RuntimeError:
            raise InputError(
                f"{self.label}: {method} is for asyncio, and no event loop runs here: "
                f"{other} returns a concurrent.futures.Future"
            ) from None

    def frames(self, stream):
        """See `Batcher.frames`."""
        cdef OpenStream open_stream = self._find_open(stream)
        if self.computing.is_mine():        # A finalizer asks, in the midst of a batch.
            return open_stream.frames
        return self.computing.call(getattr, open_stream, "frames")

    cpdef OpenStream _find_open(self, stream):
        open_stream = self._streams.get(stream)
        if open_stream is None:
            if load(&self.ended):
                self._check_open()
            raise ClosedError(f"{self.label}: stream {stream!r} is not open{self._pool.why_no_streams}")
        return open_stream

    cpdef _post(self, OpenStream open_stream, value, future, loop, timeout, priority, tuple start=None,
                bint call=False):
        cdef double now = monotonic(), due = now, deadline = INFINITY
        if len(self._streams) >= self.wait_from:
            due += self.max_wait
        if timeout is not None:
            if not isinstance(timeout, (int, float)) or not 0 <= timeout <= MAX_SECONDS:
                raise InputError(f"{self.label}: timeout is {timeout!r}, expected seconds")
            deadline = now + <double>timeout
        if type(priority) is not int or not 0 <= priority <= LEVELS:
            raise InputError(f"{self.label}: priority is {priority!r}, expected 0 to {LEVELS}")
        cdef int level = (priority or DEFAULT_PRIORITY) - 1
        cdef bint hurried = call or deadline <= due     # There is no time to wait for others.
        cdef bint wakes = False, inline = False
        cdef Py_ssize_t waiting
        self._check_open()
        request = Request(open_stream, value, future, loop, now, now if hurried else due, deadline,
                          level, start, call)
        with cython.critical_section(self):
            waiting = len(self.inbox) + self.held
            if waiting < self.limit:
                if open_stream is not None:
                    store_time(&open_stream.came, now)
                self.inbox.append(request)
                wakes = 0 < self.wake_at and (self.wake_at <= len(self.inbox) or hurried)
                if wakes and self.max_inline and loop is not None and (call or open_stream is not None):
                    wakes = False       # The thread stays asleep, and others may still wake it.
                    inline = self.scheduled is not loop or 0 < self.full_here <= len(self.inbox) or (
                        hurried and self.full_here > 0)
                    if inline:
                        self.scheduled, self.full_here = loop, 0
                elif wakes:
                    self.wake_at = 0    # Waking the thread once is enough.
        if waiting >= self.limit:
            self._count("overloaded")
            raise Overloaded(f"{self.label}: {waiting} frames wait already, no more than {self.limit} may")
        if inline:
            loop.call_soon(self.run_here, loop)
        elif wakes:
            self._wake_up()
        if load(&self.ended):   # The thread ended after the check above.
            self._sweep()

    cpdef _check_open(self):
        if load(&self.draining):
            raise ClosedError(f"{self.label}: the batcher is closed")
        if not load(&self.started):
            self._start()

    def queued(self):
        """Return how many requests wait."""
        with cython.critical_section(self):
            return len(self.inbox) + self.held

    # ------------------------------------------------------------------------------------------ in an event loop
    def run_here(self, loop):
        """Run the requests of an event loop in it, if they are short; else wake the thread. No signal parts this."""
        cdef bint left
        cdef double wait = 0.0
        cdef Py_ssize_t full = self._full()
        with cython.critical_section(self):
            if 0 < len(self.inbox) < full and not self._hurried():
                wait = (<Request>self.inbox[0]).due - monotonic()
            if wait > EARLY:
                self.scheduled, self.full_here = loop, full
            else:
                self.scheduled, self.full_here = None, 0
        if wait > EARLY:
            loop.call_later(wait, self.run_here, loop)
            return
        turn = self.turn        # A fork in the midst of this makes another one.
        if not turn.acquire(False):
            self._wake_up()     # It may be about to sleep.
            return
        store_thread(&self.here, get_ident())
        try:
            if self.is_all_of(loop):
                self._run_short()
        except BaseException as e:
            self._break_off(e)
            raise
        finally:
            store_thread(&self.here, 0)
            with cython.critical_section(self):
                left = len(self.inbox) + self.held > 0 or load(&self.draining)
                if not left:
                    self.wake_at = 1
            turn.release()
            if left:
                self._wake_up()

    def _is_here(self):
        """Return whether this thread runs requests of its event loop."""
        return load_thread(&self.here) == <unsigned long>get_ident()

    cdef bint is_all_of(self, loop):
        """Return whether all requests that wait are frames and calls of one event loop."""
        cdef Request request
        with cython.critical_section(self):
            if self.held or load(&self.draining):
                return False
            for request in self.inbox:
                if request.loop is not loop or request.open_stream is None and not request.call:
                    return False
        return True

    # ------------------------------------------------------------------------------------------ the thread
    def _sort(self):
        """Move requests from the inbox to their streams."""
        cdef Request request
        cdef list requests, empty = []
        with cython.critical_section(self):
            requests, self.inbox = self.inbox, empty
            self.held += len(requests)
        for request in requests:
            if request.open_stream is None:
                insert(self._calls if request.call else self._sequences, request)
            else:
                self.see(request.open_stream)
                if request.open_stream.waiting and request.level < request.open_stream.level:
                    del self.ready[request.open_stream.level][request.open_stream]
                request.open_stream.waiting.append(request)
                request.open_stream.due = min(request.open_stream.due, request.due)
                request.open_stream.level = min(request.open_stream.level, request.level)
                self.ready[request.open_stream.level][request.open_stream] = None

    def _due(self):
        """Return when a waiting frame is to run at the latest; None if none waits."""
        cdef OpenStream open_stream
        cdef double due = INFINITY
        for streams in self.ready:
            for open_stream in streams:
                due = min(due, open_stream.due)
        return due if self._ready() else None

    def _ready(self):
        """Return how many streams have a waiting frame."""
        cdef Py_ssize_t n = 0
        for streams in self.ready:
            n += len(<dict>streams)
        return n

    def _next_streams(self, Py_ssize_t most):
        """Return the ids of the streams whose frames the next batch takes, `most` of them at most."""
        streams = itertools.chain.from_iterable(self.ready)
        return [open_stream.id for open_stream in itertools.islice(streams, most)]

    def _sleep_until(self, Py_ssize_t count, seconds):
        """Sleep until so many requests are in the inbox, or for so many seconds if that is not None."""
        while not self.wake.empty():
            self.wake.get()
        with cython.critical_section(self):
            self.wake_at = count
            sleeps = len(self.inbox) < count and not load(&self.draining) and not self._hurried()
        if sleeps:
            self.turn.release()
            try:
                self.wake.get(True, None if seconds is None else min(seconds, MAX_SLEEP))
            except queue.Empty:
                pass
            finally:
                self.turn.acquire()
        with cython.critical_section(self):
            self.wake_at = 0
            self.scheduled = None       # A signal's handler that raised may have parted it from its loop.

    cdef int _hold(self, Py_ssize_t n) except -1:
        """Count requests that have left the inbox, or that left the queue (a negative number)."""
        with cython.critical_section(self):
            self.held += n
        return 0

    cdef bint _hurried(self):
        cdef Request request
        for request in self.inbox:
            if request.due == request.arrived:
                return True
        return False

    def _take(self, Py_ssize_t most, list batch, list outcomes):
        """Take the next request of each of at most `most` streams out of the queue and append it to `batch`.

        What callers of others are to be told is appended to `outcomes`.
        """
        cdef OpenStream open_stream
        cdef Request request
        cdef double now = monotonic()
        cdef list seen = []
        for open_stream in itertools.chain.from_iterable(self.ready):
            if len(batch) == most:
                break
            seen.append(open_stream)
            while open_stream.waiting:
                request = open_stream.waiting[0]
                if not self._is_over(request, now, outcomes) and (request.loop is not None or request.begin()):
                    batch.append(request)
                if request.start is not None:
                    open_stream.lost = True     # until its state has taken the frame
                open_stream.waiting.popleft()
                self._hold(-1)
                if batch and batch[len(batch) - 1] is request:
                    break
        if batch:
            with cython.critical_section(self):
                self.batches += 1
                self.active[self.batches % KEPT] = 0    # of those that are active no more
        for open_stream in seen:
            del self.ready[open_stream.level][open_stream]
            open_stream.due, open_stream.level = INFINITY, LEVELS
            for request in open_stream.waiting:
                open_stream.due = min(open_stream.due, request.due)
                open_stream.level = min(open_stream.level, request.level)
            if open_stream.waiting:
                self.ready[open_stream.level][open_stream] = None

    def _run_frames(self, list requests):
        """Step the pool with these requests' frames and count them; return their results."""
        cdef Request request
        cdef Py_ssize_t steps = self._pool._slots.steps
        ids = [request.open_stream.id for request in requests]
        starts = {i: request.start[0] for i, request in enumerate(requests) if request.start is not None}
        try:
            return self._pool.step_validated(ids, [request.value for request in requests], starts)
        finally:
            if self._pool._slots.steps != steps:    # Also where a signal's handler raised behind the step.
                self._count_taken(requests)

    cdef _count_taken(self, list requests):
        """Count these requests' frames, which the states of their streams have taken."""
        cdef Request request
        for request in requests:
            if request.start is not None:
                request.open_stream.frames, request.open_stream.lost = 0, False
            request.open_stream.frames += 1

    def _answer(self, list requests, list results):
        """Give each request its result."""
        cdef Request request
        cdef Py_ssize_t i
        cdef dict of_loops = {}
        if load_thread(&self.here):     # It is the loop of all of them.
            settle([request.future for request in requests], results)
            return
        for i, request in enumerate(requests):
            if request.loop is None:
                settle([request.future], [results[i]])
                continue
            found = of_loops.get(request.loop)
            if found is None:
                found = of_loops[request.loop] = [], []
            (<list>(<tuple>found)[0]).append(request.future)
            (<list>(<tuple>found)[1]).append(results[i])
        for loop, (futures, values) in of_loops.items():
            soon(loop, settle, futures, values)

    def _next_sequence(self):
        """Take out the sequence that has waited longest."""
        self._hold(-1)
        self._sequences.popleft()

    def _drop_call(self, Request request):
        """Take a call out of the queue."""
        self._hold(-1)
        self._calls.remove(request)

    def _put_back(self, Request request):
        """Let a sequence wait on, behind the others, whom the caller puts there too."""
        self._sequences.append(request)
        self._hold(1)

    cpdef bint _is_over(self, Request request, double now, list outcomes) except -1:
        """Return whether a request is not to run any more; append what its caller is to be told to `outcomes`."""
        if request.future.cancelled():
            self._count("cancelled")
        elif request.open_stream is not None and request.open_stream.why_closed() is not None:
            outcomes.append((request, None, self._closed(request.open_stream)))
        elif request.open_stream is not None and request.open_stream.lost and request.start is None:
            self._count("failed")
            outcomes.append((request, None, InputError(
                f"{self.label}: stream {request.open_stream.id} was to begin anew, with a frame that was not taken: "
                "nor was this one, and the state is as it was; begin with the next one")))
        elif now > request.deadline:
            self._count("expired")
            of = "a call" if request.call else "a sequence"
            if request.open_stream is not None:
                of = f"a frame of stream {request.open_stream.id}"
            outcomes.append((request, None, DeadlineError(
                f"{self.label}: {of} waited {now - request.arrived:.3f} s, longer than it may: it was not taken, the "
                "stream is as it was")))
        else:
            return False
        return True

    def _closed(self, OpenStream open_stream):
        """Return the error for a frame of a closed stream."""
        return ClosedError(f"{self.label}: stream {open_stream.id} {open_stream.why_closed()}: the frame was not taken")

    def _all(self):
        """Return the waiting requests that have left the inbox."""
        streams = itertools.chain.from_iterable(self.ready)
        frames = [request for open_stream in streams for request in open_stream.waiting]
        return [*frames, *self._sequences, *self._calls]

    def _sweep(self, why=""):
        """Refuse the requests of the inbox after the thread has ended; whoever takes a request out answers it."""
        cdef list requests, empty = []
        with cython.critical_section(self):
            requests, self.inbox = self.inbox, empty
        self._refuse_all(requests, why)

    def _refuse_all(self, requests, why):
        """Answer all of these requests with ClosedError, whatever a callback of one raises."""
        for request in requests:
            try:
                tell([(request, None, ClosedError(f"{self.label}: the batcher ended{why}: nothing was taken"))])
            except BaseException:
                pass


cdef int insert(waiting, Request request) except -1:
    """Put a request behind those of a deque that have its level or a lower one."""
    cdef Py_ssize_t i = len(waiting)
    while i and (<Request>waiting[i - 1]).level > request.level:
        i -= 1
    waiting.insert(i, request)
    return 0


def tell(list outcomes):
    """Give (request, result, error) outcomes to the callers that wait for them."""
    cdef Request request
    for request, result, error in outcomes:
        if request.loop is None:
            settle([request.future], [result], error)
        else:
            soon(request.loop, settle, [request.future], [result], error)


def soon(loop, function, *args):
    """Call a function in an event loop soon, from any thread."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        pass        # The loop is closed: nobody waits there.


def settle(list futures, list results, error=None):
    """Set the results of futures, or one error of all."""
    cdef Py_ssize_t i
    for i, future in enumerate(futures):
        if future.done():
            continue        # It was cancelled meanwhile.
        try:
            if error is None:
                future.set_result(results[i])
            else:
                future.set_exception(error)
        except concurrent.futures.InvalidStateError:
            pass            # It was cancelled just now.
        except BaseException:
            if not future.done():
                raise
            # A callback raised, by sys.exit say: this result is set, and the others wait for theirs.
