"""Frames of many live streams, and ragged batches: the engines, each in the fastest form of its own interface.

prepare(source, threads) returns call. frames(source, x) returns the argument of call, and its time is not measured: x
[B, I] for rnnfast's array form, and a list of frames, as streams send them, for the others. call(frames) advances every
stream by a frame and returns the outputs, as one array or as a list. Ragged batches take x [T, B, I] and return
y [T, B, H] with zeros behind a row's end.
"""

import dataclasses
import functools
import pathlib

import numpy as np

from bench import problem
from bench.engines import ENGINES as LAYER_ENGINES
from bench.engines import Engine
from bench.graphs import RATE
from bench.measure import compare

FILE = pathlib.Path(__file__).parents[2] / "shared" / "models" / "silero_vad_6.2.3__silero_vad.onnx"
STEPS = 3  # steps that are checked before anything is timed


# ------------------------------------------------------------------------------------------------ sources
class Silero:
    """Streams of Silero VAD 6: a frame is 32 ms of sound behind 4 ms of the frame before.

    axis: the batch axis of the ONNX input; that of the states is 1.
    """

    input, axis, fixed, states, outputs = "input", 0, {"sr": RATE}, {"state": (2, 1, 128)}, ["output", "stateN"]

    def __init__(self, case):
        self.case = case

    def inputs(self):
        return (0.1 * np.random.default_rng(1).standard_normal((STEPS, self.case.B, 576))).astype(np.float32)

    def model(self, threads):
        import rnnfast

        return rnnfast.load(FILE, threads=threads)

    def pool(self, threads):
        return self.model(threads).pool(self.case.B, **self.fixed)

    def stream(self):
        return self.model(1).stream(**self.fixed)

    def frames(self, x):
        """Return the frames as a single stream takes them."""
        return [{"input": frame} for frame in self.onnx_frames(x)]

    def onnx_frames(self, x):
        return [x[i : i + 1] for i in range(len(x))]

    def onnx(self, batch):
        return FILE

    def expected(self, x, alone):
        return alone


class Layer:
    """Streams of a layer of rnnfast.nn, which other engines run as a model of one ONNX node."""

    input, axis, fixed = "x", 1, {}

    def __init__(self, case):
        self.case, self.layer_case = case, case.layer
        self.weights = problem.weights(self.layer_case)
        names = "hc" if case.kind == "LSTM" else "h"
        self.states = {f"{name}0": (1, 1, case.H) for name in names}
        self.outputs = ["y0", *(f"{name}n" for name in names)]

    def inputs(self):
        return problem.inputs(dataclasses.replace(self.layer_case, T=STEPS, state=False))[0]

    def layer(self, threads):
        return LAYER_ENGINES["rnnfast"].layer(self.layer_case, self.weights, threads)

    def pool(self, threads):
        return self.layer(threads).pool(self.case.B)

    def stream(self):
        return self.layer(1).stream()

    def frames(self, x):
        return list(x)

    def onnx_frames(self, x):
        return [x[None, i : i + 1] for i in range(len(x))]

    def onnx(self, batch):
        return problem.onnx_model(dataclasses.replace(self.layer_case, B=batch), self.weights)

    def expected(self, x, alone):
        case = dataclasses.replace(self.layer_case, T=STEPS, state=False)
        return problem.expected(case, self.weights, (x,), LAYER_ENGINES["numpy"])[0]


def unavailable(case):
    """Return why a case cannot be measured here, or None."""
    return f"there is no {FILE.name} in {FILE.parent}" if case.kind == "Silero" and not FILE.exists() else None


# ------------------------------------------------------------------------------------------------ live streams
class Rnnfast(Engine):
    """A pool's array form; results go to the same array each time."""

    name = package = module = "rnnfast"
    peer = False

    def frames(self, source, x):
        return x

    def prepare(self, source, threads):
        pool, y = source.pool(threads), None
        ids = np.array([pool.open() for _ in range(source.case.B)])

        def call(x):
            nonlocal y
            y = pool.step(ids, x, out=y)
            return y

        return call


class OneThread(Rnnfast):
    """A pool on one thread, whatever the others have."""

    name = "rnnfast one thread"

    def prepare(self, source, threads):
        return super().prepare(source, 1)


class Mapping(Rnnfast):
    """A pool's mapping form: {id: frame} to {id: result}."""

    name = "rnnfast mapping"

    def frames(self, source, x):
        return source.frames(x)

    def prepare(self, source, threads):
        pool = source.pool(threads)
        ids = [pool.open() for _ in range(source.case.B)]
        return lambda frames: list(pool.step(dict(zip(ids, frames))).values())


class OneByOne(Engine):
    """onnxruntime with a run for each stream."""

    package = module = "onnxruntime"
    name = "onnxruntime one by one"

    def frames(self, source, x):
        return source.onnx_frames(x)

    def prepare(self, source, threads):
        run, name, outputs, states = _run(source, 1, threads), source.input, source.outputs, list(source.states)
        feeds = [
            source.fixed | {state: np.zeros(shape, np.float32) for state, shape in source.states.items()}
            for _ in range(source.case.B)
        ]

        def call(frames):
            results = []
            for feed, frame in zip(feeds, frames):
                feed[name] = frame
                y, *new = run(outputs, feed)
                results.append(y)
                for state, value in zip(states, new):
                    feed[state] = value
            return results

        return call


