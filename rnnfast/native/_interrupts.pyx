"""How native calls are stopped: by a signal's handler that raises, by a deadline, or by a caller's flag.

kernels/interrupt.h describes the counting of work. A call that is stopped returns early and raises; its results are
dropped, and states stay as they were.
"""
from libc.stdint cimport INT64_MAX, int64_t

import os

from rnnfast.errors import LimitError, TerminatedError

cdef extern from "Python.h":
    int PyErr_CheckSignals()        # without an exception clause: the error stays set until `finish`
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef extern from *:
    """
    #include <time.h>
    #include "interrupt.h"

    /* What ends the native calls of a thread within `within`. */
    typedef struct scope {
        int64_t deadline;
        double seconds;
        atomic_int *flag;
        struct scope *around;
    } scope;

    static _Thread_local scope *innermost;

    static scope *get_innermost(void) { return innermost; }
    static void set_innermost(scope *s) { innermost = s; }

    static int64_t nanoseconds(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    static void init(interrupt *c, int (*look)(watch *), unsigned long owner)
    {
        c->look = look;
        atomic_init(&c->stopped, STOPPED_NOT);
        c->owner = owner;
        c->due = 0;
        c->watch.left = LOOK_COST;
        c->watch.call = c;
    }

    static int stop_of(interrupt *c) { return atomic_load_explicit(&c->stopped, memory_order_relaxed); }
    static void stop(interrupt *c, int why) { atomic_store_explicit(&c->stopped, why, memory_order_relaxed); }
    static int raised(const atomic_int *flag)
    {
        return flag && atomic_load_explicit((atomic_int *)flag, memory_order_relaxed);
    }
    static void set_flag(int *flag, int value) { atomic_store((atomic_int *)flag, value); }
    """
    ctypedef struct atomic_int:
        pass
    ctypedef struct scope:
        int64_t deadline
        double seconds
        atomic_int *flag
        scope *around
    enum:
        LOOK_COST, STOPPED_NOT, STOPPED_BY_SIGNAL, STOPPED_BY_DEADLINE, STOPPED_BY_FLAG
    ctypedef struct full_interrupt "interrupt":
        unsigned long owner
        int64_t deadline, due
        const atomic_int *flag
        double seconds
    scope *get_innermost() noexcept nogil
    void set_innermost(scope *) noexcept nogil
    int64_t nanoseconds() noexcept nogil
    void init(interrupt *, int (*)(watch *) noexcept nogil, unsigned long) noexcept nogil
    int stop_of(interrupt *) noexcept nogil
    void stop(interrupt *, int) noexcept nogil
    int raised(const atomic_int *) noexcept nogil
    void set_flag(int *, int) noexcept nogil

cdef enum:
    # Nanoseconds between two looks at signals, which take the interpreter's lock. Where other threads are busy in
    # Python that takes 5 ms, so the next look then comes after BUSY_INTERVAL.
    INTERVAL = 15000000
    BUSY_INTERVAL = 30000000
    SLOW_LOCK = 1000000

cdef unsigned long main_thread      # signals are handled on this one


def _set_main_thread():
    """Remember that this thread handles signals: the main thread, or the only one that is left after a fork."""
    global main_thread
    main_thread = PyThread_get_thread_ident()


def _find_main_thread():
    global main_thread
    import threading
    main_thread = threading.main_thread().ident


_find_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_set_main_thread)


cdef int look(watch *w) noexcept nogil:
    """Return whether the call of this watch was stopped; on the thread that made the call also see whether it must be.
    """
    cdef full_interrupt *call = <full_interrupt *>w.call
    cdef int64_t now
    cdef int why = STOPPED_NOT
    w.left = LOOK_COST
    if not stop_of(w.call) and PyThread_get_thread_ident() == call.owner:
        now = nanoseconds()
        if raised(call.flag):
            why = STOPPED_BY_FLAG
        elif now >= call.deadline:
            why = STOPPED_BY_DEADLINE
        elif call.due == 0:
            call.due = now + INTERVAL
        elif now >= call.due:
            if call.owner == main_thread:
                with gil:
                    if PyErr_CheckSignals():
                        why = STOPPED_BY_SIGNAL
            call.due = nanoseconds()
            call.due += BUSY_INTERVAL if call.due - now > SLOW_LOCK else INTERVAL
        if why:
            stop(w.call, why)
    if stop_of(w.call):
        w.left = -1
        return 1
    return 0


cdef void begin(interrupt *call, double seconds) noexcept:
    cdef scope *around = get_innermost()
    cdef full_interrupt *c = <full_interrupt *>call
    init(call, look, PyThread_get_thread_ident())
    c.deadline, c.seconds, c.flag = INT64_MAX, seconds, NULL
    if seconds > 0:
        c.deadline = nanoseconds() + nanoseconds_of(seconds)
    if around != NULL:
        c.flag = around.flag
        if around.deadline < c.deadline:
            c.deadline, c.seconds = around.deadline, around.seconds


cdef int64_t nanoseconds_of(double seconds) noexcept:
    """Return a duration in nanoseconds, at most a century."""
    return <int64_t>(min(seconds, 3e9) * 1e9)


cdef int finish(interrupt *call) except -1:
    cdef int why = stop_of(call)
    if why == STOPPED_NOT:
        return 0
    if why == STOPPED_BY_SIGNAL:
        return -1                   # the handler's exception is set
    return raise_for(why, (<full_interrupt *>call).seconds)


cdef bint stopped(interrupt *call) noexcept nogil:
    return stop_of(call) != STOPPED_NOT


cdef int raise_for(int why, double seconds) except -1:
    if why == STOPPED_BY_FLAG:
        raise TerminatedError("the run was terminated: the terminate flag of its RunOptions is set")
    raise LimitError(f"the call takes longer than the {seconds:g} seconds that limits.seconds allows")


cdef class Flag:
    """A flag that any thread may set to stop the calls that another thread makes within `within`."""
    def set(self, value):
        set_flag(&self.value, bool(value))

    def __bool__(self):
        return bool(raised(<const atomic_int *>&self.value))


def within(seconds, Flag flag, function, *args):
    """Return function(*args), whose native calls stop after so many seconds (None: never), or when the flag is set.

    Where calls of `within` are nested, the deadline that comes first counts, and the innermost flag.
    """
    cdef scope s
    cdef scope *around = get_innermost()
    s.around, s.flag, s.seconds = around, NULL, 0 if seconds is None else seconds
    s.deadline = nanoseconds() + nanoseconds_of(s.seconds) if s.seconds > 0 else INT64_MAX
    if flag is not None:
        s.flag = <atomic_int *>&flag.value
    if around != NULL:
        if around.deadline < s.deadline:
            s.deadline, s.seconds = around.deadline, around.seconds
        if s.flag == NULL:
            s.flag = around.flag
    set_innermost(&s)
    try:
        check()
        return function(*args)
    finally:
        set_innermost(around)


cpdef int check() except -1:
    """Raise an error if the deadline of a `within` around this call has passed, or its flag is set."""
    cdef scope *s = get_innermost()
    if s == NULL:
        return 0
    if raised(s.flag):
        raise_for(STOPPED_BY_FLAG, 0)
    if nanoseconds() >= s.deadline:
        raise_for(STOPPED_BY_DEADLINE, s.seconds)
    return 0
