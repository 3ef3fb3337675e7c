/* A step of Adam (Kingma and Ba, 2014). Every IEEE 754 operation is rounded on its own, without fused multiply-adds, so
 * that the results have the bits of the same formula in NumPy:
 * m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g^2;  v = v - rate m / (sqrt(s) + eps)
 * The caller folds the bias corrections of the first steps into rate and eps. */
#ifndef RNNFAST_OPTIMIZER_H
#define RNNFAST_OPTIMIZER_H

#include "cells.h"

/* Update the values v[n], means m[n] and mean squares s[n] in place from the gradients g[n]. No two of them overlap. */
static void adam_kernel(const adam_constants *a, const float *g, float *v, float *m, float *s, size_t n)
{
    for (size_t i = 0; i < n; i += VL) {
        const ptrdiff_t lanes = n - i < VL ? (ptrdiff_t)(n - i) : VL;
        const vf x = load_lanes(g + i, lanes);
        const vf mean = v_add(v_mul(load_lanes(m + i, lanes), v_set1(a->b1)), v_mul(x, v_set1(a->one_minus_b1)));
        const vf square =
            v_add(v_mul(load_lanes(s + i, lanes), v_set1(a->b2)), v_mul(v_mul(x, x), v_set1(a->one_minus_b2)));
        const vf d = v_div(mean, v_add(v_sqrt(square), v_set1(a->eps)));
        store_lanes(m + i, mean, lanes);
        store_lanes(s + i, square, lanes);
        store_lanes(v + i, v_sub(load_lanes(v + i, lanes), v_mul(d, v_set1(a->rate))), lanes);
    }
}

#endif
