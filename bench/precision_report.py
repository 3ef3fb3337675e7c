"""Tables of low precision: each target next to what was reached, all times with their errors, and the pages' table."""

from bench import report
from bench.precision_engines import ENGINES, OWN

# A peer counts for a ratio if its error is not more than this times rnnfast's; beyond it a faster answer is wronger.
ERROR_MARGIN = 1.02
FASTER_AND_WRONGER, WRONGER = "†", "‡"
OWN_NAMES = [engine.name for engine in OWN]
MAIN, DYNAMIC = "rnnfast int8", "onnxruntime int8"
NOTE = (
    "One thread, NumPy in and out; median microseconds of a call. Errors: the largest difference to the float64 "
    "results of the float32 weights, relative to the largest value of the output; on trained layers and models where "
    "there are some of this size, else on random weights. `peer`: the fastest engine of others, at any precision, "
    f"whose error is at most {ERROR_MARGIN:g} times that of rnnfast's row; `ratio`: its time divided by rnnfast's, and "
    f"beside the target that of onnxruntime's faster int8, with {WRONGER} if its error is larger. `of float32`: the "
    "share of the time of rnnfast in float32. Times are compared in the same rounds. In bold: what misses its target. "
    f"{FASTER_AND_WRONGER}: faster than rnnfast's int8, and wronger by more than 2 %."
)
TITLES = {
    "lstm": "LSTM, a sequence",
    "steps": "LSTM, one step with states",
    "batches": "LSTM, batches",
    "gru": "GRU",
    "models": "Whole models",
}
# The cases and engines of the table of the documentation: name of the case -> its words there.
SHOWN = {
    "LSTM-T100-B1-H128": "LSTM 128, 100 steps",
    "LSTM-T100-B1-H256": "LSTM 256, 100 steps",
    "LSTM-T100-B1-H512": "LSTM 512, 100 steps",
    "LSTM-T1-B1-H256-layer": "LSTM 256, one step",
    "LSTM-T100-B32-H256": "LSTM 256, 100 steps, batch 32",
    "GRU-T100-B1-H256": "GRU 256, 100 steps",
    "NSNet2, a frame": "NSNet2, a frame",
    "DTLN 2, a frame": "DTLN 2, a frame",
}
SHOWN_ENGINES = [
    "rnnfast",
    "rnnfast int8",
    "rnnfast int8 activations=8",
    "rnnfast fp16",
    "rnnfast bf16",
    "onnxruntime int8 per channel",
    "torch int8",
]


# ------------------------------------------------------------------------------------------------ comparisons
def best_peer(record, own=MAIN):
    """Return the name of the fastest peer that is not wronger than an engine of ours, or None."""
    ours = record["results"].get(own, {}).get("error")
    if ours is None:
        return None
    return min(
        (
            name
            for name, result in record["results"].items()
            if name not in OWN_NAMES and result.get("seconds") and result["error"] <= ERROR_MARGIN * ours
        ),
        key=lambda name: report.time_of(record, name),
        default=None,
    )


def ratio(record, name, other):
    """Return the time of `name` divided by that of another engine, from times relative to rnnfast's in float32."""
    results = record["results"]
    over, under = (results.get(engine, {}).get("relative") for engine in (name, other))
    return over[1] / under[1] if over and under else None


def is_faster_and_wronger(record, name):
    """Return whether an engine is faster than rnnfast's int8 and its error more than 2 % larger."""
    result, ours = record["results"].get(name, {}), record["results"].get(MAIN, {})
    if not result.get("seconds") or not ours.get("seconds"):
        return False
    return result["seconds"][1] < ours["seconds"][1] and result["error"] > ERROR_MARGIN * ours["error"]


def bounds(record, isa):
    """Return engine -> (peer, own), the targets of a record on an instruction set; "" is the best."""
    return record["case"]["targets"].get(isa, {})


def problems(results, names):
    """Return the lines on engines of these names that were wrong or failed."""
    records = [record for run in results["runs"] for record in run["records"]]
    return [
        f"{name} {what} ({', '.join(cases)})."
        for (name, what), cases in report.problems(records).items()
        if name in names
    ]


