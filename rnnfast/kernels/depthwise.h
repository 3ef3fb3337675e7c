/* The depthwise_command of program.h. Each output is one chain of fused multiply-adds over the taps, from its bias. */
#ifndef RNNFAST_DEPTHWISE_H
#define RNNFAST_DEPTHWISE_H

#include "kernels.h"
#include "program.h"
#include "vec.h"

enum { POSITIONS = 6 };         /* positions computed at once: their chains hide the latency of one another */

/* Compute one block of channels at P positions. w points to the weights of the first tap. The block is full if `whole`,
 * otherwise it has `lanes` channels. out does not alias x, w or bias. */
INLINE void depthwise_block(const int P, const depthwise_command *m, const run *tap, const run *end, const float *x,
                            const float *w, const float *bias, float *out, const int whole, size_t lanes)
{
    vf sum[POSITIONS];
#pragma GCC unroll 6
    for (int p = 0; p < P; p++)
        sum[p] = whole ? v_load(bias) : v_load_n(bias, lanes);
    for (; tap < end; tap++, w += m->channels) {
        const vf of_tap = whole ? v_load(w) : v_load_n(w, lanes);
        const float *from = x + tap->offset;
#pragma GCC unroll 6
        for (int p = 0; p < P; p++, from += m->x_stride[2])
            sum[p] = v_fma(whole ? v_load(from) : v_load_n(from, lanes), of_tap, sum[p]);
    }
#pragma GCC unroll 6
    for (int p = 0; p < P; p++, out += m->out_stride[2]) {
        if (whole)
            v_store(out, sum[p]);
        else
            v_store_n(out, sum[p], lanes);
    }
}

static void depthwise_kernel(const command *head, const context *context)
{
    const depthwise_command *m = (const depthwise_command *)head;
    const float *x = address_of(context, m->x), *bias = address_of(context, m->bias);
    float *out = address_of(context, m->out);
    for (ptrdiff_t i = 0; i < m->shape[0]; i++)
        for (ptrdiff_t j = 0; j < m->shape[1]; j++) {
            const float *from = x + i * m->x_stride[0] + j * m->x_stride[1];
            float *to = out + i * m->out_stride[0] + j * m->out_stride[1];
            const run *tap = m->tap, *end = m->tap + m->taps;
            runs_of_line(&tap, &end, j * m->step, m->input_lines);
            const float *w = (const float *)address_of(context, m->w) + (tap - m->tap) * m->channels;
            /* a piece is a multiple of POSITIONS, so that the blocks are those of the whole line */
            const ptrdiff_t of_position = m->channels * (end - tap) / 16 + 1;
            const ptrdiff_t most = (PIECE / of_position / POSITIONS + 1) * POSITIONS;
            ptrdiff_t k = 0;
#define LINE(P)                                                                                                      \
    for (; k + (P) <= last; k += (P)) {                                                                              \
        const float *a = from + k * m->x_stride[2];                                                                  \
        float *b = to + k * m->out_stride[2];                                                                        \
        ptrdiff_t c = 0;                                                                                             \
        for (; c + VL <= m->channels; c += VL)                                                                       \
            depthwise_block(P, m, tap, end, a + c, w + c, bias + c, b + c, 1, VL);                                   \
        if (c < m->channels)                                                                                         \
            depthwise_block(P, m, tap, end, a + c, w + c, bias + c, b + c, 0, (size_t)(m->channels - c));            \
    }
            do {
                const ptrdiff_t first = k, last = m->shape[2] - k > most ? k + most : m->shape[2];
                LINE(POSITIONS)
                LINE(1)
                if (spend(context, (last - first) * of_position))
                    return;
            } while (k < m->shape[2]);
#undef LINE
        }
}

#endif
