cdef enum:
    CLASSES = 257                       # sizes of blocks, see class_of


# The head of a block, in its first cache line; the memory that it offers follows.
cdef struct block:
    size_t nbytes                       # of the block, head included
    block *newer                        # the neighbours in the list of its class
    block *older
    unsigned long long stamp            # when it was given back


cdef inline char *memory_of(block *b) noexcept nogil:
    """Return the memory that a block offers, which begins at a cache line."""
    return <char *>b + 64


cdef class Arenas:
    cdef readonly Py_ssize_t most
    cdef Py_ssize_t in_use, kept
    cdef unsigned long long stamp
    cdef int lock
    cdef block *newest[CLASSES]
    cdef block *oldest[CLASSES]

    cdef block *borrow(self, Py_ssize_t nbytes) except NULL
    cdef void give_back(self, block *b) noexcept
    cdef block *surplus(self, Py_ssize_t most) noexcept
