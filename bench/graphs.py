"""`python -m bench.graphs FOLDER`: measure whole graphs next to onnxruntime, on one thread each, in one process.

FOLDER holds ONNX files and for each a NAME.npz with inputs (in_<input>) and expected outputs (out_<output>). A call is
timed only if its outputs are those of the file or, for other inputs, those of onnxruntime.
"""

import json
import math
import pathlib
import sys
import time
from typing import NamedTuple

import click
import numpy as np

TOLERANCE = 1e-4  # relative to the largest output where that is above 1
ROUNDS, DURATION, LIMIT = 21, 0.006, 3.0
CHUNKS = 1000  # frames of a stream


class Call(NamedTuple):
    """A call of a model that is measured.

    target: the least ratio of onnxruntime's time to rnnfast's.
    shapes: input name -> the shape of random values that replace the stored input.
    stream: whether the calls are the frames of one stream, which `stream.run` takes all at once.
    fixed: input name -> a fixed value.
    """

    label: str
    target: float | None = None
    shapes: dict = {}
    stream: bool = False
    fixed: dict = {}


RATE = np.array(16000)


def _vad(state, names, chunk_target, stream_target, batch_target, rate=True, stream=True):
    """Return Silero VAD's calls: a chunk of 32 ms (with 4 ms of the one before), a stream of them, and 64 at once."""
    fixed = {"sr": RATE} if rate else {}
    one = {"input": (1, 576)} | dict.fromkeys(names, (2, 1, state))
    many = {"input": (64, 576)} | dict.fromkeys(names, (2, 64, state))
    calls = [Call("one chunk", chunk_target, one, fixed=fixed), Call("batch 64", batch_target, many, fixed=fixed)]
    if stream:
        calls.insert(1, Call(f"{CHUNKS} chunks, stream.run", stream_target, one, True, fixed))
    return calls


STORED = [Call("stored inputs", 1.3)]
# Beginning of a file's name -> its calls; other files are called with their stored inputs.
CALLS = {
    "silero_vad_6.2.3__silero_vad.onnx": _vad(128, ["state"], 4, 5, 4),
    "silero_vad_6.2.3__silero_vad_16k_op15": _vad(128, ["state"], 4, 5, 4),
    "silero_vad_6.2.3__silero_vad_half": _vad(128, ["state"], 4, 5, 4, rate=False),
    "silero_vad_6.2.3__silero_vad_op18_ifless": _vad(128, ["state"], None, None, None),
    "silero_vad_6.2.3__silero_vad_openvino": [Call("stored inputs")],
    "silero_vad_6.2.3__silero_vad_16k_sequence": [Call("stored inputs")],
    "silero_vad_5": _vad(128, ["state"], None, None, None),
    "silero_vad_v4": [
        Call("stored inputs", 4),
        Call("batch 64", None, {"input": (64, 512), "h": (2, 64, 64), "c": (2, 64, 64)}, fixed={"sr": RATE}),
    ],
    "DTLN": [Call("one frame", 2.2)],
    "nsnet2": [
        Call("100 frames", 1.5, {"input": (1, 100, 161)}),
        Call("one frame", 3, {"input": (1, 1, 161)}),
        Call("batch 8 of 100 frames", None, {"input": (8, 100, 161)}),
    ],
    "gtcrn": [Call("one frame", 3)],
    "ort_CNTK": [Call("stored inputs")],
    "tract_byte": [*STORED, Call("batch 16", None, {"input": (16, 16)})],
    "nnsplit": [*STORED, Call("batch 16", None, {"input": (16, 64)})],
    "stressrnn": [*STORED, Call("batch 32", None, {"bidirectional_1_input": (32, 40, 36)})],
    "g2p_id_lstm__encoder": [*STORED, Call("batch 64", None, {"input_1": (64, 18, 28)})],
    "speechmos_plcmos": [*STORED, Call("batch 4", None, {"degraded_audio": (4, 1, 100, 257), "rater_embed": (4, 64)})],
}


