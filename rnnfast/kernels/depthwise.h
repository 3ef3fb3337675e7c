/* The depthwise_command of program.h: each output is one chain of fused multiply-adds over the taps, from its bias. */
#ifndef RNNFAST_DEPTHWISE_H
#define RNNFAST_DEPTHWISE_H

#include "kernels.h"
#include "program.h"
#include "vec.h"

/* One block of channels at one position */
INLINE void depthwise_block(const depthwise_command *m, const float *x, const float *w, const float *bias, float *out,
                            const int whole, size_t lanes)
{
    vf sum = whole ? v_load(bias) : v_load_n(bias, lanes);
    for (ptrdiff_t t = 0; t < m->taps; t++) {
        const float *of_tap = x + m->offset[t], *of_w = w + t * m->channels;
        sum = v_fma(whole ? v_load(of_tap) : v_load_n(of_tap, lanes), whole ? v_load(of_w) : v_load_n(of_w, lanes), sum);
    }
    if (whole)
        v_store(out, sum);
    else
        v_store_n(out, sum, lanes);
}

static void depthwise_kernel(const command *head, const context *context)
{
    const depthwise_command *m = (const depthwise_command *)head;
    const float *x = address_of(context, m->x), *w = address_of(context, m->w), *bias = address_of(context, m->bias);
    float *out = address_of(context, m->out);
    const ptrdiff_t whole = m->channels / VL * VL;
    for (ptrdiff_t i = 0; i < m->shape[0]; i++)
        for (ptrdiff_t j = 0; j < m->shape[1]; j++)
            for (ptrdiff_t k = 0; k < m->shape[2]; k++) {
                const float *from = x + i * m->x_stride[0] + j * m->x_stride[1] + k * m->x_stride[2];
                float *to = out + i * m->out_stride[0] + j * m->out_stride[1] + k * m->out_stride[2];
                for (ptrdiff_t c = 0; c < whole; c += VL)
                    depthwise_block(m, from + c, w + c, bias + c, to + c, 1, VL);
                if (whole < m->channels)
                    depthwise_block(m, from + whole, w + whole, bias + whole, to + whole, 0,
                                    (size_t)(m->channels - whole));
            }
}

#endif
