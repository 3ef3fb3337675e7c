from libc.stdint cimport int64_t

cdef extern from "interrupt.h" nogil:
    ctypedef struct interrupt

    ctypedef struct watch:
        int64_t left
        interrupt *call

    ctypedef struct interrupt:
        int64_t deadline
        watch watch

    bint spend "rnnfast_spend"(watch *, int64_t) noexcept
    watch watch_of "rnnfast_watch_of"(interrupt *) noexcept
    bint look_at "rnnfast_look"(interrupt *) noexcept

# Begin a call on this thread, which may take so many seconds (0: any number) and what surrounds it may end it sooner.
cdef void begin(interrupt *call, double seconds) noexcept
# Raise the error of a call that was stopped.
cdef int finish(interrupt *call) except -1
cpdef int check() except -1
# Return whether a call was stopped.
cdef bint stopped(interrupt *call) noexcept nogil


cdef class Flag:
    cdef int value
