"""Declarations of the module _locks.pyx."""


cdef class Lock:
    cdef str label, what
    cdef bint waits
    cdef bint counts                    # whether it is one of `locks_held`
    cdef object acquire, release        # of a threading.Lock
    cdef unsigned long owner            # the thread that holds it; 0 is none
    cdef unsigned long forks            # how many there had been when it was used last
    cdef readonly bint closed
    cdef public bint interrupted

    cpdef bint is_mine(self)
    cdef int enter(self) except -1
    cdef int refuse(self, int found) except -1
    cdef int take(self, bint wait) except -1
    cdef int leave(self) except -1
    cdef int after_fork(self) except -1
    cdef int forget(self) except -1
