/* The choice of the kernels that this CPU can run, and the packing of matrices, which is the same for all of them.
 * RNNFAST_ISAS is the table of instruction sets in setup.py. */
#include "kernels.h"
#include "vec.h"

#ifdef __x86_64__
#include <cpuid.h>

/* __builtin_cpu_supports knows "f16c" from gcc 11 and clang 18 on only. */
static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

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

/* out[k, ldo] = w[units, k] transposed, the rows of w stride_n floats apart; units from `units` to 15 are zeros. Four
 * by four items are moved at once where all 16 units exist. */
static void pack_transposed(const float *w, ptrdiff_t stride_n, ptrdiff_t units, ptrdiff_t k, float *out, ptrdiff_t ldo)
{
    const ptrdiff_t line = (ptrdiff_t)sizeof(float), squares = units < 16 ? 0 : k / 4 * 4;
    for (ptrdiff_t i = 0; i < squares; i += 4)
        for (ptrdiff_t unit = 0; unit < 16; unit += 4)
            v_transpose4((const char *)(w + unit * stride_n + i), stride_n * line, (char *)(out + i * ldo + unit),
                         ldo * line);
    for (ptrdiff_t i = squares; i < k; i++)
        for (ptrdiff_t unit = 0; unit < 16; unit++)
            out[i * ldo + unit] = unit < units ? w[unit * stride_n + i] : 0.0f;
}

void rnnfast_pack(const matrix *m, const float *w, ptrdiff_t stride_k, ptrdiff_t stride_n, float *out)
{
    const ptrdiff_t per_gate = m->panel / m->gates, all = m->blocks / m->gates;
    for (ptrdiff_t first = 0; first < all; first += per_gate) {
        const ptrdiff_t wide = all - first < per_gate ? all - first : per_gate, ldo = wide * m->gates * 16;
        if (stride_k == 1) {        /* torch's layout, packed at every step of training: takes a sixth of the time */
            for (ptrdiff_t g = 0; g < m->gates; g++)
                for (ptrdiff_t block = 0; block < wide; block++) {
                    const ptrdiff_t unit = (first + block) * 16;
                    pack_transposed(w + (g * m->units + unit) * stride_n, stride_n, m->units - unit, m->k,
                                    out + (g * wide + block) * 16, ldo);
                }
            out += m->k * ldo;
            continue;
        }
        for (ptrdiff_t k = 0; k < m->k; k++)
            for (ptrdiff_t g = 0; g < m->gates; g++, out += wide * 16) {
                const float *row = w + k * stride_k + (g * m->units + first * 16) * stride_n;
                const ptrdiff_t left = m->units - first * 16, units = left < wide * 16 ? left : wide * 16;
                if (stride_n == 1)
                    memcpy(out, row, (size_t)units * sizeof(float));
                else
                    for (ptrdiff_t unit = 0; unit < units; unit++)
                        out[unit] = row[unit * stride_n];
                memset(out + units, 0, (size_t)(wide * 16 - units) * sizeof(float));
            }
    }
}

void rnnfast_pack_integers(const matrix *m, const int8_t *w, uint8_t *out)
{
    const ptrdiff_t per_gate = m->panel / m->gates, all = m->blocks / m->gates, quads = (m->k + 3) / 4;
    memset(out, 128, (size_t)(quads * m->blocks * 64));
    for (ptrdiff_t k = 0; k < m->k; k++)
        for (ptrdiff_t n = 0; n < m->gates * m->units; n++) {
            const ptrdiff_t gate = n / m->units, block = n % m->units / 16, first = block / per_gate * per_gate;
            const ptrdiff_t wide = all - first < per_gate ? all - first : per_gate, width = wide * m->gates;
            const ptrdiff_t at = gate * wide + block - first, lane = n % m->units % 16;
            out[first * m->gates * 64 * quads + (k / 4 * width + at) * 64 + lane * 4 + k % 4] =
                (uint8_t)(w[k * m->gates * m->units + n] + 128);
        }
}
