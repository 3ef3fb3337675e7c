/* The contract between the kernels and the engine: types, and one table of functions for each instruction set.
 *
 * Nothing here allocates, fails or keeps a pointer. Sizes are in elements, leading dimensions (ld*) in floats.
 * A unit is one hidden unit; a block is 16 columns (VL of vec.h). Outputs never alias inputs unless said.
 */
#ifndef RNNFAST_KERNELS_H
#define RNNFAST_KERNELS_H

#include <stddef.h>

#include "program.h"

/* Elementwise functions. The first eleven are ONNX's activations of recurrent cells. */
enum {
    ACT_RELU, ACT_TANH, ACT_SIGMOID, ACT_AFFINE, ACT_LEAKY_RELU, ACT_THRESHOLDED_RELU, ACT_SCALED_TANH,
    ACT_HARD_SIGMOID, ACT_ELU, ACT_SOFTSIGN, ACT_SOFTPLUS,
    ACT_EXP, ACT_EXPM1, ACT_LOG, ACT_LOG1P, ACT_ERF
};

typedef struct {
    int kind;                   /* ACT_* */
    float alpha, beta;
} activation;

/* A packed matrix [k, gates * units]. Columns stand in blocks of 16, blocks in panels; a panel is [k][width][16]
 * with up to `panel` blocks: for each gate the same `panel / gates` blocks of units, so that one pass over k
 * yields every gate of these units. Missing units are zeros. */
typedef struct matrix {
    const float *w;
    const float *bias;          /* [blocks * 16] in the same column order */
    ptrdiff_t k, units, gates;
    ptrdiff_t blocks;           /* gates * ceil(units / 16) */
    ptrdiff_t panel;            /* blocks of a full panel: 3 for three gates, else 4 */
} matrix;

enum { CELL_RNN, CELL_LSTM, CELL_GRU, CELL_GRU_RESET_FIRST };  /* GRU: linear_before_reset = 1, then 0 */

/* One direction of one recurrent layer. Gate order is ONNX's: RNN i; LSTM i o f c; GRU z r h. */
typedef struct {
    int kind;                   /* CELL_* */
    ptrdiff_t hidden_size;
    matrix r;                   /* recurrent weights; CELL_GRU_RESET_FIRST: of z and r */
    matrix r_candidate;         /* CELL_GRU_RESET_FIRST: of h */
    const float *candidate_bias;/* CELL_GRU: Rbh [ceil16(H)], zeros if absent */
    const float *peephole;      /* CELL_LSTM: p_i, p_o, p_f, each [ceil16(H)], or NULL */
    activation act[3];          /* LSTM f g h; GRU f g; RNN f */
    float clip;                 /* bound of the pre-activations; INFINITY: none */
    int input_forget;           /* LSTM: f = 1 - i */
    int fused;                  /* default activations, none of clip, peepholes and input_forget */
} cell;

/* Panels first <= p < last of a matrix, the last of them first if `backwards`: what was used last is then met first,
 * while the inner cache still has it. */
typedef struct {
    ptrdiff_t first, last;
    int backwards;
} panels;

/* One step of `rows` sequences. */
typedef struct {
    const float *xg;            /* [rows, 16 * r.blocks] input projections and biases, in the columns of r */
    ptrdiff_t ldx;
    const float *xg_candidate;  /* CELL_GRU_RESET_FIRST: [rows, 16 * r_candidate.blocks] */
    ptrdiff_t ldx_candidate;
    const float *x;             /* or NULL: [rows, w->k], projected here by these, instead of the two above */
    ptrdiff_t ld_input;
    const matrix *w, *w_candidate;
    const float *hr;            /* recurrent products computed elsewhere (BLAS), same columns as xg, or NULL */
    const float *h;             /* [rows, r.k] previous output */
    ptrdiff_t ldh;
    float *c;                   /* LSTM: [rows, ceil16(H)] cell state, updated in place */
    float *h_out;               /* [rows, hidden_size] new output */
    ptrdiff_t ldo;
    float *z, *rh;              /* CELL_GRU_RESET_FIRST: [rows, ceil16(H)] scratch, written by gru_gates */
    ptrdiff_t rows;
    float *saved;               /* or NULL: [rows, SAVED_* * H], what backward needs, written by fused cells */
} step;

/* What a step saves for backward, each [H]: LSTM i o f g c; CELL_GRU z r n and hR + rb of the candidate;
 * CELL_GRU_RESET_FIRST z r n. RNN needs its output only. */
enum { SAVED_LSTM = 5, SAVED_GRU = 4, SAVED_GRU_RESET_FIRST = 3 };

