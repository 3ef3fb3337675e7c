"""Draw charts from results as JSON."""

import itertools

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from bench import report

COLOURS = {
    "rnnfast": "#d6336c",
    "numpy": "#868e96",
    "blas": "#f783ac",
    "onnxruntime": "#1971c2",
    "torch": "#e8590c",
    "openvino": "#5f3dc4",
    "jax": "#2f9e44",
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "rnnfast",
    "svg.fonttype": "none",
}
# The panels of the chart of steps: title, and which cases it shows.
PANELS = [
    ("one step, with state", lambda case: case.T == 1 and case.entry == "layer"),
    ("a step within a sequence", lambda case: 50 <= case.T <= 100),
]


def draw(results, out, suffix=".svg"):
    """Draw OUT-steps, OUT-roofline and OUT-headline next to `out` for the run with the fewest threads.

    Returns their paths.
    """
    run = min(results["runs"], key=lambda run: run["threads"])
    machine = results["machine"]
    paths = []
    with plt.rc_context(STYLE):
        for name, chart in (("steps", steps), ("roofline", roofline), ("headline", headline)):
            figure = chart(run, machine)
            paths.append(out.with_name(f"{out.stem}-{name}{suffix}"))
            _save(figure, paths[-1])
    return paths


def draw_pools(results, path):
    """Draw the chart of `pools` into the file at `path`."""
    with plt.rc_context(STYLE):
        _save(pools(next(run for run in results["runs"] if run["threads"] == 1), results["machine"]), path)


def draw_precision(results, path):
    """Draw the chart of `precision` into the file at `path`."""
    with plt.rc_context(STYLE):
        runs = [run for run in results["runs"] if not run["isa"]]
        _save(precision([record for run in runs for record in run["records"]], results["machine"]), path)


def _save(figure, path):
    # Without a date, the same results give the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, bbox_inches="tight", metadata=metadata, dpi=150)
    plt.close(figure)


def _note(figure, run, machine, what="float32"):
    """Write below a figure what was measured on which machine."""
    threads = f"{run['threads']} thread{'s' * (run['threads'] > 1)}"
    figure.text(
        0, -0.04, f"{machine['cpu']}, {machine['isa']}, {threads}, {what}, medians", fontsize=7, color="#868e96"
    )


def steps(run, machine):
    """Draw the time of a step against the hidden size for each engine: an LSTM with batch 1."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9, 3.8), layout="constrained")
    for panel, (title, chosen) in zip(axes, PANELS):
        sizes = set()
        for engine, colour in COLOURS.items():
            points = []
            for record in run["records"]:
                case, seconds = report.case_of(record), report.time_of(record, engine)
                if seconds and _plain_lstm(case) and chosen(case):
                    points.append((case.H, seconds / case.T * 1e6))
            if points:
                panel.plot(
                    *zip(*sorted(points)),
                    "o-",
                    color=colour,
                    label=engine,
                    markersize=4,
                    linewidth=2.5 if engine == "rnnfast" else 1.2,
                    zorder=3 if engine == "rnnfast" else 2,
                )
                sizes.update(size for size, _ in points)
        panel.set(xscale="log", yscale="log", title=title, xlabel="hidden size", ylabel="microseconds a step")
        panel.set_xticks(sorted(sizes))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter("")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.25)
    handles = dict(zip(*axes[-1].get_legend_handles_labels()[::-1])) | dict(
        zip(*axes[0].get_legend_handles_labels()[::-1])
    )
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    _note(figure, run, machine)
    return figure


def _plain_lstm(case):
    """Return whether a case is one LSTM of batch 1 with as many inputs as units."""
    plain = (case.kind, case.B, case.layers, case.directions, case.group) == ("LSTM", 1, 1, 1, "main")
    return plain and case.I == case.H


def roofline(run, machine):
    """Draw the machine's limits and every case: FLOP/s against FLOP for each byte of weights read."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    limits = run["limits"]
    reach = [2 ** (e / 4) for e in range(-12, 33)]
    for level, style in zip(("L1", "L2", "L3", "DRAM"), ("-", "--", "-.", ":")):
        axes.plot(
            reach,
            [min(limits["fma"], limits[level] * x) / 1e9 for x in reach],
            style,
            color="#495057",
            linewidth=1,
            label=f"{level} {limits[level] / 1e9:.0f} GB/s",
        )
    for engine in ("rnnfast", "best of the others"):
        points = []
        for record in run["records"]:
            case = report.case_of(record)
            if case.group != "main":
                continue
            name = "rnnfast" if engine == "rnnfast" else report.best_peer(record)
            seconds = name and report.time_of(record, name)
            if seconds:
                work = report.flops(case)
                points.append((work / report.weight_bytes(case), work / seconds / 1e9))
        if points:
            axes.scatter(
                *zip(*points),
                s=18,
                label=engine,
                zorder=3,
                alpha=0.8,
                color=COLOURS.get(engine, "#1971c2"),
                marker="o" if engine == "rnnfast" else "x",
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP for each byte of weights read (about half the batch)",
        ylabel="GFLOP/s",
        title=f"roofline: {limits['fma'] / 1e9:.0f} GFLOP/s",
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _note(figure, run, machine)
    return figure


def headline(run, machine):
    """Draw the README's chart: each engine's time divided by rnnfast's, for a handful of cases."""
    records = [record for record in run["records"] if record["case"]["headline"]]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.75 * max(1, len(records))), layout="constrained")
    engines = [name for name in COLOURS if name == "rnnfast" or name not in report.OWN]
    width = 0.8 / len(engines)
    longest = 6
    for (row, record), (place, engine) in itertools.product(enumerate(records), enumerate(engines)):
        result = record["results"].get(engine, {})
        if not result.get("relative"):
            continue
        times, height = result["relative"][1], row + (place - (len(engines) - 1) / 2) * width
        axes.barh(height, min(times, longest), width * 0.9, color=COLOURS[engine])
        axes.text(
            min(times, longest) + 0.05,
            height,
            f"{times:.1f}{' ...' if times > longest else ''}",
            va="center",
            fontsize=6,
            color="#495057",
        )
    labels = []
    for record in records:
        labels.append(f"{record['case']['headline']}\nrnnfast {_time(report.time_of(record, 'rnnfast'))}")
    axes.set_yticks(range(len(records)), labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, longest * 1.08), xlabel="time of a call, rnnfast = 1 (shorter is faster)")
    axes.legend(
        [Patch(color=COLOURS[name]) for name in engines],
        engines,
        frameon=False,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(engines),
    )
    _note(figure, run, machine)
    return figure


