"""To be replaced by the engine: gradients of one layer in NumPy."""
import numpy as np
from rnnfast import _engine


def sig(x):
    return 1 / (1 + np.exp(-x))


class Tape:
    def __init__(self, kind, weights, lbr, relu, reverse, x, y, h0, c0, lens):
        self.kind, self.weights, self.lbr, self.relu, self.reverse = kind, weights, lbr, relu, reverse
        self.x, self.y, self.h0, self.c0, self.lens = x, y, h0, c0, lens
        T, B = x.shape[:2]
        H = weights[0]["R"].shape[0] // {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
        self.H = H
        self.nbytes = 4 * T * B * H * {"RNN": 0, "GRU": 4, "LSTM": 5}[kind] * len(weights)

    def backward(self, dys, dh, dc=None, threads=1):
        T, B, I = self.x.shape
        dx = np.zeros(self.x.shape, np.float32)
        dh0s, dc0s, grads = [], [], []
        lens = np.full(B, T) if self.lens is None else np.asarray(self.lens)
        for d, w in enumerate(self.weights):
            g, dxd, dh0, dc0 = self.one(d, w, None if dys is None else dys[d], dh[d], None if dc is None else dc[d], lens)
            dx += dxd
            dh0s.append(dh0); dc0s.append(dc0); grads.append(g)
        return dx, np.stack(dh0s).astype(np.float32), None if dc is None else np.stack(dc0s).astype(np.float32), grads

    def one(self, d, w, dy, dh, dc, lens):
        kind, H = self.kind, self.H
        T, B, I = self.x.shape
        W, R = w["W"].astype(np.float64), w["R"].astype(np.float64)
        b = np.zeros(2 * len(W)) if w["B"] is None else w["B"].astype(np.float64)
        bw, br = np.split(b, 2)
        V = w["projection"]
        O = R.shape[1]
        x = self.x.astype(np.float64)
        h = np.zeros((B, O)) if self.h0 is None else self.h0[d].astype(np.float64)
        c = np.zeros((B, H)) if self.c0 is None else self.c0[d].astype(np.float64)
        order = range(T - 1, -1, -1) if self.reverse[d] else range(T)
        steps = []
        for t in order:
            on = (t < lens)[:, None]
            xg = x[t] @ W.T + bw
            if kind == "RNN":
                a = xg + h @ R.T + br
                hn, cn, keep = (np.maximum(a, 0) if self.relu else np.tanh(a)), c, ()
            elif kind == "LSTM":
                i, o, f, g = np.split(xg + h @ R.T + br, 4, axis=1)
                i, o, f, g = sig(i), sig(o), sig(f), np.tanh(g)
                cn = f * c + i * g
                u = o * np.tanh(cn)
                hn, keep = (u if V is None else u @ V.T), (i, o, f, g, u)
            else:
                xz, xr, xn = np.split(xg, 3, axis=1)
                Rz, Rr, Rn = np.split(R, 3)
                bz, brr, bn = np.split(br, 3)
                z, r = sig(xz + h @ Rz.T + bz), sig(xr + h @ Rr.T + brr)
                q = h @ Rn.T + bn if self.lbr else (r * h) @ Rn.T + bn
                n = np.tanh(xn + (r * q if self.lbr else q))
                hn, cn, keep = (1 - z) * n + z * h, c, (z, r, n, q)
            steps.append((t, on, h, c, keep, np.where(on, hn, h), np.where(on, cn, c)))
            h, c = steps[-1][-2:]
        dW, dR, dbw, dbr = np.zeros_like(W), np.zeros_like(R), np.zeros_like(bw), np.zeros_like(br)
        dV = None if V is None else np.zeros(V.shape)
        some = (lens > 0)[:, None]
        dh = np.where(some, dh, 0).astype(np.float64)
        dc = np.where(some, 0 if dc is None else dc, 0).astype(np.float64)
        if dc.ndim != 2 or dc.shape != (B, H):
            dc = np.zeros((B, H))
        dxd = np.zeros_like(x)
        for t, on, h, c, keep, hn, cn in reversed(steps):
            e = dh + (0 if dy is None else np.where(on, dy[t], 0))
            if kind == "RNN":
                dg = e * ((hn > 0) if self.relu else 1 - hn * hn)
                gw = gr = dg
                dhp, dcp = dg @ R, dc
            elif kind == "LSTM":
                i, o, f, g, u = keep
                if V is not None:
                    dV += np.where(on, e, 0).T @ u
                    e = e @ V
                tc = np.tanh(cn)
                dcc = dc + e * o * (1 - tc * tc)
                gw = gr = np.concatenate([dcc * g * i * (1 - i), e * tc * o * (1 - o), dcc * c * f * (1 - f),
                                          dcc * i * (1 - g * g)], axis=1)
                dhp, dcp = gr @ R, dcc * f
            else:
                z, r, n, q = keep
                Rz, Rr, Rn = np.split(R, 3)
                dn = e * (1 - z) * (1 - n * n)
                dz = e * (h - n) * z * (1 - z)
                if self.lbr:
                    dq, dr = dn * r, dn * q * r * (1 - r)
                    gr = np.concatenate([dz, dr, dq], axis=1)
                    dhp = gr @ R + e * z
                else:
                    drh = dn @ Rn
                    dr = drh * h * r * (1 - r)
                    gr = np.concatenate([dz, dr, dn], axis=1)
                    dhp = dz @ Rz + dr @ Rr + drh * r + e * z
                gw, dcp = np.concatenate([dz, dr, dn], axis=1), dc
            gw, gr = np.where(on, gw, 0), np.where(on, gr, 0)
            dW += gw.T @ x[t]
            if kind == "GRU" and not self.lbr:
                dR[:2 * H] += gr[:, :2 * H].T @ h
                dR[2 * H:] += gr[:, 2 * H:].T @ (keep[1] * h)
            else:
                dR += gr.T @ h
            dbw += gw.sum(0)
            dbr += gr.sum(0)
            dxd[t] = gw @ W
            dh, dc = np.where(on, dhp, dh), np.where(on, dcp, dc)
        f32 = np.float32
        return ({"W": dW.astype(f32), "R": dR.astype(f32), "B": np.concatenate([dbw, dbr]).astype(f32),
                 "projection": None if V is None else dV.astype(f32)}, dxd.astype(f32), dh, dc)


def record(kind, weights, lbr, relu, cells, reverse, x, y, h0, c0=None, sequence_lens=None, threads=1):
    y_h, y_c = _engine.recurrent(cells, reverse, x, y.swapaxes(1, 2), h0, c0, sequence_lens=sequence_lens, threads=threads)
    return y_h, y_c, Tape(kind, weights, lbr, relu, reverse, x, y, h0, c0, sequence_lens)
