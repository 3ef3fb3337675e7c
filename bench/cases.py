"""The tables of all cases that are measured."""

import dataclasses
import itertools
import random
from typing import NamedTuple

KINDS = ("LSTM", "GRU", "RNN")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclasses.dataclass(frozen=True)
class Case:
    """A call that takes x [T, B, I] float32 through `layers` recurrent layers of H units in one or two directions.

    state: whether initial states are given and last states returned.
    entry: how rnnfast is called, as "layer" (rnnfast.nn) or "session" (InferenceSession).
    targets: number of threads -> the least ratio of the best peer's time to rnnfast's.
    lengths: each row's number of steps, if they are not all T.
    against: the peer whose time the targets are about, if it is not the best one's.
    """

    name: str
    kind: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    directions: int = 1
    state: bool = False
    entry: str = "layer"
    targets: dict = dataclasses.field(default_factory=dict, hash=False)
    group: str = "main"
    headline: str = ""  # the label in the headline chart, if the case is in it
    lengths: tuple = ()
    against: str = ""

    def __post_init__(self):
        if self.state and self.layers * self.directions != 1:
            raise ValueError(f"{self.name}: cases with states have one layer and one direction")

    @property
    def cells(self):
        """The input size of each cell, layer by layer, direction by direction."""
        return [
            self.I if layer == 0 else self.directions * self.H
            for layer in range(self.layers)
            for _ in range(self.directions)
        ]


def _case(
    kind,
    T,
    B,
    H,
    one,
    two=1.0,
    *,
    I=None,
    layers=1,
    directions=1,
    state=False,
    entry="layer",
    headline="",
    group="main",
    lengths=(),
    against="",
):
    """Return a row of a table; `one` and `two` are the targets on one and two threads."""
    name = f"{'Bi' * (directions == 2)}{kind}{layers if layers > 1 else ''}-T{T}-B{B}-H{H}"
    name += f"-I{I}" * (I is not None) + f"-{entry}" * state + "-ragged" * bool(lengths)
    return Case(
        name,
        kind,
        T,
        B,
        I or H,
        H,
        layers,
        directions,
        state,
        entry,
        {1: one, 2: two},
        group,
        headline,
        lengths,
        against,
    )


MAIN = [
    _case("LSTM", 1, 1, 64, 3.5, state=True, entry="session"),
    _case("LSTM", 1, 1, 128, 3, state=True, entry="session", headline="one step, 128 units"),
    _case("LSTM", 1, 1, 256, 1.45, state=True, entry="session"),
    _case("LSTM", 1, 1, 512, 1.3, state=True, entry="session"),
    _case("LSTM", 1, 1, 64, 5, state=True),
    _case("LSTM", 1, 1, 128, 4, state=True),
    _case("LSTM", 1, 1, 256, 1.5, state=True),
    _case("LSTM", 1, 1, 512, 1.35, state=True),
    _case("LSTM", 100, 1, 64, 1.8),
    _case("LSTM", 100, 1, 128, 1.45, headline="100 steps, 128 units"),
    _case("LSTM", 100, 1, 256, 1.25, 1.5),
    _case("LSTM", 100, 1, 512, 1.2, 1.15),
    _case("LSTM", 50, 1, 1024, 1.2),
    _case("LSTM", 4800, 1, 16, 3, I=1, headline="4800 steps, 16 units, 1 input"),
    _case("LSTM", 4800, 1, 40, 2, I=1),
    _case("LSTM", 100, 1, 256, 1.3, 1.5, directions=2, headline="both directions, 100 steps, 256 units"),
    _case("LSTM", 50, 16, 256, 1.06, directions=2),
    _case("LSTM", 100, 1, 128, 1.45, layers=3),
    _case("LSTM", 100, 8, 128, 1.1),
    _case("LSTM", 100, 8, 256, 1.08),
    _case("LSTM", 100, 32, 128, 1.05),
    _case("LSTM", 100, 32, 256, 1.07, 1.05, headline="batch 32, 100 steps, 256 units"),
    _case("LSTM", 50, 32, 512, 1.05),
    _case("LSTM", 50, 128, 256, 1.07),
    _case("GRU", 100, 1, 64, 1.8, headline="GRU, 100 steps, 64 units"),
    _case("GRU", 100, 1, 256, 1.3),
    _case("GRU", 100, 1, 512, 1.25),
    _case("GRU", 50, 32, 256, 1.08),
    _case("GRU", 100, 1, 128, 1.5, directions=2),
    _case("RNN", 100, 1, 128, 1.8),
    _case("RNN", 100, 32, 128, 1.2),
]

