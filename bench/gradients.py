"""Forward and backward of one layer: the engines, each in its fastest documented form, and the right gradients.

prepare(case, state_dict, threads) returns call; call(x, dy[, h0[, c0]]) returns y and the gradients of x, of the
initial states and of all weights, in the engine's own arrangement. Inputs and outputs are NumPy arrays of float32.
named(case, outputs) returns a dict of "y", "dx", with states "dh0" and "dc0", and the weights' gradients under torch's
names; its time is not measured.
"""

import dataclasses

import numpy as np

from bench import engines, problem
from bench.cases import GATES
from bench.engines import sigmoid
from bench.measure import compare
from bench.problem import ends
from rnnfast import reference
from rnnfast.nn import convert


class Numpy(engines.Numpy):
    """NumPy as a good engineer writes it.

    Gates stand together; there is one product a step forward and one backward. The factors of the gates' gradients are
    computed for all steps at once, and the gradients of the input and of the weights are one product each.

    Rows are sorted by length and steps behind a row's end are left out: N steps of rows in all, in the order of time.
    """

    def prepare(self, case, state_dict, threads):
        cells = [{"GRU": _Gru, "LSTM": _Lstm}[case.kind](state_dict, end) for end, _ in ends(case)]
        order, index, walks = _walks(case)

        def call(x, dy, *states):
            B, H = case.B, case.H
            x = _packed(x, index)
            states = [s[0][order] for s in states] or [np.zeros((B, H), x.dtype)] * cells[0].states
            dy = [_packed(part, index) for part in np.split(dy, len(cells), axis=2)]
            parts = [cell.forward(x, states, walk) for cell, walk in zip(cells, walks)]
            gradients = [cell.backward(*arguments, B) for cell, *arguments in zip(cells, dy, parts, walks)]
            y = [walk.outputs(hs) for (hs, *_), walk in zip(parts, walks)]
            y = y[0] if len(y) == 1 else np.concatenate(y, axis=1)
            dx, dstates, dweights = gradients[0]
            if len(cells) == 2:
                dx += gradients[1][0]
                dweights = dweights + gradients[1][2]
            return (
                _unpacked(y, index, case),
                _unpacked(dx, index, case),
                [d[np.argsort(order)] for d in dstates],
                dweights,
            )

        return call

    def named(self, case, outputs):
        y, dx, dstates, dweights = outputs
        orders = {"GRU": _Gru, "LSTM": _Lstm}[case.kind].orders
        states = dict(zip(("dh0", "dc0"), (d[None] for d in dstates))) if case.state else {}
        weights = {}
        for (end, _), arrays in zip(ends(case), zip(*[iter(dweights)] * 4)):
            for name, order, array in zip(_NAMES, orders * 2, arrays):
                weights[f"{name}_{end}"] = _gates(array, np.argsort(order))
        return {"y": y, "dx": dx} | states | weights


_NAMES = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def _gates(array, order):
    parts = np.split(array, len(order))
    return np.concatenate([parts[gate] for gate in order])


class _Walk:
    """The places of the steps of one direction.

    steps: for each step, its slice of the N rows, the slice of the states before it, and the slice of its own states.
    States have B rows more than N: the initial states stand before the others, or after them for the direction that
    runs backwards.
    """

    def __init__(self, sizes, reverse):
        self.rows, self.total, self.reverse = sizes[0], sum(sizes), reverse
        self.even = sizes[-1] == sizes[0]
        start, before, self.steps = 0, slice(0, sizes[0]), []
        for n in sizes:
            here = slice(self.rows + start, self.rows + start + n)
            self.steps.append((slice(start, start + n), slice(before.start, before.start + n), here))
            start, before = start + n, here
        if reverse:  # all sizes are the same here
            self.steps = [(at, here, at) for at, _, here in reversed(self.steps)]

    def states(self, initial):
        """Return an array for all states that holds the initial ones."""
        states = np.empty((self.total + self.rows, initial.shape[1]), initial.dtype)
        states[self.total if self.reverse else 0 :][: self.rows] = initial
        return states

    def before(self, states):
        """Return the state before each step, [N, H]."""
        if self.reverse:
            return states[self.rows :]
        return states[: self.total] if self.even else np.concatenate([states[before] for _, before, _ in self.steps])

    def outputs(self, states):
        """Return the states without the initial ones."""
        return states[: self.total] if self.reverse else states[self.rows :]


def _walks(case):
    """Return the order of the rows, the places of the N steps in [T * B] (None: all), and a walk for each direction."""
    lengths = np.array(case.lengths or (case.T,) * case.B)
    order = np.argsort(-lengths, kind="stable")
    sizes = [int(n) for n in np.sum(lengths[:, None] > np.arange(case.T), axis=0)]
    index = np.concatenate([t * case.B + order[:n] for t, n in enumerate(sizes)]) if case.lengths else None
    if case.lengths and case.directions == 2:
        raise NotImplementedError("lengths in two directions")
    return order, index, [_Walk(sizes, d == 1) for d in range(case.directions)]


