/* The backward steps of the cells in cells.h, one panel of units at a time: the product with the transposed recurrent
 * weights, then the gradients of the gates.
 *
 * From the formulas of cells.h, where e is the gradient of h' and a' that of the pre-activation of a gate a:
 * RNN   a' = e f'(h')
 * LSTM  dc = dc' + e o (1 - tanh(c')^2);  i' = dc g i (1 - i);  o' = e tanh(c') o (1 - o);  f' = dc c f (1 - f);
 *       g' = dc i (1 - g^2);  dc = dc f
 * GRU   n' = e (1 - z) (1 - n^2);  z' = e (h - n) z (1 - z);  q' = n' r;  r' = n' q r (1 - r);  dh = e z
 *       where n = tanh(x + r q); with linear_before_reset = 0 and p = n' . Rn: r' = p h r (1 - r);  dh = e z + p r
 */
#ifndef RNNFAST_GRADIENTS_H
#define RNNFAST_GRADIENTS_H

#include "cells.h"

/* g (1 - g), the derivative of a sigmoid whose value is g. */
INLINE vf sigmoid_slope(vf g) { return v_fnma(g, g, g); }
/* 1 - g^2, the derivative of a tanh whose value is g. */
INLINE vf tanh_slope(vf g) { return v_fnma(g, g, v_set1(1.0f)); }

/* pre = dy + dh_in for a tile; either counts as zero where it is NULL. */
INLINE void gather_gradient(const tiles *t, const step_back *s, float *pre)
{
    EACH_BLOCK(*t, 1, t->w->units) {
        vf e = s->dy ? load_lanes(s->dy[t->row + i] + unit, lanes) : v_zero();
        if (s->dh_in)
            e = v_add(e, v_load(s->dh_in + (t->row + i) * s->ldh + unit));
        v_store(pre + at, e);
    }
}

/* The gates of an LSTM for one block: writes dg and, if s->out is not NULL, o tanh(c'); updates dc. e is the gradient
 * of h'. */
INLINE void lstm_back(const step_back *s, ptrdiff_t H, ptrdiff_t row, ptrdiff_t unit, ptrdiff_t lanes, vf e)
{
    const float *g = s->saved + row * s->lds + unit;
    float *dg = s->dg + row * s->ldg + unit, *dc = s->dc + row * s->ldh + unit;
    const vf in = load_lanes(g, lanes), out = load_lanes(g + H, lanes), forget = load_lanes(g + 2 * H, lanes);
    const vf candidate = load_lanes(g + 3 * H, lanes), squashed = v_tanh(load_lanes(g + 4 * H, lanes));
    const vf eo = v_mul(e, out), d = v_fma(eo, tanh_slope(squashed), v_load(dc));
    store_lanes(dg, v_mul(v_mul(d, candidate), sigmoid_slope(in)), lanes);
    store_lanes(dg + 3 * H, v_mul(v_mul(e, squashed), sigmoid_slope(out)), lanes);
    store_lanes(dg + H, v_mul(v_mul(d, load_lanes(s->c[row] + unit, lanes)), sigmoid_slope(forget)), lanes);
    store_lanes(dg + 2 * H, v_mul(v_mul(d, in), tanh_slope(candidate)), lanes);
    v_store(dc, v_mul(d, forget));
    if (s->out)
        store_lanes(s->out + row * s->ldo + unit, v_mul(out, squashed), lanes);
}

/* The gates of a GRU for one block: writes dg and dh. With reset_first, the gradient of r is left to
 * gru_candidate_back. */
INLINE void gru_back(const step_back *s, ptrdiff_t H, ptrdiff_t row, ptrdiff_t unit, ptrdiff_t lanes, vf e,
                     const int reset_first)
{
    const float *g = s->saved + row * s->lds + unit;
    float *dg = s->dg + row * s->ldg + unit + (reset_first ? 0 : H);
    const vf z = load_lanes(g, lanes), n = load_lanes(g + 2 * H, lanes), h = load_lanes(s->h[row] + unit, lanes);
    const vf ez = v_mul(e, z), dn = v_mul(v_sub(e, ez), tanh_slope(n));
    store_lanes(dg + H, v_mul(v_mul(e, v_sub(h, n)), sigmoid_slope(z)), lanes);
    store_lanes(dg + 2 * H, dn, lanes);
    v_store(s->dh + row * s->ldh + unit, ez);
    if (!reset_first) {
        const vf r = load_lanes(g + H, lanes);
        store_lanes(dg - H, v_mul(dn, r), lanes);
        store_lanes(dg, v_mul(v_mul(dn, load_lanes(g + 3 * H, lanes)), sigmoid_slope(r)), lanes);
    }
}

