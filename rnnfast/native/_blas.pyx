"""SciPy's BLAS as one C function. Importing this module imports scipy.linalg, which takes about 0.2 s."""
from scipy.linalg.cython_blas cimport sgemm


cdef void gemm(const float *a, int lda, const float *b, int ldb, float *c, int ldc,
               int rows, int k, int n, float beta) noexcept nogil:
    # sgemm is column-major, so it is asked for the transpose: c^T = b^T . a^T.
    cdef float one = 1.0
    cdef char no = c'N'
    sgemm(&no, &no, &n, &rows, &k, &one, <float *>b, &ldb, <float *>a, &lda, &beta, c, &ldc)
