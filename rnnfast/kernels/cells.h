/* The recurrent cells, one panel of units at a time: the product with h by the tiles of matmul.h, then the gates.
 *
 * The pre-activations of a few rows stay in a tile in the inner cache. BLAS computes the input's and the recurrent
 * product separately; they are added here. A `fused` cell has the default activations and neither clip nor peepholes
 * nor input_forget. Fused LSTM and GRU cells get several gates from one division, so their results differ from those
 * of the general form in the last bits, and none of these gates is below 2^-62.
 *
 * RNN   h' = f(xW + hR + b)
 * LSTM  i, f = f(.. + p c); g = g(..); c' = f c + i g; o = f(.. + p_o c'); h' = o h(c')
 * GRU   z, r = f(..); n = g(xW + b + r (hR + rb)), or g(xW + b + (r h)R); h' = (1 - z) n + z h
 * (ONNX, operators RNN, LSTM and GRU; clip bounds the arguments of f and g)
 */
#ifndef RNNFAST_CELLS_H
#define RNNFAST_CELLS_H

#include "activations.h"
#include "matmul.h"

/* The activation of gate `which` of x, which is clipped first. */
INLINE vf gate(const cell *q, const int which, vf x)
{
    x = v_min(v_set1(q->clip), v_max(v_set1(-q->clip), x));
    return activate(q->act[which].kind, q->act[which].alpha, q->act[which].beta, x);
}

/* Input projections of up to AHEAD tiles of a panel, computed one after the other while the panel's input weights are
 * in the first-level cache. */
enum { AHEAD = 4 };

typedef struct {
    float tile[AHEAD][MAX_TILE];
} inputs;

/* The left operands of a step: the inputs, if the kernel projects them itself (else x.p is NULL), and what the
 * recurrent weights multiply. */
typedef struct {
    operand x, h;
} operands;

/* Return the input projection of a tile. If the engine has projected the inputs of many steps at once, it is read from
 * xg; otherwise it is computed here, together with those of the next tiles. A step of LSTM H128 with 64 to 1,024 rows
 * takes 0.95 of the time that computing them tile by tile takes. */
INLINE const float *input_tile(const tiles *t, const operands *in, const matrix *w, const float *xg, ptrdiff_t *ldx,
                               inputs *ahead)
{
    if (!in->x.p)
        return xg + t->row * *ldx + t->block * VL;
    const ptrdiff_t at = (t->of_panel - 1 - t->left) % AHEAD;
    tiles of_w = *t;
    of_w.w = w;
    for (ptrdiff_t i = 0; at == 0 && i < AHEAD; i++) {
        multiply_tile(&of_w, &in->x, w->bias + t->block * VL, 0, ahead->tile[i], t->ldw);
        if (of_w.left == 0)
            break;
        next_tile(&of_w);
    }
    *ldx = t->ldw;
    return ahead->tile[at];
}

/* pre[m, ldw] = init[m, ldi] + h . r for one tile; pre may be init. BLAS may have computed the product before, as
 * s->hr. */
INLINE void preactivate(const tiles *t, const step *s, const operands *in, const float *init, ptrdiff_t ldi,
                        float *pre)
{
    if (!s->hr) {
        multiply_tile(t, &in->h, init, ldi, pre, t->ldw);
        return;
    }
    const float *hr = s->hr + t->row * t->w->blocks * VL + t->block * VL;
    for (ptrdiff_t i = 0; i < t->m; i++)
        for (ptrdiff_t j = 0; j < t->ldw; j += VL)
            v_store(pre + i * t->ldw + j, v_add(v_load(init + i * ldi + j), v_load(hr + i * t->w->blocks * VL + j)));
}

/* pre[m, ldw] = the input projection + h . r for one tile. */
INLINE void preactivate_input(const tiles *t, const step *s, const operands *in, const matrix *w, const float *xg,
                              ptrdiff_t ldx, inputs *ahead, float *pre)
{
    const float *init = input_tile(t, in, w, xg, &ldx, ahead);
    preactivate(t, s, in, init, ldx, pre);
}

