"""SciPy's BLAS as one C function. Importing this module costs what importing scipy.linalg costs (about 0.2 s)."""
from scipy.linalg.cython_blas cimport sgemm


cdef void gemm(const float *a, int lda, const float *b, int ldb, float *c, int ldc,
               int rows, int k, int n, float beta) noexcept nogil:
    # column-major sgemm computes the transpose: c^T = b^T . a^T
    cdef float one = 1.0
    cdef char no = b"N"[0]
    sgemm(&no, &no, &n, &rows, &k, &one, <float *>b, &ldb, <float *>a, &lda, &beta, c, &ldc)
