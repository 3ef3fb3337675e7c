/* The interface between the kernels and the engine: types, and one table of functions for each instruction set.
 *
 * No kernel allocates memory, fails or keeps a pointer. Sizes are in elements, leading dimensions (ld*) in floats. A
 * unit is one hidden unit; a block is 16 columns (VL of vec.h). Outputs do not alias inputs unless a comment allows
 * it.
 */
#ifndef RNNFAST_KERNELS_H
#define RNNFAST_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "program.h"

/* Elementwise functions of one argument. The first eleven are ONNX's activations of recurrent cells. */
enum {
    ACT_RELU, ACT_TANH, ACT_SIGMOID, ACT_AFFINE, ACT_LEAKY_RELU, ACT_THRESHOLDED_RELU, ACT_SCALED_TANH,
    ACT_HARD_SIGMOID, ACT_ELU, ACT_SOFTSIGN, ACT_SOFTPLUS,
    ACT_EXP, ACT_EXPM1, ACT_LOG, ACT_LOG1P, ACT_ERF, ACT_SIN, ACT_COS, ACT_TAN, ACT_ATAN
};

typedef struct {
    int kind;                   /* ACT_* */
    float alpha, beta;
} activation;

/* The types of weights. */
enum { FLOAT32, FLOAT16, BFLOAT16, INT8 };

/* A packed matrix [k, gates * units]. Columns are grouped into blocks of 16 and blocks into panels. A panel is an
 * array [k][width][16] of width <= `panel` blocks: for each gate the same `panel / gates` blocks of units, so that one
 * pass over k computes every gate of these units. Missing units of the last block are zeros.
 *
 * Weights of 16 bits are panels of the same shape. Integer weights are panels [ceil(k / 4)][width][16][4] of
 * bytes that are 128 more than the weights, which integers.h multiplies. */
typedef struct matrix {
    int type;                   /* which of the next three pointers is set */
    const float *w;             /* FLOAT32 */
    const uint16_t *halves;     /* FLOAT16 or BFLOAT16: the values in 16 bits */
    const uint8_t *integers;    /* INT8 */
    const float *bias;          /* [blocks * 16], its columns in the same order */
    const float *scale;         /* INT8: [blocks * 16], a weight is its integer times the scale of its column */
    ptrdiff_t planes;           /* INT8: of activations, 2 for 15 bits, 1 for 8 */
    ptrdiff_t k, units, gates;
    ptrdiff_t blocks;           /* gates * ceil(units / 16) */
    ptrdiff_t panel;            /* blocks of a full panel: 3 for three gates, else 4 */
} matrix;

/* CELL_GRU has linear_before_reset = 1, CELL_GRU_RESET_FIRST has 0. */
enum { CELL_RNN, CELL_LSTM, CELL_GRU, CELL_GRU_RESET_FIRST };

/* One direction of one recurrent layer. Gate order is ONNX's: RNN i; LSTM i o f c; GRU z r h. */
typedef struct {
    int kind;                   /* CELL_* */
    ptrdiff_t hidden_size;
    matrix r;                   /* recurrent weights of all gates; CELL_GRU_RESET_FIRST: those of z and r */
    matrix r_candidate;         /* CELL_GRU_RESET_FIRST: the recurrent weights of h */
    const float *candidate_bias;/* CELL_GRU: Rbh [H rounded up to 16], zeros if absent */
    const float *peephole;      /* CELL_LSTM: p_i, p_o, p_f, each [H rounded up to 16], or NULL */
    activation act[3];          /* LSTM: f, g, h; GRU: f, g; RNN: f */
    float clip;                 /* pre-activations are clipped to [-clip, clip]; INFINITY: not at all */
    int input_forget;           /* LSTM: f = 1 - i */
    int fused;                  /* true: default activations, no clip, no peepholes, no input_forget */
    int bounded;                /* true: outputs lie between -1 and 1 */
} cell;

/* Panels first <= p < last of a matrix, in reverse order if `backwards`. Calls alternate the order, so that each starts
 * with the panels that the previous one used last and that are still in the inner cache. */
typedef struct {
    ptrdiff_t first, last;
    int backwards;
} panels;

/* One time step of `rows` sequences. Arrays that the kind of cell does not need may be NULL. h_out does not alias h. */
typedef struct {
    const float *xg;            /* [rows, 16 * r.blocks]: input projections plus biases, columns in r's order */
    ptrdiff_t ldx;
    const float *xg_candidate;  /* CELL_GRU_RESET_FIRST: [rows, 16 * r_candidate.blocks], the same for h */
    ptrdiff_t ldx_candidate;
    const float *x;             /* [rows, w->k]: the inputs, which the kernel projects itself by w and
                                   w_candidate; NULL: the two arrays above hold the projections */
    ptrdiff_t ld_input;
    const matrix *w, *w_candidate;
    const float *hr;            /* recurrent products computed by BLAS, columns as in xg; NULL: not yet computed */
    const float *h;             /* [rows, r.k]: the previous output */
    ptrdiff_t ldh;
    float *c;                   /* LSTM: [rows, H rounded up to 16], the cell state, updated in place */
    float *h_out;               /* [rows, hidden_size]: the new output */
    ptrdiff_t ldo;
    float *z, *rh;              /* CELL_GRU_RESET_FIRST: [rows, H rounded up to 16], written by gru_gates */
    ptrdiff_t rows;
    float *saved;               /* [rows, SAVED_* * H]: what backward needs, written by fused cells; or NULL */
} step;

/* The number of vectors [H] that a step saves for each row for backward. LSTM: i o f g c; CELL_GRU: z r n and the
 * candidate's hR + rb; CELL_GRU_RESET_FIRST: z r n. An RNN saves nothing, because its output is enough. */
