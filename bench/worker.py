"""A measuring process for one number of threads: `python -m bench.worker REQUEST.json RESULT.json`.

It runs in an environment made for it and is pinned to as many cores as the engines get threads. It is pinned before any
engine is imported, since some size their pools of threads then.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import click

from bench import environment

ROOT = pathlib.Path(__file__).parent.parent


def default_threads():
    """Return the numbers of threads that are measured by default: 1, and 2 where there are two cores."""
    return tuple(range(1, 1 + min(2, available_cores())))


def available_cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def measured(module, threads, **request):
    """Call run(request) of a module in one process for each number of threads, and return all results."""
    results = {"runs": []}
    for count in threads:
        if count > available_cores():
            raise click.BadParameter(f"{count}: there are {available_cores()} cores", param_hint="--threads")
    for count in threads:
        environ, results["removed"] = environment.clean(os.environ, count)
        with tempfile.TemporaryDirectory() as folder:
            source, target = pathlib.Path(folder, "request.json"), pathlib.Path(folder, "result.json")
            source.write_text(json.dumps({"module": module, "threads": count, **request}))
            done = subprocess.run([sys.executable, "-m", "bench.worker", source, target], cwd=ROOT, env=environ)
            if done.returncode:
                raise click.ClickException(f"the measuring process ended with status {done.returncode}")
            part = json.loads(target.read_text())
        results["machine"] = part["machine"]
        results["runs"].append(part["run"])
    return results


def run(request):
    """Measure in this process, and add the machine and the environment to the results."""
    threads = request["threads"]
    others, start = environment.others(), time.monotonic()
    found = importlib.import_module(request["module"]).run(request)
    return {
        "machine": environment.machine(),
        "run": {
            "threads": threads,
            "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "environment": environment.settings(threads),
            "others": None if others is None else (environment.others() - others) / (time.monotonic() - start),
            "rounds": request["rounds"],
            **found,
        },
    }


def main(source, target):
    """Pin this process, measure what the file `source` requests and write the results to the file `target`."""
    with open(source) as file:
        request = json.load(file)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["threads"]])
    result = run(request)
    with open(target, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
