"""One time step of one row for each cell, and its gradients.

The formulas are those of the ONNX operators RNN, GRU and LSTM (https://onnx.ai/onnx/operators/).

Shapes are x [I], h [N], c [H], where N is H or the size of the projection; W [G*H, I], R [G*H, N], Wb and Rb [G*H]
for G gates; p [3*H]; projection [N, H] or None. `activations` holds one function for each of (f, g, h); `clip` is a
function of pre-activations.

A backward step takes the gradients of the new states (dh' [N], dc' [H]), then the arguments of the step, which it
computes again, and `derivatives`, those of `activations`. It returns the gradients of the step's arguments, in their
order. In its formulas ai is the pre-activation of a gate i, and f'(ai) the derivative of f there, which is 0 where clip
changes ai.
"""

import numpy as np


def rnn_step(x, h, W, R, Wb, Rb, *, activations, clip):
    """Compute h' = f(W x + R h + Wb + Rb)."""
    (f,) = activations
    return f(clip(W @ x + R @ h + Wb + Rb))


def rnn_step_backward(dh, x, h, W, R, Wb, Rb, *, activations, derivatives, clip):
    """Compute the gradients of `rnn_step`.

    da = dh' * f'(a)
    dx, dh = W^T da, R^T da
    dW, dR = da x^T, da h^T
    dWb, dRb = da, da
    """
    (df,) = derivatives
    da = dh * _slope(df, clip, W @ x + R @ h + Wb + Rb)
    return W.T @ da, R.T @ da, np.outer(da, x), np.outer(da, h), da, da


def gru_step(x, h, W, R, Wb, Rb, *, activations, clip, linear_before_reset):
    """Compute a step of GRU.

    z = f(Wz x + Rz h + Wbz + Rbz)
    r = f(Wr x + Rr h + Wbr + Rbr)
    n = g(Wn x + Rn (r * h) + Rbn + Wbn)      or, with linear_before_reset,
    n = g(Wn x + r * (Rn h + Rbn) + Wbn)
    h' = (1 - z) * n + z * h
    """
    f, g = activations
    Rz, Rr, Rn = np.split(R, 3)
    Rbz, Rbr, Rbn = np.split(Rb, 3)
    xz, xr, xn = np.split(W @ x + Wb, 3)
    z = f(clip(xz + Rz @ h + Rbz))
    r = f(clip(xr + Rr @ h + Rbr))
    if linear_before_reset:
        n = g(clip(xn + r * (Rn @ h + Rbn)))
    else:
        n = g(clip(xn + Rn @ (r * h) + Rbn))
    return (1.0 - z) * n + z * h


def gru_step_backward(dh, x, h, W, R, Wb, Rb, *, activations, derivatives, clip, linear_before_reset):
    """Compute the gradients of `gru_step`.

    daz = dh' * (h - n) * f'(az)
    dan = dh' * (1 - z) * g'(an)
    dar = dr * f'(ar)
    dx, dW, dWb = W^T da, da x^T, da          where da = (daz, dar, dan)
    dRz, dRr = daz h^T, dar h^T
    dRb = (daz, dar, dRbn)
    dh = dh' * z + Rz^T daz + Rr^T dar + dhn
    with s = r * h:                           or, with linear_before_reset and m = Rn h + Rbn:
    ds = Rn^T dan                             dm = r * dan
    dr, dhn = ds * h, ds * r                  dr, dhn = dan * m, Rn^T dm
    dRn, dRbn = dan s^T, dan                  dRn, dRbn = dm h^T, dm
    """
    f, g = activations
    df, dg = derivatives
    Rz, Rr, Rn = np.split(R, 3)
    Rbz, Rbr, Rbn = np.split(Rb, 3)
    xz, xr, xn = np.split(W @ x + Wb, 3)
    az, ar = xz + Rz @ h + Rbz, xr + Rr @ h + Rbr
    z, r = f(clip(az)), f(clip(ar))
    s, m = r * h, Rn @ h + Rbn
    an = xn + (r * m if linear_before_reset else Rn @ s + Rbn)
    n = g(clip(an))

    daz = dh * (h - n) * _slope(df, clip, az)
    dan = dh * (1.0 - z) * _slope(dg, clip, an)
    if linear_before_reset:
        dm = r * dan
        dr, dhn, dRn, dRbn = dan * m, Rn.T @ dm, np.outer(dm, h), dm
    else:
        ds = Rn.T @ dan
        dr, dhn, dRn, dRbn = ds * h, ds * r, np.outer(dan, s), dan
    dar = dr * _slope(df, clip, ar)
    da = np.concatenate([daz, dar, dan])
    dR = np.concatenate([np.outer(daz, h), np.outer(dar, h), dRn])
    dRb = np.concatenate([daz, dar, dRbn])
    return W.T @ da, dh * z + Rz.T @ daz + Rr.T @ dar + dhn, np.outer(da, x), dR, da, dRb