def _packed(x, index):
    x = x.reshape(-1, x.shape[2])
    return x if index is None else x[index]


def _unpacked(values, index, case):
    shape = case.T, case.B, values.shape[1]
    if index is None:
        return values.reshape(shape)
    whole = np.zeros((case.T * case.B, values.shape[1]), values.dtype)
    whole[index] = values
    return whole.reshape(shape)


class _Cell:
    """orders: the order of the gates in the input product and in the recurrent product, as indices of torch's gates."""

    orders = ()

    def __init__(self, state_dict, end):
        self.w, self.r, self.b, self.b_r = (
            _gates(state_dict[f"{name}_{end}"], order) for name, order in zip(_NAMES, self.orders * 2)
        )
        self.w_t, self.r_t = np.ascontiguousarray(self.w.T), np.ascontiguousarray(self.r.T)


class _Lstm(_Cell):
    """The gates stand as g, i, f, o: those whose gradients go through c are together, and so are the sigmoids."""

    states = 2
    orders = (2, 0, 1, 3), (2, 0, 1, 3)

    def forward(self, x, states, walk):
        H = self.r.shape[1]
        gates = x @ self.w_t
        gates += self.b + self.b_r
        hs, cs = map(walk.states, states)
        tanh_c = np.empty((walk.total, H), x.dtype)
        recurrent, product = np.empty((walk.rows, 4 * H), x.dtype), np.empty((walk.rows, H), x.dtype)
        for at, before, here in walk.steps:
            g, tc = gates[at], tanh_c[at]
            n = len(g)
            g += np.matmul(hs[before], self.r_t, out=recurrent[:n])
            np.tanh(g[:, :H], out=g[:, :H])
            sigmoid(g[:, H:])
            c = np.multiply(g[:, 2 * H : 3 * H], cs[before], out=cs[here])
            c += np.multiply(g[:, :H], g[:, H : 2 * H], out=product[:n])
            np.tanh(c, out=tc)
            np.multiply(g[:, 3 * H :], tc, out=hs[here])
        return hs, cs, gates, tanh_c, x

    def backward(self, dy, saved, walk, B):
        """Return dx, the states' gradients and the weights' gradients.

        factors: dc times these is the gradient of g, i and f; dh times the last is that of o.
        """
        hs, cs, gates, tanh_c, x = saved
        H = self.r.shape[1]
        g, i, f, o = (gates[:, k * H : (k + 1) * H] for k in range(4))
        factors = np.empty((len(gates), 4, H), x.dtype)
        factors[:, 0] = i * (1 - g * g)
        factors[:, 1] = g * i * (1 - i)
        factors[:, 2] = walk.before(cs) * f * (1 - f)
        factors[:, 3] = tanh_c * o * (1 - o)
        of_c = o * (1 - tanh_c * tanh_c)
        dgates = factors.reshape(gates.shape)  # the loop turns the factors into gradients in place
        dh, dc = np.zeros((2, B, H), x.dtype)
        product = np.empty((B, H), x.dtype)
        for at, _, _ in reversed(walk.steps):
            d = factors[at]
            n = len(d)
            h, c = dh[:n], dc[:n]
            h += dy[at]
            c += np.multiply(h, of_c[at], out=product[:n])
            d[:, :3] *= c[:, None]
            d[:, 3] *= h
            c *= f[at]
            np.matmul(dgates[at], self.r, out=h)
        db = dgates.sum(0)
        return dgates @ self.w, [dh, dc], [dgates.T @ x, dgates.T @ walk.before(hs), db, db]


