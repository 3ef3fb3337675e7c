# The parts of the engine that _backward.pyx uses too.
from rnnfast.native._arenas cimport Arenas
from rnnfast.native._kernels cimport *

cdef enum:
    # Threads divide the rows of a batch if each gets at least SHARED_ROWS rows (LSTM H256 T100 B32 takes 0.97 of the
    # time) and the recurrent weights, all of which each then reads, are at most SHARED_FLOATS floats. Otherwise they
    # share the panels of every step.
    SHARED_ROWS = 8
    SHARED_FLOATS = 1 << 18

cdef struct Direction:
    # The part of a Cell that the time loop reads. Absent weights are NULL.
    cell q
    const weights *x
    const weights *x_candidate
    const weights *r
    const weights *r_candidate
    const weights *project
    Py_ssize_t H, O             # hidden and output size
    Py_ssize_t padded           # H rounded up to whole blocks


cdef class Cell:
    cdef Direction d
    cdef unsigned turns         # number of calls, whose parity decides the order of panels; no result depends on it
    cdef tuple matrices
    cdef AlignedFloats extra
    cdef readonly str kind
    cdef readonly Py_ssize_t input_size, hidden_size, output_size
    cdef bint rounded           # weight_type is not None
    cdef object for_backward    # its property is `gradient`

cdef Arenas workspaces
cdef Py_ssize_t carve(float **part, float *base, Py_ssize_t at, Py_ssize_t size) noexcept nogil
cdef tuple sort_lengths(sequence_lens, Py_ssize_t T, Py_ssize_t B)
