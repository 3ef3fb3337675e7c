/* Vector operations on blocks of 16 floats, whatever the width of the instruction set's registers.
 *
 * A block is one AVX-512 register, two AVX2 registers or an array of 16 floats (generic). Kernels are written once,
 * on blocks; this is the only file with intrinsics. Every function on floats is one IEEE 754 operation on each lane
 * (fma rounds once), and those on integers are exact, so a kernel gives the same bits on every instruction set. v_min
 * and v_max return their second argument if either is NaN, as x86 does, so v_max(low, x) keeps a NaN in x. v_max_bits
 * compares the bits, so that of two positive numbers it returns the larger, with a NaN above infinity; v_largest_bits
 * returns the largest bits of a block. v_total adds its lanes in any order, for sums that are exact. v_keep(v_load(p))
 * makes the compiler load p only once where there are enough registers; without v_keep it may prefer to read memory
 * again at every use.
 *
 * Products of integers take four values along k at a time, a quad. v_quads loads the weights of a block [16][4], bytes
 * that are 128 more than the weights; v_activations loads the quad of a row that v_store_activations wrote; and v_dot
 * adds the block's 16 products of quads. v_sum subtracts the excess, 128 times the sum of the activations, and rounds
 * to float. Sums are of 32 bits and wrap around, so that the result is exact where it fits, whatever lies between.
 * Activations are integers of 15 bits, from -16383 to 16383, or with one plane instead of two of 8 bits, from -127 to
 * 127.
 */
#ifndef RNNFAST_VEC_H
#define RNNFAST_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#define VL 16                    /* lanes of a block */
/* Inlining specialises kernels for constant sizes. On arrays of 16 floats that would only multiply the code. */
#if defined(__AVX2__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#define POW2_BIAS 0x1.8000fep23f /* 1.5 * 2^23 + 127: adding it rounds to an integer for v_pow2 */
#define SQRT_HALF_BITS 0x3f3504f3

/* The 32 bits of two 16-bit integers. */
INLINE int32_t v_pair(const int16_t *p) { int32_t bits; memcpy(&bits, p, sizeof bits); return bits; }

#if defined(__AVX512F__)

#include <immintrin.h>

typedef __m512 vf;
typedef __mmask16 vm;

INLINE vf v_set1(float x) { return _mm512_set1_ps(x); }
INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf v_keep(vf x) { __asm__("" : "+v"(x)); return x; }
INLINE vf v_load_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps((vm)((1u << n) - 1), p); }
INLINE void v_store_n(float *p, vf x, size_t n) { _mm512_mask_storeu_ps(p, (vm)((1u << n) - 1), x); }
INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }            /* a * b + c */
INLINE vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }          /* c - a * b */
INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }                       /* a < b ? a : b */
INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }                       /* a > b ? a : b */
INLINE vm v_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE vm v_le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
INLINE vm v_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE int v_any(vm m) { return m != 0; }
INLINE int v_all(vm m) { return m == 0xffff; }
INLINE vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf v_floor(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
INLINE vf v_ceil(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
INLINE vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); } /* to even */
INLINE vf v_select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }    /* m ? a : b */

INLINE vf v_and_bits(vf a, uint32_t bits) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)bits)));
}
INLINE vf v_or(vf a, vf b) {
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
INLINE vf v_xor(vf a, vf b) {
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
/* 2^n for x = POW2_BIAS + n with an integer n in [-127, 128]; 0 for n = -127, infinity for n = 128. */
INLINE vf v_pow2(vf x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23)); }
/* For a normal x = 2^k m with m in [sqrt(1/2), sqrt(2)), return k and set m. For any other x, k and m are finite but
 * otherwise unspecified. */
INLINE vf v_split(vf x, vf *m) {
    const __m512i half = _mm512_set1_epi32(SQRT_HALF_BITS);
    const __m512i i = _mm512_sub_epi32(_mm512_castps_si512(x), half);
    const __m512i fraction = _mm512_and_si512(i, _mm512_set1_epi32(0x007fffff));
    *m = _mm512_castsi512_ps(_mm512_add_epi32(fraction, half));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(i, 23));
}