class ByHand(OneByOne):
    """onnxruntime with one run for all: NumPy concatenates frames and states, and splits the new states."""

    name = "onnxruntime by hand"

    def prepare(self, source, threads):
        B, name, axis, outputs = source.case.B, source.input, source.axis, source.outputs
        run = _run(source, B, threads)
        states = {state: [np.zeros(shape, np.float32) for _ in range(B)] for state, shape in source.states.items()}

        def call(frames):
            feed = {state: np.concatenate(parts, axis=1) for state, parts in states.items()}
            feed[name] = np.concatenate(frames, axis=axis)
            y, *new = run(outputs, feed | source.fixed)
            for state, value in zip(states, new):
                states[state] = [value[:, i : i + 1] for i in range(B)]
            return y

        return call


def _run(source, batch, threads):
    """Return the `run` of an onnxruntime session for this batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(source.onnx(batch), options, providers=["CPUExecutionProvider"]).run


ALONE, SEVERAL = [Rnnfast(), Mapping(), OneByOne(), ByHand()], [Rnnfast(), OneThread()]
CHART = [Rnnfast(), OneByOne(), ByHand()]


def measure_live(case, engines, *effort):
    """Return the results of `compare` for live streams.

    Outputs of the first steps must be near float64's (for a model, near those of each stream alone), and rnnfast's must
    have the bits of each stream alone.
    """
    source = (Silero if case.kind == "Silero" else Layer)(case)
    threads, x = effort[0], source.inputs()
    alone = _alone(source, x)
    right = source.expected(x, alone)

    def check(engine):
        call = engine.prepare(source, threads)
        y = np.stack([np.concatenate(list(call(engine.frames(source, frame)))).reshape(case.B, -1) for frame in x])
        return functools.partial(call, engine.frames(source, x[-1])), _error(y, right, None if engine.peer else alone)

    return compare(engines, check, (), *effort)


def _alone(source, x):
    """Return the outputs of each stream run by itself, [STEPS, B, outputs]."""
    stream, results = source.stream(), []
    for frames in zip(*map(source.frames, x)):
        results.append([np.ravel(stream.step(frame)) for frame in frames])
        stream.reset()
    return np.array(results).swapaxes(0, 1)


def _error(y, right, alone):
    """Return the error of outputs; raise ValueError if `alone` is given and they do not have its bits."""
    if alone is not None and y.tobytes() != alone.tobytes():
        raise ValueError("the bits are not those of each stream alone")
    return problem.difference(y, [right])


# ------------------------------------------------------------------------------------------------ ragged batches
class Ragged(Rnnfast):
    """Rows of different lengths in one call of rnnfast."""

    def prepare(self, source, threads):
        layer, lengths = source.layer(threads), np.array(source.case.lengths)
        return lambda x: layer(x, lengths=lengths)[0]


class Rectangle(Rnnfast):
    """As many rows in rnnfast, all of the mean length."""

    name = "rnnfast rectangle"

    def frames(self, source, x):
        return x[: round(source.case.frames / source.case.B)]

    def prepare(self, source, threads):
        layer = source.layer(threads)
        return lambda x: layer(x)[0]


class TorchPacked(Engine):
    """Rows of different lengths as torch's packed sequences."""

    package = module = "torch"
    name = "torch packed"
    frames = Rnnfast.frames

    def prepare(self, source, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        case, rnn = source.case, torch.nn.utils.rnn
        layer, lengths = getattr(torch.nn, case.kind)(case.H, case.H).eval(), torch.tensor(case.lengths)
        layer.load_state_dict({name: torch.from_numpy(a) for name, a in source.weights.items()})

        def call(x):
            with torch.inference_mode():
                packed = rnn.pack_padded_sequence(torch.from_numpy(x), lengths, enforce_sorted=False)
                return rnn.pad_packed_sequence(layer(packed)[0], total_length=len(x))[0].numpy()

        return call


RAGGED = [Ragged(), Rectangle(), TorchPacked()]


def measure_ragged(case, engines, *effort):
    """Return the results of `compare` for a ragged batch.

    Outputs must be near float64's, and rnnfast's must have the bits of each row alone.
    """
    source = Layer(case)
    threads, even = effort[0], dataclasses.replace(source.layer_case, lengths=())
    (x,) = problem.inputs(even)
    (right,) = problem.expected(even, source.weights, (x,), LAYER_ENGINES["numpy"])
    layer = source.layer(1)
    alone = np.concatenate([layer(x[:, row : row + 1])[0] for row in range(case.B)], axis=1)
    ended = np.arange(even.T)[:, None] >= np.array(case.lengths)

    def check(engine):
        call, given = engine.prepare(source, threads), engine.frames(source, x)
        values = [a[: len(given)].copy() for a in (right, alone)]
        if not isinstance(engine, Rectangle):
            for value in values:
                value[ended] = 0
        return functools.partial(call, given), _error(call(given), values[0], None if engine.peer else values[1])

    return compare(engines, check, (), *effort)


def measure(case, *effort):
    """Measure one case with the engines that it has for this number of threads."""
    if case.lengths:
        return measure_ragged(case, RAGGED, *effort)
    return measure_live(case, CHART if case.group == "sweep" else ALONE if effort[0] == 1 else SEVERAL, *effort)
