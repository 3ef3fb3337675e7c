"""Random variants of ONNX's own node tests, right and wrong ones, and the ways of computing that must agree on them.

The node tests come with the onnx package and the schemas with `onnx.defs`, so that a new operator is covered when it
gets its row in the table of operators.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from tests.graphs import by_numpy

LARGE = 5000  # elements: more than a plan computes of a result that it needs the shape of only
INTS = (0, 1, 2, 3, 4, 5, 7, 64, -1, -2, -3, -4, -65, 2**31, -(2**31), 2**62)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 3e38, -3e38, 1e10, -1e10, np.inf, -np.inf, np.nan)
# Padding is not read, so that a weight of NaN or infinity counts only where it meets the input (docs/promises.md).
CONVOLUTIONS = ("Conv", "ConvTranspose")
TYPES = (np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_)


class Case:
    """One node with the values of its inputs, None for an absent one. `constant`: the names of initializers."""

    def __init__(self, node, inputs, opset, constant=frozenset()):
        self.node, self.inputs, self.opset, self.constant = node, inputs, opset, constant

    def model(self):
        """The bytes of the model and the values of its inputs."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        del node.input[:]
        node.input.extend("" if x is None else f"x{i}" for i, x in enumerate(self.inputs))
        given = {f"x{i}": x for i, x in enumerate(self.inputs) if x is not None}
        values = [
            helper.make_tensor_value_info(n, element_type(x), None) for n, x in given.items() if n not in self.constant
        ]
        initializers = [numpy_helper.from_array(x, n) for n, x in given.items() if n in self.constant]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "g", values, outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return model.SerializeToString(), {n: x for n, x in given.items() if n not in self.constant}

    def __repr__(self):
        inputs = [None if x is None else f"{x.dtype}{list(x.shape)}" for x in self.inputs]
        attributes = {a.name: helper.get_attribute_value(a) for a in self.node.attribute}
        name = f"{self.node.op_type}-{self.opset}"
        return f"{name}({', '.join(map(str, inputs))}, {attributes}), constant {sorted(self.constant)}"


def element_type(x):
    return helper.np_dtype_to_tensor_dtype(x.dtype)


