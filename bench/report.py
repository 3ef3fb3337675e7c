"""Ratios, rates and shares of the machine's limit from results as JSON, and a Markdown table of them."""

import math

from bench.cases import GATES, MEANS, Case, share_target
from bench.engines import ENGINES
from bench.probe import USUAL_CACHES

OWN = [name for name, engine in ENGINES.items() if not engine.peer]
STATUS = {"missing": "-", "failed": "failed", "wrong": "WRONG"}


def case_of(record):
    """Return the Case of a record, which may come from a file."""
    fields = dict(record["case"])
    fields["targets"] = {int(threads): ratio for threads, ratio in fields["targets"].items()}
    fields["lengths"] = tuple(fields.get("lengths", ()))
    return Case(**fields)


def time_of(record, engine):
    """Return an engine's median seconds, or None."""
    seconds = record["results"].get(engine, {}).get("seconds")
    return seconds and seconds[1]


def best_peer(record):
    """Return the name of the fastest peer, or None."""
    return min(
        (name for name in record["results"] if name not in OWN and time_of(record, name)),
        key=lambda name: time_of(record, name),
        default=None,
    )


def ratio(record, peer=None):
    """Return the time of a peer (the best if none is named) divided by rnnfast's, the median over rounds; or None."""
    peer = peer or best_peer(record)
    relative = peer and record["results"].get(peer, {}).get("relative")
    return relative and relative[1]


def flops(case):
    """Return the floating-point operations of the products in one call, two for each multiply-add."""
    return sum(2 * case.T * case.B * GATES[case.kind] * case.H * (size + case.H) for size in case.cells)


def weight_bytes(case):
    """Return the bytes of weights read in one call: input weights once, recurrent weights at each step."""
    return sum(4 * GATES[case.kind] * case.H * (size + case.T * case.H) for size in case.cells)


def bound(case, limits, caches, threads):
    """Return the least seconds that the machine's limits allow for a call.

    A product takes the longer of two times: its multiply-adds at the FMA rate, and its weights at the rate of the
    innermost cache that holds them. That cache must hold a cell's recurrent weights for the recurrent product (all
    weights where there is one step only), and all weights of the case for the input product. Threads share the weights.
    """
    rows = GATES[case.kind] * case.H
    everything = sum(4 * rows * (size + case.H) for size in case.cells)
    total = 0
    for size in case.cells:
        recurrent = 4 * rows * case.H
        held = recurrent if case.T > 1 else everything
        total += max(
            2 * case.T * case.B * rows * size / limits["fma"],
            4 * rows * size / limits[level(everything, caches, threads)],
        )
        total += case.T * max(
            2 * case.B * rows * case.H / limits["fma"], recurrent / limits[level(held, caches, threads)]
        )
    return total


def level(size, caches, threads):
    """Return the innermost cache that holds `size` bytes; cores share the last one and each has the others."""
    caches = USUAL_CACHES | caches
    if size <= caches["L1"] * threads:
        return "L1"
    if size <= caches["L2"] * threads:
        return "L2"
    return "L3" if size <= caches["L3"] else "DRAM"


def share(record, run, machine):
    """Return the share of the limit that rnnfast's best sample reaches (limits are the probe's best), or None."""
    ours = record["results"].get("rnnfast", {}).get("least")
    return bound(case_of(record), run["limits"], machine["caches"], run["threads"]) / ours if ours else None


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


# ------------------------------------------------------------------------------------------------ Markdown
def markdown(results):
    """Return the Markdown tables of all runs."""
    machine = results["machine"]
    lines = [
        *heading(machine),
        "",
        "Median microseconds of a call, float32. `ratio`: the best of the others' times divided by rnnfast's in the "
        "same round, the median over rounds (blas is rnnfast on BLAS and no other); in bold where it is below its "
        "target. `spread`: quartiles of rnnfast's time. GB/s: weights, the recurrent ones once a step. `limit`: the "
        "share of what the machine can do (the best of the probe's samples) that rnnfast reaches (in its best sample); "
        "it can be over 100 % where a part of the weights stays in an inner cache.",
    ]
    for run in results["runs"]:
        lines += ["", *_run(run, machine)]
    return "\n".join([*lines, *removed(results)]) + "\n"


def heading(machine, what=""):
    """Return the lines of a report's heading: what was measured, and the machine."""
    found = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine["caches"].items())
    return [
        f"# {what}{machine['cpu']}",
        "",
        f"{machine['cores']} cores; {caches}; {machine['system']}; instruction set {machine['isa']} of "
        f"{', '.join(machine['isas'])}",
        "",
        f"Python {machine['python']}, {found}; {machine['compiler']}",
    ]


def removed(results):
    """Return the lines that name the variables removed from the environment."""
    found = ", ".join(f"`{k}={v}`" for k, v in results.get("removed", {}).items())
    return ["", f"Removed from the environment: {found}"] if found else []