/* Loop over every panel p, row i and block of units of a tile. In the body, `unit` is the first unit of the block,
 * `lanes` is how many of its units exist, `at` is where its first gate lies in the tile, and its gates are `stride`
 * floats apart. */
#define EACH_BLOCK(t, gates, H)                                                                                      \
    for (ptrdiff_t p = 0, stride = (gates) > 2 ? VL : (t).width * VL / (gates); p < (t).count; p++)                   \
        for (ptrdiff_t i = 0; i < (t).m; i++)                                                                        \
            for (ptrdiff_t u = 0, unit, lanes, at; u < stride &&                                                     \
                 (unit = (t).block / (gates) * VL + p * stride + u, lanes = (H) - unit < VL ? (H) - unit : VL,       \
                  at = i * (t).ldw + p * (t).width * VL + u, (void)lanes, (void)at, 1);                              \
                 u += VL)

/* Store the first `lanes` floats of a block. */
INLINE void store_lanes(float *p, vf x, ptrdiff_t lanes)
{
    if (lanes == VL)
        v_store(p, x);
    else
        v_store_n(p, x, (size_t)lanes);
}

/* Load `lanes` floats; the other lanes are zeros. */
INLINE vf load_lanes(const float *p, ptrdiff_t lanes)
{
    return lanes == VL ? v_load(p) : v_load_n(p, (size_t)lanes);
}

/* Prefetch a tile's part of saved[rows, count * H] while the tile's product is computed, because the rows are far
 * apart. LSTM H128 B64 T28: forward with saving takes 0.94 of the time, backward 0.99; GRU H256 B32: forward 0.83. */
INLINE void prefetch_saved(const tiles *t, const int gates, ptrdiff_t H, const float *saved, ptrdiff_t count,
                           const int writes)
{
    EACH_BLOCK(*t, gates, H) {
        const float *first = saved + (t->row + i) * count * H + unit;
        for (ptrdiff_t g = 0; g < count; g++) {
            if (writes)
                __builtin_prefetch(first + g * H, 1);
            else
                __builtin_prefetch(first + g * H, 0);
        }
    }
}

/* A step of an RNN for some panels. A fused one has the activation `kind`. */
INLINE void rnn_step(const cell *q, const step *s, const operands *in, panels part, const int fused, const int kind)
{
    float pre[MAX_TILE];
    inputs ahead;
    for (tiles t = tiles_of(&q->r, part, s->rows); next_tile(&t);) {
        preactivate_input(&t, s, in, s->w, s->xg, s->ldx, &ahead, pre);
        EACH_BLOCK(t, 1, q->hidden_size) {
            const vf x = v_load(pre + at);
            store_lanes(s->h_out + (t.row + i) * s->ldo + unit, fused ? activate(kind, 0, 0, x) : gate(q, 0, x), lanes);
        }
    }
}

/* Improve q, an approximation of 1 / below, by one Newton step. The result is exactly 1 where `below` is 1: a gate that
 * keeps a state must not let it decay. */
INLINE vf refined(vf q, vf below)
{
    return v_fma(q, v_fnma(q, below, v_set1(1.0f)), q);
}

/* Compute the default gates of a tile in two passes. Each pass is a short chain of operations for every block, so that
 * the chains of several blocks overlap. A division takes as long as eight multiply-adds, so there are only two: one
 * gives both i g and f, the other gives h'. */
