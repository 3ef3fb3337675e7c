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

/* round(x / y) to even, between low and high, for 1 / y correctly rounded; of NaN it is NaN, and *nan is set. A zero is
 * +0, as that of an integer.
 *
 * x * (1 / y) and the quotient differ by less than 2^-22 of it, as each of the three roundings is at most 2^-24 of it.
 * So they round to the same integer if the product is nearer to it than `near`, which is 1/2 less 2^-22 of the larger
 * limit; else, and for NaN, the quotient is computed. The limits are integers below 2^20: a product beyond one of them
 * belongs to a quotient that rounds to the limit, or to what is beyond it. */
INLINE vf quantized(vf x, vf y, vf inverse, vf low, vf high, vf near, int *nan)
{
    vf q = v_min(high, v_max(low, v_mul(x, inverse))), n = v_round(q);
    if (!v_all(v_lt(v_abs(v_sub(q, n)), near))) {
        n = v_round(v_min(high, v_max(low, v_div(x, y))));
        *nan |= !v_all(v_eq(x, x));
    }
    return v_add(n, v_zero());
}

INLINE vf near_integers(double low, double high)
{
    return v_set1((float)(0.5 - 0x1p-22 * (high > -low ? high : -low)));
}

/* E_QUANTIZE or, if the integers are `scaled`, E_ROUND_TO */
static void quantize(const instruction *q, const context *call, const float *a, const float *b, const float *c,
                     float *to, ptrdiff_t n, const int scaled)
{
    const vf low = v_set1((float)q->alpha), high = v_set1((float)q->beta), near = near_integers(q->alpha, q->beta);
    int nan = 0;
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const vf x = take(a + i, n - i), y = take(b + i, n - i), inverse = take(c + i, n - i);
        const vf r = quantized(x, y, inverse, low, high, near, &nan);
        put(to + i, scaled ? v_mul(r, y) : r, n - i);
    }
    if (nan && q->status.buffer >= 0)   /* other threads may be here */
        __atomic_store_n((int64_t *)address_of(call, q->status), 1, __ATOMIC_RELAXED);
}

/* E_QUANTIZE_BYTE, whose quotients are within -256 .. 256, as the scale is that of the range of a. */
static void quantize_byte(const float *a, float b, float c, float *to, ptrdiff_t n)
{
    const vf y = v_set1(b), inverse = v_div(v_set1(1.0f), y), point = v_set1(c);
    const vf low = v_set1(-256.0f), high = v_set1(256.0f), near = near_integers(-256, 256);
    const vf least = v_zero(), most = v_set1(255.0f);
    int nan = 0;
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const vf r = quantized(take(a + i, n - i), y, inverse, low, high, near, &nan);
        put(to + i, v_min(v_max(v_add(r, point), least), most), n - i);
    }
}

/* to[n] = the instruction of a[n], b[n], c[n]; `to` may be any of them. */
INLINE void apply(const instruction *q, const context *call, const float *a, const float *b, const float *c, float *to,
                  ptrdiff_t n)
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
    case E_QUANTIZE: quantize(q, call, a, b, c, to, n, 0); break;
    case E_ROUND_TO: quantize(q, call, a, b, c, to, n, 1); break;
    case E_QUANTIZE_BYTE: quantize_byte(a, *b, *c, to, n); break;
    default:
        unary((int)q->code, (float)q->alpha, (float)q->beta, a, to, (size_t)n);
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
 * `converted`, which has room for whole blocks and to which they are written. */
