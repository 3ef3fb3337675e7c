/* Elementary functions on blocks: exp, expm1, log, log1p, sigmoid, tanh, softplus, erf, sin, cos, tan, atan, power.
 *
 * Each function is one sequence of FMA and other IEEE 754 operations without branches, so its bits are the same on
 * every instruction set; where sin, cos and tan branch, each lane by its own value, integers follow. The constants are this project's own fits, printed by fit.py. Every comment states the
 * largest error in ULP (units in the last place of the true result), found by evaluating all 2^32 floats on every
 * instruction set; tests/native/test_vmath.py asserts these numbers. NaN gives NaN; odd functions are exactly odd.
 *
 * The functions run with denormals turned off (v_flush_denormals): a denormal x counts as zero, and a result below
 * 2^-126 is zero. With denormals turned on they are accurate too, except that the log of a positive denormal is still
 * -infinity and that exp and softplus still give 0 below 2^-126.5.
 */
#ifndef RNNFAST_VMATH_H
#define RNNFAST_VMATH_H

#include "vec.h"

#define LOG2_E 0x1.715476p0f
#define LN2 0x1.62e43p-1f
/* LN2_HI has so few bits that n * LN2_HI and x - n * LN2_HI are exact. */
#define LN2_HI 0x1.62e4p-1f
#define LN2_LO 0x1.7f7d1cp-20f
#define TWO_OVER_PI 0x1.45f306p-1f
/* The sums of these are pi / 2, pi / 4 and 2 / 3. */
#define PI_2_1 0x1.921fb6p0f
#define PI_2_2 -0x1.777a5cp-25f
#define PI_2_3 -0x1.ee59dap-50f
#define PI_4_1 0x1.921fb6p-1f
#define PI_4_2 -0x1.777a5cp-26f
#define TWO_THIRDS_1 0x1.555556p-1f
#define TWO_THIRDS_2 -0x1.555556p-26f

/* expm1(r) = r + r^2 q(r) on |r| <= log(2) / 2, relative to expm1(r): error 2^-26.1 */
static const float EXPM1_Q[] = {
    0x1.fffffep-2f, 0x1.5554b4p-3f, 0x1.5556f2p-5f, 0x1.122562p-7f, 0x1.6b9cccp-10f,
};
/* log1p(f) = f + f^2 q(f) on sqrt(1/2) <= 1 + f <= sqrt(2), relative to log1p(f): error 2^-27.8 */
static const float LOG_Q[] = {
    -0x1.fffff8p-2f, 0x1.55555p-2f, -0x1.000438p-2f, 0x1.99a41ep-3f, -0x1.5423fap-3f, 0x1.226c98p-3f, -0x1.0f5122p-3f,
    0x1.0871eep-3f, -0x1.380deap-4f,
};
/* log1p(z) = z + z^2 q(z) on 0 <= z <= 1, relative to log1p(z): error 2^-27.5 */
static const float LOG1P_Q[] = {
    -0x1.ffffd4p-2f, 0x1.554e0ap-2f, -0x1.ff28b8p-3f, 0x1.9364fap-3f, -0x1.3a903ap-3f, 0x1.b5bd2ap-4f,
    -0x1.d8de94p-5f, 0x1.4b835ap-6f, -0x1.b3c4p-9f,
};
/* log(erfc(-y)) = y + y q(y) on -4 <= y <= 0, relative to erf(y): error 2^-27.8 */
static const float ERF_Q[] = {
    0x1.06eba8p-3f, -0x1.45f3p-1f, 0x1.a4f8c2p-4f, 0x1.39b798p-6f, -0x1.63b47p-13f, -0x1.b74d14p-10f,
    -0x1.4e3358p-11f, -0x1.f2a19ep-14f, -0x1.3b176p-17f,
};

