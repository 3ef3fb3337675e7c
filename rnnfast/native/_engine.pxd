# What backward shares with the engine
from rnnfast.native._kernels cimport *

cdef enum:
    SHARED_ROWS = 8             # threads get so many rows each, or share each step: LSTM H256 T100 B32 0.97 of the time
    SHARED_FLOATS = 1 << 18     # and share the steps where they would each read more recurrent weights than that

cdef struct Direction:
    # What the time loop knows of a Cell; absent weights are NULL
    cell q
    const weights *x
    const weights *x_candidate
    const weights *r
    const weights *r_candidate
    const weights *project
    Py_ssize_t H, O             # hidden and output size
    Py_ssize_t padded           # H in whole blocks


cdef class Cell:
    cdef Direction d
    cdef unsigned turns         # calls: their parity is the order of the panels, on which no result depends
    cdef tuple matrices
    cdef AlignedFloats extra
    cdef readonly str kind
    cdef readonly Py_ssize_t input_size, hidden_size, output_size
    cdef public object gradient

cdef AlignedFloats borrow(Py_ssize_t size)
cdef void give_back(AlignedFloats memory)
cdef Py_ssize_t carve(float **part, float *base, Py_ssize_t at, Py_ssize_t size) noexcept nogil
cdef tuple sort_lengths(sequence_lens, Py_ssize_t T, Py_ssize_t B)
