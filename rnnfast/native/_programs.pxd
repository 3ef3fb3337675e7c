from libc.stdint cimport int64_t

cimport numpy as cnp

from rnnfast.native._arenas cimport Arenas, block, memory_of
from rnnfast.native._interrupts cimport begin, finish, interrupt, stopped, watch_of
from rnnfast.native._kernels cimport *

cdef extern from "program.h" nogil:
    enum:
        AXES, MAX_BUFFERS, MAX_RANK


cdef class NativeProgram:
    cdef readonly Py_ssize_t arena, live
    cdef readonly tuple inputs, outputs, checks
    cdef object noted_commands                      # the notes, or a function that returns them
    cdef object arrays                              # own the memory of words and noted
    cdef const Py_ssize_t *words                    # the program
    cdef const Py_ssize_t *noted                    # where in the arena each check has its status
    cdef readonly Py_ssize_t n_words
    cdef Py_ssize_t n_noted
    cdef loop_allowance allowed                     # to the loops of a run that is a call of its own
    cdef readonly object keep
    cdef Arenas arenas
    cdef double seconds
    cdef unsigned turns         # number of runs
    cdef readonly int threads
    cdef Py_ssize_t n_outputs
    # Types and numbers of axes of the outputs; the shape of output i is in `shapes` from first_axis[i] on.
    cdef int[MAX_BUFFERS] types, axes, first_axis
    cdef cnp.npy_intp[MAX_BUFFERS * MAX_RANK] shapes

    cdef readonly bint loops

    cdef tuple run(self, tuple args)
    cdef tuple run_within(self, tuple args, loop_allowance *left)
    cdef tuple prepare(self, context *x, char **buffers, loop_allowance *left, interrupt *call, char *arena,
                       tuple args)
    cdef object new_output(self, Py_ssize_t i)
    cdef bint failed(self, const char *arena) noexcept nogil
    cdef int check(self, const char *arena) except -1

# rnnfast_execute for other extension modules, which are not linked with program.c.
cdef void execute(const Py_ssize_t *words, Py_ssize_t n_words, const context *x) noexcept nogil