/* sin(r) = r + r^3 q(r^2) on |r| <= pi / 4, relative to sin(r): error 2^-27.9 */
static const float SIN_Q[] = {
    -0x1.555546p-3f, 0x1.110776p-7f, -0x1.9952fap-13f,
};
/* cos(r) = 1 - r^2 / 2 + r^4 q(r^2) on |r| <= pi / 4, relative to cos(r): error 2^-33.0 */
static const float COS_Q[] = {
    0x1.55554ap-5f, -0x1.6c0c2ap-10f, 0x1.99e908p-16f,
};
/* atan(t) = t + t^3 q(t^2) on |t| <= tan(pi / 8), relative to atan(t): error 2^-30.4 */
static const float ATAN_Q[] = {
    -0x1.55554ap-2f, 0x1.9991ep-3f, -0x1.23b964p-3f, 0x1.b21fbap-4f, -0x1.f2ca22p-5f,
};
/* log((1 + s) / (1 - s)) = 2 s + s^3 (2 / 3 + s^2 q(s^2)) on |s| <= 3 - sqrt(8), relative to it: error 2^-36.8 */
static const float LOG_QUOTIENT_Q[] = {
    0x1.999ap-2f, 0x1.24527ap-2f, 0x1.dfa2ecp-3f,
};

#define V_TERMS(table) ((int)(sizeof(table) / sizeof *(table)))

/* k (c[0] + c[1] kx + c[2] (kx)^2 + ...) for an odd number of terms. k is plus or minus a power of two, so that
 * multiplying the coefficients by its powers is exact. Horner's rule in x^2 is applied to pairs of terms: it has half
 * the latency of Horner's rule in x, and pairs of alternating signs stay small, unlike separate sums of the even and
 * the odd terms. */
INLINE vf v_polynomial(vf x, vf x2, const float *c, int terms, float k)
{
    float ck[16], power = k;
    for (int i = 0; i < terms; i++, power *= k)
        ck[i] = c[i] * power;
    vf y = v_set1(ck[terms - 1]);
    for (int i = terms - 3; i >= 0; i -= 2)
        y = v_fma(y, x2, v_fma(v_set1(ck[i + 1]), x, v_set1(ck[i])));
    return y;
}

/* f(kx) / k for f(x) = x + x^2 q(x), the form of the tables of expm1 and log1p. */
INLINE vf v_after_linear(vf x, const float *q, int terms, float k)
{
    const vf x2 = v_mul(x, x);
    return v_fma(v_polynomial(x, x2, q, terms, k), x2, x);
}

/* Range reduction: e^(kx) = 2^n (1 + k m) with n = round(kx log2(e)), m = expm1(kr) / k, r = x - n log(2) / k. Returns
 * m; v_pow2(*t) is 2^(n + shift). Unless `wide`, log(2) is one float, which is enough for |n| < 32: the error of r is
 * n 2^-29. */
INLINE vf v_reduce_exp(vf x, float k, int shift, int wide, vf *t)
{
    const vf bias = v_set1(POW2_BIAS + (float)shift);
    *t = v_fma(x, v_set1(k * LOG2_E), bias);
    const vf n = v_sub(*t, bias);
    const vf r = wide ? v_fma(n, v_set1(-LN2_LO / k), v_fma(n, v_set1(-LN2_HI / k), x)) : v_fma(n, v_set1(-LN2 / k), x);
    return v_after_linear(r, EXPM1_Q, V_TERMS(EXPM1_Q), k);
}

INLINE vf v_clamp(vf x, float low, float high) { return v_max(v_set1(low), v_min(v_set1(high), x)); }

/* e^x + c for c = 0 or -1, computed as 2^n m + (2^n + c); for n = 128 as 2^127 m + 2^127, doubled, where c is too
 * small to matter. */
INLINE vf v_exp_plus(vf x, float c)
{
    vf t;
    const vf m = v_reduce_exp(v_clamp(x, -88.0f, 89.0f), 1.0f, 0, 1, &t);
    const vf t127 = v_min(v_set1(POW2_BIAS + 127.0f), t), s = v_pow2(t127);
    const vf y = v_fma(s, m, c != 0.0f ? v_add(s, v_set1(c)) : s);
    return v_fma(y, v_sub(t, t127), y);
}

