/* Elementwise functions on blocks: the activations of ONNX's recurrent operators, and exp, log and the like. */
#ifndef RNNFAST_ACTIVATIONS_H
#define RNNFAST_ACTIVATIONS_H

#include "kernels.h"
#include "vmath.h"

/* Apply one function to a block. The switch folds away where `kind` is a compile-time constant. NaN stays NaN. */
INLINE vf activate(int kind, float alpha, float beta, vf x)
{
    const vf a = v_set1(alpha), b = v_set1(beta), zero = v_zero(), one = v_set1(1.0f);
    switch (kind) {
    case ACT_RELU: return v_max(zero, x);
    case ACT_TANH: return v_tanh(x);
    case ACT_SIGMOID: return v_sigmoid(x);
    case ACT_AFFINE: return v_fma(a, x, b);
    case ACT_LEAKY_RELU: return v_select(v_lt(x, zero), v_mul(a, x), x);
    case ACT_THRESHOLDED_RELU: return v_select(v_lt(x, a), zero, x);
    case ACT_SCALED_TANH: return v_mul(a, v_tanh(v_mul(b, x)));
    case ACT_HARD_SIGMOID: return v_min(one, v_max(zero, v_fma(a, x, b)));
    case ACT_ELU: return v_select(v_lt(x, zero), v_mul(a, v_expm1(x)), x);
    case ACT_SOFTSIGN: return v_div(x, v_add(one, v_abs(x)));
    case ACT_SOFTPLUS: return v_softplus(x);
    case ACT_EXP: return v_exp(x);
    case ACT_EXPM1: return v_expm1(x);
    case ACT_LOG: return v_log(x);
    case ACT_LOG1P: return v_log1p(x);
    case ACT_ERF: return v_erf(x);
    case ACT_SIN: return v_sin(x);
    case ACT_COS: return v_cos(x);
    case ACT_TAN: return v_tan(x);
    case ACT_ATAN: return v_atan(x);
    }
    return x;
}

/* y[n] = act(x[n]); y may be x, but must not overlap it in any other way. An activation passed as a struct would be put
 * together in memory and read again at once, for which processors wait until what was stored before is written. */
static void unary(int kind, float alpha, float beta, const float *x, float *y, size_t n)
{
    /* Each function has a loop of its own, so that the switch stays outside the loop. */
#define CASE(KIND)                                                                       \
    case KIND:                                                                           \
        for (size_t i = 0; i + VL <= n; i += VL)                                         \
            v_store(y + i, activate(KIND, alpha, beta, v_load(x + i)));                  \
        break;
    switch (kind) {
    CASE(ACT_RELU) CASE(ACT_TANH) CASE(ACT_SIGMOID) CASE(ACT_AFFINE) CASE(ACT_LEAKY_RELU) CASE(ACT_THRESHOLDED_RELU)
    CASE(ACT_SCALED_TANH) CASE(ACT_HARD_SIGMOID) CASE(ACT_ELU) CASE(ACT_SOFTSIGN) CASE(ACT_SOFTPLUS)
    CASE(ACT_EXP) CASE(ACT_EXPM1) CASE(ACT_LOG) CASE(ACT_LOG1P) CASE(ACT_ERF)
    CASE(ACT_SIN) CASE(ACT_COS) CASE(ACT_TAN) CASE(ACT_ATAN)
    }
#undef CASE
    const size_t tail = n % VL;
    if (tail)
        v_store_n(y + n - tail, activate(kind, alpha, beta, v_load_n(x + n - tail, tail)), tail);
}

static void unary_kernel(activation act, const float *x, float *y, size_t n)
{
    unary(act.kind, act.alpha, act.beta, x, y, n);
}

#endif
