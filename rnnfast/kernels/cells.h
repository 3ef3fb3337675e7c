/* The recurrent cells: the chain over h of matmul.h, then the gates, for one panel of units at a time.
 *
 * Pre-activations stay in a tile of a few rows in the inner cache; with BLAS they come as two products and are
 * added here. In every cell the gates of a block are computed by one function, which the compiler makes twice:
 * `fused` with the default activations known, and the general one. Both are the same sequence of operations.
 *
 * RNN   h' = f(xW + hR + b)
 * LSTM  i, f = f(.. + p c); g = g(..); c' = f c + i g; o = f(.. + p_o c'); h' = o h(c')
 * GRU   z, r = f(..); n = g(xW + b + r (hR + rb)), or g(xW + b + (r h)R); h' = (1 - z) n + z h
 * (ONNX, operators RNN, LSTM and GRU; clip bounds what f and g are applied to)
 */
#ifndef RNNFAST_CELLS_H
#define RNNFAST_CELLS_H

#include "activations.h"
#include "matmul.h"

INLINE vf gate(const cell *q, const int fused, const int which, const int kind, vf x)
{
    if (fused)
        return activate(kind, 0.0f, 0.0f, x);
    const vf clip = v_set1(q->clip), low = v_set1(-q->clip);
    x = v_min(clip, v_max(low, x));
    return activate(q->act[which].kind, q->act[which].alpha, q->act[which].beta, x);
}

/* pre[m, width]: input projection plus the product of h with one panel of r */
INLINE void preactivate(const matrix *r, const step *s, const float *xg, ptrdiff_t ldx, ptrdiff_t block,
                        ptrdiff_t width, ptrdiff_t row, ptrdiff_t m, float *pre)
{
    const ptrdiff_t ldw = width * VL;
    xg += row * ldx + block * VL;
    if (s->hr) {
        const float *hr = s->hr + row * r->blocks * VL + block * VL;
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t j = 0; j < ldw; j += VL)
                v_store(pre + i * ldw + j, v_add(v_load(xg + i * ldx + j), v_load(hr + i * r->blocks * VL + j)));
        return;
    }
    panel_rows(m, width, s->h + row * s->ldh, s->ldh, r->w + block * VL * r->k, r->k, xg, ldx, pre, ldw);
}

/* For every tile of every panel: `row`, `m` rows, `block`, `width` blocks of pre-activations, `ldw` apart */
#define EACH_TILE(r, s)                                                                                              \
    for (ptrdiff_t block = 0; block < (r)->blocks; block += (r)->panel)                                              \
        for (ptrdiff_t width = (r)->blocks - block < (r)->panel ? (r)->blocks - block : (r)->panel,                  \
             height = panel_height(width), ldw = width * VL, row = 0, m;                                             \
             m = (s)->rows - row < height ? (s)->rows - row : height, m > 0; row += height)

/* Within a tile, for every row and every block of units: `i`, `unit` (the first), `lanes` that exist, `at` in pre,
 * gates `stride` apart */
#define EACH_BLOCK(r, gates, H)                                                                                      \
    for (ptrdiff_t i = 0, stride = ldw / (gates); i < m; i++)                                                        \
        for (ptrdiff_t u = 0, unit, lanes, at; u < stride &&                                                         \
             (unit = block / (gates) * VL + u, lanes = (H) - unit < VL ? (H) - unit : VL, at = i * ldw + u, 1);      \
             u += VL)

INLINE void store_lanes(float *p, vf x, ptrdiff_t lanes)
{
    if (lanes == VL)
        v_store(p, x);
    else
        v_store_n(p, x, (size_t)lanes);
}

INLINE vf load_lanes(const float *p, ptrdiff_t lanes)
{
    return lanes == VL ? v_load(p) : v_load_n(p, (size_t)lanes);
}

INLINE void rnn_step(const cell *q, const step *s, const int fused, const int kind)
{
    float pre[MAX_ROWS * MAX_PANEL * VL];
    EACH_TILE(&q->r, s) {
        preactivate(&q->r, s, s->xg, s->ldx, block, width, row, m, pre);
        EACH_BLOCK(&q->r, 1, q->hidden_size)
            store_lanes(s->h_out + (row + i) * s->ldo + unit, gate(q, fused, 0, kind, v_load(pre + at)), lanes);
    }
}

INLINE void lstm_step(const cell *q, const step *s, const int fused)
{
    const ptrdiff_t padded = q->r.blocks / 4 * VL;
    const float *p = fused ? NULL : q->peephole;
    float pre[MAX_ROWS * MAX_PANEL * VL];
    EACH_TILE(&q->r, s) {
        preactivate(&q->r, s, s->xg, s->ldx, block, width, row, m, pre);
        EACH_BLOCK(&q->r, 4, q->hidden_size) {
            float *c = s->c + (row + i) * padded + unit;
            const vf c_prev = v_load(c);
            vf in = v_load(pre + at), out = v_load(pre + at + stride), forget = v_load(pre + at + 2 * stride);
            if (p) {
                in = v_fma(v_load(p + unit), c_prev, in);
                forget = v_fma(v_load(p + 2 * padded + unit), c_prev, forget);
            }
            in = gate(q, fused, 0, ACT_SIGMOID, in);
            forget = !fused && q->input_forget ? v_sub(v_set1(1.0f), in) : gate(q, fused, 0, ACT_SIGMOID, forget);
            const vf candidate = gate(q, fused, 1, ACT_TANH, v_load(pre + at + 3 * stride));
            const vf c_new = v_fma(forget, c_prev, v_mul(in, candidate));
            if (p)
                out = v_fma(v_load(p + padded + unit), c_new, out);
            out = gate(q, fused, 0, ACT_SIGMOID, out);
            const vf squashed = fused ? v_tanh(c_new) : activate(q->act[2].kind, q->act[2].alpha, q->act[2].beta, c_new);
            v_store(c, c_new);
            store_lanes(s->h_out + (row + i) * s->ldo + unit, v_mul(out, squashed), lanes);
        }
    }
}