INLINE vf v_max_bits(vf a, vf b) {
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
INLINE vf v_load_float16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf v_load_bfloat16(const uint16_t *p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
INLINE float v_total(vf a) { return _mm512_reduce_add_ps(a); }
INLINE uint32_t v_largest_bits(vf a) { return _mm512_reduce_max_epu32(_mm512_castps_si512(a)); }

#if defined(__AVX512VNNI__)

/* vpdpbusd multiplies unsigned by signed bytes. An activation of 15 bits is a low and a high byte, both signed, whose
 * sums are kept apart. The assembler text keeps gcc from spilling sums. */
typedef __m512i vq;
typedef struct { __m512i low, high; } va, vs;

INLINE vq v_quads(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE va v_activations(const int16_t *p, const int planes) {
    va x = { _mm512_set1_epi32(v_pair(p)), _mm512_setzero_si512() };
    if (planes == 2)
        x.high = _mm512_set1_epi32(v_pair(p + 2));
    return x;
}
INLINE vs v_no_sum(void) { return (vs){ _mm512_setzero_si512(), _mm512_setzero_si512() }; }
INLINE vs v_dot(vs sum, va a, vq w, const int planes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.low) : "v"(w), "v"(a.low));
    if (planes == 2)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.high) : "v"(w), "v"(a.high));
    return sum;
}
INLINE vf v_sum(vs sum, uint32_t excess) {
    const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(sum.high, 8), sum.low);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(both, _mm512_set1_epi32((int32_t)excess)));
}
INLINE void v_store_activations(int16_t *p, vf x) {
    /* the low bytes of each four integers and then their high bytes: the low half of each quarter of the register */
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13));
    const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6);
    const __m512i i = _mm512_cvtps_epi32(x), carry = _mm512_and_si512(_mm512_set1_epi32(128), i);
    const __m512i bytes = _mm512_shuffle_epi8(_mm512_add_epi32(i, _mm512_add_epi32(carry, carry)), order);
    _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(_mm512_permutexvar_epi64(halves, bytes)));
}

#else

typedef struct { __m512i even, odd; } vq, va;
typedef __m512i vs;

INLINE vq v_quads(const uint8_t *p) {
    const __m512i w = _mm512_loadu_si512(p);
    return (vq){ _mm512_and_si512(w, _mm512_set1_epi16(255)), _mm512_srli_epi16(w, 8) };
}
INLINE va v_activations(const int16_t *p, const int planes) {
    (void)planes;
    return (va){ _mm512_set1_epi32(v_pair(p)), _mm512_set1_epi32(v_pair(p + 2)) };
}
INLINE vs v_no_sum(void) { return _mm512_setzero_si512(); }
INLINE vs v_dot(vs sum, va a, vq w, const int planes) {
    (void)planes;
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a.even, w.even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a.odd, w.odd));
}
INLINE vf v_sum(vs sum, uint32_t excess) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32((int32_t)excess)));
}
INLINE void v_store_activations(int16_t *p, vf x) {
    const __m256i i = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
    _mm256_storeu_si256((__m256i *)p, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(i, 0xd8), 0xd8));
}

#endif

#elif defined(__AVX2__)

#include <immintrin.h>

typedef struct { __m256 a, b; } vf;
typedef struct { __m256 a, b; } vm;

#define V_BOTH(type, fa, fb) ((type){ fa, fb })

