# Declarations of rnnfast/kernels/kernels.h, and the parts of _kernels.pyx that other extension modules use.
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t
from libc.string cimport memset

cimport numpy as cnp

from rnnfast.native._interrupts cimport interrupt, look_at, spend, watch, watch_of

cdef extern from "kernels.h" nogil:
    int ACT_RELU, ACT_TANH, ACT_SIGMOID, ACT_AFFINE, ACT_LEAKY_RELU, ACT_THRESHOLDED_RELU, ACT_SCALED_TANH
    int ACT_HARD_SIGMOID, ACT_ELU, ACT_SOFTSIGN, ACT_SOFTPLUS, ACT_EXP, ACT_EXPM1, ACT_LOG, ACT_LOG1P, ACT_ERF
    int ACT_SIN, ACT_COS, ACT_TAN, ACT_ATAN
    int CELL_RNN, CELL_LSTM, CELL_GRU, CELL_GRU_RESET_FIRST

    ctypedef struct activation:
        int kind
        float alpha, beta

    int FLOAT32, FLOAT16, BFLOAT16, INT8

    ctypedef struct matrix:
        int type
        const float *w
        const uint16_t *halves
        const uint8_t *integers
        const float *bias
        const float *scale
        Py_ssize_t planes, k, units, gates, blocks, panel

    ctypedef struct cell:
        int kind
        Py_ssize_t hidden_size
        matrix r, r_candidate
        const float *candidate_bias
        const float *peephole
        activation act[3]
        float clip
        int input_forget, fused, bounded

    ctypedef struct panels:
        Py_ssize_t first, last
        bint backwards

    ctypedef struct step:
        const float *xg
        Py_ssize_t ldx
        const float *xg_candidate
        Py_ssize_t ldx_candidate
        const float *x
        Py_ssize_t ld_input
        const matrix *w
        const matrix *w_candidate
        const float *hr
        const float *h
        Py_ssize_t ldh
        float *c
        float *h_out
        Py_ssize_t ldo
        float *z
        float *rh
        Py_ssize_t rows
        float *saved

    int SAVED_LSTM, SAVED_GRU, SAVED_GRU_RESET_FIRST
    int BACK_STATE, BACK_TANH, BACK_RELU, BACK_LSTM, BACK_GRU, BACK_GRU_RESET_FIRST, BACK_GRU_CANDIDATE

    ctypedef struct step_back:
        int kind
        const matrix *m
        const float *a
        Py_ssize_t lda
        const float *const *dy
        const float *dh_in
        float *dh
        float *dc
        Py_ssize_t ldh
        const float *const *h
        const float *const *c
        const float *saved
        Py_ssize_t lds
        float *dg
        Py_ssize_t ldg
        float *out
        Py_ssize_t ldo
        Py_ssize_t rows

    ctypedef struct adam_constants:
        float b1, one_minus_b1, b2, one_minus_b2, eps, rate

    ctypedef struct kernels:
        const char *name
        void (*matmul)(const matrix *, panels, const float *, Py_ssize_t, float *, Py_ssize_t, Py_ssize_t,
                       Py_ssize_t) noexcept nogil
        void (*cell_step)(const cell *, const step *, panels) noexcept nogil
        void (*gru_gates)(const cell *, const step *, panels) noexcept nogil
        void (*gru_output)(const cell *, const step *, panels, const float *, Py_ssize_t) noexcept nogil
        void (*accumulate)(const matrix *, panels, const float *, Py_ssize_t, float *, Py_ssize_t, Py_ssize_t,
                           Py_ssize_t) noexcept nogil
        void (*cell_back)(const step_back *, panels) noexcept nogil
        void (*transpose)(const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *, Py_ssize_t,
                          float *) noexcept nogil
        void (*unary)(activation, const float *, float *, size_t) noexcept nogil
        void (*adam)(const adam_constants *, const float *, float *, float *, float *, size_t) noexcept nogil
        void (*elementwise)(const command *, const context *) noexcept nogil
        void (*depthwise)(const command *, const context *) noexcept nogil
        void (*reduce)(const command *, const context *) noexcept nogil
        void (*rows)(const command *, const context *) noexcept nogil
        void (*pool)(const command *, const context *) noexcept nogil
        void (*convolution)(const command *, const command *, const context *, int, int) noexcept nogil
        unsigned (*flush_denormals)() noexcept nogil
        void (*restore_mode)(unsigned) noexcept nogil

    void rnnfast_pack(const matrix *, const float *, Py_ssize_t, Py_ssize_t, float *) noexcept nogil
    void rnnfast_pack_integers(const matrix *, const int8_t *, uint8_t *) noexcept nogil
    const kernels *rnnfast_kernels(int) noexcept

cdef extern from "program.h" nogil:
    ctypedef struct location:
        Py_ssize_t buffer, offset

    ctypedef struct loop_allowance:
        int64_t iterations, work

    ctypedef struct context:
        char **buffers
        const kernels *isa
        int threads, backwards
        Py_ssize_t iteration
        loop_allowance *left
        watch *watch

    ctypedef struct command:
        void (*run)(const command *, const context *) noexcept nogil
        Py_ssize_t words

    void *address_of(const context *, location)
    unsigned turn "rnnfast_turn"(unsigned *)

