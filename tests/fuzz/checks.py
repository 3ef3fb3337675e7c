"""The promises for any file and any inputs: the checks of one case, each with the name of what it finds."""

import dataclasses
import os

import numpy as np
import onnx

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

import rnnfast
from rnnfast.errors import Error, LimitError, UnsupportedError
from rnnfast.native import _kernels
from rnnfast.onnx.budget import Budget
from rnnfast.onnx.float64 import widen
from rnnfast.onnx.folding import LoadBudget, fold
from rnnfast.onnx.lowering import lower_reference
from rnnfast.onnx.trace import PlannedGraph
from tests.graphs import by_numpy

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
# No case needs as much; a loop without end meets it soon.
LIMITS = rnnfast.Limits(work=2 * 10**10)
# Results in float64 beyond this are not compared: sums of large numbers overflow float32 in one order and not in
# another, and a recurrence that grows reaches infinity at another step.
TOO_LARGE = 1e15
# How far float32 results may be apart: relative to the value, relative to the largest one, and in units of what
# relative noise of size NOISE around all nodes does to a float64 result.
RELATIVE, OF_LARGEST, OF_NOISE, NOISE = 2e-4, 1e-5, 100, 1e-6
RECURRENT = {"RNN", "LSTM", "GRU"}
LARGE_FOR_A_RECURRENCE = 1e4
DRAWS = 5
SUMS = {"MatMul", "Gemm", "Einsum", "CumSum", "AveragePool", "GlobalAveragePool", "Sum", "Mean"}
SMALLEST_GATE = 2.0**-62  # v_sigmoid_below of kernels/vmath.h
# Partial products overflow in one order and not in another.
PRODUCTS, LARGE_IN_A_PRODUCT = {"ReduceProd", "CumProd"}, 100
CONVOLUTIONS = {"Conv", "ConvTranspose"}
# What the operators' functions refuse in float64 alone.
BITS = {"BitCast"}
# Whose results have another shape if rounding differs, which others may refuse.
SHAPED_BY_VALUES = {"NonZero", "Compress", "Unique"}
# The size of a batch that is made from one row.
COPIES = 3
CONTROL, CASTS = {"If", "Loop", "Scan"}, {"Cast", "CastLike", "QuantizeLinear", "DynamicQuantizeLinear"}
LARGEST = 2**63 - 1
LARGE_ALPHA = 100
STEPS = {"Ceil", "Floor", "Sign", "Not", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Hardmax", "Mod"}


@dataclasses.dataclass
class Finding:
    """A check that failed: `kind` is the name of the check, `text` says what was seen."""

    kind: str
    text: str


def attempt(call):
    """Return (outputs, None) of a call, or (None, the Error that it raised). Other exceptions are not caught."""
    try:
        return call(), None
    except Error as e:
        return None, e


def check(path, feed):
    """Return the Findings of a file and a feed by name; raises whatever is not an Error of rnnfast.

    The results of the native plan are compared, bit by bit, between two calls, the first as a plan is made and the
    second as it is reused, and between all instruction sets and one and two threads; within a tolerance, with the
    operators' NumPy functions in float32 and in float64.
    """
    model, refused = attempt(lambda: rnnfast.load(path, limits=LIMITS))
    if refused:
        return []
    found = []
    first, refused = attempt(lambda: model.run(feed))
    if isinstance(refused, LimitError):  # Other ways of computing take other work.
        return []
    by_functions, refused_by_functions = attempt(lambda: list(by_numpy(model, feed).values()))
    if (refused is None) != (refused_by_functions is None):
        found.append(Finding("refusal", f"native: {refused}; NumPy: {refused_by_functions}"))
    elif refused and not same_class(refused, refused_by_functions):
        found.append(Finding("error class", f"native: {refused!r}; NumPy: {refused_by_functions!r}"))
    again, refused_again = attempt(lambda: model.run(feed))
    if (refused is None) != (refused_again is None):
        found.append(Finding("second call", f"first: {refused}; second: {refused_again}"))
    if refused or refused_again:
        return found
    if different(first, again):
        found.append(Finding("second call", f"other bits: {different(first, again)}"))
    found += compare_machines(path, feed, first)
    found += compare_rows(model, feed)
    if refused_by_functions is None:
        found += compare_values(model, path, feed, first, by_functions)
    return found


def same_class(a, b):
    """Return whether two Errors tell the same; where a node is wrong and too large, either may come first."""
    return type(a) is type(b) or isinstance(a, LimitError) or isinstance(b, LimitError)


def compare_machines(path, feed, expected):
    """Findings where another instruction set, or two threads, give other bits."""
    found, before = [], _kernels.get_isa()
    for isa in _kernels.isas():
        for threads in (1, 2):
            if isa == before and threads == 1:
                continue
            _kernels.set_isa(isa)
            _kernels.force_threads(threads if threads > 1 else 0)
            try:
                other, refused = attempt(lambda threads=threads: rnnfast.load(path, threads=threads, limits=LIMITS))
                got, refused = (None, refused) if refused else attempt(lambda other=other: other.run(feed))
            finally:
                _kernels.set_isa(before)
                _kernels.force_threads(0)
            if refused or different(expected, got):
                what = refused or different(expected, got)
                found.append(Finding("bits", f"{before}, 1 thread to {isa}, {threads} threads: {what}"))
    return found


def compare_rows(model, feed):
    """Findings where a row of a batch gets other bits than alone, though `batch_axes` says that it does not.

    A batch of one row becomes one of COPIES, whose floats differ.
    """
    axes, refused = attempt(lambda: model.batch_axes(feed))
    if refused or axes.problem is not None:
        return []
    along = {name: axis for name, axis in axes.inputs.items() if axis is not None and name in feed}
    count = next(iter({feed[name].shape[axis] for name, axis in along.items()}), 0)
    if count == 1:
        feed, count = feed | {name: copies(feed[name], axis) for name, axis in along.items()}, COPIES
    together, refused = attempt(lambda: model.run(feed))
    if refused:  # The other rows of a made batch may have values that an operator refuses.
        return []
    for i in sorted({0, count // 2, count - 1}) if count else ():
        one = feed | {name: np.take(feed[name], [i], axis) for name, axis in along.items()}
        alone, refused = attempt(lambda one=one: model.run(one))
        part = [np.take(value, [i], axes.outputs[v.name]) for value, v in zip(together, model.outputs)]
        if refused or different(part, alone):
            return [Finding("rows", f"row {i} of {count}, {axes}: {refused or different(part, alone)}")]
    return []


def copies(value, axis):
    """COPIES rows along an axis from one; floats and numbers of each further one are other ones."""
    rows = [value] + [value * value.dtype.type(-1 - i) if value.dtype.kind == "f" else value for i in range(COPIES - 1)]
    return np.concatenate(rows, axis)


def different(a, b):
    """Return where two lists of outputs have other types, shapes or bits; None where they have not."""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{len(a)} and {len(b)} values"
        return next((f"[{i}] {text}" for i, (x, y) in enumerate(zip(a, b)) if (text := different(x, y))), None)
    if a is None or b is None:
        return None if a is b else "one is absent"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}"
    if a.dtype.kind == "O" or canonical(a).tobytes() == canonical(b).tobytes():
        return None
    places = np.flatnonzero(
        canonical(a).reshape(-1).view(f"V{a.itemsize}") != canonical(b).reshape(-1).view(f"V{a.itemsize}")
    )
    i = places[0]
    return f"{len(places)} of {a.size} values, the first at {i}: {a.reshape(-1)[i]!r} and {b.reshape(-1)[i]!r}"


def canonical(a):
    """The array with one NaN for all: their sign and payload are no part of a result."""
    a = np.ascontiguousarray(a)
    if a.dtype.kind != "f" or not np.isnan(a).any():
        return a
    a = a.copy()
    a[np.isnan(a)] = np.nan
    return a


def compare_values(model, path, feed, native, by_functions):
    """Findings where native results are far from NumPy's float32 and float64, or onnxruntime's from both."""
    operators = {node.op_type for node in all_nodes(model.graph)}
    reference, refused = attempt(lambda: list(model.reference(feed).values()))
    if refused:
        known = operators & BITS and isinstance(refused, UnsupportedError) or operators & SHAPED_BY_VALUES
        return [] if known else [Finding("refusal", f"the float64 reference alone refuses: {refused}")]
    # A gate of the fused cells is never exactly 0, and the padding of a convolution is zeros that are multiplied.
    largest = max(map(magnitude, all_arrays(model, feed)), default=0)
    if operators & CONVOLUTIONS and largest == np.inf or operators & RECURRENT and largest > LARGE_FOR_A_RECURRENCE:
        return []
    if operators & PRODUCTS and largest > LARGE_IN_A_PRODUCT or any(map(has_denormal, all_nodes(model.graph))):
        return []
    if "Unique" in operators or operators & RECURRENT and operators & STEPS:
        return []
    others = {"values": (native, by_functions)}
    if may_compare(model, feed) and (by_onnxruntime := run_onnxruntime(model, path, feed)) is not None:
        others["onnxruntime"] = (by_onnxruntime, native)
    found = []
    if operators & CONTROL and operators & CASTS:  # Bodies of constants run as plans are made, where no noise is.
        others = {}
    for kind, (results, nearest) in others.items():
        for i, v in enumerate(model.outputs):
            if far(results[i], nearest[i], reference[i]):  # The noise is needed, which takes long.
                noisy = [noisy_reference(model, feed, seed, NOISE)[i] for seed in range(DRAWS)]
                wide = [noisy_reference(model, feed, seed, NOISE * OF_NOISE)[i] for seed in range(DRAWS)]
                text = far(results[i], nearest[i], reference[i], noisy, wide)
                found += [Finding(kind, f"output {v.name!r}: {text}")] if text else []
    return found


def run_onnxruntime(model, path, feed):
    """The outputs of onnxruntime; None if it is not installed, refuses the file or the inputs, or need not agree."""
    if onnxruntime is None or SANITIZED:
        return None
    proto = onnx.load(path, load_external_data=False)
    versions = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    if any(versions.get(o.domain or "ai.onnx") != o.version for f in proto.functions for o in f.opset_import):
        return None  # A function of another opset, of which onnxruntime makes the model's.
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return session.run([v.name for v in model.outputs], feed)
    except Exception:  # Its exceptions have no common class but this.
        return None


def noisy_reference(model, feed, seed, size):
    """The outputs in float64 with noise of some size in what every node takes and gives: what rounding can do.

    The noise is relative to each value, and a part of it to the largest one, which is larger for nodes that sum. That
    of seed 0 has zeros for denormals too, as native arithmetic has (docs/promises.md). The gates of recurrent nodes are
    never 0 natively.
    """
    rng = np.random.default_rng(seed)

    def with_noise(value, of_largest=size / 100):
        if isinstance(value, (list, tuple)):
            return type(value)(with_noise(member, of_largest) for member in value)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        if not seed:
            value, of_largest = np.where(np.abs(value) < np.finfo(np.float32).tiny, 0 * value, value), 0
        absolute = of_largest * np.abs(value[np.isfinite(value)]).max(initial=0)
        noise, more = rng.standard_normal((2, *value.shape))
        return np.asarray(value * (1 + size * noise) + absolute * more, value.dtype)

    def meter(step):
        name = step.node.op_type
        sums = name in RECURRENT | CONVOLUTIONS | SUMS or name.startswith("Reduce") or name.endswith("Normalization")

        def run(*args):
            results = with_noise(step.run(*map(with_noise, args)), size / 10 if sums else size / 100)
            if name not in RECURRENT:
                return results
            return tuple(y if y is None else y + SMALLEST_GATE * rng.standard_normal(y.shape) for y in results)

        return run

    return run_reference(model, feed, meter)


def run_reference(model, feed, meter):
    """The outputs in float64; `meter` makes the callables of steps, which are all nodes, as initializers are inputs."""
    planned, args = model.prepare(feed)
    known = model.graph.constants | dict(zip(planned.names, args))
    graph = widen(dataclasses.replace(model.graph, constants={}))
    graph = fold(graph, lower_reference, load_budget=LoadBudget(model.limits, 0))
    planned = PlannedGraph(graph, list(known), model.source.label, meter=meter, specialises=True, limits=model.limits)
    args = widen(list(known.values()))
    planned.plan(args)  # A trace would run the steps without a meter.
    return planned.run(args)


def may_compare(model, feed):
    """Return whether onnxruntime has to agree: all tensors have elements, which are finite, and no step has another
    reading of ONNX.
    """
    agrees, seen = True, set()

    def meter(step):
        def run(*args):
            nonlocal agrees
            results = step.run(*args)
            values = [*args, *(results if isinstance(results, tuple) else (results,))]
            agrees &= all(map(finite, values)) and not read_otherwise(step.node, *args)
            seen.add(id(step.node))
            return results

        return run

    run_reference(model, feed, meter)
    others = [node for node in all_nodes(model.graph) if id(node) not in seen]
    return agrees and not any(map(read_otherwise, others))


def finite(value):
    """Return whether there are elements, and all floats are finite and of 32 bits or more, in a sequence too."""
    if isinstance(value, list):
        return all(map(finite, value))
    if not isinstance(value, np.ndarray):
        return True
    if value.dtype.kind == "f":
        return value.size > 0 and value.itemsize >= 4 and bool(np.isfinite(value).all())
    return value.size > 0


def read_otherwise(node, *args):
    """Return whether onnxruntime computes a node in another way than ONNX's text says, which rnnfast follows.

    The inputs of nodes in functions and bodies are not known.
    """
    name, attributes = node.op_type, node.attributes
    args = [value for value in args if not isinstance(value, Budget)]
    if name == "Slice":  # The largest integer as an end means the beginning where the step is negative.
        return not args or len(args) > 4 and args[4] is not None and min(args[4], default=1) < 0 and LARGEST in args[2]
    if name == "NonZero":  # A scalar has no axes: the indices have shape [0, n].
        return not args or args[0].ndim == 0
    if name == "Shrink":  # Integers are computed in float32.
        return not args or args[0].dtype.kind != "f"
    if name == "InstanceNormalization":  # One place differs from its mean, which is computed as scale * (x - mean).
        return not args or args[0][0, 0].size == 1
    if name == "Celu":  # exp(x / alpha) - 1 is rounded to 0.
        return abs(attributes.get("alpha", 1)) > LARGE_ALPHA
    if name.endswith("Pool"):  # Sizes of outputs that are rounded up, or with SAME and dilations.
        same = str(attributes.get("auto_pad", "")).startswith("SAME")
        return bool(attributes.get("ceil_mode")) or same and "dilations" in attributes
    if name.startswith("Reduce"):  # Means of integers, and the like, are rounded otherwise.
        return not args or args[0].dtype.kind != "f" and name[6:] not in ("Sum", "Max", "Min", "Prod")
    # Activations whose alpha or beta is not given have other defaults.
    return name in RECURRENT and bool(attributes.get("activations"))


def has_denormal(node):
    """Return whether an attribute is a denormal, which counts as zero natively (an epsilon, say)."""
    numbers = [v for v in node.attributes.values() if isinstance(v, (float, np.floating))]
    return any(0 < abs(v) < np.finfo(np.float32).tiny for v in numbers)


def all_nodes(graph):
    """The nodes of a graph and of the graphs within it."""
    for node in graph.nodes:
        yield node
        for inner in (*node.graphs.values(), *([node.attributes["body"]] if node.function is None else [])):
            yield from all_nodes(inner)


def all_arrays(model, feed):
    """The arrays of a feed, and of a graph and the graphs within it."""
    yield from feed.values()
    yield from model.graph.constants.values()
    for node in all_nodes(model.graph):
        for inner in node.graphs.values():
            yield from inner.constants.values()


def magnitude(array):
    """The largest magnitude among floats; infinity for NaN."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
        return 0
    largest = np.abs(array).max()
    return np.inf if np.isnan(largest) else largest


def far(native, by_functions, reference, noisy=(), wide=()):
    """Return what is wrong with a native result: types, shapes or values; None if nothing is.

    `noisy` are references with noise, `wide` those with as much as is allowed: integers may be any between them.
    """
    if isinstance(native, list):
        if not isinstance(by_functions, list) or len(by_functions) != len(native):
            return "another number of members"
        texts = (
            far(a, b, c, *([n[i] for n in draws if len(n) == len(native)] for draws in (noisy, wide)))
            for i, (a, b, c) in enumerate(zip(native, by_functions, reference))
        )
        return next((text for text in texts if text), None)
    if native is None or by_functions is None:
        return None if native is by_functions else "one is absent"
    if native.shape == reference.shape != by_functions.shape:  # Rounding made the one of NumPy, as NonZero can tell.
        by_functions = reference.astype(by_functions.dtype)
    if any(changed.shape != reference.shape for changed in noisy):  # The shape depends on values that rounding changes.
        return None
    if native.dtype != by_functions.dtype or native.shape != by_functions.shape:
        return f"{native.dtype}{list(native.shape)}, expected {by_functions.dtype}{list(by_functions.shape)}"
    if native.dtype.kind == "O" or native.shape != reference.shape:
        return None
    with np.errstate(all="ignore"):
        a, b, c = (np.asarray(v, np.float64) for v in (native, by_functions, reference.astype(native.dtype)))
        spread = np.zeros(a.shape)
        rounded = native.dtype.kind in "iub"
        for changed in wide if rounded else noisy:
            if changed.shape != a.shape:
                return None
            changed = np.asarray(changed.astype(native.dtype), np.float64)
            change = np.where((changed == c) | np.isnan(changed) & np.isnan(c), 0, np.abs(changed - c))
            spread = np.maximum(spread, np.where(np.isnan(change), np.inf, change))
        finite = np.abs(reference[np.isfinite(reference)])
        if finite.max(initial=0) > TOO_LARGE:
            return None
        allowed = RELATIVE * np.abs(c) + OF_LARGEST * finite.max(initial=0) + OF_NOISE * spread + 1e-30
        if rounded:
            allowed = spread
        wrong = spread < np.inf
        for other in (b, c):
            wrong &= ~((a == other) | (np.isnan(a) & np.isnan(other)) | (np.abs(a - other) <= allowed))
    if not wrong.any():
        return None
    i = np.flatnonzero(wrong)[0]
    return (
        f"{wrong.sum()} of {a.size} values, the first at {i}: {a.reshape(-1)[i]!r}, by NumPy {b.reshape(-1)[i]!r}, in "
        f"float64 {c.reshape(-1)[i]!r}"
    )
