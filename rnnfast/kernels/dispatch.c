/* Which kernels this CPU can run, and what is the same on all of them. RNNFAST_ISAS is the table of setup.py. */
#include "kernels.h"

#define ISA(name, test) extern const kernels rnnfast_kernels_##name;
RNNFAST_ISAS
#undef ISA

const kernels *rnnfast_kernels(int i)
{
#define ISA(name, test) if ((test) && i-- == 0) return &rnnfast_kernels_##name;
    RNNFAST_ISAS
#undef ISA
    return NULL;
}

void rnnfast_pack(const matrix *m, const float *w, ptrdiff_t stride_k, ptrdiff_t stride_n, float *out)
{
    const ptrdiff_t per_gate = m->panel / m->gates, all = m->blocks / m->gates;
    for (ptrdiff_t first = 0; first < all; first += per_gate) {
        const ptrdiff_t wide = all - first < per_gate ? all - first : per_gate;
        for (ptrdiff_t k = 0; k < m->k; k++)
            for (ptrdiff_t g = 0; g < m->gates; g++)
                for (ptrdiff_t unit = first * 16; unit < (first + wide) * 16; unit++)
                    *out++ = unit < m->units ? w[k * stride_k + (g * m->units + unit) * stride_n] : 0.0f;
    }
}