class _Gru(_Cell):
    """The gates stand as n, r, z in the input product and r, z, n in the recurrent one.

    So the gradients of both stand together as n, r, z, n.
    """

    states = 1
    orders = (2, 0, 1), (0, 1, 2)

    def forward(self, x, states, walk):
        H = self.r.shape[1]
        gates = x @ self.w_t
        gates += self.b + np.concatenate([np.zeros_like(self.b_r[:H]), self.b_r[: 2 * H]])
        b_n = self.b_r[2 * H :]
        hs = walk.states(states[0])
        recurrent_n = np.empty((walk.total, H), x.dtype)
        recurrent, product = np.empty((walk.rows, 3 * H), x.dtype), np.empty((walk.rows, H), x.dtype)
        for at, before, here in walk.steps:
            g, old = gates[at], hs[before]
            n = len(g)
            q = np.matmul(old, self.r_t, out=recurrent[:n])
            rz, new = g[:, H:], g[:, :H]
            rz += q[:, : 2 * H]
            sigmoid(rz)
            r_n = np.add(q[:, 2 * H :], b_n, out=recurrent_n[at])
            new += np.multiply(rz[:, :H], r_n, out=product[:n])
            np.tanh(new, out=new)
            h = np.subtract(old, new, out=hs[here])
            h *= rz[:, H:]
            h += new
        return hs, gates, recurrent_n, x

    def backward(self, dy, saved, walk, B):
        """Return dx, the state's gradient and the weights' gradients.

        factors: dh times these is the gradient of n, r, z and of n's recurrent part.
        """
        hs, gates, recurrent_n, x = saved
        H = self.r.shape[1]
        n, r, z = (gates[:, k * H : (k + 1) * H] for k in range(3))
        before = walk.before(hs)
        factors = np.empty((len(gates), 4, H), x.dtype)
        factors[:, 0] = (1 - z) * (1 - n * n)
        factors[:, 3] = factors[:, 0] * r
        factors[:, 1] = factors[:, 3] * recurrent_n * (1 - r)
        factors[:, 2] = (before - n) * z * (1 - z)
        dgates = factors.reshape(len(gates), 4 * H)
        dh, recurrent = np.zeros((2, B, H), x.dtype)
        for at, _, _ in reversed(walk.steps):
            d = factors[at]
            h = dh[: len(d)]
            h += dy[at]
            d *= h[:, None]
            h *= z[at]
            h += np.matmul(dgates[at, H:], self.r, out=recurrent[: len(d)])
        of_x, of_h, db = dgates[:, : 3 * H], dgates[:, H:], dgates.sum(0)
        return of_x @ self.w, [dh], [of_x.T @ x, of_h.T @ before, db[: 3 * H], db[H:]]