def run_heading(run):
    return f"## {'One thread' if run['threads'] == 1 else '{} threads'.format(run['threads'])}"


def others(run):
    """Return the line that says how busy other processes were."""
    return [] if run["others"] is None else [f"Meanwhile other processes took {run['others']:.0%} of a core."]


def _run(run, machine):
    threads, limits = run["threads"], run["limits"]
    rates = ", ".join(f"{name} {limits[name] / 1e9:.0f} GB/s" for name in limits if name != "fma")
    yield run_heading(run)
    yield ""
    yield f"Measured limits: {limits['fma'] / 1e9:.0f} GFLOP/s; {rates}. At most {run['rounds']} rounds."
    yield from others(run)
    engines = [name for name in ENGINES if any(name in record["results"] for record in run["records"])]
    for group in dict.fromkeys(record["case"]["group"] for record in run["records"]):
        records = [record for record in run["records"] if record["case"]["group"] == group]
        yield ""
        yield from table(
            [
                "case",
                *(f"{name} us" if name == "rnnfast" else name for name in engines),
                "spread",
                "best peer",
                "ratio",
                "target",
                "GFLOP/s",
                "GB/s",
                "limit",
                "limit target",
            ],
            [_row(record, run, machine, engines) for record in records],
        )
        yield ""
        yield from _notes(records, threads)


def _row(record, run, machine, engines):
    """Return the cells of a case's row."""
    case, ours, found = case_of(record), time_of(record, "rnnfast"), ratio(record)
    target = case.targets.get(run["threads"])
    result = record["results"].get("rnnfast", {})
    missed = found is not None and target is not None and found < target
    rates = ("", "", "")
    if ours:
        rates = (
            f"{flops(case) / ours / 1e9:.1f}",
            f"{weight_bytes(case) / ours / 1e9:.1f}",
            f"{share(record, run, machine):.0%}",
        )
    least = share_target(case) if run["threads"] == 1 else None
    return [
        case.name,
        *(_time(record["results"].get(name)) for name in engines),
        f"{microseconds(result['seconds'][0])}-{microseconds(result['seconds'][2])}" if ours else "",
        best_peer(record) or "",
        "" if found is None else bold(f"{found:.2f}", missed),
        "" if target is None else f"{target:g}",
        *rates,
        "" if least is None else f"{least:.0%}",
    ]


def bold(text, wanted):
    return f"**{text}**" if wanted else text


def _time(result):
    if result is None:
        return ""
    return microseconds(result["seconds"][1]) if result["status"] == "ok" else STATUS[result["status"]]


def microseconds(seconds):
    """Return microseconds as text of about three digits."""
    return f"{seconds * 1e6:.{max(0, 2 - int(math.log10(max(seconds * 1e6, 1))))}f}"


def _notes(records, threads):
    """Yield lines on a whole table: targets reached, means, and engines that were wrong or failed."""
    ratios = {case_of(record): ratio(record) for record in records}
    ratios = {case: found for case, found in ratios.items() if found is not None}
    wanted = [(found, case.targets[threads]) for case, found in ratios.items() if threads in case.targets]
    if wanted:
        least = min(ratios, key=ratios.get)
        yield (
            f"{sum(found >= target for found, target in wanted)} of {len(wanted)} ratios reach their target; the "
            f"smallest is {ratios[least]:.2f} ({least.name}), their geometric mean "
            f"{geometric_mean(list(ratios.values())):.2f}."
        )
    if threads == 1 and any(case.group == "sweep" for case in ratios):
        for title, chosen, target in MEANS:
            mean = geometric_mean([found for case, found in ratios.items() if chosen(case)])
            if mean is not None:
                yield f"Geometric mean at {title}: {mean:.2f} (target {target:g})."
    for (name, what), cases in problems(records).items():
        more = f" and {len(cases) - 1} more" * (len(cases) > 1)
        yield f"{name} {what} ({cases[0]}{more})."


def problems(records):
    """Return a dict from an engine and its problem to the names of the cases that have it."""
    found = {}
    for record in records:
        for name, result in record["results"].items():
            if result["status"] == "wrong":
                what = f"is wrong: {_error(result['error'])}"
            elif result["status"] == "failed":
                what = f"failed: {' '.join(result['message'].split())[:200]}"
            else:
                continue
            found.setdefault((name, what), []).append(record["case"]["name"])
    return found


def _error(error):
    return "shapes differ or NaN" if error is None else f"off by {error:.2g} of the largest output"


def table(header, rows):
    """Yield the lines of a Markdown table."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    yield "| " + " | ".join(cell.ljust(n) for cell, n in zip(header, widths)) + " |"
    yield "| " + " | ".join("-" * n if i == 0 else "-" * (n - 1) + ":" for i, n in enumerate(widths)) + " |"
    for row in rows:
        yield (
            "| "
            + " | ".join(cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths)))
            + " |"
        )


def write(texts):
    """Write each text of a dict to the file that is its key, unless that is None."""
    for file, text in texts.items():
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
