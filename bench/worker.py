"""The measuring process: `python -m bench.worker REQUEST.json RESULT.json`, in an environment made for it.

It is pinned to as many cores as the engines get threads, before any of them is imported: some size their pools then.
"""
import json
import os
import sys
import time

from rnnfast.cli.progress import track


def run(request):
    from bench import environment, probe
    from bench.cases import CASES
    from bench.engines import ENGINES
    from bench.measure import measure, record
    threads = request["threads"]
    cases = [case for case in CASES if case.name in request["cases"]]
    engines = [ENGINES[name] for name in request["engines"]]
    caches = environment.caches()
    others, start = environment.others(), time.monotonic()
    limits = probe.limits(caches, threads)
    records = []
    for case in track(cases, f"{threads} thread{'s' * (threads > 1)}"):
        results = measure(case, engines, threads, request["rounds"], request["duration"], request["limit"])
        records.append(record(case, results))
    again = probe.limits(caches, threads)
    return {
        "machine": environment.machine(),
        "run": {
            "threads": threads,
            "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "environment": environment.settings(threads),
            "others": None if others is None else (environment.others() - others) / (time.monotonic() - start),
            "rounds": request["rounds"],
            "limits": {name: max(limits[name], again[name]) for name in limits},
            "records": records,
        },
    }


def main(source, target):
    with open(source) as file:
        request = json.load(file)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:request["threads"]])
    result = run(request)
    with open(target, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