cdef extern from "pool.h" nogil:
    ctypedef struct team:
        pass
    ctypedef void (*team_work)(void *argument, int part, int parts) noexcept nogil

# The functions of pool.h for other extension modules, which are not linked with pool.c.
cdef int useful_threads(int threads) except -1
cdef int forced                 # the argument of force_threads, 0 if it was not called
cdef void team_open(team *t, int threads, bint brief) noexcept nogil
cdef void team_split(team *t, team_work work, void *argument) noexcept nogil
cdef void team_wait(team *t, int part, int parts) noexcept nogil
cdef void team_each(team *t, int items, team_work work, void *argument) noexcept nogil
cdef void team_close(team *t) noexcept nogil

cdef enum:
    BLOCK = 16                  # columns of a block, VL of vec.h
    ITEMS = 4                   # parts of a product for each thread, so that one that arrives late still gets a share
    SHARED_COST = 50000         # nanoseconds; work below this is never shared
    BRIEF_COST = 150000         # nanoseconds; work below this wakes no threads for itself: that may take 60000
    PIECE_COST = 2000000        # nanoseconds; longer work is done in pieces, between which a call may be stopped
    BLAS_COST = 8000000         # nanoseconds of a piece of a product by BLAS, which is a multiple of so many rows
    BLAS_ROWS = 1024            # fewer take longer: 512 by 2048 weights with 384 rows at a time 1.05 of the time
    UNARY_PIECE = 1 << 20       # values
    # Weights of less or more than so many inputs, or of fewer outputs, are computed as floats. With 100 rows 32 by 48
    # weights take 0.99 of the time as integers, 16 by 48 1.19 and 32 by 32 1.23. A row of MOST_INPUTS fits the memory
    # of a group in matmul.h.
    LEAST_INPUTS = 32
    MOST_INPUTS = 1 << 12
    LEAST_OUTPUTS = 48
    # Weights of 16 bits are kept so if they take more bytes than this in float32, which is the second-level cache: one
    # row of an LSTM takes 0.7 of the time at H300, 0.6 at H512 and 0.5 at H1024; 4 to 32 rows of H512 take 1.0 to 1.1.
    LEAST_HALVED = 1 << 20

cdef const kernels *active      # the kernels of the instruction set in use

cdef class AlignedFloats:
    cdef float *p
    cdef readonly Py_ssize_t size

cdef struct weights:
    matrix m
    bint blas                   # w holds rows of all columns for BLAS instead of panels

cdef void product(const weights *w, const float *a, Py_ssize_t lda, float *c, Py_ssize_t ldc, Py_ssize_t rows,
                  Py_ssize_t n, bint backwards, int part, int parts, interrupt *call) noexcept nogil
cdef void multiply_panels(const matrix *w, panels share, const float *a, Py_ssize_t lda, float *c, Py_ssize_t ldc,
                          Py_ssize_t rows, Py_ssize_t n, interrupt *call) noexcept nogil
cdef void pack(const matrix *m, const float *w, Py_ssize_t stride_k, Py_ssize_t stride_n, float *out) noexcept nogil
cdef double product_cost(const weights *w, Py_ssize_t rows) noexcept nogil

cdef class Matrix:
    cdef weights w
    cdef AlignedFloats weight, bias, scale
    cdef readonly Py_ssize_t K, N
    cdef int pack_row(self, const float[::1] values, AlignedFloats out) except -1
    cdef int pack_floats(self, weight) except -1
    cdef int pack_integers(self, integers, scales) except -1
    cdef int shorten(self, int type) except -1

cdef object readable(a)

cdef inline Py_ssize_t blocks_of(Py_ssize_t units) noexcept nogil:
    """Return the number of blocks of so many units."""
    return (units + BLOCK - 1) // BLOCK

cdef inline matrix packed_floats(const float *w, const float *bias, Py_ssize_t k, Py_ssize_t n) noexcept nogil:
    """Return the matrix [k, n] whose packed float32 weights are at w."""
    cdef matrix m
    memset(&m, 0, sizeof(m))
    m.w, m.bias, m.k, m.units, m.gates, m.blocks, m.panel = w, bias, k, n, 1, blocks_of(n), 4
    return m

cdef inline panels share_of(const matrix *m, int part, int parts) noexcept nogil:
    """Return the panels of part `part` of `parts`."""
    cdef panels share
    cdef Py_ssize_t count = 0 if m.blocks == 0 else (m.blocks + m.panel - 1) // m.panel
    share.first, share.last, share.backwards = count * part // parts, count * (part + 1) // parts, False
    return share

cdef inline bint is_float32(a) noexcept:
    """Return whether `a` is an ndarray of aligned float32 in native byte order."""
    return cnp.PyArray_Check(a) and cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32 and cnp.PyArray_ISBEHAVED_RO(a)

cdef inline bint contiguous_rows(cnp.ndarray a) noexcept:
    """Return whether a float32 array is contiguous along its last axis."""
    cdef int last = cnp.PyArray_NDIM(a) - 1
    return last >= 0 and (cnp.PyArray_DIM(a, last) <= 1 or cnp.PyArray_STRIDE(a, last) == 4)