INLINE void lstm_default_gates(const cell *q, const step *s, const tiles *t, ptrdiff_t padded, float *pre,
                               const int saving)
{
    const ptrdiff_t H = q->hidden_size;
    EACH_BLOCK(*t, 4, H) {
        float *c = s->c + (t->row + i) * padded + unit;
        vf below_g;
        const vf below_i = v_sigmoid_below(v_load(pre + at)), below_f = v_sigmoid_below(v_load(pre + at + 2 * stride));
        const vf above_g = v_tanh_above(v_load(pre + at + 3 * stride), &below_g), below_ig = v_mul(below_i, below_g);
        const vf inverse = v_div(v_set1(1.0f), v_mul(below_ig, below_f));
        const vf f = refined(v_mul(inverse, below_ig), below_f);
        const vf c_new = v_fma(f, v_load(c), v_mul(inverse, v_mul(below_f, above_g)));
        v_store(c, c_new);
        if (saving) {
            float *to = s->saved + (t->row + i) * SAVED_LSTM * H + unit;
            store_lanes(to, v_mul(inverse, v_mul(below_g, below_f)), lanes);
            store_lanes(to + 2 * H, f, lanes);
            store_lanes(to + 3 * H, v_mul(above_g, v_mul(inverse, v_mul(below_i, below_f))), lanes);
            store_lanes(to + 4 * H, c_new, lanes);
        }
    }
    EACH_BLOCK(*t, 4, H) {
        vf below_c;
        const vf below_o = v_sigmoid_below(v_load(pre + at + stride));
        const vf above_c = v_tanh_above(v_load(s->c + (t->row + i) * padded + unit), &below_c);
        store_lanes(s->h_out + (t->row + i) * s->ldo + unit, v_div(above_c, v_mul(below_o, below_c)), lanes);
        if (saving)
            store_lanes(s->saved + ((t->row + i) * SAVED_LSTM + 1) * H + unit, v_div(v_set1(1.0f), below_o), lanes);
    }
}

/* Compute the gates of a tile in their general form: any activations, clip, peepholes and input_forget. */
INLINE void lstm_gates(const cell *q, const step *s, const tiles *t, ptrdiff_t padded, const float *pre)
{
    const float *peephole = q->peephole;
    EACH_BLOCK(*t, 4, q->hidden_size) {
        float *c = s->c + (t->row + i) * padded + unit;
        const vf c_prev = v_load(c);
        vf in = v_load(pre + at), out = v_load(pre + at + stride), forget = v_load(pre + at + 2 * stride);
        if (peephole) {
            in = v_fma(v_load(peephole + unit), c_prev, in);
            forget = v_fma(v_load(peephole + 2 * padded + unit), c_prev, forget);
        }
        in = gate(q, 0, in);
        forget = q->input_forget ? v_sub(v_set1(1.0f), in) : gate(q, 0, forget);
        const vf candidate = gate(q, 1, v_load(pre + at + 3 * stride));
        const vf c_new = v_fma(forget, c_prev, v_mul(in, candidate));
        if (peephole)
            out = v_fma(v_load(peephole + padded + unit), c_new, out);
        out = gate(q, 0, out);
        v_store(c, c_new);
        const vf squashed = activate(q->act[2].kind, q->act[2].alpha, q->act[2].beta, c_new);
        store_lanes(s->h_out + (t->row + i) * s->ldo + unit, v_mul(out, squashed), lanes);
    }
}

/* A step of an LSTM for some panels. */
INLINE void lstm_step(const cell *q, const step *s, const operands *in, panels part, const int fused, const int saving)
{
    const ptrdiff_t padded = q->r.blocks / 4 * VL;
    float pre[MAX_TILE];
    inputs ahead;
    for (tiles t = tiles_of(&q->r, part, s->rows); next_tile(&t);) {
        if (saving)
            prefetch_saved(&t, 4, q->hidden_size, s->saved, SAVED_LSTM, 1);
        preactivate_input(&t, s, in, s->w, s->xg, s->ldx, &ahead, pre);
        if (fused)
            lstm_default_gates(q, s, &t, padded, pre, saving);
        else
            lstm_gates(q, s, &t, padded, pre);
    }
}