SIZES = (7, 20, 33, 48, 96, 100, 150, 200, 300, 384, 600, 768)
BATCHES = (1, 2, 3, 5, 12, 24, 64)
STEPS = (1, 7, 37, 500)
INPUTS = ("1", "H/2", "H", "2H", "4H")
MAX_FLOPS = 6e10  # in one call, which then takes half a second to a second


def _sweep():
    """Yield cases of sizes in between, in none of which rnnfast may be slower than a peer.

    The numbers of batches, steps and kinds have no common factor, so counting through them at once meets every
    combination of the three, and every size with each batch.
    """
    for n, (H, B) in enumerate(itertools.product(SIZES, BATCHES)):
        yield _between(KINDS[n % 3], STEPS[n % 4], B, H, INPUTS[n % 5])
    for H, T in itertools.product(SIZES, STEPS):
        yield _between("LSTM", T, 1, H, "H")


def _between(kind, T, B, H, inputs):
    """Return a case of the sweep, with fewer steps where a call would take too long."""
    I = {"1": 1, "H/2": H // 2, "H": H, "2H": 2 * H, "4H": 4 * H}[inputs]
    while 2 * T * B * GATES[kind] * H * (I + H) > MAX_FLOPS:
        T = max(steps for steps in STEPS if steps < T)
    return Case(f"{kind}-T{T}-B{B}-H{H}-I{I}", kind, T, B, I, H, state=T == 1, targets={1: 1.0, 2: 1.0}, group="sweep")


SWEEP = list(dict.fromkeys(_sweep()))
CASES = MAIN + SWEEP
# One case of each kind of work, for a quick check that everything runs.
QUICK = (
    "LSTM-T1-B1-H128-session",
    "LSTM-T1-B1-H128-layer",
    "LSTM-T100-B1-H128",
    "GRU-T100-B1-H64",
    "LSTM-T100-B8-H128",
    "BiLSTM-T100-B1-H256",
    "LSTM3-T100-B1-H128",
    "RNN-T100-B1-H128",
)

# Parts of the sweep over which the geometric mean of the ratios on one thread has a target: title, filter, target.
MEANS = [
    ("B = 1, T > 1", lambda case: case.B == 1 and case.T > 1, 1.4),
    ("T = 1", lambda case: case.T == 1, 2.5),
    ("B >= 8", lambda case: case.B >= 8, 1.07),
]


@dataclasses.dataclass(frozen=True)
class Fit:
    """An epoch of training two LSTMs of H units on `images` images of 28 rows; targets mean what a Case's do."""

    name: str
    images: int
    batch: int
    H: int
    targets: dict = dataclasses.field(default_factory=dict, hash=False)
    group: str = "fit"


def _ragged(kind, least, most, B, H, one, two):
    """Return a case of B rows whose lengths go from `least` to `most` in a fixed random order, against torch."""
    lengths = random.Random(0).sample([least + (most - least) * row // (B - 1) for row in range(B)], B)
    return _case(kind, most, B, H, one, two, group="training", lengths=tuple(lengths), against="torch")


TRAINING = [
    _case("LSTM", 100, 1, 256, 1.7, 1.4, group="training"),
    _case("LSTM", 100, 32, 128, 1.15, 1.1, group="training"),
    _case("LSTM", 100, 32, 256, 1.12, 1.1, group="training"),
    _case("GRU", 100, 1, 256, 3, 1.3, group="training"),
    _case("GRU", 100, 32, 256, 1.5, 1.3, group="training"),
    _case("LSTM", 50, 16, 256, 1.12, 1.1, directions=2, group="training"),
    _ragged("LSTM", 10, 200, 32, 256, 2, 1.5),
    Fit("MNIST", 2048, 64, 128, {1: 1.3, 2: 1.2}),
]
# The most bytes that forward may keep for backward, divided by those of the gates and states that it computed.
SAVED = 1.2


@dataclasses.dataclass(frozen=True)
class Pooled:
    """One frame of each of B live streams, or B rows of different lengths.

    The streams are of a layer of H inputs and units, or of Silero VAD. With `lengths`, B rows of those lengths run
    through a layer.

    targets: number of threads -> quantity (bench.pools says how it is measured) -> its target. A case without an entry
    for a number of threads is not measured with it; more than two threads share the entry for two.
    """

    name: str
    kind: str
    B: int
    H: int
    targets: dict = dataclasses.field(default_factory=dict, hash=False)
    lengths: tuple = ()
    group: str = "pools"

    @property
    def frames(self):
        """The number of frames of one call."""
        return sum(self.lengths) or self.B

    @property
    def layer(self):
        """The case of the layer: one step with state, or ragged rows."""
        return Case(
            self.name,
            self.kind,
            max(self.lengths, default=1),
            self.B,
            self.H,
            self.H,
            state=not self.lengths,
            lengths=self.lengths,
        )


def _pooled(kind, B, H, one, two=None):
    return Pooled(f"{kind}-B{B}-H{H}", kind, B, H, {1: one} | ({2: two} if two else {}))


POOLS = [
    _pooled(
        "Silero",
        256,
        128,
        {"us a frame": 7.5, "onnxruntime one by one": 8, "onnxruntime by hand": 3.5},
        {"rnnfast one thread": 1.8},
    ),
    _pooled("LSTM", 1024, 128, {"onnxruntime one by one": 10, "share of FMA": 0.85}, {"rnnfast one thread": 1.8}),
    _pooled("GRU", 16, 64, {"onnxruntime one by one": 4}),
    Pooled("Batcher-Silero-B1000", "Silero", 1000, 128, {1: {"streams": 2000, "p99": 10}}, group="batcher"),
    Pooled(
        "LSTM-B32-H256-ragged",
        "LSTM",
        32,
        256,
        {1: {"rnnfast rectangle": 1.15, "torch packed": 5}},
        _ragged("LSTM", 1, 1000, 32, 256, 1, 1).lengths,
    ),
]
STREAMS = [2**n for n in range(13)]  # numbers of streams in the chart


def pool_sweep(kind):
    """Return the cases of the chart of pools."""
    return [Pooled(f"{kind}-B{B}-H128", kind, B, 128, {1: {}}, group="sweep") for B in STREAMS]


class Bounds(NamedTuple):
    """Targets of an engine of low precision.

    peer: the least ratio of the best peer's time to the engine's, among peers whose error is not more than 2 % larger.
    own: the most that the engine's time may be of rnnfast's in float32.
    """

    peer: float | None = None
    own: float | None = None


@dataclasses.dataclass(frozen=True)
class Precise:
    """A call in low precision: of a layer, or of a model of `bench.precision_models`.

    trained: the name of the trained layer on which errors are measured; without one they are those of random weights.
    targets: instruction set ("" is the best of the machine) -> engine -> its Bounds.
    """

    name: str
    group: str
    layer: Case | None = None
    trained: str = ""
    targets: dict = dataclasses.field(default_factory=dict, hash=False)


def _precise(group, kind, T, B, H, peer, own, trained="", coarse=None, avx2=None, **options):
    """Return a row of PRECISION: the bounds of int8, and of int8 with 8-bit activations if `coarse` is given."""
    layer = _case(kind, T, B, H, 1, group=group, **options)
    best = {"rnnfast int8": Bounds(peer, own)}
    if coarse is not None:
        best["rnnfast int8 activations=8"] = Bounds(coarse)
    targets = {"": best} | ({"avx2": {"rnnfast int8": Bounds(own=avx2)}} if avx2 else {})
    name = layer.name + f"-{layer.entry}" * (T == 1 and layer.entry not in layer.name)
    return Precise(name, group, dataclasses.replace(layer, name=name, targets={}), trained, targets)


def _model(name, own):
    return Precise(name, "models", targets={"": {"rnnfast int8": Bounds(own=own)}})


# The trained layers with the same hidden size; there are none of 512 and 1024 units.
V4, DTLN, G2P = "silero_vad_v4__silero_vad 0", "DTLN__model_1 1", "g2p_id_lstm__encoder_model 0"
HUSH = "livekit_plugins_hush__enc 0"
ONE_ROW, ROWS = 0.75, 0.95  # of the time in float32 on AVX2
PRECISION = [
    _precise("lstm", "LSTM", 100, 1, 64, 1.4, 1.0, V4),
    _precise("lstm", "LSTM", 100, 1, 128, 1.3, 0.45, DTLN, avx2=ONE_ROW),
    _precise("lstm", "LSTM", 100, 1, 256, 1.1, 0.45, G2P, avx2=ONE_ROW),
    _precise("lstm", "LSTM", 100, 1, 512, 1.0, 0.2, avx2=ONE_ROW),
    _precise("lstm", "LSTM", 50, 1, 1024, 1.3, 0.25, avx2=ONE_ROW),
    *(
        _precise("steps", "LSTM", 1, 1, H, peer, own, trained, avx2=ONE_ROW, state=True, entry=entry)
        for H, peer, own, trained in ((128, 3, 0.7, DTLN), (256, 1.5, 0.5, G2P), (512, 1.2, 0.3, ""))
        for entry in ("session", "layer")
    ),
    _precise("batches", "LSTM", 100, 8, 256, 0.9, 0.6, G2P, coarse=1.05),
    _precise("batches", "LSTM", 100, 32, 256, 0.9, 0.55, G2P, coarse=1.05, avx2=ROWS),
    _precise("gru", "GRU", 100, 1, 128, 5, 0.5, avx2=ONE_ROW),
    _precise("gru", "GRU", 100, 1, 256, 2.5, 0.45, HUSH, avx2=ONE_ROW),
    _precise("gru", "GRU", 100, 1, 512, 1.2, 0.3, avx2=ONE_ROW),
    _precise("gru", "GRU", 100, 32, 256, 1.2, 0.6, HUSH, avx2=ROWS),
    dataclasses.replace(
        _precise("models", "LSTM", 160, 1, 256, None, 0.55, "resemblyzer", I=40, layers=3), name="resemblyzer"
    ),
    _model("Silero VAD 6, one chunk", 0.75),
    _model("Silero VAD 6, pool of 256", 0.7),
    _model("NSNet2, a frame", 0.35),
    _model("nnsplit", 0.6),
    _model("DTLN 2, a frame", 0.5),
]


def share_target(case):
    """Return the least share of the machine's limit that a case must reach on one thread, or None."""
    if case.B == 1 and case.T > 1:
        return 0.85
    if case.B >= 32 and case.H >= 256:
        return 0.92
    return 0.86 if case.B >= 32 and case.H == 128 else None


def select(patterns, quick=False, cases=CASES):
    """Return the cases that match a pattern: a name, a group, or the beginning of a name with *; all without patterns.

    Raises ValueError where a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in cases):
            raise ValueError(f"no case or group is called {pattern!r}")
    if patterns:
        return [case for case in cases if any(_matches(case, pattern) for pattern in patterns)]
    return [case for case in cases if case.name in QUICK] if quick else cases


def _matches(case, pattern):
    return pattern == case.group or pattern == case.name or pattern.endswith("*") and case.name.startswith(pattern[:-1])
