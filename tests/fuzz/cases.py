"""The case of a seed: a random graph, or a file that was changed, with its inputs."""

import os
import signal
import tempfile
import traceback

import numpy as np
import onnx

from tests.fuzz.checks import Finding, check
from tests.fuzz.graphs import random_model
from tests.fuzz.mutations import feed_of, mutated

# One case of so many is a file that was changed.
CHANGED = 3
SECONDS = 30


class TooSlow(BaseException):
    """A case took longer than SECONDS."""


def case_of(seed):
    """Return (bytes of a model, feed) for a seed."""
    model, feed = random_model(seed)
    if seed % CHANGED:
        return model.SerializeToString(), feed
    rng = np.random.default_rng([seed, 1])
    data = mutated(model, rng)
    try:
        changed = onnx.ModelProto.FromString(data)
        names = {v.name for v in changed.graph.input}
    except Exception:  # Whatever protobuf raises: the bytes are no model any more.
        return data, feed
    if names == feed.keys() and rng.random() < 0.7:
        return data, feed
    return data, feed_of(changed, rng)


def findings(data, feed):
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
            with open(os.path.join(folder, "weights"), "wb") as file:
                file.write(bytes(8192))
            os.symlink("/etc/passwd", os.path.join(folder, "link"))
            return check(path, feed)
    except TooSlow:
        return [Finding("time", f"longer than {SECONDS} s")]
    except Exception as e:
        return [Finding("exception", "".join(traceback.format_exception(e, limit=-4)))]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
