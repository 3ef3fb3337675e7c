cimport numpy as cnp


cdef inline bint same_type(cnp.ndarray a, cnp.ndarray b):
    """Return whether two arrays have the same type and shape."""
    return cnp.PyArray_SAMESHAPE(a, b) and (cnp.PyArray_DESCR(a) is cnp.PyArray_DESCR(b) or a.dtype == b.dtype)


cpdef bint is_like(value, like)
cpdef bint same_values(value, cnp.ndarray expected) except -1
cpdef nbytes_of(shape, dtype)
