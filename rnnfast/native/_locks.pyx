"""A lock for calls that a signal handler, a finalizer or a fork may interrupt anywhere.

Python checks for signals between the instructions of Python code, so also between taking a lock and entering the `try`
that releases it. Here both are in C, with the call between them. The garbage collector may run any finalizer in the
midst of a call: one that asks for a lock of its own thread is refused, where it would wait for ever.
"""
cimport cython

import os
import threading

from rnnfast.errors import ClosedError, InputError

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

cdef extern from *:
    """
    static _Thread_local int locks_held;        /* by this thread, of those that others wait for */
    #define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    """
    int locks_held
    unsigned long load "LOAD"(unsigned long *) nogil
    void store "STORE"(unsigned long *, unsigned long) nogil

cdef enum:
    TAKEN, OTHERS, OWN          # by this call, by another thread, by a call of this thread that goes on

cdef unsigned long forks = 0    # of this process and its ancestors
cdef unsigned long survivor = 0     # the thread that called the last of them


def is_inside():
    """Return whether this thread has a lock that others wait for: its caller is a finalizer then, or a user's layer."""
    return locks_held > 0


def note_fork():
    """Count a fork, in the child."""
    global forks, survivor
    forks, survivor = forks + 1, PyThread_get_thread_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=note_fork)


cdef class Lock:
    """Lets one call at a time use an object.

    Args:
        label: The name of the model or layer, which begins every error message.
        what: What is used: "stream" or "pool".
        waits: Whether a call waits for those of other threads; else it is refused.
        outer: Whether a call that has this lock may wait for another one. Then no call that has another waits for this.

    Attributes:
        closed: Whether `close` was called.
        interrupted: Whether the process was forked while a thread that the child does not have was in a call.
    """

    def __init__(self, str label, str what, bint waits, bint outer=False):
        self.label, self.what, self.waits, self.counts = label, what, waits, waits and not outer
        self.closed = self.interrupted = False
        self.forget()

    def call(self, function, *args):
        """Return function(*args), and let no other call in until it ends.

        Raises:
            ClosedError: `close` was called.
            InputError: The object is in use and this call does not wait, or a fork interrupted a call that does not.
        """
        self.enter()
        try:
            if self.closed:
                raise ClosedError(f"{self.label}: the {self.what} is closed")
            if self.interrupted and not self.waits:
                raise InputError(f"{self.label}: the {self.what} was in use by another thread when the process was "
                                 "forked: reset() it, or use a new one")
            return function(*args)
        finally:
            self.leave()

    def renew(self, function, *args):
        """Like `call`, and make up for a fork that interrupted one."""
        self.enter()
        try:
            if self.closed:
                raise ClosedError(f"{self.label}: the {self.what} is closed")
            result = function(*args)
            self.interrupted = False
            return result
        finally:
            self.leave()

    def close(self, function):
        """Refuse all later calls and call the function, which frees memory; later closings do nothing.

        A finalizer may close what its own thread is using: that call goes on, and the memory is freed with the object.

        Raises:
            InputError: Another thread is using the object.
        """
        if self.closed:
            return
        cdef int found = self.take(self.waits)
        if found == OTHERS and self.closed:
            return                      # The other thread is closing it.
        if found == OTHERS:
            self.refuse(found)
        cdef bint first = not self.closed
        self.closed = True
        if found == TAKEN:
            try:
                if first:
                    function()
            finally:
                self.leave()

    cpdef bint is_mine(self):
        """Return whether a call of this thread is using the object."""
        return load(&self.owner) == PyThread_get_thread_ident()

    cdef int enter(self) except -1:
        cdef int found = self.take(self.waits)
        if found != TAKEN:
            self.refuse(found)
        return 0

    cdef int refuse(self, int found) except -1:
        """Raise InputError: the object is in use."""
        if found == OWN:
            raise InputError(f"{self.label}: the {self.what} is in use by a call that this one interrupts, from a "
                             "finalizer, a signal handler or a caller's own object")
        if self.waits:
            raise InputError(f"{self.label}: the {self.what} is in use by another thread, and this call does not wait, "
                             "as it interrupts one of another pool on its own thread")
        raise InputError(f"{self.label}: the {self.what} is in use by another thread; each thread needs one of its own")

    cdef int take(self, bint wait) except -1:
        """Take the lock if it is free or, where that cannot last for ever, wait for it."""
        global locks_held
        cdef unsigned long thread = PyThread_get_thread_ident()
        if load(&self.forks) != forks:
            self.after_fork()
        if load(&self.owner) == thread:
            return OWN
        if not self.acquire(False):
            if not wait or locks_held:
                return OTHERS
            self.acquire()          # It raises what a signal handler raises, and is not taken then.
        store(&self.owner, thread)
        locks_held += self.counts
        return TAKEN

    cdef int leave(self) except -1:
        global locks_held
        store(&self.owner, 0)
        locks_held -= self.counts
        self.release()
        return 0

    cdef int after_fork(self) except -1:
        """Free the lock of a thread that this process does not have."""
        with cython.critical_section(self):
            if load(&self.forks) != forks:
                if load(&self.owner) != survivor:
                    self.interrupted = self.interrupted or load(&self.owner) != 0
                    self.forget()
                store(&self.forks, forks)
        return 0

    cdef int forget(self) except -1:
        lock = threading.Lock()
        self.acquire, self.release = lock.acquire, lock.release
        store(&self.owner, 0)
        store(&self.forks, forks)       # Whoever sees this finds the new lock.
        return 0


cdef class Allowance:
    """A number of bytes that several threads may take from.

    It is compiled because a signal handler's error would be lost in a finalizer of Python code, and the bytes with it.

    Args:
        limit: The bytes.
        parent: The Allowance that all that is taken here is taken from too, until this one is deleted; or None.
    """
    cdef readonly object limit
    cdef readonly Allowance parent
    cdef object taken

    def __init__(self, limit, Allowance parent=None):
        self.limit, self.parent, self.taken = limit, parent, 0

    @property
    def nbytes(self):
        """The bytes that were taken."""
        with cython.critical_section(self):
            return self.taken

    cpdef bint take(self, nbytes) except -1:
        """Take some bytes, or give back a negative number of them; return False if so many are not left.

        A critical section may end early where it waits for another one. Therefore they are not nested: what the parent
        refuses is given back.
        """
        with cython.critical_section(self):
            if self.taken + nbytes > self.limit:
                return False
            self.taken += nbytes
        if self.parent is None or self.parent.take(nbytes):
            return True
        with cython.critical_section(self):
            self.taken -= nbytes
        return False

    def __del__(self):
        if self.parent is not None:
            self.parent.take(-self.taken)
