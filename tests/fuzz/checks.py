"""The promises for any file and any inputs: the checks of one case, each with the name of what it finds."""

import dataclasses
import pathlib
import zlib

import numpy as np

import rnnfast
from rnnfast.errors import Error, LimitError, UnsupportedError
from rnnfast.native import _kernels
from rnnfast.native.weight_types import WEIGHT_TYPES
from tests.cases import type_options
from tests.fuzz.by_onnxruntime import may_compare, run_onnxruntime
from tests.fuzz.noise import CONVOLUTIONS, RECURRENT, all_nodes, largest_result, noisy_reference
from tests.graphs import by_numpy

# No case needs as much; a loop without end meets it soon.
LIMITS = rnnfast.Limits(work=2 * 10**10)
# Results in float64 beyond this are not compared: sums of large numbers overflow float32 in one order and not in
# another, and a recurrence that grows reaches infinity at another step.
TOO_LARGE = 1e15
# How far float32 results may be apart: relative to the value, relative to the largest one, and in units of what
# relative noise of size NOISE around all nodes does to a float64 result in so many DRAWS.
RELATIVE, OF_LARGEST, OF_NOISE, NOISE, DRAWS = 2e-4, 1e-5, 100, 1e-6, 5
UNSTABLE = 0.01
LARGE_FOR_A_RECURRENCE = 1e4
# Partial products overflow in one order and not in another.
PRODUCTS, LARGE_IN_A_PRODUCT = {"ReduceProd", "CumProd"}, 100
# What the operators' functions refuse in float64 alone.
BITS = {"BitCast"}
# Whose results have another shape if rounding differs, which others may refuse.
SHAPED_BY_VALUES = {"NonZero", "Compress", "Unique"}
# The size of a batch that is made from one row.
COPIES = 3
CONTROL, CASTS = {"If", "Loop", "Scan"}, {"Cast", "CastLike", "QuantizeLinear", "DynamicQuantizeLinear"}
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
    found += compare_weight_type(path, feed)
    found += compare_sizes(path, feed)
    if refused_by_functions is None:
        found += compare_values(model, path, feed, first, by_functions)
    return found


def same_class(a, b):
    """Return whether two Errors tell the same; where a node is wrong and too large, either may come first."""
    return type(a) is type(b) or isinstance(a, LimitError) or isinstance(b, LimitError)


def compare_weight_type(path, feed):
    """Findings where a model with rounded weights gives other bits on another machine, or to a row alone.

    The bytes of the file say which of the types.
    """
    keys = list(WEIGHT_TYPES)
    options = type_options(keys[zlib.crc32(pathlib.Path(path).read_bytes()) % len(keys)])
    model, refused = attempt(lambda: rnnfast.load(path, limits=LIMITS, **options))
    if refused or all(node.weight_type is None for node in all_nodes(model.folded)):
        return []
    first, refused = attempt(lambda: model.run(feed))
    if refused:
        return []
    found = compare_machines(path, feed, first, **options) + compare_rows(model, feed)
    return [Finding(finding.kind, f"{options}: {finding.text}") for finding in found]


def compare_machines(path, feed, expected, **options):
    """Findings where another instruction set, or two threads, give other bits."""
    found, before = [], _kernels.get_isa()
    for isa in _kernels.isas():
        for threads in (1, 2):
            if isa == before and threads == 1:
                continue
            _kernels.set_isa(isa)
            _kernels.force_threads(threads if threads > 1 else 0)
            try:
                other, refused = attempt(
                    lambda threads=threads: rnnfast.load(path, threads=threads, limits=LIMITS, **options)
                )
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
        # A node that only a branch needs that is not taken is computed too; where it refuses, no bits are wrong.
        if refused and {node.op_type for node in all_nodes(model.graph)} & CONTROL:
            return []
        part = [np.take(value, [i], axes.outputs[v.name]) for value, v in zip(together, model.outputs)]
        if refused or different(part, alone):
            return [Finding("rows", f"row {i} of {count}, {axes}: {refused or different(part, alone)}")]
    return []


