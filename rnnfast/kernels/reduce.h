/* The reduce_command and rows_command of program.h.
 *
 * Value i of those that are reduced, counted in their logical order, always goes into partial result i % 16. The 16 are
 * joined in a fixed order: first those 8 apart, then 4, 2 and 1. So the bits of a result depend only on the values,
 * neither on their strides nor on the number of rows.
 */
#ifndef RNNFAST_REDUCE_H
#define RNNFAST_REDUCE_H

#include "elementwise.h"
#include "kernels.h"
#include "program.h"
#include "vec.h"
#include "vmath.h"

#include <float.h>

/* The value with which a reduction begins. */
INLINE float neutral(int kind)
{
    return kind == REDUCE_MAX ? -INFINITY : kind == REDUCE_MIN ? INFINITY : kind == REDUCE_PRODUCT ? 1.0f : 0.0f;
}

/* Add the values x to the partial results. */
INLINE vf taken(int kind, vf sum, vf x)
{
    switch (kind) {
    case REDUCE_L1: return v_add(sum, v_abs(x));
    case REDUCE_SQUARES: return v_fma(x, x, sum);
    case REDUCE_PRODUCT: return v_mul(sum, x);
    case REDUCE_MAX: return greatest(sum, x);
    case REDUCE_MIN: return least(sum, x);
    }
    return v_add(sum, x);
}

/* Join two partial results. */
INLINE float joined(int kind, float a, float b)
{
    switch (kind) {
    case REDUCE_PRODUCT: return a * b;
    case REDUCE_MAX: return a != a || a > b ? a : b;
    case REDUCE_MIN: return a != a || a < b ? a : b;
    }
    return a + b;
}

/* Join two blocks of partial results. */
INLINE vf joined_blocks(int kind, vf a, vf b)
{
    switch (kind) {
    case REDUCE_PRODUCT: return v_mul(a, b);
    case REDUCE_MAX: return greatest(a, b);
    case REDUCE_MIN: return least(a, b);
    }
    return v_add(a, b);
}

/* Join the 16 partial results in the lanes of a block. */
INLINE float of_lanes(int kind, vf partial)
{
    float p[VL];
    v_store(p, partial);
    for (int i = 0; i < 8; i++)
        p[i] = joined(kind, p[i], p[i + 8]);
    for (int i = 0; i < 4; i++)
        p[i] = joined(kind, p[i], p[i + 4]);
    return joined(kind, joined(kind, p[0], p[2]), joined(kind, p[1], p[3]));
}

/* Load the last n < 16 values of a row and fill the other lanes with `fill`. */
INLINE vf rest_of(const float *x, ptrdiff_t n, float fill)
{
    float t[VL];
    for (int i = 0; i < VL; i++)
        t[i] = i < n ? x[i] : fill;
    return v_load(t);
}

/* Reduce n contiguous values, and count the work where these are `many`, more than a PIECE. The result is of no use if
 * the call was stopped, which the next `spend` tells. */
INLINE float of_row(int kind, const context *context, const float *x, ptrdiff_t n, const int many)
{
    vf partial = v_set1(neutral(kind));
    ptrdiff_t i = 0;
    while (many && n - i > PIECE) {
        for (const ptrdiff_t end = i + PIECE; i < end; i += VL)
            partial = taken(kind, partial, v_load(x + i));
        if (spend(context, PIECE / 16))
            return 0.0f;
    }
    for (; i + VL <= n; i += VL)
        partial = taken(kind, partial, v_load(x + i));
    if (i < n)
        partial = taken(kind, partial, rest_of(x + i, n - i, neutral(kind)));
    return of_lanes(kind, partial);
}

/* Apply the function that follows the reduction. */
INLINE vf finished(const reduce_command *m, vf y)
{
    switch (m->finish) {
    case FINISH_MEAN: return v_div(y, v_set1((float)(m->lines * m->columns)));
    case FINISH_SQRT: return v_sqrt(y);
    case FINISH_LOG: return v_log(y);
    }
    return y;
}

/* Reduce for 16 neighbouring outputs (if `whole`) or `lanes` of them, whose first values are at x. The results are of
 * no use if the call was stopped. */
