/* The elementwise_command of program.h: a short program of instructions, run on one tile after the other. */
#ifndef RNNFAST_ELEMENTWISE_H
#define RNNFAST_ELEMENTWISE_H

#include "activations.h"
#include "kernels.h"
#include "program.h"
#include "vec.h"

/* Load a block, or the `left` floats that are left of an array. */
INLINE vf take(const float *p, ptrdiff_t left) { return left >= VL ? v_load(p) : v_load_n(p, (size_t)left); }

/* Store a block, or the `left` floats that are left of an array. */
INLINE void put(float *p, vf x, ptrdiff_t left)
{
    if (left >= VL)
        v_store(p, x);
    else
        v_store_n(p, x, (size_t)left);
}

/* 1 where m holds, 0 elsewhere. */
INLINE vf truth(vm m) { return v_select(m, v_set1(1.0f), v_zero()); }

/* The smaller and the larger value: b if they are equal, NaN if either is NaN. */
INLINE vf least(vf a, vf b) { return v_select(v_eq(a, a), v_min(a, b), a); }
INLINE vf greatest(vf a, vf b) { return v_select(v_eq(a, a), v_max(a, b), a); }

/* Whether an instruction sees denormals as they are, because its result depends on the side of a limit on which a value
 * lies. In all others, which are arithmetic, a denormal counts as zero. */
static int sees_denormals(ptrdiff_t code)
{
    switch (code) {
    case E_FLOOR: case E_CEIL: case E_SIGN: case E_MIN: case E_MAX: case E_LT: case E_LE: case E_EQ:
        return 1;
    }
    return 0;
}

/* to[n] = the instruction of a[n], b[n], c[n]; `to` may be any of them. */
static void apply(const instruction *q, const float *a, const float *b, const float *c, float *to, ptrdiff_t n)
{
    const vf zero = v_zero(), one = v_set1(1.0f);
    const int exact = sees_denormals(q->code);
    const unsigned mode = exact ? v_keep_denormals() : 0;
#define CASE(code, result)                                                                                           \
    case code:                                                                                                       \
        for (ptrdiff_t i = 0; i < n; i += VL) {                                                                      \
            const vf x = take(a + i, n - i);                                                                         \
            put(to + i, result, n - i);                                                                              \
        }                                                                                                            \
        break;
#define Y take(b + i, n - i)
    switch (q->code) {
    CASE(E_SQRT, v_sqrt(x))
    CASE(E_ABS, v_abs(x))
    CASE(E_NEG, v_neg(x))
    CASE(E_FLOOR, v_floor(x))
    CASE(E_CEIL, v_ceil(x))
    CASE(E_ROUND, v_round(x))
    CASE(E_SIGN, v_select(v_lt(zero, x), one, v_select(v_lt(x, zero), v_set1(-1.0f), v_select(v_eq(x, x), zero, x))))
    CASE(E_RECIPROCAL, v_div(one, x))
    CASE(E_NOT, truth(v_eq(x, zero)))
    CASE(E_COPY, x)
    CASE(E_IS_NAN, v_select(v_eq(x, x), zero, one))
    CASE(E_ADD, v_add(x, Y))
    CASE(E_SUB, v_sub(x, Y))
    CASE(E_MUL, v_mul(x, Y))
    CASE(E_DIV, v_div(x, Y))
    CASE(E_MIN, least(x, Y))
    CASE(E_MAX, greatest(x, Y))
    CASE(E_LT, truth(v_lt(x, Y)))
    CASE(E_LE, truth(v_le(x, Y)))
    CASE(E_EQ, truth(v_eq(x, Y)))
    CASE(E_AND, v_mul(x, Y))
    CASE(E_OR, v_max(x, Y))
    CASE(E_PRELU, v_select(v_lt(x, zero), v_mul(x, Y), x))
    CASE(E_WHERE, v_select(v_eq(x, zero), take(c + i, n - i), Y))
    CASE(E_POWER, v_power(x, Y))
    CASE(E_QUANTIZE, v_min(v_set1((float)q->beta), v_max(v_set1((float)q->alpha), v_round(v_div(x, Y)))))
    default:
        unary_kernel((activation){ (int)q->code, (float)q->alpha, (float)q->beta }, a, to, (size_t)n);
    }
    if (exact)
        v_restore_mode(mode);
#undef CASE
#undef Y
}

static float float_of(uint32_t bits) { float x; memcpy(&x, &bits, sizeof x); return x; }
static uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, sizeof bits); return bits; }

/* a if `first` is 1, b if it is 0. */
static uint32_t chosen(uint32_t first, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & -first); }

/* The floats of the bits of float16 and bfloat16, which float32 holds, denormals too. These functions and the two that
 * follow have no branches, so that compilers make vectors of them. */
static float from_float16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, size = (uint32_t)(h & 0x7fffu) << 13;
    const uint32_t small = bits_of(float_of(size + (113u << 23)) - 0x1p-14f);   /* without the leading 1 */
    const uint32_t normal = size + chosen(size >= 0x7c00u << 13, 224u << 23, 112u << 23);
    return float_of(chosen(size < 0x400u << 13, small, normal) | sign);
}