/* One part of a step backward. `pre` is a gradient of h': dy + dh + a . m, in this order. */
enum {
    BACK_STATE,                 /* dh_out = pre */
    BACK_TANH, BACK_RELU,       /* RNN: dg = pre f'(h'), from h' */
    BACK_LSTM,                  /* dg: i f g o; dc is updated */
    BACK_GRU,                   /* dg: of hR + rb of the candidate, then r z n; dh is updated */
    BACK_GRU_RESET_FIRST,       /* dg: z n behind the room of r; dh is updated */
    BACK_GRU_CANDIDATE          /* dg: r, from pre = dn . Rn; dh is updated */
};

typedef struct {
    int what;                   /* BACK_* */
    const matrix *m;            /* [k, units]: recurrent weights, transposed: torch's as they are */
    const float *a;             /* [rows, k], or NULL: no product */
    ptrdiff_t lda;
    const float *const *dy;     /* rows [units] of the output's gradient, or NULL */
    const float *dh_in;         /* [rows, ldh] what else reaches h', or NULL */
    float *dh;                  /* GRU: [rows, ldh] what reaches the h before this step without a product */
    float *dc;                  /* LSTM: [rows, ldh] */
    ptrdiff_t ldh;
    const float *const *h;      /* rows [units]: GRU the h before this step, RNN the h after it */
    const float *const *c;      /* LSTM: rows [units] of the c before this step */
    const float *saved;         /* [rows, lds] */
    ptrdiff_t lds;
    float *dg;                  /* [rows, ldg] gradients of the gates' pre-activations, each [units],
                                   in torch's order of gates */
    ptrdiff_t ldg;
    float *out;                 /* BACK_STATE: [rows, ldo]; BACK_LSTM: o tanh(c), BACK_GRU_CANDIDATE: r h, or NULL */
    ptrdiff_t ldo;
    ptrdiff_t rows;
} step_back;

/* of optimizer.h; rest: 1 - b */
typedef struct {
    float b1, rest1, b2, rest2, eps, rate;
} adam_constants;

typedef struct kernels {
    const char *name;
    /* c[rows, n] = bias + a[rows, k] . w[k, n], n <= 16 * blocks columns stored. Rows of a may overlap. */
    void (*matmul)(const matrix *w, panels part, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc, ptrdiff_t rows,
                   ptrdiff_t n);
    /* RNN, LSTM, and GRU with linear_before_reset: the whole step, for some panels of r */
    void (*cell_step)(const cell *q, const step *s, panels part);
    /* GRU without linear_before_reset: z and r * h for some panels of r; then, with s->h the r * h of the first and
     * h_prev the h before this step, the output for some panels of r_candidate */
    void (*gru_gates)(const cell *q, const step *s, panels part);
    void (*gru_output)(const cell *q, const step *s, panels part, const float *h_prev, ptrdiff_t ldh_prev);
    /* c[rows, n] += a[rows, k] . w[k, n] */
    void (*accumulate)(const matrix *w, panels part, const float *a, ptrdiff_t lda, float *c, ptrdiff_t ldc,
                       ptrdiff_t rows, ptrdiff_t n);
    /* the panels of m of a step backward */
    void (*cell_back)(const step_back *s, panels part);
    /* out[columns, ldo] = a[rows, columns] transposed; sums[columns] += those over the rows, in order */
    void (*transpose)(const float *a, ptrdiff_t lda, ptrdiff_t rows, ptrdiff_t columns, float *out, ptrdiff_t ldo,
                      float *sums);
    /* y[n] = act(x[n]); x may be y */
    void (*unary)(activation act, const float *x, float *y, size_t n);
    /* gradients g[n]; values v, means m and squares s are updated */
    void (*adam)(const adam_constants *a, const float *g, float *v, float *m, float *s, size_t n);
    /* an elementwise_command */
    void (*elementwise)(const command *c, const context *x);
    /* a depthwise_command */
    void (*depthwise)(const command *c, const context *x);
    /* a reduce_command, a rows_command, a pool_command */
    void (*reduce)(const command *c, const context *x);
    void (*rows)(const command *c, const context *x);
    void (*pool)(const command *c, const context *x);
    /* one of `parts` parts of a convolution_command, and then of an elementwise_command if it is not NULL */
    void (*convolution)(const command *c, const command *then, const context *x, int part, int parts);
    /* denormals off for this thread; returns the mode to hand to restore_mode */
    unsigned (*flush_denormals)(void);
    void (*restore_mode)(unsigned mode);
} kernels;

/* out[k][...] = the packed form of w[k * stride_k + n * stride_n], n = gate * units + unit; m gives the shape */
void rnnfast_pack(const matrix *m, const float *w, ptrdiff_t stride_k, ptrdiff_t stride_n, float *out);

/* table i of those this CPU can run, best first; NULL past the last */
const kernels *rnnfast_kernels(int i);

#endif