/* (1 - z) n + z h as one fused multiply-add */
INLINE vf interpolate(vf z, vf n, vf h)
{
    return v_fma(z, v_sub(h, n), n);
}

/* A step of a GRU with linear_before_reset = 1 for some panels. The candidate's recurrent product starts from its own
 * bias and is kept apart from its input projection, because r multiplies only the former. */
INLINE void gru_step(const cell *q, const step *s, const operands *in, panels part, const int fused, const int saving)
{
    const ptrdiff_t H = q->hidden_size;
    float pre[MAX_TILE];
    inputs ahead;
    for (tiles t = tiles_of(&q->r, part, s->rows); next_tile(&t);) {
        ptrdiff_t ldx = s->ldx;
        if (saving)
            prefetch_saved(&t, 3, H, s->saved, SAVED_GRU, 1);
        const float *xg = input_tile(&t, in, s->w, s->xg, &ldx, &ahead);
        EACH_BLOCK(t, 3, q->hidden_size) {
            const float *x = xg + i * ldx + (at - i * t.ldw);
            v_store(pre + at, v_load(x));
            v_store(pre + at + stride, v_load(x + stride));
            v_store(pre + at + 2 * stride, v_load(q->candidate_bias + unit));
        }
        preactivate(&t, s, in, pre, t.ldw, pre);
        EACH_BLOCK(t, 3, q->hidden_size) {
            vf z = v_load(pre + at), r = v_load(pre + at + stride);
            if (fused) {
                const vf below_z = v_sigmoid_below(z), below_r = v_sigmoid_below(r);
                const vf inverse = v_div(v_set1(1.0f), v_mul(below_z, below_r));
                z = refined(v_mul(inverse, below_r), below_z);
                r = v_mul(inverse, below_z);
            } else {
                z = gate(q, 0, z);
                r = gate(q, 0, r);
            }
            const vf x = v_load(xg + i * ldx + (at - i * t.ldw) + 2 * stride);
            if (saving) {
                float *to = s->saved + (t.row + i) * SAVED_GRU * H + unit;
                store_lanes(to, z, lanes);
                store_lanes(to + H, r, lanes);
                store_lanes(to + 3 * H, v_load(pre + at + 2 * stride), lanes);
            }
            v_store(pre + at, z);
            v_store(pre + at + 2 * stride, v_fma(r, v_load(pre + at + 2 * stride), x));
        }
        EACH_BLOCK(t, 3, q->hidden_size) {
            vf n = v_load(pre + at + 2 * stride);
            n = fused ? v_tanh(n) : gate(q, 1, n);
            if (saving)
                store_lanes(s->saved + ((t.row + i) * SAVED_GRU + 2) * H + unit, n, lanes);
            const vf h = load_lanes(s->h + (t.row + i) * s->ldh + unit, lanes);
            store_lanes(s->h_out + (t.row + i) * s->ldo + unit, interpolate(v_load(pre + at), n, h), lanes);
        }
    }
}

/* The gates z and r of a GRU with linear_before_reset = 0 for some panels: writes z and r * h. */
INLINE void gru_gates(const cell *q, const step *s, const operands *in, panels part, const int fused)
{
    const ptrdiff_t padded = q->r.blocks / 2 * VL;
    float pre[MAX_TILE];
    inputs ahead;
    for (tiles t = tiles_of(&q->r, part, s->rows); next_tile(&t);) {
        preactivate_input(&t, s, in, s->w, s->xg, s->ldx, &ahead, pre);
        EACH_BLOCK(t, 2, q->hidden_size) {
            const ptrdiff_t to = (t.row + i) * padded + unit;
            const vf h = load_lanes(s->h + (t.row + i) * s->ldh + unit, lanes);
            vf z = v_load(pre + at), r = v_load(pre + at + stride);
            z = fused ? v_sigmoid(z) : gate(q, 0, z);
            r = fused ? v_sigmoid(r) : gate(q, 0, r);
            v_store(s->z + to, z);
            v_store(s->rh + to, v_mul(r, h));
            if (s->saved) {
                float *saved = s->saved + (t.row + i) * SAVED_GRU_RESET_FIRST * q->hidden_size + unit;
                store_lanes(saved, z, lanes);
                store_lanes(saved + q->hidden_size, r, lanes);
            }
        }
    }
}

