"""One case: is each engine right, and how long does it take."""

import dataclasses
import gc
import math

from bench import environment, probe, problem
from bench.cases import CASES
from bench.engines import ENGINES
from rnnfast.cli.progress import track
from rnnfast.cli.timing import WARMUP, interleave, quartiles

# Relative to the largest output. The largest difference measured of an engine in float32 is 4.6e-6 (rnnfast and
# OpenVINO, an RNN of 500 steps with 1200 inputs); one that computes in bfloat16 is off by 3e-3, in int8 by 1e-2.
TOLERANCE = 3e-5


def run(request):
    """All cases of one process, between two looks at what the machine can do."""
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
    return f"{threads} thread{'s' * (threads > 1)}"


def measure(case, engines, threads, rounds, duration, limit):
    """What `compare` says of the engines' calls."""
    state_dict, inputs = problem.weights(case), problem.inputs(case)
    right = problem.expected(case, state_dict, inputs, ENGINES["numpy"])

    def check(engine):
        call = engine.prepare(case, state_dict, threads)
        return call, problem.difference(call(*inputs), right)

    return compare(engines, check, inputs, threads, rounds, duration, limit)


def compare(engines, check, inputs, threads, rounds, duration, limit):
    """check(engine) -> (call, how wrong its outputs are); call(*inputs) is timed if they are right.

    -> engine name -> {"status": "ok", "error", "seconds", "relative", "least", "calls", "rounds"}.

    error: the largest difference relative to the largest output. seconds, relative: quartiles of a call's time, and of
    that divided by rnnfast's in the same round (so that a machine that is slow for a while is so for both); least: the
    shortest time; calls: how many a sample was the mean of. Another status says why there are no times: "missing" (not
    installed), "failed" (with "message"), "wrong" (with "error").
    """
    results, calls = {}, {}
    for engine in engines:
        if not engine.installed():
            results[engine.name] = {"status": "missing"}
            continue
        try:
            call, error = check(engine)
        except Exception as e:  # theirs, of any class
            results[engine.name] = {"status": "failed", "message": f"{type(e).__name__}: {e}"}
            continue
        good = error <= TOLERANCE  # false for NaN
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
    return {"case": dataclasses.asdict(case), "results": results}