def node_cases(backend_cases):
    """The Cases of backend tests of one node on tensors, by operator."""
    cases = {}
    for case in backend_cases:
        graph = case.model.graph
        if (
            len(graph.node) != 1
            or graph.node[0].domain
            or not case.data_sets
            or any(a.HasField("g") for a in graph.node[0].attribute)
        ):
            continue
        values = [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in case.data_sets[0][0]]
        if len(values) != len(graph.input) or not all(isinstance(v, (np.ndarray, np.generic)) for v in values):
            continue
        feed = dict(zip([v.name for v in graph.input], map(np.asarray, values)))
        feed |= {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        opset = next(o.version for o in case.model.opset_import if not o.domain)
        node = graph.node[0]
        if sum(x.size for x in feed.values()) < 100_000:
            cases.setdefault(node.op_type, []).append(Case(node, [feed[n] if n else None for n in node.input], opset))
    return cases


# ------------------------------------------------------------------------------------------------ mutations
def other_attribute(rng, case):
    """Give one attribute of the schema another value, or take it away."""
    schema = onnx.defs.get_schema(case.node.op_type, case.opset, "")
    names = sorted(schema.attributes)
    if not names:
        return
    name = names[rng.integers(len(names))]
    kept = [a for a in case.node.attribute if a.name != name]
    present = next((a for a in case.node.attribute if a.name == name), None)
    kind = schema.attributes[name].type.name
    if kind == "INT":
        value = int(rng.choice(INTS))
    elif kind == "FLOAT":
        value = float(np.float32(rng.choice(FLOATS)))
    elif kind == "INTS":
        old = list(present.ints) if present is not None else [1] * int(rng.integers(1, 5))
        at = int(rng.integers(len(old) + 1))
        value = old[:at] + [int(rng.choice(INTS))] + old[at + int(rng.integers(2)) :]
    elif kind == "STRING":
        value = str(
            rng.choice(["", "none", "add", "mul", "nearest", "SAME_UPPER", "VALID", "reverse", "bidirectional"])
        )
    else:
        return
    del case.node.attribute[:]
    case.node.attribute.extend(kept)
    if present is None or rng.random() < 0.8:
        case.node.attribute.append(helper.make_attribute(name, value))


def _an_input(rng, case):
    present = [i for i, x in enumerate(case.inputs) if x is not None]
    return int(rng.choice(present)) if present else None


def other_type(rng, case):
    """Cast one input, or all inputs of its type."""
    i = _an_input(rng, case)
    if i is None or case.inputs[i].dtype.kind not in "biuf":
        return
    old, new = case.inputs[i].dtype, TYPES[rng.integers(len(TYPES))]
    for j, x in enumerate(case.inputs) if rng.random() < 0.5 else [(i, case.inputs[i])]:
        if x is not None and x.dtype == old:
            with np.errstate(all="ignore"):
                case.inputs[j] = x.astype(new)


def other_shape(rng, case):
    """Add, drop, empty, shorten or repeat an axis of one input, or swap two."""
    i = _an_input(rng, case)
    if i is None:
        return
    x = case.inputs[i]
    axis = int(rng.integers(max(1, x.ndim)))
    kind = rng.integers(6)
    if kind == 0 or x.ndim == 0:
        x = np.expand_dims(x, axis)
    elif kind == 1:
        x = x[(slice(None),) * axis + (0,)] if x.shape[axis] else x
    elif kind == 2:
        x = x[(slice(None),) * axis + (slice(0, int(rng.integers(2))),)]
    elif kind == 3:
        x = np.repeat(x, 2, axis)
    elif kind == 4:
        x = np.swapaxes(x, axis, int(rng.integers(x.ndim)))
    else:
        x = x[(slice(None),) * axis + (slice(1, None),)]
    case.inputs[i] = np.array(x)


def other_values(rng, case):
    """Put extreme values into one input."""
    i = _an_input(rng, case)
    if i is None or case.inputs[i].dtype.kind not in "biuf" or case.inputs[i].size == 0:
        return
    x = np.array(case.inputs[i])
    with np.errstate(all="ignore"):
        values = np.asarray(FLOATS if x.dtype.kind == "f" else INTS).astype(x.dtype)
    if case.node.op_type in CONVOLUTIONS and i > 0:
        values = values[np.isfinite(values)]
    at = rng.integers(x.size, size=min(x.size, int(rng.integers(1, 4))))
    x.reshape(-1)[at] = rng.choice(values, at.size)
    case.inputs[i] = x


def other_opset(rng, case):
    """Take another opset, in which the operator may be another one."""
    case.opset = int(rng.integers(1, onnx.defs.onnx_opset_version() + 1))


def other_presence(rng, case):
    """Leave out an input, or give one more."""
    i = _an_input(rng, case)
    if i is not None and rng.random() < 0.5:
        case.inputs[i] = None
    elif i is not None:
        case.inputs.append(case.inputs[i])


def enlarge(rng, case):
    """Repeat the axes of one length in all inputs until the first input is large."""
    first = case.inputs[0] if case.inputs else None
    if first is None or first.ndim == 0 or not 0 < first.size < LARGE:
        return
    length = first.shape[int(rng.integers(first.ndim))]
    times = -(-LARGE // first.size)
    for i, x in enumerate(case.inputs):
        if x is None or x.dtype.kind in "iu" and x.ndim == 1 and i > 0 or x.size > LARGE:
            continue
        for axis, n in enumerate(x.shape):
            if n == length and x.size * times <= 2 * LARGE:
                x = np.concatenate([x] * times, axis)
                if i == 0:
                    break
        case.inputs[i] = x


MUTATIONS = (other_attribute, other_type, other_shape, other_values, other_opset, other_presence)


def variants(rng, cases, count):
    """Yield random variants of cases: some enlarged, some of their inputs constant, with no, one or two faults."""
    for _ in range(count):
        base = cases[rng.integers(len(cases))]
        node = onnx.NodeProto()
        node.CopyFrom(base.node)
        case = Case(node, list(base.inputs), base.opset)
        if rng.random() < 0.5:
            enlarge(rng, case)
        try:
            for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
                MUTATIONS[rng.integers(len(MUTATIONS))](rng, case)
        except onnx.defs.SchemaError:
            pass  # the operator is none at this opset
        share = rng.choice([0.0, 0.3, 1.0])
        case.constant = frozenset(f"x{i}" for i in range(1, len(case.inputs)) if rng.random() < share)
        yield case


# ------------------------------------------------------------------------------------------------ ways of computing
def native(model, feed):
    return model(feed)


def reference(model, feed):
    return model.reference(feed)


def outcome(call, *args):
    """The outputs, or the class of the error; any error that is not of the family is raised."""
    try:
        return call(*args)
    except rnnfast.Error as e:
        return e


def disagreement(model, feed):
    """Return what differs between the native way, the NumPy functions and the reference; None if nothing does.

    All accept a call or refuse it with the same class of error. Values agree to TOLERANCE, except where some
    intermediate result overflows in one order of operations and not in another: the float64 result is then finite.
    """
    ways = (
        [native, by_numpy] if any(n.op_type == "BitCast" for n in model.graph.nodes) else [native, by_numpy, reference]
    )
    results = [outcome(way, model, feed) for way in ways]
    classes = {type(r).__name__ if isinstance(r, rnnfast.Error) else "accepted" for r in results}
    if len(classes) > 1:
        return f"{[str(r) if isinstance(r, rnnfast.Error) else 'accepted' for r in results]}"
    if classes == {"accepted"}:
        summed = any(n.op_type in TRANSFORMS for n in model.graph.nodes)
        for name, *values in zip(results[0], *(r.values() for r in results)):
            if not agree(*values, of_largest=OF_LARGEST if summed else 0):
                return f"{name}: {values}"
    return None


TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}  # of sums of up to 10,000 float32 in two orders; the largest found is 3e-4


# Results of a transform are sums in which large numbers cancel: their errors are in proportion to the largest one. Of
# 500 points 3e-7 of it was found. Infinity times a sine of 0 is NaN, which a fast transform does without.
TRANSFORMS = ("DFT", "STFT")
OF_LARGEST = 1e-6


def agree(x, y, exact=None, of_largest=0):
    """Return whether the native value x and that of NumPy, y, are the same.

    of_largest: for transforms, by how much of the largest number they may differ; where one is not finite they may too.
    """
    if x is None or y is None or isinstance(x, list):
        return x is y if not isinstance(x, list) else len(x) == len(y) and all(map(agree, x, y))
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if x.dtype.kind not in "fV":
        return np.array_equal(x, y)
    with np.errstate(all="ignore"):
        x, y = x.astype(np.float64), y.astype(np.float64)
        same = np.isclose(x, y, **TOLERANCE, equal_nan=True)
        if of_largest:
            same |= ~(np.abs(x - y) > of_largest * np.abs(y[np.isfinite(y)]).max(initial=0))
        if exact is not None:
            same |= np.isfinite(exact.astype(np.float64)) & ~(np.isfinite(x) & np.isfinite(y))
    return bool(same.all())
