"""The results of onnxruntime where it is installed, and whether they have to be those of rnnfast."""

import os

import numpy as np
import onnx

from rnnfast.onnx.budget import Budget
from tests.fuzz.noise import RECURRENT, all_nodes, run_reference

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
LARGEST = 2**63 - 1
LARGE_ALPHA = 100


def run_onnxruntime(model, path, feed):
    """The outputs of onnxruntime; None if it is not installed, refuses the file or the inputs, or need not agree."""
    if onnxruntime is None or SANITIZED:
        return None
    proto = onnx.load(path, load_external_data=False)
    versions = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    if any(versions.get(o.domain or "ai.onnx") != o.version for f in proto.functions for o in f.opset_import):
        return None  # A function of another opset, of which onnxruntime makes the model's.
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = session.run([v.name for v in model.outputs], feed)
    except Exception:  # Its exceptions have no common class but this.
        return None
    return outputs if all(map(finite, outputs)) else None


def may_compare(model, feed):
    """Return whether onnxruntime has to agree: all tensors have elements, which are finite, and no step has another
    reading of ONNX.
    """
    agrees, seen = True, set()

    def meter(step):
        def run(*args):
            nonlocal agrees
            results = step.run(*args)
            values = [*args, *(results if isinstance(results, tuple) else (results,))]
            agrees &= all(map(finite, values)) and not read_otherwise(step.node, *args)
            seen.add(id(step.node))
            return results

        return run

    run_reference(model, feed, meter)
    others = [node for node in all_nodes(model.graph) if id(node) not in seen]
    return agrees and not any(map(read_otherwise, others))


def finite(value):
    """Return whether there are elements, and all floats are finite and of 32 bits or more, in a sequence too."""
    if isinstance(value, list):
        return all(map(finite, value))
    if not isinstance(value, np.ndarray):
        return True
    if value.dtype.kind == "f":
        return value.size > 0 and value.itemsize >= 4 and bool(np.isfinite(value).all())
    return value.size > 0


def read_otherwise(node, *args):
    """Return whether onnxruntime computes a node in another way than ONNX's text says, which rnnfast follows.

    The inputs of nodes in functions and bodies are not known.
    """
    name, attributes = node.op_type, node.attributes
    args = [value for value in args if not isinstance(value, Budget)]
    if name == "Slice":  # The largest integer as an end means the beginning where the step is negative.
        steps = args[4] if len(args) > 4 and args[4] is not None else 1
        return not args or np.min(steps, initial=1) < 0 and bool(np.any(args[2] == LARGEST))
    if name == "NonZero":  # A scalar has no axes: the indices have shape [0, n].
        return not args or args[0].ndim == 0
    if name == "Shrink":  # Integers are computed in float32.
        return not args or args[0].dtype.kind != "f"
    if name == "InstanceNormalization":  # One place differs from its mean, which is computed as scale * (x - mean).
        return not args or args[0][0, 0].size == 1
    if name == "BatchNormalization":  # In a body, new means and variances are written over those of the constants.
        return not args and bool(attributes.get("training_mode"))
    if name == "BlackmanWindow":  # All of at most two points may be 0, which float32 misses by a rounding.
        return not args or args[0] <= 2
    if name == "Celu":  # exp(x / alpha) - 1 is rounded to 0.
        return abs(attributes.get("alpha", 1)) > LARGE_ALPHA
    if name.endswith("Pool"):  # Sizes of outputs that are rounded up, or with SAME and dilations.
        same = str(attributes.get("auto_pad", "")).startswith("SAME")
        return bool(attributes.get("ceil_mode")) or same and "dilations" in attributes
    if name.startswith("Reduce"):  # Means of integers, and the like, are rounded otherwise.
        return not args or args[0].dtype.kind != "f" and name[6:] not in ("Sum", "Max", "Min", "Prod")
    # Activations whose alpha or beta is not given have other defaults.
    return name in RECURRENT and bool(attributes.get("activations"))
