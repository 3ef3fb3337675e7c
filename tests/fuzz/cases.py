"""The case of a seed: a random graph, or a file that was changed, with its inputs."""

import os
import signal
import tempfile
import traceback

import numpy as np
import onnx

from tests.fuzz.by_onnxruntime import SANITIZED
from tests.fuzz.checks import Finding, check
from tests.fuzz.graphs import random_model
from tests.fuzz.mutations import WEIGHTS, all_graphs, call_function, feed_of, move_to_file, mutated

# One case of so many is a file that was changed.
CHANGED = 3
SECONDS = 120 if SANITIZED else 30
# What the file beside a model holds where none of its weights were moved there.
ZEROS = bytes(8192)


class TooSlow(BaseException):
    """A case took longer than SECONDS."""


def case_of(seed):
    """Return (bytes of a model, feed, bytes of the file of its external data) for a seed."""
    model, feed = random_model(seed)
    rng, weights = np.random.default_rng([seed, 1]), ZEROS
    while rng.random() < 0.3:
        call_function(model, model.graph, rng)
    if rng.random() < 0.15:
        graphs = list(all_graphs(model.graph))
        weights = move_to_file(model, graphs[int(rng.integers(len(graphs)))], rng)
    if seed % CHANGED:
        return model.SerializeToString(), feed, weights
    data = mutated(model, rng)
    try:
        changed = onnx.ModelProto.FromString(data)
        names = {v.name for v in changed.graph.input}
    except Exception:  # Whatever protobuf raises: the bytes are no model any more.
        return data, feed, weights
    if names == feed.keys() and rng.random() < 0.7:
        return data, feed, weights
    return data, feed_of(changed, rng), weights


def findings(data, feed, weights=ZEROS):
    """Return the Findings of a case; one that raises another exception than rnnfast's, or takes too long, is one too.

    The file lies in a folder of its own, with a file that its external data may name.
    """

    def stop(number, frame):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            with open(path, "wb") as file:
                file.write(data)
            with open(os.path.join(folder, WEIGHTS), "wb") as file:
                file.write(weights)
            os.symlink("/etc/passwd", os.path.join(folder, "link"))
            return check(path, feed)
    except TooSlow:
        return [Finding("time", f"longer than {SECONDS} s")]
    except Exception as e:
        return [Finding("exception", "".join(traceback.format_exception(e, limit=-4)))]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
