/* A step of Adam (Kingma and Ba, 2014), an IEEE operation at a time, so that it has the bits of the formula in NumPy:
 * m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g^2;  v = v - rate m / (sqrt(s) + eps)
 * where rate and eps hold the corrections of the first steps. */
#ifndef RNNFAST_OPTIMIZER_H
#define RNNFAST_OPTIMIZER_H

#include "cells.h"

static void adam_kernel(const adam_constants *a, const float *g, float *v, float *m, float *s, size_t n)
{
    for (size_t i = 0; i < n; i += VL) {
        const ptrdiff_t lanes = n - i < VL ? (ptrdiff_t)(n - i) : VL;
        const vf x = load_lanes(g + i, lanes);
        const vf mean = v_add(v_mul(load_lanes(m + i, lanes), v_set1(a->b1)), v_mul(x, v_set1(a->rest1)));
        const vf square = v_add(v_mul(load_lanes(s + i, lanes), v_set1(a->b2)), v_mul(v_mul(x, x), v_set1(a->rest2)));
        const vf d = v_div(mean, v_add(v_sqrt(square), v_set1(a->eps)));
        store_lanes(m + i, mean, lanes);
        store_lanes(s + i, square, lanes);
        store_lanes(v + i, v_sub(load_lanes(v + i, lanes), v_mul(d, v_set1(a->rate))), lanes);
    }
}

#endif