/* 2^n (1 + expm1(r)). 1.05 ULP, up to the overflow at 88.72284; 0 below -87.33655. */
INLINE vf v_exp(vf x) { return v_exp_plus(x, 0.0f); }

/* 2^n expm1(r) + (2^n - 1). 1.65 ULP. */
INLINE vf v_expm1(vf x) { return v_or(v_exp_plus(x, -1.0f), v_sign(x)); }

/* 1 / (1 + e^-x). Numerator and denominator are scaled by 2^-24, so that 1 + e^-x does not overflow before the result
 * underflows. 2.45 ULP where -17 < x < -16 (1 + 2^24 is not a float), 1.9 ULP elsewhere. */
INLINE vf v_sigmoid(vf x)
{
    vf t;
    const vf m = v_reduce_exp(v_clamp(x, -104.3f, 60.0f), -1.0f, -24, 1, &t);
    const vf s = v_pow2(t), one = v_set1(0x1p-24f);
    return v_div(one, v_fnma(s, m, v_add(one, s)));
}

/* 1 + e^-x, the denominator of a sigmoid. Below -43 it is that of -43, where the sigmoid is 2^-62, so that the product
 * of two of them and of the denominator of a tanh does not overflow. 2.5 ULP, reached where n is up to 62 and the
 * rounding of log(2) to one float matters. */
INLINE vf v_sigmoid_below(vf x)
{
    vf t;
    const vf m = v_reduce_exp(v_clamp(x, -43.0f, 43.0f), -1.0f, 0, 0, &t), s = v_pow2(t);
    return v_fnma(s, m, v_add(v_set1(1.0f), s));
}

/* Return 1 - e with the sign of x, and set *below to 1 + e, where e = e^(-2|x|) = 2^n - 2^(n + 1) m. Their quotient is
 * tanh(x). */
INLINE vf v_tanh_above(vf x, vf *below)
{
    vf t;
    const vf m = v_reduce_exp(v_min(v_set1(9.1f), v_abs(x)), -2.0f, 1, 0, &t);
    const vf s = v_pow2(t), one = v_set1(1.0f), half = v_set1(0.5f);
    *below = v_fnma(s, m, v_fma(s, half, one));
    return v_or(v_fma(s, m, v_fnma(s, half, one)), v_sign(x));
}

/* tanh(x); 1 from 9.011 on. 2.0 ULP. */
INLINE vf v_tanh(vf x)
{
    vf below;
    const vf above = v_tanh_above(x, &below);
    return v_div(above, below);
}

/* erf(|x|) = 1 - e^g with g = log(erfc(|x|)) = y + y q(y), y = -|x|; 1 from 3.92 on. 1.95 ULP. */
INLINE vf v_erf(vf x)
{
    vf t;
    const vf y = v_max(v_set1(-4.0f), v_or(x, v_set1(-0.0f)));
    const vf g = v_fma(y, v_polynomial(y, v_mul(y, y), ERF_Q, V_TERMS(ERF_Q), 1.0f), y);
    const vf m = v_reduce_exp(g, 1.0f, 0, 0, &t), s = v_pow2(t);
    return v_or(v_fnma(s, m, v_sub(v_set1(1.0f), s)), v_sign(x));
}

/* log(1 + e^x) = max(x, 0) + log1p(e^-|x|), which neither overflows nor cancels. 2.0 ULP. */
INLINE vf v_softplus(vf x)
{
    vf t;
    const vf m = v_reduce_exp(v_max(v_set1(-88.0f), v_or(x, v_set1(-0.0f))), 1.0f, 0, 1, &t), s = v_pow2(t);
    return v_add(v_max(v_zero(), x), v_after_linear(v_fma(s, m, s), LOG1P_Q, V_TERMS(LOG1P_Q), 1.0f));
}

/* log(u) for u = 2^k (1 + f): k log(2) + log1p(f). The relative error of log(2) as one float is at most 2^-28. The
 * result is u if u is infinite or NaN, -infinity if it is zero or denormal, and NaN if it is negative. */