def calls_of(name):
    """Return the calls of the file of this name."""
    found = [calls for start, calls in CALLS.items() if name.startswith(start)]
    return found[0] if found else STORED


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@click.option("--model", "pick", default="", metavar="TEXT", help="Only files with this in their names.")
@click.option(
    "--out",
    default="build/graphs.json",
    show_default=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="For the JSON; the table goes next to it.",
)
def main(folder, pick, out):
    """Measure whole graphs next to onnxruntime."""
    from bench import environment
    from rnnfast.cli.timing import pinned

    rows = []
    with pinned(1):
        for file in sorted(folder.glob("*.onnx")):
            if pick in file.name:
                rows += measured(file)
                click.echo(line(rows[-1]), err=True)
    results = {"machine": environment.machine(), "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    out.with_suffix(".md").write_text(text)
    click.echo(text)
    if any(row["error"] is None or row["error"] > TOLERANCE for row in rows):
        sys.exit(1)


def measured(file):
    """Measure every call of one file and return a row for each."""
    import onnxruntime

    import rnnfast
    from rnnfast.cli.timing import interleave, quartiles

    start = time.perf_counter()
    model = rnnfast.load(file)
    load = time.perf_counter() - start
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    peer = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    session = rnnfast.InferenceSession(file)
    with np.load(file.with_suffix(".npz")) as stored:
        inputs = {v.name: stored[f"in_{key}"] for v in model.inputs if f"in_{(key := _key(v.name))}" in stored}
        outputs = {v.name: stored[f"out_{key}"] for v in model.outputs if f"out_{(key := _key(v.name))}" in stored}
    rows = []
    for call in calls_of(file.name):
        feed = inputs | call.fixed | {name: _random(shape, inputs[name]) for name, shape in call.shapes.items()}
        expected = outputs
        if call.shapes:
            expected = dict(zip([v.name for v in model.outputs], peer.run(None, feed)))
        plan = _plan_seconds(model, feed)
        error = difference(dict(zip([v.name for v in model.outputs], session.run(None, feed))), expected)
        row = {
            "file": file.name,
            "call": call.label,
            "target": call.target,
            "load_seconds": load,
            "plan_seconds": plan,
            "error": error,
        }
        rows.append(row)
        if error is None or error > TOLERANCE:
            continue
        engines = {"rnnfast": lambda feed: session.run(None, feed), "onnxruntime": lambda feed: peer.run(None, feed)}
        frames = 1
        if call.stream:
            frames = CHUNKS
            engines["rnnfast"] = _streamed(model, call, feed)
        timed = interleave(engines, (feed,), ROUNDS, DURATION, LIMIT)
        ours, theirs = timed["rnnfast"].seconds / frames, timed["onnxruntime"].seconds
        row |= {"seconds": quartiles(ours), "onnxruntime_seconds": quartiles(theirs), "ratio": quartiles(theirs / ours)}
    return rows


def _streamed(model, call, feed):
    """Return a call that runs a stream over CHUNKS copies of the feed's frame."""
    stream = model.stream(**call.fixed)
    frames = {
        name: np.stack([value] * CHUNKS)
        for name, value in feed.items()
        if name not in stream.states and name not in call.fixed
    }
    return lambda _: stream.run(**frames)


def _key(name):
    """Return an input's or output's name as the stored arrays have it."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _random(shape, like):
    """Return random values of the dtype of `like`; integers stay in its range."""
    rng = np.random.default_rng(7)
    if like.dtype.kind in "iu":
        return rng.integers(0, max(2, int(like.max(initial=1))), shape).astype(like.dtype)
    return (0.1 * rng.standard_normal(shape)).astype(like.dtype)


def _plan_seconds(model, feed):
    """Return the seconds that planning takes: the least time of a first call less the least of a later one."""
    first, later = math.inf, math.inf
    for _ in range(3):
        planned, args = model.build(), model.prepare(feed)[1]
        for i in range(3):
            start = time.perf_counter()
            planned.run(args)
            seconds = time.perf_counter() - start
            first, later = (min(first, seconds), later) if i == 0 else (first, min(later, seconds))
    return first - later


def difference(found, expected):
    """Return the largest difference, relative to the largest value of its output where that is above 1.

    None if a shape differs, if the difference is not finite, or if no output is expected.
    """
    worst = 0.0
    for name, right in expected.items():
        if found[name].shape != right.shape:
            return None
        if right.size:
            scale = max(1.0, float(np.max(np.abs(right.astype(np.float64)))))
            worst = max(worst, float(np.max(np.abs(found[name].astype(np.float64) - right))) / scale)
    return worst if expected and math.isfinite(worst) else None


def line(row):
    """Return a row as one line for the terminal."""
    if "ratio" not in row:
        return f"{row['file']} {row['call']}: WRONG, {row['error']}"
    return f"{row['file']} {row['call']}: {row['seconds'][1] * 1e6:.1f} us, {row['ratio'][1]:.2f}"


def markdown(results):
    """Return the Markdown table of all rows."""
    machine = results["machine"]
    lines = [
        f"# Whole graphs on {machine['cpu']}",
        "",
        "One thread, NumPy in and out, rnnfast's `InferenceSession.run` (or `stream.run`, a chunk) next to "
        "onnxruntime's with all of its optimisations; medians. `difference`: the largest from the stored outputs, "
        "or from onnxruntime's for other inputs. Ratios below their target in bold.",
        "",
        "| model | call | load ms | plan ms | rnnfast us | calls a second | onnxruntime us | ratio | target | "
        "difference |",
        "| --- | --- " + "| ---: " * 8 + "|",
    ]
    for row in results["rows"]:
        if "ratio" not in row:
            lines.append(f"| {row['file']} | {row['call']} | | | WRONG | | | | | {row['error']} |")
            continue
        ratio, target = row["ratio"][1], row["target"]
        text = f"{ratio:.2f}" if target is None or ratio >= target else f"**{ratio:.2f}**"
        lines.append(
            f"| {row['file'].removesuffix('.onnx')} | {row['call']} | {row['load_seconds'] * 1e3:.0f} | "
            f"{row['plan_seconds'] * 1e3:.1f} | {row['seconds'][1] * 1e6:.1f} | {1 / row['seconds'][1]:,.0f} | "
            f"{row['onnxruntime_seconds'][1] * 1e6:.1f} | {text} | {target or ''} | {row['error']:.1e} |"
        )
    ratios = [row["ratio"][1] for row in results["rows"] if "ratio" in row]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    reached = [row["ratio"][1] >= row["target"] for row in results["rows"] if "ratio" in row and row["target"]]
    return "\n".join(
        [
            *lines,
            "",
            f"{sum(reached)} of {len(reached)} targets are reached; the geometric mean of all ratios is {mean:.2f}.",
            "",
        ]
    )


if __name__ == "__main__":
    main(prog_name="python -m bench.graphs")
