"""The promises for any file and any inputs: the checks of one case, each with the name of what it finds."""

import dataclasses

import numpy as np

import rnnfast
from rnnfast.errors import Error
from rnnfast.native import _kernels
from tests.graphs import by_numpy

# Results in float64 beyond this are not compared: sums of large numbers overflow float32 in one order and not in
# another, and a recurrence that grows reaches infinity at another step.
TOO_LARGE = 1e15
# How far float32 results may be apart: relative to the value, relative to the largest one, and in units of what
# relative noise of size NOISE around all nodes does to a float64 result.
RELATIVE, OF_LARGEST, OF_NOISE, NOISE = 2e-4, 1e-5, 100, 1e-6
RECURRENT = {"RNN", "LSTM", "GRU"}
LARGE_FOR_A_RECURRENCE = 1e4
CONVOLUTIONS = {"Conv", "ConvTranspose"}
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


def check(data, feed):
    """Return the Findings of a file (bytes) and a feed by name; raises whatever is not an Error of rnnfast.

    The results of the native plan are compared, bit by bit, between two calls, the first as a plan is made and the
    second as it is reused, and between all instruction sets and one and two threads; within a tolerance, with the
    operators' NumPy functions in float32 and in float64.
    """
    model, refused = attempt(lambda: rnnfast.load(data))
    if refused:
        return []
    found = []
    first, refused = attempt(lambda: model.run(feed))
    by_functions, refused_by_functions = attempt(lambda: list(by_numpy(model, feed).values()))
    if (refused is None) != (refused_by_functions is None):
        found.append(Finding("refusal", f"native: {refused}; NumPy: {refused_by_functions}"))
    elif refused and type(refused) is not type(refused_by_functions):
        found.append(Finding("error class", f"native: {refused!r}; NumPy: {refused_by_functions!r}"))
    again, refused_again = attempt(lambda: model.run(feed))
    if (refused is None) != (refused_again is None):
        found.append(Finding("second call", f"first: {refused}; second: {refused_again}"))
    if refused or refused_again:
        return found
    if different(first, again):
        found.append(Finding("second call", f"other bits: {different(first, again)}"))
    found += compare_machines(data, feed, first)
    if refused_by_functions is None:
        found += compare_values(model, feed, first, by_functions)
    return found


def compare_machines(data, feed, expected):
    """Findings where another instruction set, or two threads, give other bits."""
    found, before = [], _kernels.get_isa()
    for isa in _kernels.isas():
        for threads in (1, 2):
            if isa == before and threads == 1:
                continue
            _kernels.set_isa(isa)
            _kernels.force_threads(threads if threads > 1 else 0)
            try:
                got, refused = attempt(lambda threads=threads: rnnfast.load(data, threads=threads).run(feed))
            finally:
                _kernels.set_isa(before)
                _kernels.force_threads(0)
            if refused or different(expected, got):
                what = refused or different(expected, got)
                found.append(Finding("bits", f"{before}, 1 thread to {isa}, {threads} threads: {what}"))
    return found


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


def compare_values(model, feed, native, by_functions):
    """Findings where native results are far from those of NumPy's float32 and float64."""
    reference, refused = attempt(lambda: list(model.reference(feed).values()))
    if refused:
        return [Finding("refusal", f"the float64 reference alone refuses: {refused}")]
    operators = {node.op_type for node in all_nodes(model.graph)}
    # A gate of the fused cells is never exactly 0, and the padding of a convolution is zeros that are multiplied.
    largest = max(map(magnitude, all_arrays(model, feed)), default=0)
    if operators & CONVOLUTIONS and largest == np.inf or operators & RECURRENT and largest > LARGE_FOR_A_RECURRENCE:
        return []
    if "Unique" in operators or operators & RECURRENT and operators & STEPS:
        return []
    noisy = [noisy_reference(model, feed, seed) for seed in range(3)]
    return [
        Finding("values", f"output {v.name!r}: {text}")
        for i, v in enumerate(model.outputs)
        if (text := far(native[i], by_functions[i], reference[i], [n[i] for n in noisy]))
    ]


def noisy_reference(model, feed, seed):
    """The outputs in float64 with relative noise in what every node takes and gives: what rounding can do."""
    rng = np.random.default_rng(seed)

    def with_noise(value):
        if isinstance(value, (list, tuple)):
            return type(value)(map(with_noise, value))
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        return np.asarray(value * (1 + NOISE * rng.standard_normal(value.shape)), value.dtype)

    def meter(step):
        return lambda *args: with_noise(step.run(*map(with_noise, args)))

    planned, args = model.build(reference=True, meter=meter), model.prepare(feed, True)[1]
    planned.plan(args)
    return planned.run(args)


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


def far(native, by_functions, reference, noisy):
    """Return what is wrong with a native result: types, shapes or values; None if nothing is."""
    if isinstance(native, list):
        if not isinstance(by_functions, list) or len(by_functions) != len(native):
            return "another number of members"
        texts = (
            far(a, b, c, [n[i] for n in noisy if len(n) == len(native)])
            for i, (a, b, c) in enumerate(zip(native, by_functions, reference))
        )
        return next((text for text in texts if text), None)
    if native is None or by_functions is None:
        return None if native is by_functions else "one is absent"
    if native.dtype != by_functions.dtype or native.shape != by_functions.shape:
        return f"{native.dtype}{list(native.shape)}, expected {by_functions.dtype}{list(by_functions.shape)}"
    if native.dtype.kind == "O" or native.shape != reference.shape:
        return None
    with np.errstate(all="ignore"):
        a, b, c = (np.asarray(v, np.float64) for v in (native, by_functions, reference.astype(native.dtype)))
        spread = np.zeros(a.shape)
        for changed in noisy:
            if changed.shape != a.shape:  # The shape depends on values that rounding changes.
                return None
            change = np.abs(np.asarray(changed.astype(native.dtype), np.float64) - c)
            spread = np.maximum(spread, np.where(np.isnan(change), np.inf, change))
        finite = np.abs(reference[np.isfinite(reference)])
        if finite.max(initial=0) > TOO_LARGE:
            return None
        allowed = RELATIVE * np.abs(c) + OF_LARGEST * finite.max(initial=0) + OF_NOISE * spread + 1e-30
        if native.dtype.kind in "iub":
            allowed = OF_NOISE * spread
        wrong = np.ones(a.shape, bool)
        for other in (b, c):
            wrong &= ~((a == other) | (np.isnan(a) & np.isnan(other)) | (np.abs(a - other) <= allowed))
    if not wrong.any():
        return None
    i = np.flatnonzero(wrong)[0]
    return (
        f"{wrong.sum()} of {a.size} values, the first at {i}: {a.reshape(-1)[i]!r}, by NumPy {b.reshape(-1)[i]!r}, in "
        f"float64 {c.reshape(-1)[i]!r}"
    )