INLINE vf v_log_of_split(vf u, vf k, vf f)
{
    const vf y = v_fma(k, v_set1(LN2), v_after_linear(f, LOG_Q, V_TERMS(LOG_Q), 1.0f));
    const vf not_positive = v_select(v_lt(u, v_zero()), v_set1(NAN), v_set1(-INFINITY));
    return v_select(v_lt(u, v_set1(0x1p-126f)), not_positive, v_select(v_lt(u, v_set1(INFINITY)), y, u));
}

/* log(x). 1.0 ULP. */
INLINE vf v_log(vf x)
{
    vf mantissa;
    const vf k = v_split(x, &mantissa);
    return v_log_of_split(x, k, v_sub(mantissa, v_set1(1.0f)));
}

/* log(u) of u = 1 + x = 2^k (1 + f), where f = 2^-k x + (2^-k - 1) is accurate although u is rounded. From 2^25 on,
 * where 2^-k may be too small for a float, u equals x. 1.5 ULP. */
INLINE vf v_log1p(vf x)
{
    const vf one = v_set1(1.0f), u = v_add(one, x);
    vf mantissa;
    const vf k = v_split(u, &mantissa), s = v_pow2(v_sub(v_set1(POW2_BIAS), k));
    const vf f = v_select(v_lt(x, v_set1(0x1p25f)), v_fma(s, x, v_sub(s, one)), v_sub(mantissa, one));
    return v_or(v_log_of_split(u, k, f), v_sign(x));
}

/* Where |x| is larger, x - n pi / 2 needs more digits of pi than the three floats have. */
#define LARGE_ANGLE 0x1p16f

/* Return r, |r| <= pi / 4, and set *n to an integer from 0 to 4 so that x - r is n quarter turns and some whole ones,
 * for a finite x of at least 1. The digits of 2 / pi that matter are multiplied by x's mantissa in integers: 64 bits of
 * the fraction of x (2 / pi) are left, and none of these depends on digits that were left out but the last few. */
static float reduce_large_angle(float x, float *n)
{
    static const uint32_t two_over_pi[] = {
        0, 0x28be60db, 0x9391054a, 0x7f09d5f4, 0x7d4d3770, 0x36d8a566, 0x4f10e410, 0x7f9458ea,
    };
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t mantissa = (bits & 0x007fffffu) << 8 | 0x80000000u, exponent = (bits >> 23) - 126;
    const uint32_t *digits = two_over_pi + (exponent >> 5);
    const int shift = (int)(exponent & 31);
    uint32_t word[3];
    for (int i = 0; i < 3; i++)
        word[i] = (uint32_t)(((uint64_t)digits[i] << 32 | digits[i + 1]) << shift >> 32);
    uint64_t product = (uint64_t)mantissa * word[2];
    product = (uint64_t)mantissa * word[1] + (product >> 32);
    product += (uint64_t)(mantissa * word[0]) << 32;
    const uint64_t quarters = (product + ((uint64_t)1 << 61)) >> 62;    /* rounded; 4 is 0 */
    *n = (float)(quarters & 3);
    return (float)((double)(int64_t)(product - (quarters << 62)) * 0x1.921fb54442d18p-62);
}

/* Return r, |r| <= pi / 4, and set *n to an integer so that x = r + n pi / 2, for x >= 0. x - n PI_2_1 is exact, and
 * one fma rounds each of the other two differences. */
INLINE vf v_reduce_angle(vf x, vf *n)
{
    const vf bias = v_set1(0x1.8p23f);
    *n = v_sub(v_fma(x, v_set1(TWO_OVER_PI), bias), bias);
    vf r = v_fnma(*n, v_set1(PI_2_3), v_fnma(*n, v_set1(PI_2_2), v_fnma(*n, v_set1(PI_2_1), x)));
    if (v_any(v_lt(v_set1(LARGE_ANGLE), x))) {
        float of_x[VL], of_n[VL], of_r[VL];
        v_store(of_x, x);
        v_store(of_n, *n);
        v_store(of_r, r);
        for (int i = 0; i < VL; i++)
            if (of_x[i] > LARGE_ANGLE)
                of_r[i] = of_x[i] < INFINITY ? reduce_large_angle(of_x[i], of_n + i) : NAN;
        *n = v_load(of_n);
        r = v_load(of_r);
    }
    return r;
}