INLINE vf v_set1(float x) { __m256 r = _mm256_set1_ps(x); return V_BOTH(vf, r, r); }
INLINE vf v_load(const float *p) { return V_BOTH(vf, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void v_store(float *p, vf x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
INLINE vf v_keep(vf x) { return x; }
INLINE vf v_load_n(const float *p, size_t n) {
    float t[VL] = { 0 };
    memcpy(t, p, n * sizeof(float));
    return v_load(t);
}
INLINE void v_store_n(float *p, vf x, size_t n) {
    float t[VL];
    v_store(t, x);
    memcpy(p, t, n * sizeof(float));
}
INLINE vf v_add(vf x, vf y) { return V_BOTH(vf, _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
INLINE vf v_sub(vf x, vf y) { return V_BOTH(vf, _mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
INLINE vf v_mul(vf x, vf y) { return V_BOTH(vf, _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
INLINE vf v_div(vf x, vf y) { return V_BOTH(vf, _mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
INLINE vf v_fma(vf x, vf y, vf z) { return V_BOTH(vf, _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)); }
INLINE vf v_fnma(vf x, vf y, vf z) {
    return V_BOTH(vf, _mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
INLINE vf v_min(vf x, vf y) { return V_BOTH(vf, _mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
INLINE vf v_max(vf x, vf y) { return V_BOTH(vf, _mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
INLINE vm v_lt(vf x, vf y) {
    return V_BOTH(vm, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ));
}
INLINE vm v_le(vf x, vf y) {
    return V_BOTH(vm, _mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ));
}
INLINE vm v_eq(vf x, vf y) {
    return V_BOTH(vm, _mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ));
}
INLINE int v_any(vm m) { return _mm256_movemask_ps(_mm256_or_ps(m.a, m.b)); }
INLINE int v_all(vm m) { return _mm256_movemask_ps(_mm256_and_ps(m.a, m.b)) == 0xff; }
INLINE vf v_sqrt(vf x) { return V_BOTH(vf, _mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)); }
INLINE vf v_floor(vf x) { return V_BOTH(vf, _mm256_floor_ps(x.a), _mm256_floor_ps(x.b)); }
INLINE vf v_ceil(vf x) { return V_BOTH(vf, _mm256_ceil_ps(x.a), _mm256_ceil_ps(x.b)); }
INLINE __m256 v_round_half(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf v_round(vf x) { return V_BOTH(vf, v_round_half(x.a), v_round_half(x.b)); }
INLINE vf v_select(vm m, vf x, vf y) {
    return V_BOTH(vf, _mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b));
}
INLINE vf v_and_bits(vf x, uint32_t bits) {
    __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32((int)bits));
    return V_BOTH(vf, _mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m));
}
INLINE vf v_or(vf x, vf y) { return V_BOTH(vf, _mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)); }
INLINE vf v_xor(vf x, vf y) { return V_BOTH(vf, _mm256_xor_ps(x.a, y.a), _mm256_xor_ps(x.b, y.b)); }

INLINE __m256 v_pow2_half(__m256 x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23)); }
INLINE vf v_pow2(vf x) { return V_BOTH(vf, v_pow2_half(x.a), v_pow2_half(x.b)); }

INLINE __m256 v_split_half(__m256 x, __m256 *m) {
    const __m256i half = _mm256_set1_epi32(SQRT_HALF_BITS);
    const __m256i i = _mm256_sub_epi32(_mm256_castps_si256(x), half);
    const __m256i fraction = _mm256_and_si256(i, _mm256_set1_epi32(0x007fffff));
    *m = _mm256_castsi256_ps(_mm256_add_epi32(fraction, half));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(i, 23));
}
INLINE vf v_split(vf x, vf *m) { return V_BOTH(vf, v_split_half(x.a, &m->a), v_split_half(x.b, &m->b)); }
INLINE vf v_load_float16(const uint16_t *p) {
    const __m128i *q = (const __m128i *)p;
    return V_BOTH(vf, _mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1)));
}
INLINE __m256 v_load_bfloat16_half(const uint16_t *p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
INLINE vf v_load_bfloat16(const uint16_t *p) {
    return V_BOTH(vf, v_load_bfloat16_half(p), v_load_bfloat16_half(p + 8));
}
INLINE __m256 v_max_bits_half(__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
INLINE vf v_max_bits(vf x, vf y) { return V_BOTH(vf, v_max_bits_half(x.a, y.a), v_max_bits_half(x.b, y.b)); }
INLINE float v_total(vf x) {
    const __m256 all = _mm256_add_ps(x.a, x.b);
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
INLINE uint32_t v_largest_bits(vf x) {
    const __m256i all = _mm256_castps_si256(v_max_bits_half(x.a, x.b));
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1)));
}

typedef struct { __m256i even, odd; } va;
typedef struct { __m256i even_a, odd_a, even_b, odd_b; } vq;
typedef struct { __m256i a, b; } vs;

INLINE vq v_quads(const uint8_t *p) {
    const __m256i a = _mm256_loadu_si256((const __m256i *)p), b = _mm256_loadu_si256((const __m256i *)p + 1);
    const __m256i low = _mm256_set1_epi16(255);
    return (vq){ _mm256_and_si256(a, low), _mm256_srli_epi16(a, 8), _mm256_and_si256(b, low), _mm256_srli_epi16(b, 8) };
}
INLINE va v_activations(const int16_t *p, const int planes) {
    (void)planes;
    return (va){ _mm256_set1_epi32(v_pair(p)), _mm256_set1_epi32(v_pair(p + 2)) };
}
INLINE vs v_no_sum(void) { return V_BOTH(vs, _mm256_setzero_si256(), _mm256_setzero_si256()); }
INLINE vs v_dot(vs sum, va x, vq w, const int planes) {
    (void)planes;
    sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(x.even, w.even_a));
    sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.even, w.even_b));
    sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(x.odd, w.odd_a));
    sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.odd, w.odd_b));
    return sum;
}
INLINE vf v_sum(vs sum, uint32_t excess) {
    const __m256i e = _mm256_set1_epi32((int32_t)excess);
    return V_BOTH(vf, _mm256_cvtepi32_ps(_mm256_sub_epi32(sum.a, e)), _mm256_cvtepi32_ps(_mm256_sub_epi32(sum.b, e)));
}
INLINE void v_store_activations(int16_t *p, vf x) {
    const __m256i halves = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    const __m256i i = _mm256_permute4x64_epi64(halves, 0xd8);
    _mm256_storeu_si256((__m256i *)p, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(i, 0xd8), 0xd8));
}