def _time(seconds):
    if seconds is None:
        return "was not measured"
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def pools(run, machine):
    """Draw the cost of a frame against the number of live streams for each engine."""
    records = [record for record in run["records"] if record["case"]["group"] == "sweep"]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for engine in dict.fromkeys(name for record in records for name in record["results"]):
        points = [
            (record["frames"], report.time_of(record, engine) / record["frames"] * 1e6)
            for record in records
            if report.time_of(record, engine)
        ]
        if points:
            package = engine.split()[0]
            axes.plot(
                *zip(*sorted(points)),
                "o--" if engine.endswith("by hand") else "o-",
                color=COLOURS[package],
                label="rnnfast, pool" if engine == package else engine.replace(" ", ", ", 1),
                markersize=4,
                linewidth=2.5 if package == "rnnfast" else 1.2,
                zorder=3 if package == "rnnfast" else 2,
            )
    streams = sorted(record["frames"] for record in records)
    case = records[0]["case"]
    what = "Silero VAD 6" if case["kind"] == "Silero" else f"{case['kind']}, {case['H']} inputs and units"
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"live streams of {what}, one frame each at a time",
        ylabel="microseconds a frame",
    )
    axes.set_xticks(streams[::2])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    _note(figure, run, machine)
    return figure


# The panels of the chart of low precision: the case, and its title.
PRECISION_PANELS = {
    "LSTM-T100-B1-H256": "LSTM 256, 100 steps",
    "LSTM-T100-B1-H512": "LSTM 512, 100 steps",
    "LSTM-T100-B32-H256": "LSTM 256, 100 steps, batch 32",
    "GRU-T100-B1-H256": "GRU 256, 100 steps",
    "NSNet2, a frame": "NSNet2, a frame",
    "DTLN 2, a frame": "DTLN 2, a frame",
}
PRECISIONS = {"float32": "o", "int8": "s", "int8 per channel": "D", "int8 activations=8": "P", "fp16": "^", "bf16": "v"}
TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20)


def precision_points(record):
    """Return engine -> (its time relative to rnnfast in float32, its error), of those that were timed."""
    return {
        name: (result["relative"][1], result["error"])
        for name, result in record["results"].items()
        if result.get("relative") and result["error"]
    }


def precision(records, machine):
    """Draw errors against times: what is further left is faster, what is further down is nearer to float64."""
    chosen = [record for record in records if record["case"]["name"] in PRECISION_PANELS and record["results"]]
    rows = -(-max(1, len(chosen)) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 2.9 * rows), layout="constrained", squeeze=False, sharey=True)
    for panel in axes.flat[len(chosen) :]:
        panel.set_visible(False)
    shown = set()
    for panel, record in zip(axes.flat, chosen):
        for name, point in precision_points(record).items():
            package, _, precision = name.partition(" ")
            precision = precision or "float32"
            shown |= {package, precision}
            own = package == "rnnfast"
            panel.plot(
                *point,
                PRECISIONS[precision],
                color=COLOURS[package],
                markersize=8 if own else 6,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3 if own else 2,
            )
        panel.axvline(1, color="#ced4da", linewidth=0.8, zorder=1)
        panel.set(xscale="log", yscale="log", title=PRECISION_PANELS[record["case"]["name"]])
        limits = panel.get_xlim()
        panel.set_xticks([value for value in TICKS if limits[0] <= value <= limits[1]])
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.25)
    for panel in axes[:, 0]:
        panel.set_ylabel("error")
    for panel in axes.flat[max(0, len(chosen) - 2) : len(chosen)]:
        panel.set_xlabel("time, rnnfast in float32 = 1")
    handles = [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in shown]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color="#495057", label=name)
        for name, marker in PRECISIONS.items()
        if name in shown
    ]
    figure.legend(handles=handles, loc="outside upper center", frameon=False, ncols=5)
    _note(figure, {"threads": 1}, machine, "largest error relative to the largest output")
    return figure
