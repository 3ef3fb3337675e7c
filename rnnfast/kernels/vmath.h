/* Elementary functions on blocks: exp, expm1, log, log1p, sigmoid, tanh, softplus, erf.
 *
 * Each function is one sequence of FMA and other IEEE 754 operations without branches, so its bits are the same on
 * every instruction set. The constants are this project's own fits, printed by fit.py. Every comment states the
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

#endif