#undef V_BOTH

#else

typedef struct { float v[VL]; } vf;
typedef struct { uint32_t v[VL]; } vm;

#define V_LANES(type, expr) do { type r; for (int i = 0; i < VL; i++) r.v[i] = (expr); return r; } while (0)

INLINE uint32_t v_bits(float x) { uint32_t u; memcpy(&u, &x, sizeof u); return u; }
INLINE float v_float(uint32_t u) { float x; memcpy(&x, &u, sizeof x); return x; }

INLINE vf v_set1(float x) { V_LANES(vf, x); }
INLINE vf v_load(const float *p) { V_LANES(vf, p[i]); }
INLINE void v_store(float *p, vf x) { memcpy(p, x.v, sizeof x.v); }
INLINE vf v_keep(vf x) { return x; }
INLINE vf v_load_n(const float *p, size_t n) { V_LANES(vf, (size_t)i < n ? p[i] : 0.0f); }
INLINE void v_store_n(float *p, vf x, size_t n) { memcpy(p, x.v, n * sizeof(float)); }
INLINE vf v_add(vf x, vf y) { V_LANES(vf, x.v[i] + y.v[i]); }
INLINE vf v_sub(vf x, vf y) { V_LANES(vf, x.v[i] - y.v[i]); }
INLINE vf v_mul(vf x, vf y) { V_LANES(vf, x.v[i] * y.v[i]); }
INLINE vf v_div(vf x, vf y) { V_LANES(vf, x.v[i] / y.v[i]); }
INLINE vf v_fma(vf x, vf y, vf z) { V_LANES(vf, fmaf(x.v[i], y.v[i], z.v[i])); }
INLINE vf v_fnma(vf x, vf y, vf z) { V_LANES(vf, fmaf(-x.v[i], y.v[i], z.v[i])); }
/* The instruction of the wider sets: where denormals count as zero its result is zero, but that of a comparison with a
 * choice is the denormal, and a compiler may take either for x < y ? x : y. */