/* The gate r of a GRU with linear_before_reset = 0 for one block, from p, the gradient of r h: writes dg and, to
 * s->out, r h; updates dh. */
INLINE void gru_candidate_back(const step_back *s, ptrdiff_t H, ptrdiff_t row, ptrdiff_t unit, ptrdiff_t lanes, vf p)
{
    float *dh = s->dh + row * s->ldh + unit;
    const vf r = load_lanes(s->saved + row * s->lds + H + unit, lanes), h = load_lanes(s->h[row] + unit, lanes);
    const vf rh = v_mul(r, h);
    store_lanes(s->dg + row * s->ldg + unit, v_mul(v_mul(p, h), sigmoid_slope(r)), lanes);
    v_store(dh, v_fma(p, r, v_load(dh)));
    store_lanes(s->out + row * s->ldo + unit, rh, lanes);
}

/* One kind of backward step for some panels; `kind` is a compile-time constant, BACK_*. */
INLINE void cell_back(const int kind, const step_back *s, panels part)
{
    const ptrdiff_t H = s->m->units;
    const operand a = { .p = s->a, .ld = s->lda };
    float pre[MAX_TILE];
    for (tiles t = tiles_of(s->m, part, s->rows); next_tile(&t);) {
        if (kind == BACK_LSTM)
            prefetch_saved(&t, 1, H, s->saved, SAVED_LSTM, 0);
        gather_gradient(&t, s, pre);
        if (s->a)
            multiply_tile(&t, &a, pre, t.ldw, pre, t.ldw);
        EACH_BLOCK(t, 1, H) {
            const ptrdiff_t row = t.row + i;
            const vf e = v_load(pre + at);
            if (kind == BACK_STATE) {
                store_lanes(s->out + row * s->ldo + unit, e, lanes);
            } else if (kind == BACK_TANH) {
                const vf h = load_lanes(s->h[row] + unit, lanes);
                store_lanes(s->dg + row * s->ldg + unit, v_mul(e, tanh_slope(h)), lanes);
            } else if (kind == BACK_RELU) {
                const vm none = v_le(load_lanes(s->h[row] + unit, lanes), v_zero());      /* e passes where h is NaN */
                store_lanes(s->dg + row * s->ldg + unit, v_select(none, v_zero(), e), lanes);
            } else if (kind == BACK_LSTM) {
                lstm_back(s, H, row, unit, lanes, e);
            } else if (kind == BACK_GRU_CANDIDATE) {
                gru_candidate_back(s, H, row, unit, lanes, e);
            } else {
                gru_back(s, H, row, unit, lanes, e, kind == BACK_GRU_RESET_FIRST);
            }
        }
    }
}

static void cell_back_kernel(const step_back *s, panels part)
{
#define CASE(KIND) case KIND: cell_back(KIND, s, part); break;
    switch (s->kind) {
    CASE(BACK_STATE) CASE(BACK_TANH) CASE(BACK_RELU) CASE(BACK_LSTM) CASE(BACK_GRU) CASE(BACK_GRU_RESET_FIRST)
    CASE(BACK_GRU_CANDIDATE)
    }
#undef CASE
}

/* out[columns, ldo] = a[rows, columns] transposed, in squares of VL; sums[columns] += the sums of its columns, added
 * row by row. out and sums do not alias a. */
static void transpose_kernel(const float *a, ptrdiff_t lda, ptrdiff_t rows, ptrdiff_t columns, float *out,
                             ptrdiff_t ldo, float *sums)
{
    const ptrdiff_t line = (ptrdiff_t)sizeof(float);
    for (ptrdiff_t j = 0; j < columns; j += VL) {
        const ptrdiff_t lanes = columns - j < VL ? columns - j : VL;
        vf sum = load_lanes(sums + j, lanes);
        ptrdiff_t i = 0;
        for (; lanes == VL && i + VL <= rows; i += VL) {
            for (ptrdiff_t k = 0; k < VL; k++)
                sum = v_add(sum, v_load(a + (i + k) * lda + j));
            for (ptrdiff_t v = 0; v < VL; v += 4)
                for (ptrdiff_t k = 0; k < VL; k += 4)
                    v_transpose4((const char *)(a + (i + k) * lda + j + v), lda * line,
                                 (char *)(out + (j + v) * ldo + i + k), ldo * line);
        }
        for (; i < rows; i++) {
            sum = v_add(sum, load_lanes(a + i * lda + j, lanes));
            for (ptrdiff_t v = 0; v < lanes; v++)
                out[(j + v) * ldo + i] = a[i * lda + j + v];
        }
        store_lanes(sums + j, sum, lanes);
    }
}

#endif