static float from_bfloat16(uint16_t h) { return float_of((uint32_t)h << 16); }

/* The bits of a float as float16 and as bfloat16, rounded to nearest, ties to even; infinity beyond the largest. */
static uint16_t to_float16(float x)
{
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    const uint32_t small = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);      /* neighbours of 0.5 are 2^-24 apart */
    const uint32_t normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
    const uint32_t beyond = chosen(size > 0x7f800000u, 0x7e00u | (size >> 13 & 0x3ffu), 0x7c00u);
    return (uint16_t)(sign | chosen(size >= 0x47800000u, beyond, chosen(size < 0x38800000u, small, normal)));
}

static uint16_t to_bfloat16(float x)
{
    const uint32_t bits = bits_of(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)chosen((bits & 0x7fffffffu) > 0x7f800000u, bits >> 16 | 0x40u, rounded);
}

/* Return n values of an input as contiguous floats: the input itself where it is stored like that, otherwise
 * `converted`, to which they are written. */
static const float *loaded(const element *e, const char *p, ptrdiff_t stride, ptrdiff_t n, float *converted)
{
    if (e->item == ITEM_FLOAT32 && stride == sizeof(float))
        return (const float *)p;
    if (e->item == ITEM_FLOAT32 && stride == -(ptrdiff_t)sizeof(float)) {
        for (ptrdiff_t i = 0; i < n; i++)
            converted[i] = ((const float *)p)[-i];
        return converted;
    }
    /* Of items that lie behind each other compilers make vectors. */
#define LOAD(type, value)                                                                                            \
    if (stride == sizeof(type))                                                                                      \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                          \
            const type x = ((const type *)p)[i];                                                                     \
            converted[i] = value;                                                                                    \
        }                                                                                                            \
    else                                                                                                             \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                          \
            const type x = *(const type *)(p + i * stride);                                                          \
            converted[i] = value;                                                                                    \
        }                                                                                                            \
    break;
    switch (e->item) {
    case ITEM_FLOAT32: LOAD(float, x)
    case ITEM_BOOL: LOAD(uint8_t, x != 0 ? 1.0f : 0.0f)
    case ITEM_INT32: LOAD(int32_t, (float)x)
    case ITEM_INT64: LOAD(int64_t, (float)x)
    case ITEM_UINT8: LOAD(uint8_t, (float)x)
    case ITEM_INT8: LOAD(int8_t, (float)x)
    case ITEM_UINT16: LOAD(uint16_t, (float)x)
    case ITEM_INT16: LOAD(int16_t, (float)x)
    case ITEM_FLOAT16: LOAD(uint16_t, from_float16(x))
    case ITEM_BFLOAT16: LOAD(uint16_t, from_bfloat16(x))
    }
#undef LOAD
    return converted;
}

/* Truncate to int64; -2^63 for NaN and for what it does not hold. */
static int64_t truncated(float x) { return x >= -0x1p63f && x < 0x1p63f ? (int64_t)x : INT64_MIN; }

/* Return whether int32 holds all of n floats once they are truncated. */
static int fit_int32(const float *x, ptrdiff_t n)
{
    int fit = 1;
    for (ptrdiff_t i = 0; i < n; i++)
        fit &= (x[i] >= -0x1p31f) & (x[i] < 0x1p31f);
    return fit;
}

/* Return whether a float is not zero; a denormal is not. */
static int is_not_zero(float x) { return (bits_of(x) & 0x7fffffffu) != 0; }

/* Convert n floats to the type of an output and store them. */
static void stored(const element *e, char *p, ptrdiff_t stride, ptrdiff_t n, const float *x)
{
#define STORE(type, value)                                                                                           \
    if (stride == sizeof(type))                                                                                      \
        for (ptrdiff_t i = 0; i < n; i++)                                                                            \
            ((type *)p)[i] = value;                                                                                  \
    else                                                                                                             \
        for (ptrdiff_t i = 0; i < n; i++)                                                                            \
            *(type *)(p + i * stride) = value;                                                                       \
    break;
#define STORE_INTEGERS(type)                                                                                         \
    if (stride == sizeof(type) && fit_int32(x, n)) {                                                                 \
        for (ptrdiff_t i = 0; i < n; i++)                                                                            \
            ((type *)p)[i] = (type)(int32_t)x[i];                                                                    \
        break;                                                                                                       \
    }                                                                                                                \
    STORE(type, (type)truncated(x[i]))
    switch (e->item) {
    case ITEM_FLOAT32: STORE(float, x[i])
    case ITEM_BOOL: STORE(uint8_t, (uint8_t)is_not_zero(x[i]))
    case ITEM_INT32: STORE_INTEGERS(int32_t)
    case ITEM_INT64: STORE(int64_t, truncated(x[i]))
    case ITEM_UINT8: STORE_INTEGERS(uint8_t)
    case ITEM_INT8: STORE_INTEGERS(int8_t)
    case ITEM_UINT16: STORE_INTEGERS(uint16_t)
    case ITEM_INT16: STORE_INTEGERS(int16_t)
    case ITEM_FLOAT16: STORE(uint16_t, to_float16(x[i]))
    case ITEM_BFLOAT16: STORE(uint16_t, to_bfloat16(x[i]))
    }
#undef STORE_INTEGERS
#undef STORE
}

