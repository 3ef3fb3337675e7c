"""The engines that are compared, each in the fastest form of its own documented interface.

prepare(case, state_dict, threads) returns call; call(x[, h0[, c0]]) returns the outputs. Inputs and outputs are NumPy
arrays of float32. The outputs are y and, for cases with states, the last states, in the engine's own arrangement
(`problem.canonical` knows them all). state_dict has torch's names. Each engine imports its package in `prepare`, so
that a package that is not installed matters to its engine only.
"""

import importlib.util
import sys

import numpy as np

from bench.problem import ends, onnx_model

# Relative to the largest output. The largest difference measured for an engine in float32 is 4.6e-6 (rnnfast and
# OpenVINO, an RNN of 500 steps with 1200 inputs); an engine that computes in bfloat16 is off by 3e-3, in int8 by 1e-2.
TOLERANCE = 3e-5


class Engine:
    """An engine that is measured.

    package: the distribution that must be installed; peer: whether it is an engine that rnnfast is compared with;
    tolerance: the largest error with which it is timed.
    """

    package, module, peer = "numpy", "numpy", True
    tolerance = TOLERANCE

    def installed(self):
        """Return whether the module can be imported."""
        return importlib.util.find_spec(self.module) is not None


class Numpy(Engine):
    """NumPy as a good engineer writes it: one product for the whole input, one a step, gates together, in place."""

    name = "numpy"

    def prepare(self, case, state_dict, threads):
        step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[case.kind]
        cells = [_NumpyCell(case.kind, state_dict, end) for end, _ in ends(case)]

        def call(x, *states):
            y = x
            for layer in range(case.layers):
                x, y = y, np.empty((case.T, case.B, case.directions * case.H), x.dtype)
                for d in range(case.directions):
                    cell = cells[layer * case.directions + d]
                    last = cell.run(step, x, y[..., d * case.H : (d + 1) * case.H], states, reverse=d == 1)
            return (y, *last) if case.state else (y,)

        return call