/* The output of such a GRU for some panels of the candidate's weights; s->h is the r * h of gru_gates. */
INLINE void gru_output(const cell *q, const step *s, const operands *in, panels part, const float *h_prev,
                       ptrdiff_t ldh_prev, const int fused)
{
    const ptrdiff_t padded = q->r_candidate.blocks * VL;
    float pre[MAX_TILE];
    inputs ahead;
    for (tiles t = tiles_of(&q->r_candidate, part, s->rows); next_tile(&t);) {
        preactivate_input(&t, s, in, s->w_candidate, s->xg_candidate, s->ldx_candidate, &ahead, pre);
        EACH_BLOCK(t, 1, q->hidden_size) {
            vf n = v_load(pre + at);
            n = fused ? v_tanh(n) : gate(q, 1, n);
            if (s->saved)
                store_lanes(s->saved + ((t.row + i) * SAVED_GRU_RESET_FIRST + 2) * q->hidden_size + unit, n, lanes);
            const vf h = load_lanes(h_prev + (t.row + i) * ldh_prev + unit, lanes);
            const vf z = v_load(s->z + (t.row + i) * padded + unit);
            store_lanes(s->h_out + (t.row + i) * s->ldo + unit, interpolate(z, n, h), lanes);
        }
    }
}

/* Each combination of constants below is compiled as a function of its own. Both callers of stage_rows share them. */
static void __attribute__((noinline)) cell_rows(const cell *q, const step *s, const operands *in, panels part)
{
    switch (q->kind) {
    case CELL_RNN:
        if (q->fused && q->act[0].kind == ACT_TANH)
            rnn_step(q, s, in, part, 1, ACT_TANH);
        else if (q->fused)
            rnn_step(q, s, in, part, 1, ACT_RELU);
        else
            rnn_step(q, s, in, part, 0, 0);
        break;
    case CELL_LSTM:
        if (q->fused && s->saved)
            lstm_step(q, s, in, part, 1, 1);
        else if (q->fused)
            lstm_step(q, s, in, part, 1, 0);
        else
            lstm_step(q, s, in, part, 0, 0);
        break;
    case CELL_GRU:
        if (q->fused && s->saved)
            gru_step(q, s, in, part, 1, 1);
        else if (q->fused)
            gru_step(q, s, in, part, 1, 0);
        else
            gru_step(q, s, in, part, 0, 0);
        break;
    }
}

static void __attribute__((noinline)) gru_gates_rows(const cell *q, const step *s, const operands *in, panels part)
{
    if (q->fused)
        gru_gates(q, s, in, part, 1);
    else
        gru_gates(q, s, in, part, 0);
}

static void __attribute__((noinline)) gru_output_rows(const cell *q, const step *s, const operands *in, panels part,
                                                  const float *h_prev, ptrdiff_t ldh_prev)
{
    if (q->fused)
        gru_output(q, s, in, part, h_prev, ldh_prev, 1);
    else
        gru_output(q, s, in, part, h_prev, ldh_prev, 0);
}

/* The part of a step that is done for some rows: cell_step, gru_gates or gru_output of kernels.h. */
typedef enum { WHOLE_STEP, GATES, OUTPUT } stage;

INLINE void stage_rows(const stage which, const cell *q, const step *s, const operands *in, panels part,
                       const float *h_prev, ptrdiff_t ldh_prev)
{
    if (which == WHOLE_STEP)
        cell_rows(q, s, in, part);
    else if (which == GATES)
        gru_gates_rows(q, s, in, part);
    else
        gru_output_rows(q, s, in, part, h_prev, ldh_prev);
}

