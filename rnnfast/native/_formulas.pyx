"""Polynomials of sizes, with integer coefficients: the formulas of symbolic plans."""
from libc.stdint cimport int64_t

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef extern from *:
    """
    static int multiplied(int64_t a, int64_t b, int64_t *c) { return __builtin_mul_overflow(a, b, c); }
    static int added(int64_t a, int64_t b, int64_t *c) { return __builtin_add_overflow(a, b, c); }
    """
    bint multiplied(int64_t, int64_t, int64_t *) noexcept nogil
    bint added(int64_t, int64_t, int64_t *) noexcept nogil


cdef class Polynomials:
    """Polynomials that are evaluated together.

    Args:
        polynomials: For each {indices of the variables of a term, each as often as it is a factor: coefficient}.
    """
    cdef object arrays                          # own the memory of the others
    cdef const int64_t *ends                    # of each polynomial, among the terms
    cdef const int64_t *coefficients            # of each term
    cdef const int64_t *factor_ends             # of each term, among the factors
    cdef const int64_t *factors                 # indices of variables
    cdef Py_ssize_t count, most                 # polynomials; the highest index of a variable

    def __init__(self, polynomials):
        terms = [term for polynomial in polynomials for term in polynomial.items()]
        ends = np.cumsum([len(polynomial) for polynomial in polynomials], dtype=np.int64)
        coefficients = np.array([coefficient for _, coefficient in terms], np.int64)
        factor_ends = np.cumsum([len(variables) for variables, _ in terms], dtype=np.int64)
        factors = np.array([i for variables, _ in terms for i in variables], np.int64)
        self.arrays = ends, coefficients, factor_ends, factors
        self.ends, self.coefficients = data(ends), data(coefficients)
        self.factor_ends, self.factors = data(factor_ends), data(factors)
        self.count, self.most = len(polynomials), max(factors.tolist(), default=-1)

    def values(self, cnp.ndarray variables):
        """Return the values, int64 [polynomials], for values of the variables, int64; OverflowError beyond int64."""
        cdef cnp.ndarray result = np.empty(self.count, np.int64)
        self.evaluate(variables, <int64_t *>cnp.PyArray_DATA(result))
        return result

    cdef int evaluate(self, cnp.ndarray variables, int64_t *result) except -1:
        """Write the values to `result`."""
        cdef const int64_t *of = data(variables)
        cdef Py_ssize_t i, term = 0, factor = 0
        cdef int64_t total, product
        cdef bint overflows = False
        if cnp.PyArray_SIZE(variables) <= self.most:
            raise ValueError(f"{cnp.PyArray_SIZE(variables)} variables, expected more than {self.most}")
        for i in range(self.count):
            total = 0
            while term < self.ends[i]:
                product = self.coefficients[term]
                while factor < self.factor_ends[term]:
                    overflows |= multiplied(product, of[self.factors[factor]], &product)
                    factor += 1
                overflows |= added(total, product, &total)
                term += 1
            result[i] = total
        if overflows:
            raise OverflowError("a size beyond 64 bits")
        return 0

    def hold(self, cnp.ndarray variables, cnp.ndarray says):
        """Return whether each polynomial is as says, int64 [polynomials], has it: 0 negative, 1 not negative, 2 zero,
        3 not zero.
        """
        cdef cnp.ndarray values = self.values(variables)
        cdef const int64_t *value = data(values)
        cdef const int64_t *wanted = data(says)
        cdef Py_ssize_t i
        for i in range(self.count):
            if (wanted[i] == 0 and value[i] >= 0 or wanted[i] == 1 and value[i] < 0
                    or wanted[i] == 2 and value[i] != 0 or wanted[i] == 3 and value[i] == 0):
                return False
        return True


def arranged(cnp.ndarray sizes, cnp.ndarray sections, cnp.ndarray values, Py_ssize_t line, Py_ssize_t slack):
    """Return where the sections of an arena begin, and where the last one ends, int64 [1 + sections].

    A section is as long as the longest allocation in it, which begins and ends at multiples of `line` bytes and has
    `slack` bytes behind it. sizes, sections: for each allocation which of `values` are its bytes, and its section,
    ascending. OverflowError beyond int64.
    """
    cdef const int64_t *size = data(sizes)
    cdef const int64_t *section = data(sections)
    cdef const int64_t *value = data(values)
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(sizes)
    cdef cnp.ndarray result = np.zeros(section[n - 1] + 2 if n else 1, np.int64)
    cdef int64_t *start = <int64_t *>cnp.PyArray_DATA(result)
    cdef int64_t end = 0
    cdef bint overflows = False
    for i in range(n):
        overflows |= added(value[size[i]], slack + line - 1, &end)
        start[section[i] + 1] = max(start[section[i] + 1], end // line * line)
    for i in range(1, cnp.PyArray_SIZE(result)):
        overflows |= added(start[i], start[i - 1], &start[i])
    if overflows:
        raise OverflowError("an arena beyond 64 bits")
    return result


def completed(cnp.ndarray words, cnp.ndarray indices, cnp.ndarray formulas, cnp.ndarray sections, cnp.ndarray values,
              cnp.ndarray starts):
    """Return a copy of words in which those at `indices` are `values` at `formulas`, plus where their sections begin.

    sections: 1 + the section of each, or 0. starts: those of sections, from `arranged`.
    """
    cdef cnp.ndarray result = words.copy()
    cdef int64_t *word = <int64_t *>cnp.PyArray_DATA(result)
    cdef const int64_t *index = data(indices)
    cdef const int64_t *formula = data(formulas)
    cdef const int64_t *section = data(sections)
    cdef const int64_t *value = data(values)
    cdef const int64_t *start = data(starts)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(indices)):
        word[index[i]] = value[formula[i]] + (start[section[i] - 1] if section[i] else 0)
    return result


cdef const int64_t *data(cnp.ndarray array) except? NULL:
    """Return the address of a contiguous int64 array."""
    if cnp.PyArray_TYPE(array) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise ValueError("expected a contiguous int64 array")
    return <const int64_t *>cnp.PyArray_DATA(array)