class _NumpyCell:
    """Weights transposed once; the LSTM's gates stand in the order i, f, o, g, so that the sigmoids are one call."""

    def __init__(self, kind, state_dict, end):
        arrays = [state_dict[f"{name}_{end}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        if kind == "LSTM":
            arrays = [np.concatenate([np.split(a, 4)[gate] for gate in (0, 1, 3, 2)]) for a in arrays]
        w, self.r, b, self.b_r = np.ascontiguousarray(arrays[0].T), np.ascontiguousarray(arrays[1].T), *arrays[2:]
        if kind == "GRU":  # the recurrent bias of n is multiplied by r
            H = len(self.r)
            b, self.b_r = b + np.concatenate([self.b_r[: 2 * H], np.zeros_like(self.b_r[:H])]), self.b_r[2 * H :]
        else:
            b = b + self.b_r
        self.w, self.b, self.states = w, b, 2 if kind == "LSTM" else 1

    def run(self, step, x, y, states, reverse):
        """Fill y with the outputs of all steps and return the last states."""
        T, B, I = x.shape
        H, G = self.r.shape
        xg = (x.reshape(T * B, I) @ self.w).reshape(T, B, G)
        xg += self.b
        if states:
            state = [s[0].copy() for s in states]
        else:
            state = [np.zeros((B, H), x.dtype) for _ in range(self.states)]
        recurrent = np.empty((B, G), x.dtype)
        for t in reversed(range(T)) if reverse else range(T):
            np.matmul(state[0], self.r, out=recurrent)
            step(xg[t], recurrent, state, H, self.b_r)
            y[t] = state[0]
        return [s[None] for s in state]


def sigmoid(x):
    """Replace x by its sigmoid."""
    np.negative(x, out=x)
    np.exp(x, out=x)
    x += 1
    np.reciprocal(x, out=x)


def _rnn(g, recurrent, state, H, b_r):
    g += recurrent
    np.tanh(g, out=state[0])


def _gru(g, recurrent, state, H, b_r):
    (h,) = state
    gates, n = g[:, : 2 * H], g[:, 2 * H :]
    gates += recurrent[:, : 2 * H]
    sigmoid(gates)
    hn = recurrent[:, 2 * H :]
    hn += b_r
    hn *= gates[:, :H]
    n += hn
    np.tanh(n, out=n)
    h -= n
    h *= gates[:, H:]
    h += n


def _lstm(g, recurrent, state, H, b_r):
    h, c = state
    g += recurrent
    sigmoid(g[:, : 3 * H])
    np.tanh(g[:, 3 * H :], out=g[:, 3 * H :])
    c *= g[:, H : 2 * H]
    g[:, 3 * H :] *= g[:, :H]
    c += g[:, 3 * H :]
    np.tanh(c, out=h)
    h *= g[:, 2 * H : 3 * H]


class Onnxruntime(Engine):
    name = package = module = "onnxruntime"

    def prepare(self, case, state_dict, threads):
        return _call(self.session(onnx_model(case, state_dict), threads), case)

    def session(self, model, threads):
        """Return the session of a model, given as the bytes of a file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _call(session, case):
    """Return the call of an InferenceSession of onnxruntime or of rnnfast, which has the same interface."""
    run, outputs = session.run, [v.name for v in session.get_outputs()]
    if not case.state:
        return lambda x: run(outputs, {"x": x})
    if case.kind == "LSTM":
        return lambda x, h0, c0: run(outputs, {"x": x, "h0": h0, "c0": c0})
    return lambda x, h0: run(outputs, {"x": x, "h0": h0})


class Torch(Engine):
    name = package = module = "torch"

    def prepare(self, case, state_dict, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        layer = self.layer(case, state_dict)
        tensor, inference = torch.from_numpy, torch.inference_mode

        def sequence(x):
            with inference():
                return layer(tensor(x))[0].numpy()

        def lstm(x, h0, c0):
            with inference():
                y, (h, c) = layer(tensor(x), (tensor(h0), tensor(c0)))
            return y.numpy(), h.numpy(), c.numpy()

        def other(x, h0):
            with inference():
                y, h = layer(tensor(x), tensor(h0))
            return y.numpy(), h.numpy()

        return sequence if not case.state else lstm if case.kind == "LSTM" else other

    def layer(self, case, state_dict):
        """Return torch's layer with these weights."""
        import torch

        layer = getattr(torch.nn, case.kind)(case.I, case.H, case.layers, bidirectional=case.directions == 2).eval()
        layer.load_state_dict({name: torch.from_numpy(a) for name, a in state_dict.items()})
        return layer


class Openvino(Engine):
    name = package = module = "openvino"

    precision = "f32"

    def prepare(self, case, state_dict, threads):
        compiled = self.compiled(onnx_model(case, state_dict), threads)
        request, keys = compiled.create_infer_request(), compiled.outputs

        def call(*values):
            # The cheapest form: outputs are views, valid until the next call.
            results = request.infer(values, share_inputs=True, share_outputs=True)
            return [results[key] for key in keys]

        return call

    def compiled(self, model, threads):
        """Return the compiled form of a model, given as the bytes of a file."""
        core = openvino_core()
        return core.compile_model(
            core.read_model(model, b""),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
            },
        )  # the process as a whole is pinned to its cores


def openvino_core():
    """Return OpenVINO's Core."""
    # Without this OpenVINO forks in the middle of the measurement, to send usage data.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino.Core()


class Jax(Engine):
    name = package = module = "jax"

    def prepare(self, case, state_dict, threads):
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
        cells = jax_cells(jax, case, state_dict)
        compiled = jax.jit(lambda cells, *values: jax_stack(jax, case, cells, *values))
        return lambda *values: [np.asarray(v) for v in compiled(cells, *values)]


JAX_NAMES = {"w": "weight_ih", "r": "weight_hh", "b": "bias_ih", "b_r": "bias_hh"}


def jax_cells(jax, case, state_dict):
    """Return the transposed weights of each cell."""
    return [
        {name: jax.numpy.asarray(state_dict[f"{key}_{end}"].T) for name, key in JAX_NAMES.items()}
        for end, _ in ends(case)
    ]


def jax_stack(jax, case, cells, x, *states, unroll=1):
    """Return y and the last states of all layers; rows that have ended keep their state and give zeros."""
    zeros = jax.numpy.zeros((case.B, case.H), x.dtype)
    initial = tuple(s[0] for s in states) or (zeros,) * (1 + (case.kind == "LSTM"))
    step = {"RNN": _jax_rnn, "GRU": _jax_gru, "LSTM": _jax_lstm}[case.kind]
    present = np.arange(case.T)[:, None, None] < np.array(case.lengths)[:, None] if case.lengths else None
    for layer in range(case.layers):
        parts = []
        for d in range(case.directions):
            cell = cells[layer * case.directions + d]

            def body(state, step_inputs, cell=cell):
                xg, present = step_inputs
                new = step(jax, cell, xg, *state)
                if present is None:
                    return new, new[0]
                new = tuple(jax.numpy.where(present, *pair) for pair in zip(new, state))
                return new, jax.numpy.where(present, new[0], 0)

            last, part = jax.lax.scan(
                body, initial, (x @ cell["w"] + cell["b"], present), reverse=d == 1, unroll=unroll
            )
            parts.append(part)
        x = parts[0] if len(parts) == 1 else jax.numpy.concatenate(parts, -1)
    return (x, *(s[None] for s in last)) if case.state else (x,)


def _jax_rnn(jax, cell, xg, h):
    return (jax.numpy.tanh(xg + h @ cell["r"] + cell["b_r"]),)


def _jax_gru(jax, cell, xg, h):
    xr, xz, xn = jax.numpy.split(xg, 3, -1)
    hr, hz, hn = jax.numpy.split(h @ cell["r"] + cell["b_r"], 3, -1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    return ((1 - z) * jax.numpy.tanh(xn + r * hn) + z * h,)


def _jax_lstm(jax, cell, xg, h, c):
    i, f, g, o = jax.numpy.split(xg + h @ cell["r"] + cell["b_r"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    return jax.nn.sigmoid(o) * jax.numpy.tanh(c), c


class Rnnfast(Engine):
    name = package = module = "rnnfast"
    peer = False
    matmul = None
    weights: dict = {}  # the keywords of `rnnfast.load` that choose the type of weights

    def prepare(self, case, state_dict, threads):
        if case.entry == "session":
            return _call(self.session(onnx_model(case, state_dict), threads), case)
        layer = self.layer(case, state_dict, threads)
        if not case.state:
            return lambda x: layer(x)[0]
        return (lambda x, h0, c0: layer(x, (h0, c0))) if case.kind == "LSTM" else layer

    def session(self, model, threads):
        """Return the session of a model, given as the bytes of a file."""
        import rnnfast

        options = rnnfast.SessionOptions()
        options.intra_op_num_threads, options.matmul = threads, self.matmul
        return rnnfast.InferenceSession(model, options, providers=["CPUExecutionProvider"], **self.weights)

    def layer(self, case, state_dict, threads):
        """Return the case's layer of rnnfast.nn with these weights."""
        from rnnfast import nn

        layer = getattr(nn, case.kind)(
            case.I, case.H, case.layers, bidirectional=case.directions == 2, matmul=self.matmul, threads=threads
        )
        layer.load_state_dict(state_dict)
        return layer.quantized(**self.weights) if self.weights else layer


class Blas(Rnnfast):
    """rnnfast on BLAS: one product for the whole input and one a step, without the interpreter between steps."""

    name, matmul = "blas", "blas"
    package = module = "scipy"


ENGINES = {engine.name: engine for engine in (Rnnfast(), Numpy(), Blas(), Onnxruntime(), Torch(), Openvino(), Jax())}