/* Return the operand a[rows, k]: where w has integers as integers too, which are written to the group from `at` on,
 * with the scales and excesses of its operand `which`. */
static operand operand_of(const matrix *w, const float *a, ptrdiff_t lda, ptrdiff_t rows, int bounded, group *g,
                          const int which, ptrdiff_t at)
{
    operand of = { a, lda, g->integers + at, in_blocks(w->k), g->scale[which], g->excess[which], 0 };
    if (w->type == INT8)
        of.special = store_integers(a, lda, rows, w->k, bounded, w->planes, g->integers + at, g->scale[which],
                                    g->excess[which]);
    return of;
}

/* A stage with integer weights, a group of rows at a time. It is not inlined, so that only integer weights take the
 * stack that a group needs. It never saves for backward, and BLAS has no part in it. */
static void __attribute__((noinline)) stage_integers(const stage which, const cell *q, const step *s, panels part,
                                                     const float *h_prev, ptrdiff_t ldh_prev)
{
    group g;
    const matrix *r = which == OUTPUT ? &q->r_candidate : &q->r, *w = which == OUTPUT ? s->w_candidate : s->w;
    /* Only integer weights, whose inputs are few, have integers here. */
    const ptrdiff_t of_h = r->type == INT8 ? in_blocks(r->k) : 0;
    const ptrdiff_t of_x = s->x && w->type == INT8 ? in_blocks(w->k) : 0, most = rows_of_group(of_h + of_x);
    const ptrdiff_t padded = in_blocks(q->hidden_size);
    step some = *s;
    for (ptrdiff_t first = 0; first < s->rows; first += most) {
        some.rows = s->rows - first < most ? s->rows - first : most;
        operands in = { .h = operand_of(r, some.h, some.ldh, some.rows, q->bounded, &g, 0, 0) };
        if (s->x)
            in.x = operand_of(w, some.x, some.ld_input, some.rows, 0, &g, 1, some.rows * of_h);
        stage_rows(which, q, &some, &in, part, h_prev, ldh_prev);
        some.h += most * some.ldh;
        some.h_out += most * some.ldo;
        if (s->x)
            some.x += most * some.ld_input;
        else
            some.xg += most * some.ldx;
        if (!s->x && q->kind == CELL_GRU_RESET_FIRST)
            some.xg_candidate += most * some.ldx_candidate;
        if (q->kind == CELL_LSTM)
            some.c += most * padded;
        if (q->kind == CELL_GRU_RESET_FIRST) {
            some.z += most * padded;
            some.rh += most * padded;
        }
        if (which == OUTPUT)
            h_prev += most * ldh_prev;
    }
}

/* A stage for all rows. */
INLINE void run_stage(const stage which, const cell *q, const step *s, panels part, const float *h_prev,
                      ptrdiff_t ldh_prev)
{
    const operands in = { { .p = s->x, .ld = s->ld_input }, { .p = s->h, .ld = s->ldh } };
    const matrix *r = which == OUTPUT ? &q->r_candidate : &q->r, *w = which == OUTPUT ? s->w_candidate : s->w;
    if (r->type == INT8 || (s->x && w->type == INT8))
        stage_integers(which, q, s, part, h_prev, ldh_prev);
    else
        stage_rows(which, q, s, &in, part, h_prev, ldh_prev);
}

static void cell_step_kernel(const cell *q, const step *s, panels part)
{
    run_stage(WHOLE_STEP, q, s, part, NULL, 0);
}

static void gru_gates_kernel(const cell *q, const step *s, panels part)
{
    run_stage(GATES, q, s, part, NULL, 0);
}

static void gru_output_kernel(const cell *q, const step *s, panels part, const float *h_prev, ptrdiff_t ldh_prev)
{
    run_stage(OUTPUT, q, s, part, h_prev, ldh_prev);
}

#endif
