"""Variants of ONNX's node tests, with other attributes, opsets and values, give what onnxruntime gives.

Only results that both engines have are compared: what one of them refuses says nothing. Where onnxruntime computes
something else than the specification, its reference or torch, DIFFERENT says what; the tutorial about moving over lists
these. Each operator runs in a process of its own, since wrong attributes make onnxruntime crash.
"""

import multiprocessing
import warnings

import numpy as np
import pytest

import rnnfast
from tests.graphs import onnxruntime
from tests.onnx import mutations
from tests.onnx.test_onnx_backend import CASES

VARIANTS = 300
SECONDS = 120  # of an operator; most take one
BY_OPERATOR = mutations.node_cases(CASES.values())
# Random numbers; operators whose results have any order, or none that is specified; losses, whose classes onnxruntime
# does not check.
LEFT_OUT = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Dropout"),
    *("TopK", "TfIdfVectorizer", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"),
}
POOLS = ("AveragePool", "LpPool", "MaxPool")


def different(op, attributes):
    """Return why onnxruntime's result for these attributes is another one; None if it is not."""
    padding = attributes.get("auto_pad", b"NOTSET")
    if op in POOLS and padding.startswith(b"SAME") and max(attributes.get("dilations", [1])) > 1:
        return "the padding of dilated windows, so that the output is smaller than SAME makes it"
    if op in POOLS and padding == b"VALID" and attributes.get("ceil_mode"):
        return "another window at the end, which VALID has not"
    if op == "AffineGrid" and attributes.get("align_corners"):
        return "-1 for an axis of one place, where torch and the reference have 0"
    if op == "GridSample" and attributes.get("padding_mode") == b"reflection":
        return "reflection of the place that is nearest, where torch takes the place nearest to the reflection"
    if op == "Resize" and attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return "axes that keep their size are not cropped"
    if op == "Resize" and any(axis < 0 for axis in attributes.get("axes", ())):
        return "negative axes"
    if op == "MaxUnpool":
        return "indices are those of another output"
    if op == "StringSplit" and attributes.get("maxsplit", -1) >= 0:
        return "white space behind the last part is taken away"
    if op.endswith("Window") and attributes.get("output_datatype", 1) not in (1, 10, 11, 16):
        return "integers that are cut off from numbers next to 1"
    if op == "Celu" and attributes.get("alpha") == 0:
        return "no division by an alpha of 0"
    if op == "Attention" and attributes.get("qk_matmul_output_mode"):
        return "masked scores are the smallest number instead of -inf"
    return None


def variants(rng, cases):
    """Yield variants of cases with finite values."""
    for _ in range(VARIANTS):
        base = cases[rng.integers(len(cases))]
        case = mutations.Case(type(base.node).FromString(base.node.SerializeToString()), list(base.inputs), base.opset)
        for i, x in enumerate(case.inputs):
            if x is not None and x.dtype in (np.float32, np.float64) and rng.random() < 0.5:
                case.inputs[i] = (rng.choice([1, 3, 30]) * rng.standard_normal(x.shape)).astype(x.dtype)
        for mutation in rng.choice([mutations.other_attribute, mutations.other_opset], rng.integers(3)):
            try:
                mutation(rng, case)
            except Exception:  # the schema has no such operator at this opset
                break
        yield case


def extreme(attributes):
    """Return whether an attribute is a number that no file has."""
    numbers = [value for value in attributes.values() if isinstance(value, float)]
    return not all(value == 0 or 1e-6 < abs(value) < 1e6 for value in numbers)


def same(ours, theirs):
    """Return whether two results are the same, up to roundings of numbers as large as the largest."""
    if isinstance(theirs, np.ndarray) and ours.dtype.kind == "V":
        theirs = theirs.view(ours.dtype)  # onnxruntime gives numbers of 8 bits as bytes
    if isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f" and theirs.dtype == ours.dtype and theirs.size:
        scale = max(1, np.abs(theirs).max())
        ours, theirs = ours / scale, theirs / scale
    return mutations.agree(ours, theirs)


def finite(value):
    """Return whether a result has no infinity or NaN."""
    if isinstance(value, list):
        return all(map(finite, value))
    return value is None or value.dtype.kind != "f" or bool(np.isfinite(value).all())


def compare(op, queue):
    """Put on the queue how many variants both engines compute, and what differs."""
    count, found = 0, []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for case in variants(np.random.default_rng([1, *op.encode()]), BY_OPERATOR[op]):
            attributes = {a.name: mutations.helper.get_attribute_value(a) for a in case.node.attribute}
            if extreme(attributes):
                continue
            data, feed = case.model()
            try:
                ours = rnnfast.load(data)(feed)
                theirs = onnxruntime(data, feed)
            except Exception:
                continue
            count += 1
            for name, value in theirs.items():
                if finite(value) and not same(ours[name], value) and not different(op, attributes):
                    found.append(f"{case}: {ours[name]!r}, not {value!r}"[:1000])
    queue.put((count, found[:5]))


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(BY_OPERATOR.keys() - LEFT_OUT))
def test_variants_of_node_tests_agree_with_onnxruntime(op):
    pytest.importorskip("onnxruntime")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=compare, args=(op, queue))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"it takes more than {SECONDS} seconds")
    if process.exitcode < 0:
        pytest.skip(f"onnxruntime crashes: signal {-process.exitcode}")
    count, found = queue.get(timeout=10)
    assert found == []
    if not count:
        pytest.skip("onnxruntime computes none of them")