/* (1 - z) n + z h as one fused multiply-add */
INLINE vf interpolate(vf z, vf n, vf h)
{
    return v_fma(z, v_sub(h, n), n);
}

/* linear_before_reset = 1: the candidate's recurrent product starts from its own bias, apart from the input's */
INLINE void gru_step(const cell *q, const step *s, const int fused)
{
    float pre[MAX_ROWS * MAX_PANEL * VL];
    EACH_TILE(&q->r, s) {
        const float *xg = s->xg + row * s->ldx + block * VL;
        const vf rb = v_load(q->candidate_bias + block / 3 * VL);
        if (s->hr) {
            preactivate(&q->r, s, s->xg, s->ldx, block, width, row, m, pre);
            for (ptrdiff_t i = 0; i < m; i++) {
                const float *hr = s->hr + (row + i) * q->r.blocks * VL + (block + 2) * VL;
                v_store(pre + i * ldw + 2 * VL, v_add(rb, v_load(hr)));
            }
        } else {
            for (ptrdiff_t i = 0; i < m; i++) {
                v_store(pre + i * ldw, v_load(xg + i * s->ldx));
                v_store(pre + i * ldw + VL, v_load(xg + i * s->ldx + VL));
                v_store(pre + i * ldw + 2 * VL, rb);
            }
            panel_rows(m, width, s->h + row * s->ldh, s->ldh, q->r.w + block * VL * q->r.k, q->r.k, pre, ldw, pre, ldw);
        }
        EACH_BLOCK(&q->r, 3, q->hidden_size) {
            const vf z = gate(q, fused, 0, ACT_SIGMOID, v_load(pre + at));
            const vf r = gate(q, fused, 0, ACT_SIGMOID, v_load(pre + at + stride));
            const vf x = v_load(xg + i * s->ldx + 2 * VL);
            const vf n = gate(q, fused, 1, ACT_TANH, v_fma(r, v_load(pre + at + 2 * stride), x));
            const vf h = load_lanes(s->h + (row + i) * s->ldh + unit, lanes);
            store_lanes(s->h_out + (row + i) * s->ldo + unit, interpolate(z, n, h), lanes);
        }
    }
}

INLINE void gru_gates(const cell *q, const step *s, const int fused)
{
    const ptrdiff_t padded = q->r.blocks / 2 * VL;
    float pre[MAX_ROWS * MAX_PANEL * VL];
    EACH_TILE(&q->r, s) {
        preactivate(&q->r, s, s->xg, s->ldx, block, width, row, m, pre);
        EACH_BLOCK(&q->r, 2, q->hidden_size) {
            const ptrdiff_t to = (row + i) * padded + unit;
            const vf h = load_lanes(s->h + (row + i) * s->ldh + unit, lanes);
            v_store(s->z + to, gate(q, fused, 0, ACT_SIGMOID, v_load(pre + at)));
            v_store(s->rh + to, v_mul(gate(q, fused, 0, ACT_SIGMOID, v_load(pre + at + stride)), h));
        }
    }
}

INLINE void gru_output(const cell *q, const step *s, const float *h_prev, ptrdiff_t ldh_prev, const int fused)
{
    const ptrdiff_t padded = q->r_candidate.blocks * VL;
    float pre[MAX_ROWS * MAX_PANEL * VL];
    EACH_TILE(&q->r_candidate, s) {
        preactivate(&q->r_candidate, s, s->xg_candidate, s->ldx_candidate, block, width, row, m, pre);
        EACH_BLOCK(&q->r_candidate, 1, q->hidden_size) {
            const vf n = gate(q, fused, 1, ACT_TANH, v_load(pre + at));
            const vf h = load_lanes(h_prev + (row + i) * ldh_prev + unit, lanes);
            const vf z = v_load(s->z + (row + i) * padded + unit);
            store_lanes(s->h_out + (row + i) * s->ldo + unit, interpolate(z, n, h), lanes);
        }
    }
}

static void cell_step_kernel(const cell *q, const step *s)
{
    switch (q->kind) {
    case CELL_RNN:
        if (q->fused && q->act[0].kind == ACT_TANH)
            rnn_step(q, s, 1, ACT_TANH);
        else if (q->fused)
            rnn_step(q, s, 1, ACT_RELU);
        else
            rnn_step(q, s, 0, 0);
        break;
    case CELL_LSTM:
        if (q->fused)
            lstm_step(q, s, 1);
        else
            lstm_step(q, s, 0);
        break;
    case CELL_GRU:
        if (q->fused)
            gru_step(q, s, 1);
        else
            gru_step(q, s, 0);
        break;
    }
}

static void gru_gates_kernel(const cell *q, const step *s)
{
    if (q->fused)
        gru_gates(q, s, 1);
    else
        gru_gates(q, s, 0);
}

static void gru_output_kernel(const cell *q, const step *s, const float *h_prev, ptrdiff_t ldh_prev)
{
    if (q->fused)
        gru_output(q, s, h_prev, ldh_prev, 1);
    else
        gru_output(q, s, h_prev, ldh_prev, 0);
}

#endif