INLINE vf of_columns(int kind, const reduce_command *m, const context *context, const float *x, const int whole,
                     size_t lanes)
{
    vf partial[VL];
    for (int i = 0; i < VL; i++)
        partial[i] = v_set1(neutral(kind));
    ptrdiff_t at = 0, counted = 0;
    for (ptrdiff_t i = 0; i < m->lines; i++) {
        const float *p = x + i * m->line_stride;
        for (ptrdiff_t j = 0; j < m->columns;) {
            const ptrdiff_t end = piece_end(j, m->columns);
            for (; j < end; j++, p += m->column_stride, at++)
                partial[at % VL] = taken(kind, partial[at % VL], whole ? v_load(p) : v_load_n(p, lanes));
            if (at - counted >= PIECE) {
                if (spend(context, at - counted))
                    return partial[0];
                counted = at;
            }
        }
    }
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            partial[i] = joined_blocks(kind, partial[i], partial[i + half]);
    return partial[0];
}

/* Compute one line of outputs along the innermost kept axis. Returns whether the call was stopped. */
INLINE int reduce_line(int kind, const reduce_command *m, const context *context, const float *x, float *out,
                       int64_t *status)
{
    const ptrdiff_t axis = m->axes - 1, n = m->shape[axis], x_stride = m->x_stride[axis], stride = m->out_stride[axis];
    if (m->across) {
        ptrdiff_t i = 0;
        for (; i + VL <= n; i += VL) {
            v_store(out + i, finished(m, of_columns(kind, m, context, x + i, 1, VL)));
            if (spend(context, m->lines * m->columns))
                return 1;
        }
        if (i < n)
            v_store_n(out + i, finished(m, of_columns(kind, m, context, x + i, 0, (size_t)(n - i))), (size_t)(n - i));
        return spend(context, m->lines * m->columns);
    }
    float t[VL];
    for (ptrdiff_t i = 0; i < n; i++) {
        v_store(t, finished(m, v_set1(of_row(kind, context, x + i * x_stride, m->columns, 1))));
        out[i * stride] = t[0];
        if (status && t[0] != t[0])
            status[0] = 1;
        if (spend(context, m->columns / 16))
            return 1;
    }
    return 0;
}

/* Write the scale and the zero point of DynamicQuantizeLinear for the contiguous row x, the pair of outputs along the
 * innermost kept axis. Returns whether the call was stopped. */