#if defined(__SSE2__)
#define V_QUARTERS(f) do { vf r; for (int i = 0; i < VL; i += 4) \
    _mm_storeu_ps(r.v + i, f(_mm_loadu_ps(x.v + i), _mm_loadu_ps(y.v + i))); return r; } while (0)
INLINE vf v_min(vf x, vf y) { V_QUARTERS(_mm_min_ps); }
INLINE vf v_max(vf x, vf y) { V_QUARTERS(_mm_max_ps); }
#undef V_QUARTERS
#else
INLINE vf v_min(vf x, vf y) { V_LANES(vf, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
INLINE vf v_max(vf x, vf y) { V_LANES(vf, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
#endif
INLINE vm v_lt(vf x, vf y) { V_LANES(vm, x.v[i] < y.v[i]); }
INLINE vm v_le(vf x, vf y) { V_LANES(vm, x.v[i] <= y.v[i]); }
INLINE vm v_eq(vf x, vf y) { V_LANES(vm, x.v[i] == y.v[i]); }
INLINE int v_any(vm m)
{
    uint32_t any = 0;
    for (int i = 0; i < VL; i++)
        any |= m.v[i];
    return any != 0;
}
INLINE int v_all(vm m)
{
    uint32_t all = 1;
    for (int i = 0; i < VL; i++)
        all &= m.v[i];
    return all != 0;
}
INLINE vf v_sqrt(vf x) { V_LANES(vf, sqrtf(x.v[i])); }
INLINE vf v_floor(vf x) { V_LANES(vf, floorf(x.v[i])); }
INLINE vf v_ceil(vf x) { V_LANES(vf, ceilf(x.v[i])); }
INLINE vf v_round(vf x) { V_LANES(vf, rintf(x.v[i])); }
INLINE vf v_select(vm m, vf x, vf y) { V_LANES(vf, m.v[i] ? x.v[i] : y.v[i]); }
INLINE vf v_and_bits(vf x, uint32_t bits) { V_LANES(vf, v_float(v_bits(x.v[i]) & bits)); }
INLINE vf v_or(vf x, vf y) { V_LANES(vf, v_float(v_bits(x.v[i]) | v_bits(y.v[i]))); }
INLINE vf v_xor(vf x, vf y) { V_LANES(vf, v_float(v_bits(x.v[i]) ^ v_bits(y.v[i]))); }
INLINE vf v_pow2(vf x) { V_LANES(vf, v_float(v_bits(x.v[i]) << 23)); }
INLINE float v_split_lane(float x, float *m) {
    const uint32_t u = v_bits(x) - SQRT_HALF_BITS;
    *m = v_float((u & 0x007fffffu) + SQRT_HALF_BITS);
    return (float)((int32_t)u >> 23);
}
INLINE vf v_split(vf x, vf *m) { V_LANES(vf, v_split_lane(x.v[i], &m->v[i])); }
/* Numbers below 2^-14 are multiples of 2^-24. */
INLINE float v_float16_lane(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00)
        return v_float(sign | 0x7f800000 | rest << 13);
    return v_float(sign | v_bits(rest < 0x400 ? (float)rest * 0x1p-24f : v_float((rest << 13) + 0x38000000)));
}
INLINE vf v_load_float16(const uint16_t *p) { V_LANES(vf, v_float16_lane(p[i])); }
INLINE vf v_load_bfloat16(const uint16_t *p) { V_LANES(vf, v_float((uint32_t)p[i] << 16)); }
INLINE vf v_max_bits(vf x, vf y) {
    V_LANES(vf, v_bits(x.v[i]) > v_bits(y.v[i]) ? x.v[i] : y.v[i]);
}
INLINE float v_total(vf x) {
    float sum = 0;
    for (int i = 0; i < VL; i++)
        sum += x.v[i];
    return sum;
}
INLINE uint32_t v_largest_bits(vf x) {
    uint32_t most = 0;
    for (int i = 0; i < VL; i++)
        most = v_bits(x.v[i]) > most ? v_bits(x.v[i]) : most;
    return most;
}

typedef struct { int16_t v[4]; } va;
typedef struct { uint8_t v[4 * VL]; } vq;
typedef struct { uint32_t v[VL]; } vs;

INLINE vq v_quads(const uint8_t *p) { vq w; memcpy(w.v, p, sizeof w.v); return w; }
INLINE va v_activations(const int16_t *p, const int planes) {
    va x;
    (void)planes;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
INLINE vs v_no_sum(void) { V_LANES(vs, 0); }
INLINE vs v_dot(vs sum, va a, vq w, const int planes) {
    (void)planes;
    V_LANES(vs, sum.v[i] + (uint32_t)(a.v[0] * w.v[4 * i] + a.v[1] * w.v[4 * i + 1] + a.v[2] * w.v[4 * i + 2] +
                                      a.v[3] * w.v[4 * i + 3]));
}
INLINE vf v_sum(vs sum, uint32_t excess) { V_LANES(vf, (float)(int32_t)(sum.v[i] - excess)); }
INLINE void v_store_activations(int16_t *p, vf x) {
    for (int i = 0; i < VL; i++)
        p[i] = (int16_t)x.v[i];
}

#undef V_LANES

#endif

/* Turn flush-to-zero and denormals-are-zero on or off for the calling thread. Both return the previous mode for
 * v_restore_mode. No access to memory moves across a change of the mode. */
#if defined(__SSE2__)
#define V_SET_MODE(mode) __asm__ volatile("" : : : "memory"); _mm_setcsr(mode); __asm__ volatile("" : : : "memory")
INLINE unsigned v_flush_denormals(void) { unsigned mode = _mm_getcsr(); V_SET_MODE(mode | 0x8040); return mode; }
INLINE unsigned v_keep_denormals(void) { unsigned mode = _mm_getcsr(); V_SET_MODE(mode & ~0x8040u); return mode; }
INLINE void v_restore_mode(unsigned mode) { V_SET_MODE(mode); }
#undef V_SET_MODE
#else
INLINE unsigned v_flush_denormals(void) { return 0; }
INLINE unsigned v_keep_denormals(void) { return 0; }
INLINE void v_restore_mode(unsigned mode) { (void)mode; }
#endif

/* to[j][i] = from[i][j] for four lines of four items of four bytes; from_line and to_line are the bytes between lines.
 * The two do not overlap. */
INLINE void v_transpose4(const char *from, ptrdiff_t from_line, char *to, ptrdiff_t to_line)
{
#if defined(__SSE2__)
    __m128 a = _mm_loadu_ps((const float *)from), b = _mm_loadu_ps((const float *)(from + from_line));
    __m128 c = _mm_loadu_ps((const float *)(from + 2 * from_line));
    __m128 d = _mm_loadu_ps((const float *)(from + 3 * from_line));
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps((float *)to, a);
    _mm_storeu_ps((float *)(to + to_line), b);
    _mm_storeu_ps((float *)(to + 2 * to_line), c);
    _mm_storeu_ps((float *)(to + 3 * to_line), d);
#else
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            memcpy(to + j * to_line + 4 * i, from + i * from_line + 4 * j, 4);
#endif
}

/* Prefetch the cache line at p, which may be any address, into the second-level cache. */
INLINE void v_prefetch(const float *p) { __builtin_prefetch(p, 0, 2); }

INLINE vf v_zero(void) { return v_set1(0.0f); }
INLINE vf v_abs(vf x) { return v_and_bits(x, 0x7fffffffu); }
INLINE vf v_neg(vf x) { return v_xor(x, v_set1(-0.0f)); }   /* a product with -1 would turn denormals into zero */
INLINE vf v_sign(vf x) { return v_and_bits(x, 0x80000000u); }                     /* only the sign bit */
INLINE vf v_copysign(vf magnitude, vf sign) { return v_or(v_abs(magnitude), v_sign(sign)); }

#endif