def compare_sizes(path, feed):
    """Findings where a plan for other sizes, made without a trace, differs from one that was traced.

    Integers and bools of each other call are those of the feed in another order, so that values decide otherwise too.
    """
    arrays = {name: value for name, value in feed.items() if isinstance(value, np.ndarray)}
    model, traced = (rnnfast.load(path, limits=LIMITS) for _ in range(2))
    traced.planned.symbolic = None
    attempt(lambda: model.run(feed))
    rng = np.random.default_rng(0)
    for shapes in other_shapes({name: value.shape for name, value in arrays.items()}, rng):
        other = feed | {name: np.resize(shuffled(value, rng), shapes[name]) for name, value in arrays.items()}
        got, refused = attempt(lambda other=other: model.run(other))
        expected, refused_by_trace = attempt(lambda other=other: traced.run(other))
        if str(refused) != str(refused_by_trace) or type(refused) is not type(refused_by_trace):
            return [Finding("sizes", f"{shapes}: {refused!r}; traced: {refused_by_trace!r}")]
        if refused is None and different(got, expected):
            return [Finding("sizes", f"{shapes}: {different(got, expected)}")]
    return []


def other_shapes(shapes, rng):
    """Shapes of inputs by name that may fit each other as the given ones do, in the order in which calls take them.

    Equal lengths become longer together, as sizes of one name do; then all lengths; those of one axis of all inputs;
    and one axis of one input.
    """
    lengths = sorted({n for shape in shapes.values() for n in shape}, reverse=True)
    for n in lengths[:2]:
        for more in (1, 4, 2):
            yield {name: [m + more if m == n else m for m in shape] for name, shape in shapes.items()}
    for more in (2, 1):
        yield {name: [m + more if m > 1 else m for m in shape] for name, shape in shapes.items()}
    for axis in range(min(3, max(map(len, shapes.values()), default=0))):
        yield {name: [m + (2 if i == axis else 0) for i, m in enumerate(shape)] for name, shape in shapes.items()}
    places = [(name, axis) for name, shape in shapes.items() for axis in range(len(shape))]
    for at in rng.permutation(len(places))[:2]:
        longer = {name: list(shape) for name, shape in shapes.items()}
        longer[places[at][0]][places[at][1]] += 3
        yield longer


def shuffled(value, rng):
    """Integers and bools in another order; other arrays as they are."""
    return rng.permutation(value.ravel()).reshape(value.shape) if value.dtype.kind in "iub" else value


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
        known = known or isinstance(refused, LimitError)  # It takes more work.
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
        for i, v in enumerate({v.name: v for v in model.outputs}.values()):  # results are by name
            if far(results[i], nearest[i], reference[i]) and largest_result(model, feed) < TOO_LARGE:
                # The noise is needed, which takes long.
                noisy = [noisy_reference(model, feed, seed, NOISE)[i] for seed in range(DRAWS)]
                wide = [noisy_reference(model, feed, seed, NOISE * OF_NOISE)[i] for seed in range(DRAWS)]
                text = far(results[i], nearest[i], reference[i], noisy, wide)
                found += [Finding(kind, f"output {v.name!r}: {text}")] if text else []
    return found


def has_denormal(node):
    """Return whether an attribute is a denormal, which counts as zero natively (an epsilon, say)."""
    numbers = [v for v in node.attributes.values() if isinstance(v, (float, np.floating))]
    return any(0 < abs(v) < np.finfo(np.float32).tiny for v in numbers)


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
        with np.errstate(all="ignore"):
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
        # Where NumPy in float32 is as far from float64, rounding decides: a tangent near its pole, say.
        wrong = (spread < np.inf) & (rounded | (b == c) | np.isnan(c) | (np.abs(b - c) <= UNSTABLE * np.abs(c)))
        for other in (b, c):
            wrong &= ~((a == other) | (np.isnan(a) & np.isnan(other)) | (np.abs(a - other) <= allowed))
    if not wrong.any():
        return None
    i = np.flatnonzero(wrong)[0]
    return (
        f"{wrong.sum()} of {a.size} values, the first at {i}: {a.reshape(-1)[i]!r}, by NumPy {b.reshape(-1)[i]!r}, in "
        f"float64 {c.reshape(-1)[i]!r}"
    )
