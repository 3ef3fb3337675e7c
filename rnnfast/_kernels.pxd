# rnnfast/kernels/kernels.h for Cython
cdef extern from "kernels.h" nogil:
    int ACT_RELU, ACT_TANH, ACT_SIGMOID, ACT_AFFINE, ACT_LEAKY_RELU, ACT_THRESHOLDED_RELU, ACT_SCALED_TANH
    int ACT_HARD_SIGMOID, ACT_ELU, ACT_SOFTSIGN, ACT_SOFTPLUS, ACT_EXP, ACT_EXPM1, ACT_LOG, ACT_LOG1P, ACT_ERF
    int CELL_RNN, CELL_LSTM, CELL_GRU, CELL_GRU_RESET_FIRST

    ctypedef struct activation:
        int kind
        float alpha, beta

    ctypedef struct matrix:
        const float *w
        const float *bias
        Py_ssize_t k, units, gates, blocks, panel

    ctypedef struct cell:
        int kind
        Py_ssize_t hidden_size
        matrix r, r_candidate
        const float *candidate_bias
        const float *peephole
        activation act[3]
        float clip
        int input_forget, fused

    ctypedef struct step:
        const float *xg
        Py_ssize_t ldx
        const float *xg_candidate
        Py_ssize_t ldx_candidate
        const float *hr
        const float *h
        Py_ssize_t ldh
        float *c
        float *h_out
        Py_ssize_t ldo
        float *z
        float *rh
        Py_ssize_t rows

    ctypedef struct kernels:
        const char *name
        void (*matmul)(const matrix *, const float *, Py_ssize_t, float *, Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*cell_step)(const cell *, const step *) noexcept nogil
        void (*gru_gates)(const cell *, const step *) noexcept nogil
        void (*gru_output)(const cell *, const step *, const float *, Py_ssize_t) noexcept nogil
        void (*unary)(activation, const float *, float *, size_t) noexcept nogil
        unsigned (*flush_denormals)() noexcept nogil
        void (*restore_mode)(unsigned) noexcept nogil

    void rnnfast_pack(const matrix *, const float *, Py_ssize_t, Py_ssize_t, float *) noexcept
    const kernels *rnnfast_kernels(int) noexcept