enum { TILE_COST = 32 };        /* of a tile and an instruction, as interrupt.h counts */

/* Run the instructions on one line of the innermost axis. registers[i] is memory for the values of register i, but
 * inputs that are contiguous floats are read in place, and the last instruction writes directly to such an output.
 * Returns whether the call was stopped; of a line that is no longer than a tile the caller counts the work. */
static int line(const elementwise_command *m, const context *x, float (*registers)[TILE], const char *const *in,
                char *out)
{
    const ptrdiff_t axis = m->axes - 1, n = m->shape[axis];
    const instruction *q = (const instruction *)(m->in + m->inputs), *end = q + m->instructions;
    const int direct = m->out.item == ITEM_FLOAT32 && m->out.stride[axis] == sizeof(float);
    const float *value[REGISTERS];

    for (ptrdiff_t at = 0; at < n; at += TILE) {
        const ptrdiff_t size = n - at < TILE ? n - at : TILE;
        for (ptrdiff_t i = 0; i < m->inputs; i++) {
            const ptrdiff_t stride = m->in[i].stride[axis];
            if (stride != 0)
                value[i] = loaded(m->in + i, in[i] + at * stride, stride, size, registers[i]);
            else if (at == 0)
                value[i] = loaded(m->in + i, in[i], 0, size, registers[i]);
        }
        for (const instruction *p = q; p < end; p++) {
            float *to = p == end - 1 && direct ? (float *)out + at : registers[p->to];
            apply(p, value[p->a], value[p->b], value[p->c], to, size);
            value[p->to] = to;
        }
        if (!direct)
            stored(&m->out, out + at * m->out.stride[axis], m->out.stride[axis], size, value[end[-1].to]);
        if (n > TILE && spend(x, TILE_COST * m->instructions))
            return 1;
    }
    return 0;
}

enum { SHORT_LINES = 64 };      /* lines of one tile that are computed before the work is counted */

/* Return the cost of a line along the axis that is innermost and no longer than a tile; 0 for any other axis. */
static ptrdiff_t short_line_cost(const elementwise_command *m, ptrdiff_t axis)
{
    const int innermost = axis >= AXES - 1 || axis == m->axes - 1;
    return innermost && m->shape[axis] <= TILE ? TILE_COST * m->instructions : 0;
}

/* Run the instructions on all lines of the axes from `axis` on. Returns whether the call was stopped. */
static int lines(const elementwise_command *m, const context *x, ptrdiff_t axis, float (*registers)[TILE],
                 const char *const *in, char *out)
{
    if (axis >= AXES - 1 || axis == m->axes - 1)
        return line(m, x, registers, in, out);
    const char *of_item[REGISTERS];
    const ptrdiff_t cost = short_line_cost(m, axis + 1);
    for (ptrdiff_t i = 0; i < m->shape[axis]; i++) {
        for (ptrdiff_t j = 0; j < m->inputs; j++)
            of_item[j] = in[j] + i * m->in[j].stride[axis];
        if (lines(m, x, axis + 1, registers, of_item, out + i * m->out.stride[axis]))
            return 1;
        if (cost && i % SHORT_LINES == SHORT_LINES - 1 && spend(x, SHORT_LINES * cost))
            return 1;
    }
    return cost && spend(x, m->shape[axis] % SHORT_LINES * cost);
}

/* Run the command for first <= i < last of its first axis; it has at least two axes. */
static void elementwise_part(const elementwise_command *m, const context *x, ptrdiff_t first, ptrdiff_t last)
{
    float registers[REGISTERS][TILE];
    const char *in[REGISTERS];
    const ptrdiff_t cost = short_line_cost(m, 1);
    for (ptrdiff_t i = first; i < last; i++) {
        for (ptrdiff_t j = 0; j < m->inputs; j++)
            in[j] = (const char *)address_of(x, m->in[j].p) + i * m->in[j].stride[0];
        if (lines(m, x, 1, registers, in, (char *)address_of(x, m->out.p) + i * m->out.stride[0]) ||
            (cost && spend(x, cost)))
            return;
    }
}

static void elementwise_kernel(const command *c, const context *x)
{
    const elementwise_command *m = (const elementwise_command *)c;
    float registers[REGISTERS][TILE];
    const char *in[REGISTERS];
    for (ptrdiff_t j = 0; j < m->inputs; j++)
        in[j] = address_of(x, m->in[j].p);
    lines(m, x, 0, registers, in, address_of(x, m->out.p));
}

#endif