static int range_line(const reduce_command *m, const context *context, const float *x, float *out, int64_t *status)
{
    enum { CHAINS = 4 };        /* so that the processor need not wait for one comparison before the next */
    vf low[CHAINS], high[CHAINS], nan[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        low[i] = high[i] = nan[i] = v_zero();
    for (ptrdiff_t i = 0; i < m->columns;) {
        const ptrdiff_t end = piece_end(i, m->columns);
        while (i < end)
            for (int j = 0; j < CHAINS && i < end; j++, i += VL) {
                const vf v = take(x + i, end - i);      /* v_min and v_max leave NaN out */
                low[j] = v_min(v, low[j]);
                high[j] = v_max(v, high[j]);
                nan[j] = v_select(v_eq(v, v), nan[j], v);
            }
        if (spend(context, (end - 1) % PIECE / 16))
            return 1;
    }
    for (int half = CHAINS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) {
            low[i] = v_min(low[i], low[i + half]);
            high[i] = v_max(high[i], high[i + half]);
            nan[i] = v_select(v_eq(nan[i], nan[i]), nan[i + half], nan[i]);
        }
    const float least = of_lanes(REDUCE_MIN, low[0]), most = of_lanes(REDUCE_MAX, high[0]);
    const float wide = (most - least) / 255.0f, scale = wide < FLT_MIN ? 1.0f : wide, point = (0.0f - least) / scale;
    out[0] = scale;
    out[m->out_stride[m->axes - 1]] = point >= 0.0f ? rintf(point < 255.0f ? point : 255.0f) : 0.0f;
    if (status && !v_all(v_eq(nan[0], nan[0])))
        status[0] = 1;
    return 0;
}

/* Compute the outputs of the kept axes from `axis` on. Returns whether the call was stopped. */
static int reduce_axes(const reduce_command *m, const context *context, ptrdiff_t axis, const float *x, float *out,
                       int64_t *status)
{
    if (axis < AXES - 1 && axis < m->axes - 1) {
        for (ptrdiff_t i = 0; i < m->shape[axis]; i++)
            if (reduce_axes(m, context, axis + 1, x + i * m->x_stride[axis], out + i * m->out_stride[axis],
                            status))
                return 1;
        return 0;
    }
    switch (m->kind) {
    case REDUCE_SUM: return reduce_line(REDUCE_SUM, m, context, x, out, status);
    case REDUCE_L1: return reduce_line(REDUCE_L1, m, context, x, out, status);
    case REDUCE_SQUARES: return reduce_line(REDUCE_SQUARES, m, context, x, out, status);
    case REDUCE_PRODUCT: return reduce_line(REDUCE_PRODUCT, m, context, x, out, status);
    case REDUCE_MAX: return reduce_line(REDUCE_MAX, m, context, x, out, status);
    case REDUCE_RANGE: return range_line(m, context, x, out, status);
    default: return reduce_line(REDUCE_MIN, m, context, x, out, status);
    }
}

static void reduce_kernel(const command *c, const context *x)
{
    const reduce_command *m = (const reduce_command *)c;
    int64_t *status = m->status.buffer < 0 ? NULL : address_of(x, m->status);
    if (status)
        status[0] = status[1] = 0;
    reduce_axes(m, x, 0, address_of(x, m->x), address_of(x, m->out), status);
}

/* Set out[i] to an expression for each i of n values, 16 at a time. Where these are `many`, the work is counted and the
 * function returns if the call was stopped. Small rows have no such loop: with it 64 values take 1.09 of the time. */
#define EACH(value)                                                                                                  \
    for (ptrdiff_t i = 0; i < n;) {                                                                                  \
        const ptrdiff_t end = many ? piece_end(i, n) : n;                                                            \
        for (; i < end; i += VL)                                                                                     \
            put(out + i, value, n - i);                                                                              \
        if (many && end < n && spend(context, PIECE / 4))                                                            \
            return;                                                                                                  \
    }

/* out = e / sum(e) with e = exp(x - max(x)) for n floats; out may be x. */
INLINE void softmax_row(const context *context, const float *x, float *out, ptrdiff_t n, const int many)
{
    const vf peak = v_set1(of_row(REDUCE_MAX, context, x, n, many));
    EACH(v_exp(v_sub(take(x + i, n - i), peak)))
    const vf sum = v_set1(of_row(REDUCE_SUM, context, out, n, many));
    EACH(v_div(take(out + i, n - i), sum))
}

/* out = d - log(sum(exp(d))) with d = x - max(x) for n floats. out must not be x, which is read twice. */
INLINE void log_softmax_row(const context *context, const float *x, float *out, ptrdiff_t n, const int many)
{
    const vf peak = v_set1(of_row(REDUCE_MAX, context, x, n, many));
    EACH(v_exp(v_sub(take(x + i, n - i), peak)))
    const vf log_sum = v_log(v_set1(of_row(REDUCE_SUM, context, out, n, many)));
    EACH(v_sub(v_sub(take(x + i, n - i), peak), log_sum))
}

/* out = (x - mean) / sqrt(variance + epsilon) for n floats; out may be x. */
INLINE void standardize_row(const context *context, const float *x, float *out, ptrdiff_t n, float epsilon,
                            const int many)
{
    const vf count = v_set1((float)n), mean = v_div(v_set1(of_row(REDUCE_SUM, context, x, n, many)), count);
    EACH(v_sub(take(x + i, n - i), mean))
    const vf variance = v_div(v_set1(of_row(REDUCE_SQUARES, context, out, n, many)), count);
    const vf inverse = v_div(v_set1(1.0f), v_sqrt(v_add(variance, v_set1(epsilon))));
    EACH(v_mul(take(out + i, n - i), inverse))
}
#undef EACH

/* Run the function on one row. */
INLINE void one_row(const rows_command *m, const context *context, const float *x, float *out, const int many)
{
    switch (m->kind) {
    case ROWS_SOFTMAX: softmax_row(context, x, out, m->n, many); break;
    case ROWS_LOG_SOFTMAX: log_softmax_row(context, x, out, m->n, many); break;
    case ROWS_STANDARDIZE: standardize_row(context, x, out, m->n, (float)m->epsilon, many); break;
    }
}

/* Run the function on all rows of the axes from `axis` on. Returns whether the call was stopped. */
static int rows_axes(const rows_command *m, const context *context, ptrdiff_t axis, const float *x, float *out)
{
    if (axis < AXES && axis < m->axes) {
        for (ptrdiff_t i = 0; i < m->shape[axis]; i++)
            if (rows_axes(m, context, axis + 1, x + i * m->x_stride[axis], out + i * m->out_stride[axis]))
                return 1;
        return 0;
    }
    if (m->n > PIECE)
        one_row(m, context, x, out, 1);
    else
        one_row(m, context, x, out, 0);
    return spend(context, m->n);
}

static void rows_kernel(const command *c, const context *x)
{
    const rows_command *m = (const rows_command *)c;
    rows_axes(m, x, 0, address_of(x, m->x), address_of(x, m->out));
}

#endif
