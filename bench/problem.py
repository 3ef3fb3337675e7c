"""Weights, inputs, the ONNX model and the right outputs of a case."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.cases import GATES
from rnnfast import reference
from rnnfast.native.cell_activations import resolve
from rnnfast.nn.convert import suffix, to_onnx

OPSET = 17
# Rows of a batch that the slow reference computes too; no row depends on another.
REFERENCE_ROWS = 2
# Largest difference between the vectorised float64 outputs and the reference's, which are the same mathematics in
# another order; measured: 4e-15.
ORACLE_TOLERANCE = 1e-12


def ends(case):
    """Return the end of the parameters' names and the input size of each cell."""
    return [(suffix(*divmod(i, case.directions)), size) for i, size in enumerate(case.cells)]


def weights(case, seed=0):
    """Return weights with torch's names and layout, uniform in +-1/sqrt(H) as torch initialises them."""
    rng = np.random.default_rng(seed)
    bound, rows = case.H**-0.5, GATES[case.kind] * case.H
    return {
        f"{name}_{end}": rng.uniform(-bound, bound, shape).astype(np.float32)
        for end, size in ends(case)
        for name, shape in (
            ("weight_ih", (rows, size)),
            ("weight_hh", (rows, case.H)),
            ("bias_ih", (rows,)),
            ("bias_hh", (rows,)),
        )
    }


def inputs(case, seed=1):
    """Return (x,), or with states (x, h0), and for LSTM (x, h0, c0)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((case.T, case.B, case.I), np.float32)
    states = (1 + (case.kind == "LSTM")) * case.state
    return x, *(rng.uniform(-1, 1, (1, case.B, case.H)).astype(np.float32) for _ in range(states))


def onnx_model(case, state_dict):
    """Return the bytes of the case's ONNX model: input x, output y [T, D, B, H] and, with states, hn and cn."""
    nodes, initializers, value = [], [], "x"
    states = [name for name in ("h", "c")[: 1 + (case.kind == "LSTM")] if case.state]
    for layer in range(case.layers):
        arrays = [to_onnx(case.kind, state_dict, suffix(layer, d)) for d in range(case.directions)]
        for name in "WRB":
            initializers.append(numpy_helper.from_array(np.stack([a[name] for a in arrays]), f"{name}{layer}"))
        attributes = {"linear_before_reset": 1} if case.kind == "GRU" else {}
        nodes.append(
            helper.make_node(
                case.kind,
                [value, *(f"{name}{layer}" for name in "WRB"), "", *(f"{s}0" for s in states)],
                [f"y{layer}", *(f"{s}n" for s in states)],
                hidden_size=case.H,
                direction="bidirectional" if case.directions == 2 else "forward",
                **attributes,
            )
        )
        if layer + 1 < case.layers:
            nodes += [
                helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]),
                helper.make_node("Reshape", [f"t{layer}", "merged"], [f"x{layer}"]),
            ]
            value = f"x{layer}"
    if case.layers > 1:
        initializers.append(numpy_helper.from_array(np.array([case.T, case.B, case.directions * case.H]), "merged"))

    def values(shapes):
        return [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    state = (1, case.B, case.H)
    graph = helper.make_graph(
        nodes,
        case.name,
        values({"x": (case.T, case.B, case.I)} | {f"{s}0": state for s in states}),
        values({f"y{case.layers - 1}": (case.T, case.directions, case.B, case.H)} | {f"{s}n": state for s in states}),
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return model.SerializeToString()


def canonical(outputs):
    """Return any engine's outputs as a flat list: y as [T, B, D*H], then the last states."""
    flat = []
    for value in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
        flat += canonical(value) if isinstance(value, (list, tuple)) else [np.asarray(value)]
    if flat[0].ndim == 4:  # ONNX's [T, D, B, H]
        flat[0] = flat[0].swapaxes(1, 2).reshape(*flat[0].shape[::2], -1)
    return flat


def expected(case, state_dict, values, numpy_engine):
    """Return the right outputs in float64.

    The NumPy engine computes them; some rows are compared with the reference's.
    """
    wide = {name: array.astype(np.float64) for name, array in state_dict.items()}
    outputs = canonical(numpy_engine.prepare(case, wide, 1)(*(v.astype(np.float64) for v in values)))
    rows = np.unique(np.linspace(0, case.B - 1, REFERENCE_ROWS).astype(int))
    slow = _reference(case, wide, [v[:, rows] for v in values])
    for fast, right in zip(outputs, slow, strict=True):
        error = np.abs(fast[:, rows] - right).max()
        if not error <= ORACLE_TOLERANCE:
            raise AssertionError(f"{case.name}: the float64 outputs are {error:.2g} from the reference's")
    return outputs


def _reference(case, state_dict, values):
    """Return the outputs of rnnfast.reference: [T, B, D*H] and the last states."""
    (x, *states), last = values, []
    for layer in range(case.layers):
        arrays = [to_onnx(case.kind, state_dict, suffix(layer, d)) for d in range(case.directions)]
        W, R, B = (np.stack([a[name] for a in arrays]) for name in "WRB")
        x, *last = getattr(reference, case.kind.lower())(
            x, W, R, B, case.lengths or None, *states, **reference_options(case)
        )
        (x,) = canonical(x)
    return [x, *last] if case.state else [x]


def reference_options(case):
    """Return the options of a case's function in rnnfast.reference."""
    activations = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}[case.kind]
    return {
        "activations": (resolve(activations),) * case.directions,
        "direction": "bidirectional" if case.directions == 2 else "forward",
        **({"linear_before_reset": True} if case.kind == "GRU" else {}),
    }


def difference(outputs, right):
    """Return the largest difference, relative to each right output's largest value; infinite if shapes differ."""
    outputs = canonical(outputs)
    if [a.shape for a in outputs] != [a.shape for a in right]:
        return float("inf")
    if any(a.dtype != np.float32 for a in outputs):
        raise TypeError(f"outputs are {[str(a.dtype) for a in outputs]}, expected float32")
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(outputs, right)]))