static const float *loaded(const element *e, const char *p, ptrdiff_t stride, ptrdiff_t n, float *converted)
{
    if (e->item == ITEM_FLOAT32 && stride == sizeof(float))
        return (const float *)p;
    if (e->item == ITEM_FLOAT32 && stride == 0) {
        const vf x = v_set1(*(const float *)p);
        for (ptrdiff_t i = 0; i < n; i += VL)
            v_store(converted + i, x);
        return converted;
    }
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
enum { MOST_COST = 64 * TILE_COST };    /* before it is counted */
enum { SHORT = 64 };            /* values of a line, of which several are one tile */

/* The registers of a tile. */
typedef struct {
    /* Of each register; rows are written in whole blocks, which cross no cache line if there is one row. */
    _Alignas(64) float value[REGISTERS][TILE + VL];
    const char *repeated[REGISTERS];    /* the one item that fills the register of an input; NULL for others */
} workspace;

/* Return input i for a tile: `rows` rows of n values along the innermost axis, the first of which is at p. They are in
 * their place if they are contiguous floats, else in register i. */
INLINE const float *loaded_rows(const element *e, const char *p, ptrdiff_t stride, ptrdiff_t next, ptrdiff_t rows,
                                ptrdiff_t n, float *to, const char **repeated)
{
    if (rows == 1 || next == n * stride) {
        if (stride != 0)
            return loaded(e, p, stride, rows * n, to);
        if (*repeated != p)             /* the first tile is the largest one */
            loaded(e, p, 0, rows * n, to);
        *repeated = p;
        return to;
    }
    *repeated = NULL;
    for (ptrdiff_t row = 0; row < rows; row++, p += next) {
        float *at = to + row * n;
        const float *from = loaded(e, p, stride, n, at);
        if (from != at)
            for (ptrdiff_t k = 0; k < n; k += VL)
                v_store(at + k, take(from + k, n - k));
    }
    return to;
}

/* Run the instructions on `all` lines of the two innermost axes, tile by tile, which has several of them where they are
 * short. Inputs that are contiguous floats are read in place, and the last instruction writes directly to such an
 * output. Returns whether the call was stopped. */
static int plane(const elementwise_command *m, const context *x, workspace *t, ptrdiff_t all, const char *const *in,
                 char *out)
{
    const ptrdiff_t axis = m->axes - 1, outer = axis > 0 ? axis - 1 : 0, n = m->shape[axis];
    const ptrdiff_t rows = n > 0 && n <= SHORT ? TILE / n : 1;
    const ptrdiff_t stride = m->out.stride[axis], next = m->out.stride[outer];
    const instruction *q = (const instruction *)(m->in + m->inputs), *end = q + m->instructions;
    const int floats = m->out.item == ITEM_FLOAT32 && stride == sizeof(float);
    ptrdiff_t cost = 0;
    const float *value[REGISTERS];
    const char *at_line[REGISTERS];     /* of an input at the next line */
    int in_place[REGISTERS];

    for (ptrdiff_t i = 0; i < m->inputs; i++) {
        const element *e = m->in + i;
        at_line[i] = in[i];
        in_place[i] = e->item == ITEM_FLOAT32 && e->stride[axis] == sizeof(float);
        in_place[i] &= rows == 1 || e->stride[outer] == n * (ptrdiff_t)sizeof(float);
    }
    for (ptrdiff_t row = 0; row < all; row += rows) {
        const ptrdiff_t count = all - row < rows ? all - row : rows, whole = count == 1 || next == n * stride;
        for (ptrdiff_t at = 0; at < n; at += TILE) {
            const ptrdiff_t size = n - at < TILE ? n - at : TILE;
            char *to = out + row * next + at * stride;
            for (ptrdiff_t i = 0; i < m->inputs; i++) {
                const element *e = m->in + i;
                const ptrdiff_t along = e->stride[axis];
                if (in_place[i])
                    value[i] = (const float *)at_line[i] + at;
                else
                    value[i] = loaded_rows(e, at_line[i] + at * along, along, e->stride[outer], count, size,
                                           t->value[i], t->repeated + i);
            }
            for (const instruction *p = q; p < end; p++) {
                float *result = p == end - 1 && floats && whole ? (float *)to : t->value[p->to];
                apply(p, x, value[p->a], value[p->b], value[p->c], result, count * size);
                value[p->to] = result;
            }
            if (!whole)
                for (ptrdiff_t i = 0; i < count; i++)
                    stored(&m->out, to + i * next, stride, n, value[end[-1].to] + i * n);
            else if (!floats)
                stored(&m->out, to, stride, count * size, value[end[-1].to]);
            cost += TILE_COST * m->instructions;
            if (cost > MOST_COST) {
                if (spend(x, cost))
                    return 1;
                cost = 0;
            }
        }
        for (ptrdiff_t i = 0; i < m->inputs; i++)
            at_line[i] += rows * m->in[i].stride[outer];
    }
    return spend(x, cost);
}

/* Run the instructions on the axes from `axis` on. Returns whether the call was stopped. */
static int planes(const elementwise_command *m, const context *x, ptrdiff_t axis, workspace *t, const char *const *in,
                  char *out)
{
    if (axis >= AXES - 2 || axis >= m->axes - 2)
        return plane(m, x, t, m->axes > 1 ? m->shape[m->axes - 2] : 1, in, out);
    const char *of_item[REGISTERS];
    for (ptrdiff_t i = 0; i < m->shape[axis]; i++) {
        for (ptrdiff_t j = 0; j < m->inputs; j++)
            of_item[j] = in[j] + i * m->in[j].stride[axis];
        if (planes(m, x, axis + 1, t, of_item, out + i * m->out.stride[axis]))
            return 1;
    }
    return 0;
}

/* Run the command for first <= i < last of its first axis; it has at least two axes. */
static void elementwise_part(const elementwise_command *m, const context *x, ptrdiff_t first, ptrdiff_t last)
{
    workspace t;
    const char *in[REGISTERS];
    memset(t.repeated, 0, sizeof t.repeated);
    for (ptrdiff_t i = first; i < last; i++) {
        for (ptrdiff_t j = 0; j < m->inputs; j++)
            in[j] = (const char *)address_of(x, m->in[j].p) + i * m->in[j].stride[0];
        char *out = (char *)address_of(x, m->out.p) + i * m->out.stride[0];
        if (m->axes == 2 ? plane(m, x, &t, 1, in, out) : planes(m, x, 1, &t, in, out))
            return;
    }
}

static void elementwise_kernel(const command *c, const context *x)
{
    const elementwise_command *m = (const elementwise_command *)c;
    workspace t;
    const char *in[REGISTERS];
    for (ptrdiff_t j = 0; j < m->inputs; j++) {
        in[j] = address_of(x, m->in[j].p);
        t.repeated[j] = NULL;
    }
    planes(m, x, 0, &t, in, address_of(x, m->out.p));
}

#endif