def lstm_step(x, h, c, W, R, Wb, Rb, p, projection, *, activations, clip, input_forget):
    """Compute a step of LSTM, and return h' and c'.

    i = f(Wi x + Ri h + pi * c + Wbi + Rbi)
    f = f(Wf x + Rf h + pf * c + Wbf + Rbf)   or, with input_forget, f = 1 - i
    g = g(Wc x + Rc h + Wbc + Rbc)
    c' = f * c + i * g
    o = f(Wo x + Ro h + po * c' + Wbo + Rbo)
    h' = o * h(c')                            or, with a projection V [N, H], h' = V (o * h(c'))
    """
    f_act, g_act, h_act = activations
    ai, ao, af, ag = np.split(W @ x + R @ h + Wb + Rb, 4)
    pi, po, pf = np.split(p, 3)
    i = f_act(clip(ai + pi * c))
    f = 1.0 - i if input_forget else f_act(clip(af + pf * c))
    g = g_act(clip(ag))
    c = f * c + i * g
    o = f_act(clip(ao + po * c))
    h = o * h_act(c)
    return h if projection is None else projection @ h, c


def lstm_step_backward(dh, dc, x, h, c, W, R, Wb, Rb, p, projection, *, activations, derivatives, clip, input_forget):
    """Compute the gradients of `lstm_step`.

    dV, ds = dh' s^T, V^T dh'              where s = o * h(c'); without a projection ds = dh'
    dao = ds * h(c') * f'(ao)
    dC = dc' + ds * o * h'(c') + po * dao     the sum over all paths to c'
    dai = dC * g * f'(ai)                     or, with input_forget, dai = dC * (g - c) * f'(ai)
    daf = dC * c * f'(af)                     or, with input_forget, daf = 0
    dag = dC * i * g'(ag)
    dc = dC * f + pi * dai + pf * daf
    dp = (dai * c, dao * c', daf * c)
    dx, dh = W^T da, R^T da                   where da = (dai, dao, daf, dag)
    dW, dR = da x^T, da h^T
    dWb, dRb = da, da
    """
    f_act, g_act, h_act = activations
    df_act, dg_act, dh_act = derivatives
    ai, ao, af, ag = np.split(W @ x + R @ h + Wb + Rb, 4)
    pi, po, pf = np.split(p, 3)
    ai, af = ai + pi * c, af + pf * c
    i = f_act(clip(ai))
    f = 1.0 - i if input_forget else f_act(clip(af))
    g = g_act(clip(ag))
    c_new = f * c + i * g
    ao = ao + po * c_new
    o = f_act(clip(ao))

    if projection is None:
        dV, ds = None, dh
    else:
        dV, ds = np.outer(dh, o * h_act(c_new)), projection.T @ dh
    dao = ds * h_act(c_new) * _slope(df_act, clip, ao)
    dc_new = dc + ds * o * dh_act(c_new) + po * dao
    di, df = dc_new * g, dc_new * c
    if input_forget:
        di, df = di - df, np.zeros_like(df)
    dai = di * _slope(df_act, clip, ai)
    daf = df * _slope(df_act, clip, af)
    dag = dc_new * i * _slope(dg_act, clip, ag)
    da = np.concatenate([dai, dao, daf, dag])
    dp = np.concatenate([dai * c, dao * c_new, daf * c])
    dc = dc_new * f + pi * dai + pf * daf
    return W.T @ da, R.T @ da, dc, np.outer(da, x), np.outer(da, h), da, da, dp, dV


def _slope(derivative, clip, a):
    """Return the derivative of f(clip(a)) by a, which is 0 where clip changes a."""
    return derivative(a) * (clip(a) == a)