class Torch(engines.Torch):
    def prepare(self, case, state_dict, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        layer = getattr(torch.nn, case.kind)(case.I, case.H, bidirectional=case.directions == 2)
        layer.load_state_dict({name: torch.from_numpy(a) for name, a in state_dict.items()})
        parameters, rnn = dict(layer.named_parameters()), torch.nn.utils.rnn
        lengths = torch.tensor(case.lengths) if case.lengths else None

        def call(x, dy, *states):
            for parameter in parameters.values():
                parameter.grad = None
            x, *states = (torch.from_numpy(a).requires_grad_() for a in (x, *states))
            hx = (tuple(states) if len(states) == 2 else states[0]) if states else None
            if lengths is None:
                y, _ = layer(x, hx)
            else:
                y, _ = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
                y, _ = rnn.pad_packed_sequence(y, total_length=case.T)
            y.backward(torch.from_numpy(dy))
            return (
                y.detach().numpy(),
                [a.grad.numpy() for a in (x, *states)],
                {name: parameter.grad.numpy() for name, parameter in parameters.items()},
            )

        return call

    def named(self, case, outputs):
        y, (dx, *dstates), dweights = outputs
        return {"y": y, "dx": dx} | dict(zip(("dh0", "dc0"), dstates)) | dweights


class Jax(engines.Jax):
    """JAX with its loop unrolled for one row: unrolling is slower for more rows (measured for 1, 4 and 10 steps)."""

    def prepare(self, case, state_dict, threads):
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
        cells = engines.jax_cells(jax, case, state_dict)

        def forward(cells, x, *states):
            return engines.jax_stack(jax, case, cells, x, *states, unroll=4 if case.B == 1 else 1)[0]

        def both(cells, x, dy, *states):
            y, pull = jax.vjp(forward, cells, x, *states)
            return y, pull(dy)

        compiled = jax.jit(both)
        return lambda *values: jax.tree.map(np.asarray, compiled(cells, *values))

    def named(self, case, outputs):
        y, (cells, dx, *dstates) = outputs
        weights = {
            f"{name}_{end}": cell[key].T
            for (end, _), cell in zip(ends(case), cells)
            for key, name in engines.JAX_NAMES.items()
        }
        return {"y": y, "dx": dx} | dict(zip(("dh0", "dc0"), dstates)) | weights


class Rnnfast(engines.Rnnfast):
    def prepare(self, case, state_dict, threads):
        layer = self.layer(case, state_dict, threads)
        lengths = np.array(case.lengths) if case.lengths else None

        def call(x, dy, *states):
            state = (tuple(states) if len(states) == 2 else states[0]) if states else None
            y, _, saved = layer.forward(x, state, lengths=lengths, training=True)
            return y, *layer.backward(dy, None, saved)

        return call

    def named(self, case, outputs):
        y, dx, dstate, dweights = outputs
        dstates = dstate if case.kind == "LSTM" else [dstate]
        return {"y": y, "dx": dx} | (dict(zip(("dh0", "dc0"), dstates)) if case.state else {}) | dweights

    def saved(self, case, state_dict):
        """Return the bytes that forward keeps for backward, divided by those of the computed gates and states."""
        layer = self.layer(case, state_dict, 1)
        lengths = np.array(case.lengths) if case.lengths else None
        state = problem.inputs(case)[1:]
        state = (state if len(state) == 2 else state[0]) if state else None
        *_, saved = layer.forward(problem.inputs(case)[0], state, lengths=lengths, training=True)
        steps = sum(case.lengths) if case.lengths else case.T * case.B
        values = (GATES[case.kind] + (2 if case.kind == "LSTM" else 1)) * case.H * case.directions
        return saved.nbytes / (4 * steps * values)


ENGINES = {engine.name: engine for engine in (Rnnfast(), Numpy(), Torch(), Jax())}


def measure(case, engines, threads, rounds, duration, limit):
    """Return the results of `compare`; rnnfast's have "saved" too (`Rnnfast.saved`)."""
    state_dict, values = problem.weights(case), inputs(case)
    right = expected(case, state_dict, values)

    def check(engine):
        call = engine.prepare(case, state_dict, threads)
        return call, difference(engine.named(case, call(*values)), right)

    results = compare(engines, check, values, threads, rounds, duration, limit)
    if results.get("rnnfast", {}).get("status") == "ok":
        results["rnnfast"]["saved"] = ENGINES["rnnfast"].saved(case, state_dict)
    return results


# ------------------------------------------------------------------------------------------------ right gradients
def inputs(case, seed=2):
    """Return x, dy and the initial states that the case has."""
    x, *states = problem.inputs(case)
    dy = np.random.default_rng(seed).standard_normal((case.T, case.B, case.directions * case.H), np.float32)
    return x, dy, *states


def expected(case, state_dict, values, numpy_engine=ENGINES["numpy"]):
    """Return the right outputs by name, in float64.

    The NumPy engine computes them in that type; its gradients of some rows alone are compared with the reference's.
    """
    wide = {name: array.astype(np.float64) for name, array in state_dict.items()}
    values = [v.astype(np.float64) for v in values]
    lengths = case.lengths or (case.T,) * case.B
    rows = sorted({int(np.argmin(lengths)), int(np.argmax(lengths)), case.B - 1})[: problem.REFERENCE_ROWS]
    few = dataclasses.replace(case, B=len(rows), lengths=tuple(lengths[row] for row in rows) if case.lengths else ())
    some = [v[:, rows] for v in values]
    right = _reference(few, wide, some)
    error = _difference(numpy_engine.named(few, numpy_engine.prepare(few, wide, 1)(*some)), right)
    if not error <= problem.ORACLE_TOLERANCE:
        raise AssertionError(f"{case.name}: the float64 gradients are {error:.2g} from the reference's")
    return numpy_engine.named(case, numpy_engine.prepare(case, wide, 1)(*values))


def _reference(case, state_dict, values):
    x, dy, *states = values
    arrays = [convert.to_onnx(case.kind, state_dict, end) for end, _ in ends(case)]
    weights = [np.stack([a[name] for a in arrays]) for name in "WRB"]
    kwargs = problem.reference_options(case)
    arguments = x, *weights, case.lengths or None, *states
    y, *_ = getattr(reference, case.kind.lower())(*arguments, **kwargs)
    dlast = (None,) * (2 if case.kind == "LSTM" else 1)
    dY = dy.reshape(case.T, case.B, case.directions, case.H).swapaxes(1, 2)
    found = getattr(reference, f"{case.kind.lower()}_backward")(dY, *dlast, *arguments, **kwargs)
    right = {"y": problem.canonical(y)[0], "dx": found["X"]}
    right |= {f"d{short}": found[name] for short, name in (("h0", "initial_h"), ("c0", "initial_c")) if name in found}
    order = convert.GATES[case.kind]
    for d, (end, _) in enumerate(ends(case)):
        for name, array in zip(_NAMES, (found["W"][d], found["R"][d], *np.split(found["B"][d], 2))):
            right[f"{name}_{end}"] = convert.reorder(array, order["onnx"], order["torch"])
    return right


def difference(found, right):
    """Return the largest difference relative to the right array's largest value; infinite if names or shapes differ."""
    if any(a.dtype != np.float32 for a in found.values()):
        raise TypeError(f"outputs are {sorted({str(a.dtype) for a in found.values()})}, expected float32")
    return _difference(found, right)


def _difference(found, right):
    if {name: a.shape for name, a in found.items()} != {name: a.shape for name, a in right.items()}:
        return float("inf")
    return float(np.max([np.abs(found[name] - b).max() / np.abs(b).max() for name, b in right.items()]))
