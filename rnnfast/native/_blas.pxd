# The only function of BLAS that is used: c[rows, n] = a[rows, k] . b[k, n] + beta * c, all row-major, ld* in floats. c
# must not overlap a or b.
cdef void gemm(const float *a, int lda, const float *b, int ldb, float *c, int ldc,
               int rows, int k, int n, float beta) noexcept nogil
