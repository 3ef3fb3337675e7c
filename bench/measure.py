"""Check and time every engine on one case."""

import dataclasses
import gc
import math

from bench import environment, probe, problem
from bench.cases import CASES
from bench.engines import ENGINES
from rnnfast.cli.progress import track
from rnnfast.cli.timing import WARMUP, interleave, quartiles


def run(request):
    """Measure all cases of one process; the machine's limits are probed before and after."""
    threads, caches = request["threads"], environment.caches()
    cases = [case for case in CASES if case.name in request["cases"]]
    engines = [ENGINES[name] for name in request["engines"]]
    limits = probe.limits(caches, threads)
    records = []
    for case in track(cases, progress(threads)):
        results = measure(case, engines, threads, request["rounds"], request["duration"], request["limit"])
        records.append(record(case, results))
    again = probe.limits(caches, threads)
    return {"limits": {name: max(limits[name], again[name]) for name in limits}, "records": records}


def progress(threads):
    """Return the title of the progress bar."""
    return f"{threads} thread{'s' * (threads > 1)}"


def measure(case, engines, threads, rounds, duration, limit):
    """Return the results of `compare` for forward calls."""
    state_dict, inputs = problem.weights(case), problem.inputs(case)
    right = problem.expected(case, state_dict, inputs, ENGINES["numpy"])

    def check(engine):
        call = engine.prepare(case, state_dict, threads)
        return call, problem.difference(call(*inputs), right)

    return compare(engines, check, inputs, threads, rounds, duration, limit)


def compare(engines, check, inputs, threads, rounds, duration, limit):
    """Check every engine, and time those that are right.

    check(engine) returns a call and the error of its outputs; call(*inputs) is what is timed.

    Returns a dict for each engine's name. "status" is "ok", or says why there are no times: "missing" (not
    installed), "failed" (with "message") or "wrong" (with "error"). With "ok" there are: "error", the largest
    difference relative to the largest output; "seconds", the quartiles of a call's time; "relative", the quartiles of
    that time divided by rnnfast's in the same round, so that a machine that is slow for a while is slow for both;
    "least", the shortest time; "calls", the number of calls of which a sample is the mean; "rounds", the number of
    samples.
    """
    results, calls = {}, {}
    for engine in engines:
        if not engine.installed():
            results[engine.name] = {"status": "missing"}
            continue
        try:
            call, error = check(engine)
        except Exception as e:  # an engine may raise anything
            results[engine.name] = {"status": "failed", "message": f"{type(e).__name__}: {e}"}
            continue
        good = error <= engine.tolerance  # false for NaN
        results[engine.name] = {"status": "ok" if good else "wrong", "error": error if math.isfinite(error) else None}
        if good:
            calls[engine.name] = call
    if calls:
        timed = interleave(calls, inputs, rounds, duration, limit, WARMUP if threads > 1 else 0)
        ours = timed.get("rnnfast")
        for name, (seconds, count) in timed.items():
            results[name] |= {
                "seconds": quartiles(seconds),
                "relative": ours and quartiles(seconds / ours.seconds),
                "least": float(seconds.min()),
                "calls": count,
                "rounds": len(seconds),
            }
    calls.clear()
    gc.collect()
    return results


def record(case, results):
    """Return a case and its results as they are written to JSON."""
    return {"case": dataclasses.asdict(case), "results": results}
