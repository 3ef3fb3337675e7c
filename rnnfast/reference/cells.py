"""One time step of one row for each cell, from https://onnx.ai/onnx/operators/ (RNN, GRU, LSTM).

Shapes: x [I], h [N], c [H], where N is H, or the size of the projection; W [G*H, I], R [G*H, N], Wb and Rb [G*H]
for G gates; p [3*H]. `activations` holds one function per (f, g, h); `clip` is a function on pre-activations.
"""
import numpy as np


def rnn_step(x, h, W, R, Wb, Rb, *, activations, clip):
    """h' = f(W x + R h + Wb + Rb)"""
    f, = activations
    return f(clip(W @ x + R @ h + Wb + Rb))


def gru_step(x, h, W, R, Wb, Rb, *, activations, clip, linear_before_reset):
    """z = f(Wz x + Rz h + Wbz + Rbz)
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


def lstm_step(x, h, c, W, R, Wb, Rb, p, *, activations, clip, input_forget, projection):
    """i = f(Wi x + Ri h + pi * c + Wbi + Rbi)
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