enum { SAVED_LSTM = 5, SAVED_GRU = 4, SAVED_GRU_RESET_FIRST = 3 };

/* The kinds of backward steps. `pre` is the gradient of h': dy + dh_in + a . m, added in this order. */
enum {
    BACK_STATE,                 /* out = pre */
    BACK_TANH, BACK_RELU,       /* RNN: dg = pre f', where f' follows from the output h' */
    BACK_LSTM,                  /* writes dg of i f g o; updates dc */
    BACK_GRU,                   /* writes dg of the candidate's hR + rb, then of r z n; writes dh */
    BACK_GRU_RESET_FIRST,       /* writes dg of z n, behind the place of r; writes dh */
    BACK_GRU_CANDIDATE          /* writes dg of r, from pre = dn . Rn; updates dh */
};

/* One backward step of `rows` sequences. Arrays of pointers have one pointer for each row, to [units] floats. */
typedef struct {
    int kind;                   /* BACK_* */
    const matrix *m;            /* [k, units]: recurrent weights, transposed, which is torch's layout */
    const float *a;             /* [rows, k]: dg of the step after this one; NULL: there is no product */
    ptrdiff_t lda;
    const float *const *dy;     /* gradients of the output, or NULL */
    const float *dh_in;         /* [rows, ldh]: what else reaches h', or NULL; may be dh */
    float *dh;                  /* GRU: [rows, ldh], the part of the previous h's gradient that needs no product */
    float *dc;                  /* LSTM: [rows, ldh], the gradient of the cell state, updated in place */
    ptrdiff_t ldh;
    const float *const *h;      /* GRU: the h before this step; RNN: the h after it */
    const float *const *c;      /* LSTM: the cell state before this step */
    const float *saved;         /* [rows, lds]: what forward saved */
    ptrdiff_t lds;
    float *dg;                  /* [rows, ldg]: gradients of the gates' pre-activations, each [units], in torch's
                                   order of gates */
    ptrdiff_t ldg;
    float *out;                 /* [rows, ldo]: BACK_STATE pre; BACK_GRU_CANDIDATE r h; BACK_LSTM o tanh(c), or NULL */
    ptrdiff_t ldo;
    ptrdiff_t rows;
} step_back;

/* The constants of the formula in optimizer.h. */
typedef struct {
    float b1, one_minus_b1, b2, one_minus_b2, eps, rate;
} adam_constants;

/* The kernels of one instruction set. */
typedef struct kernels {
    const char *name;
    /* c[rows, n] = bias + a[rows, k] . w[k, n] for some panels; n <= 16 * blocks columns are stored. Rows of a may
     * overlap each other. */
    void (*matmul)(const matrix *w, panels part, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc, ptrdiff_t rows,
                   ptrdiff_t n);
    /* The whole step of an RNN, an LSTM or a GRU with linear_before_reset = 1, for some panels of r. */
    void (*cell_step)(const cell *q, const step *s, panels part);
    /* The two halves of a step of a GRU with linear_before_reset = 0. gru_gates writes z and r * h for some panels of
     * r. gru_output then computes the output for some panels of r_candidate; its s->h is that r * h, and
     * h_prev[rows, ldh_prev] is the h before this step, which h_out does not alias. */
    void (*gru_gates)(const cell *q, const step *s, panels part);
    void (*gru_output)(const cell *q, const step *s, panels part, const float *h_prev, ptrdiff_t ldh_prev);
    /* c[rows, n] += a[rows, k] . w[k, n] for some panels; the bias is not used. */
    void (*accumulate)(const matrix *w, panels part, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc,
                       ptrdiff_t rows, ptrdiff_t n);
    /* A backward step for some panels of m. */
    void (*cell_back)(const step_back *s, panels part);
    /* out[columns, ldo] = a[rows, lda] transposed; sums[columns] += the sums of a's columns, added row by row. */
    void (*transpose)(const float *a, ptrdiff_t lda, ptrdiff_t rows, ptrdiff_t columns, float *out, ptrdiff_t ldo,
                      float *sums);
    /* y[n] = act(x[n]); y may be x. */
    void (*unary)(activation act, const float *x, float *y, size_t n);
    /* Update the values v[n], means m[n] and mean squares s[n] in place from the gradients g[n]. */
    void (*adam)(const adam_constants *a, const float *g, float *v, float *m, float *s, size_t n);
    /* Run an elementwise_command, a depthwise_command, a reduce_command, a rows_command or a pool_command. */
    void (*elementwise)(const command *c, const context *x);
    void (*depthwise)(const command *c, const context *x);
    void (*reduce)(const command *c, const context *x);
    void (*rows)(const command *c, const context *x);
    void (*pool)(const command *c, const context *x);
    /* Run one of `parts` parts of a convolution_command and, unless `then` is NULL, of the elementwise_command then. */
    void (*convolution)(const command *c, const command *then, const context *x, int part, int parts);
    /* Make this thread treat denormal inputs and results as zeros. Returns the previous mode for restore_mode. */
    unsigned (*flush_denormals)(void);
    void (*restore_mode)(unsigned mode);
} kernels;

/* Write to out[k * blocks * 16] the packed form of w[k * stride_k + n * stride_n], where n = gate * units + unit. m
 * gives the shape; its w and bias are not used. out does not alias w. */
void rnnfast_pack(const matrix *m, const float *w, ptrdiff_t stride_k, ptrdiff_t stride_n, float *out);

/* Write the panels of the integers w[k * units * gates + n]. */
void rnnfast_pack_integers(const matrix *m, const int8_t *w, uint8_t *out);

/* Return the i-th table of kernels that this CPU can run, the best first, or NULL if there are not so many. */
const kernels *rnnfast_kernels(int i);

#endif