# ------------------------------------------------------------------------------------------------ Markdown
def markdown(results):
    """Return all tables."""
    if not results["runs"]:
        return "There are no results.\n"
    lines = [*report.heading(results["machine"], "Low precision on "), "", NOTE]
    for isa in dict.fromkeys(run["isa"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["isa"] == isa]
        records = [record for run in runs for record in run["records"]]
        busiest = max((run["others"] for run in runs if run["others"] is not None), default=None)
        lines += ["", f"## {isa or 'The best instruction set'}", "", *report.others({"others": busiest})]
        lines += ["", *_targets(records, isa)]
        for group, title in TITLES.items():
            chosen = [record for record in records if record["case"]["group"] == group]
            if chosen:
                lines += ["", f"### {title}", "", *_times(chosen)]
        lines += ["", *_notes(records, runs)]
    lines += ["", "## The table of the documentation", "", *summary(results)]
    return "\n".join([*lines, *report.removed(results)]) + "\n"


def _targets(records, isa):
    rows, met = [], []
    for record in records:
        for own, (least, most) in bounds(record, isa).items():
            peer = best_peer(record, own)
            found = peer and ratio(record, peer, own)
            share = ratio(record, own, "rnnfast")
            met += [found >= least] if found and least else []
            met += [share <= most] if share and most else []
            rows.append(
                [
                    record["case"]["name"],
                    own.removeprefix("rnnfast "),
                    _cell(record, own),
                    peer or "",
                    report.bold(f"{found:.2f}", bool(least) and found < least) if found else "",
                    f"{least:g}" if least else "",
                    _dynamic(record, own),
                    report.bold(f"{share:.2f}", bool(most) and share > most) if share else "",
                    f"{most:g}" if most else "",
                ]
            )
    header = [
        "case",
        "weights",
        "us (error)",
        "peer",
        "ratio",
        "at least",
        "int8 of onnxruntime",
        "of float32",
        "at most",
    ]
    yield from report.table(header, rows)
    yield ""
    yield f"{sum(met)} of {len(met)} measured targets are reached."


def _dynamic(record, own):
    """Return the time of the faster of onnxruntime's int8 forms divided by ours, marked if that is wronger."""
    names = [name for name in record["results"] if name.startswith(DYNAMIC) and report.time_of(record, name)]
    if not names or not report.time_of(record, own):
        return ""
    name = min(names, key=lambda name: report.time_of(record, name))
    wronger = record["results"][name]["error"] > ERROR_MARGIN * record["results"][own]["error"]
    return f"{ratio(record, name, own):.2f}{WRONGER * wronger}"


def _times(records):
    names = [name for name in ENGINES if any(name in record["results"] for record in records)]
    rows = [[record["case"]["name"], *(_cell(record, name) for name in names)] for record in records]
    yield from report.table(["case", *names], rows)


def _cell(record, name):
    """Return an engine's time, its error in brackets, and a mark if it is faster and wronger than rnnfast."""
    result = record["results"].get(name)
    if result is None:
        return ""
    if result["status"] == "failed" and name not in OWN_NAMES:
        return report.STATUS["missing"]  # it has no such form, as the notes say
    if result["status"] != "ok":
        return report.STATUS[result["status"]]
    mark = FASTER_AND_WRONGER if is_faster_and_wronger(record, name) else ""
    return f"{report.microseconds(result['seconds'][1])} ({result['error']:.1e}){mark}"


def _notes(records, runs):
    weights = {}
    for record in records:
        if record["unavailable"]:
            yield f"{record['case']['name']} is not available: {record['unavailable']}."
        else:
            weights.setdefault(record["weights"], []).append(record["case"]["name"])
    for kind, cases in weights.items():
        yield f"Errors on {kind} weights: {', '.join(cases)}."
    yield from problems({"runs": runs}, list(ENGINES))


def summary(results):
    """Return the lines of the documentation's table: some cases on the best instruction set."""
    found = {record["case"]["name"]: record for run in results["runs"] if not run["isa"] for record in run["records"]}
    rows = [
        [words, *(_cell(found[name], engine) for engine in SHOWN_ENGINES)]
        for name, words in SHOWN.items()
        if name in found
    ]
    return list(report.table(["microseconds (error)", *SHOWN_ENGINES], rows))
