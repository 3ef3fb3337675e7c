/* The pool_command of program.h. Each output is one chain over the taps that lie inside the input, row after row. */
#ifndef RNNFAST_POOLING_H
#define RNNFAST_POOLING_H

#include "elementwise.h"
#include "kernels.h"
#include "program.h"
#include "vec.h"

/* Find the taps first <= tap < last of an output's window whose positions lie at low <= position < high. */
INLINE void met_taps(const pool_axis *a, ptrdiff_t output, ptrdiff_t low, ptrdiff_t high, ptrdiff_t *first,
                     ptrdiff_t *last)
{
    const ptrdiff_t start = output * a->stride - a->begin;
    const ptrdiff_t below = low - start, room = high - start;
    *first = below <= 0 ? 0 : (below + a->dilation - 1) / a->dilation;
    *last = room <= 0 ? 0 : (room + a->dilation - 1) / a->dilation;
    *last = *last < a->kernel ? *last : a->kernel;
}

/* The number of taps by which an average divides. */
INLINE ptrdiff_t counted_taps(const pool_axis *a, ptrdiff_t output)
{
    ptrdiff_t first, last;
    met_taps(a, output, a->low, a->high, &first, &last);
    return last > first ? last - first : 0;
}

/* Pool one block of channels over `rows` by `columns` taps, of which x is the first. The block is full if `whole`,
 * otherwise it has `lanes` channels. out does not alias x. The work is counted if there are `many` taps; the result is
 * of no use if the call was stopped. */
INLINE void pool_block(const pool_command *m, const context *context, const int many, const float *x, float *out,
                       const int maximum, ptrdiff_t rows, ptrdiff_t columns, float count, const int whole, size_t lanes)
{
    vf y = v_set1(maximum ? -INFINITY : 0.0f);
    ptrdiff_t taps = 0;             /* those that are not counted yet */
    for (ptrdiff_t i = 0; i < rows; i++) {
        const float *p = x + i * m->of[0].dilation * m->x_stride[1];
        for (ptrdiff_t j = 0; j < columns;) {
            const ptrdiff_t end = many ? piece_end(j, columns) : columns;
            taps += many ? end - j : 0;
            for (; j < end; j++, p += m->of[1].dilation * m->x_stride[2]) {
                const vf tap = whole ? v_load(p) : v_load_n(p, lanes);
                y = maximum ? greatest(y, tap) : v_add(y, tap);
            }
            if (many && taps >= PIECE) {
                if (spend(context, taps))
                    return;
                taps = 0;
            }
        }
    }
    if (!maximum)
        y = v_div(y, v_set1(count));
    if (whole)
        v_store(out, y);
    else
        v_store_n(out, y, lanes);
}

/* Pool all channels of one window. */
INLINE void pool_window(const pool_command *m, const context *context, const int many, const float *x, float *out,
                        const int maximum, ptrdiff_t rows, ptrdiff_t columns, float count)
{
    ptrdiff_t c = 0;
    for (; c + VL <= m->channels; c += VL)
        pool_block(m, context, many, x + c, out + c, maximum, rows, columns, count, 1, VL);
    if (c < m->channels)
        pool_block(m, context, many, x + c, out + c, maximum, rows, columns, count, 0, (size_t)(m->channels - c));
}

static void pool_kernel(const command *head, const context *context)
{
    const pool_command *m = (const pool_command *)head;
    const float *x = address_of(context, m->x);
    float *out = address_of(context, m->out);
    const int64_t of_window = m->channels * m->of[0].kernel * m->of[1].kernel / 16 + 1;
    for (ptrdiff_t n = 0; n < m->samples; n++)
        for (ptrdiff_t i = 0; i < m->of[0].outputs; i++) {
            ptrdiff_t top, bottom, left, right;
            met_taps(&m->of[0], i, 0, m->of[0].size, &top, &bottom);
            const ptrdiff_t row = i * m->of[0].stride - m->of[0].begin + top * m->of[0].dilation;
            int64_t cost = 0;
            for (ptrdiff_t j = 0; j < m->of[1].outputs; j++) {
                met_taps(&m->of[1], j, 0, m->of[1].size, &left, &right);
                const ptrdiff_t column = j * m->of[1].stride - m->of[1].begin + left * m->of[1].dilation;
                const float *from = x + n * m->x_stride[0] + row * m->x_stride[1] + column * m->x_stride[2];
                float *to = out + n * m->out_stride[0] + i * m->out_stride[1] + j * m->out_stride[2];
                const ptrdiff_t rows = bottom - top, columns = right - left;
                const float taps = m->maximum ? 1.0f : (float)(counted_taps(&m->of[0], i) * counted_taps(&m->of[1], j));
                if (m->maximum && of_window < PIECE)
                    pool_window(m, context, 0, from, to, 1, rows, columns, taps);
                else if (of_window < PIECE)
                    pool_window(m, context, 0, from, to, 0, rows, columns, taps);
                else
                    pool_window(m, context, 1, from, to, m->maximum != 0, rows, columns, taps);
                cost += of_window;
                if (cost >= PIECE) {
                    if (spend(context, cost))
                        return;
                    cost = 0;
                }
            }
            if (spend(context, cost))
                return;
        }
}

#endif