INLINE vf v_sin_of_reduced(vf r, vf r2)
{
    return v_fma(v_mul(r, r2), v_polynomial(r2, v_mul(r2, r2), SIN_Q, V_TERMS(SIN_Q), 1.0f), r);
}

INLINE vf v_cos_of_reduced(vf r2)
{
    const vf q = v_polynomial(r2, v_mul(r2, r2), COS_Q, V_TERMS(COS_Q), 1.0f);
    return v_fma(v_mul(r2, r2), q, v_fma(r2, v_set1(-0.5f), v_set1(1.0f)));
}

/* sin(x + quarters pi / 2) for x >= 0 */
INLINE vf v_sin_from(vf x, float quarters)
{
    vf n;
    const vf r = v_reduce_angle(x, &n), r2 = v_mul(r, r), turn = v_add(n, v_set1(quarters));
    const vf half = v_mul(turn, v_set1(0.5f)), halves = v_floor(half), of_halves = v_mul(halves, v_set1(0.5f));
    const vf y = v_select(v_lt(halves, half), v_cos_of_reduced(r2), v_sin_of_reduced(r, r2));
    return v_xor(y, v_select(v_lt(v_floor(of_halves), of_halves), v_set1(-0.0f), v_zero()));
}

/* sin(x); NaN where x is infinite. 1.6 ULP. */
INLINE vf v_sin(vf x) { return v_xor(v_sin_from(v_abs(x), 0.0f), v_sign(x)); }

/* cos(x); NaN where x is infinite. 1.6 ULP. */
INLINE vf v_cos(vf x) { return v_sin_from(v_abs(x), 1.0f); }

/* tan(x) = sin(x) / cos(x); NaN where x is infinite. 3.8 ULP. */
INLINE vf v_tan(vf x)
{
    vf n;
    const vf r = v_reduce_angle(v_abs(x), &n), r2 = v_mul(r, r), half = v_mul(n, v_set1(0.5f));
    const vf s = v_sin_of_reduced(r, r2), c = v_cos_of_reduced(r2);
    const vm odd = v_lt(v_floor(half), half);
    return v_xor(v_div(v_select(odd, v_neg(c), s), v_select(odd, s, c)), v_sign(x));
}

/* atan(x): that of t, where x = t, (1 + t) / (1 - t) or -1 / t and |t| <= tan(pi / 8), plus 0, pi / 4 or pi / 2. 2.15
 * ULP. */
INLINE vf v_atan(vf x)
{
    const vf a = v_abs(x), one = v_set1(1.0f);
    const vm above = v_lt(v_set1(0x1.a8279ap-2f), a), far = v_lt(v_set1(0x1.3504f4p1f), a);
    const vf t = v_div(v_select(far, v_set1(-1.0f), v_select(above, v_sub(a, one), a)),
                       v_select(far, a, v_select(above, v_add(a, one), one)));
    const vf high = v_select(far, v_set1(PI_2_1), v_select(above, v_set1(PI_4_1), v_zero()));
    const vf low = v_select(far, v_set1(PI_2_2), v_select(above, v_set1(PI_4_2), v_zero()));
    const vf t2 = v_mul(t, t), q = v_polynomial(t2, v_mul(t2, t2), ATAN_Q, V_TERMS(ATAN_Q), 1.0f);
    return v_or(v_add(high, v_add(v_fma(v_mul(t, t2), q, t), low)), v_sign(x));
}

/* Return log(x) for x > 0 and set *low to the part of it that is below its last place: k log(2) + log(m), where
 * log(m) = 2 s + s w, w = s^2 (2 / 3 + s^2 q(s^2)), s = (m - 1) / (m + 1); s, s^2, w and sums are sums of two floats.
 * -infinity if x is zero or denormal; x if it is infinite or NaN. */
INLINE vf v_log_and_rest(vf x, vf *low)
{
    const vf one = v_set1(1.0f);
    vf m;
    const vf k = v_split(x, &m), f = v_sub(m, one), d = v_add(m, one);
    const vf s = v_div(f, d);
    const vf s_low = v_div(v_fnma(s, v_sub(m, v_sub(d, one)), v_fnma(s, d, f)), d);
    const vf z = v_mul(s, s), z_low = v_fma(v_add(s, s), s_low, v_fma(s, s, v_neg(z)));
    const vf u = v_mul(z, v_polynomial(z, v_mul(z, z), LOG_QUOTIENT_Q, V_TERMS(LOG_QUOTIENT_Q), 1.0f));
    const vf q = v_add(v_set1(TWO_THIRDS_1), u);
    const vf q_low = v_add(v_sub(u, v_sub(q, v_set1(TWO_THIRDS_1))), v_set1(TWO_THIRDS_2));
    const vf w = v_mul(z, q), w_low = v_add(v_fma(z, q, v_neg(w)), v_fma(z_low, q, v_mul(z, q_low)));
    const vf p = v_mul(s, w), p_low = v_add(v_fma(s, w, v_neg(p)), v_fma(s, w_low, v_mul(s_low, w)));
    /* k log(2) + 2 s + p, of which each is larger than the next or zero; both sums are exact with what they lose. */
    const vf big = v_mul(k, v_set1(LN2_HI)), twice = v_add(s, s), first = v_add(big, twice), sum = v_add(first, p);
    const vf lost = v_add(v_sub(twice, v_sub(first, big)), v_sub(p, v_sub(sum, first)));
    const vf rest = v_add(lost, v_fma(k, v_set1(LN2_LO), v_fma(s_low, v_set1(2.0f), p_low)));
    const vf high = v_add(sum, rest);
    *low = v_sub(rest, v_sub(high, sum));
    return v_select(v_lt(x, v_set1(0x1p-126f)), v_set1(-INFINITY), v_select(v_lt(x, v_set1(INFINITY)), high, x));
}

/* x^y with the special values of C's pow. 1.3 ULP, found with 2.4e7 random pairs whose power is a normal number. */
INLINE vf v_power(vf x, vf y)
{
    const vf a = v_abs(x), one = v_set1(1.0f), infinity = v_set1(INFINITY);
    vf rest, t;
    const vf log = v_log_and_rest(a, &rest), product = v_mul(y, log);
    /* e^product, where `low` is what the product lacks; where it is not finite, nothing is. */
    const vf low = v_select(v_lt(v_abs(product), v_set1(90.0f)), v_fma(y, rest, v_fma(y, log, v_neg(product))), v_zero());
    const vf bias = v_set1(POW2_BIAS), z = v_clamp(product, -88.0f, 89.0f);
    t = v_fma(z, v_set1(LOG2_E), bias);
    const vf n = v_sub(t, bias);
    const vf r = v_add(v_fma(n, v_set1(-LN2_LO), v_fma(n, v_set1(-LN2_HI), z)), low);
    const vf m = v_after_linear(r, EXPM1_Q, V_TERMS(EXPM1_Q), 1.0f);
    const vf t127 = v_min(v_set1(POW2_BIAS + 127.0f), t), s = v_pow2(t127), at127 = v_fma(s, m, s);
    vf result = v_fma(at127, v_sub(t, t127), at127);
    /* The sign, or NaN, of a power of a negative number; an infinite one has powers that are not integers. */
    const vf half = v_mul(y, v_set1(0.5f));
    const vm integer = v_eq(v_floor(y), y), even = v_eq(v_floor(half), half);
    result = v_or(result, v_select(integer, v_select(even, v_zero(), v_sign(x)), v_zero()));
    const vf not_real = v_select(v_lt(x, v_zero()), v_select(v_lt(a, infinity), v_set1(NAN), result), result);
    result = v_select(integer, result, not_real);
    /* 1^y, x^0 and (-1)^infinity are 1 whatever the other is. */
    result = v_select(v_eq(a, one), v_select(v_eq(v_abs(y), infinity), one, result), result);
    return v_select(v_eq(x, one), one, v_select(v_eq(y, v_zero()), one, result));
}

#endif
