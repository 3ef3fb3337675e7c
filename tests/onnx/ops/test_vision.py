"""Boxes, regions, columns, losses and strings against onnxruntime over random values; what is refused."""

import numpy as np
import pytest

import rnnfast
from rnnfast.errors import Error, InputError, InputTypeError, ModelError
from rnnfast.onnx.ops import text, vision
from tests.graphs import parse
from tests.onnx.ops.test_image import compare


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


# -------------------------------------------------------------------------------------------- against onnxruntime
@pytest.mark.parametrize("center_point_box", [0, 1])
def test_boxes_that_overlap_are_left_out(center_point_box):
    rng = np.random.default_rng(center_point_box)
    for _ in range(20):
        n, classes, count = map(int, rng.integers(1, 4, 3) * (1, 1, 5))
        boxes = rng.uniform(0, 1, (n, count, 4)).astype(np.float32)
        limits = [np.array(rng.integers(0, 6)), *(np.array([v], np.float32) for v in rng.uniform(0, 0.8, 2))]
        scores = rng.permutation(n * classes * count).reshape(n, classes, count).astype(np.float32) / 50
        compare("NonMaxSuppression", boxes, scores, *limits, opset=11, center_point_box=center_point_box)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_regions_are_sampled(mode, ratio):
    rng = np.random.default_rng(ratio)
    for _ in range(8):
        x, count = draw(rng, 2, 3, *map(int, rng.integers(2, 9, 2))), int(rng.integers(1, 4))
        corners = rng.uniform(-2, 10, (count, 2))
        rois = np.concatenate([corners, corners + rng.uniform(0.1, 6, (count, 2))], 1).astype(np.float32)
        settings = {"mode": mode, "sampling_ratio": ratio, "output_height": int(rng.integers(1, 4)), "output_width": 2}
        images, scale = rng.integers(0, 2, count), float(rng.choice([0.5, 1]))
        compare("RoiAlign", x, rois, images, opset=10, spatial_scale=scale, **settings)
        for coordinates in ("half_pixel", "output_half_pixel"):
            settings["coordinate_transformation_mode"] = coordinates
            compare("RoiAlign", x, rois, images, opset=16, spatial_scale=scale, **settings)


def test_regions_are_pooled():
    rng = np.random.default_rng(0)
    for _ in range(8):
        x = draw(rng, 2, 3, 9, 8)
        low = rng.integers(0, 5, (3, 2))
        rois = np.concatenate([rng.integers(0, 2, (3, 1)), low, low + rng.integers(0, 4, (3, 2))], 1).astype(np.float32)
        compare("MaxRoiPool", x, rois, opset=13, pooled_shape=[2, 3], spatial_scale=float(rng.choice([0.5, 1])))


def test_unpooling_undoes_pooling():
    rng = np.random.default_rng(1)
    data = parse("""g (float[a,b,c,d] x) => (float[a,b,e,f] y, int64[a,b,e,f] i) {
        y, i = MaxPool <kernel_shape = [2, 3], strides = [2, 3]> (x) }""")
    x = draw(rng, 2, 3, 6, 9)
    y, i = rnnfast.load(data).run({"x": x})
    attributes = {"kernel_shape": [2, 3], "strides": [2, 3]}
    compare("MaxUnpool", y, i, opset=11, **attributes)
    again = vision.max_unpool(y, i, kernel_shape=(2, 3), strides=(2, 3))
    np.testing.assert_array_equal(np.where(again == 0, 0, x), again)


def test_determinants():
    rng = np.random.default_rng(2)
    for shape in ((3, 3), (2, 4, 4), (2, 3, 1, 1)):
        compare("Det", draw(rng, *shape), opset=11)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_losses(op, reduction):
    rng = np.random.default_rng(3)
    for shape in ((4, 3), (4, 3, 5), (2, 4, 3, 2)):
        target, x = rng.integers(0, shape[1], (shape[0], *shape[2:])), draw(rng, *shape)
        weight = rng.uniform(0.1, 2, shape[1]).astype(np.float32)
        for given in ((x, target), (x, target, weight)):
            compare(op, *given, opset=13, reduction=reduction)
            compare(op, *given, opset=13, reduction=reduction, ignore_index=1)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_ngrams_are_counted(mode):
    rng = np.random.default_rng(4)
    for least, most, skips in ((1, 1, 0), (1, 2, 0), (2, 2, 3), (2, 3, 1), (1, 3, 2)):
        pool, counts = [2, 3, 5, 4, 5, 6, 7, 8, 6, 7, 2, 3, 5, 2, 3, 4], [0, 4, 10]
        settings = {"ngram_counts": counts, "ngram_indexes": [0, 1, 2, 3, 4, 6, 5, 7, 8], "pool_int64s": pool}
        settings |= {"min_gram_length": least, "max_gram_length": most, "max_skip_count": skips, "mode": mode}
        settings["weights"] = rng.uniform(0.5, 2, 9).tolist()
        compare("TfIdfVectorizer", rng.integers(1, 9, (3, 12)), opset=9, **settings)
        compare("TfIdfVectorizer", rng.integers(1, 9, 12), opset=9, **settings)


# ------------------------------------------------------------------------------------------------------ strings
def strings(*values):
    return np.array(values, object)


def test_strings():
    assert text.string_concat(strings("a", "b"), strings("c")).tolist() == ["ac", "bc"]
    parts, counts = text.string_split(strings("a,b,,c", "", "d"), delimiter=",")
    assert parts.tolist() == [["a", "b", "", "c"], ["", "", "", ""], ["d", "", "", ""]] and counts.tolist() == [4, 0, 1]
    assert text.string_split(strings("  a b  c"))[0].tolist() == [["a", "b", "c"]]
    assert text.string_split(strings("a b c"), maxsplit=1)[0].tolist() == [["a", "b c"]]
    words = strings("Monday", "the", "THE")
    assert text.string_normalizer(words, case_change_action="UPPER", stopwords=("the",)).tolist() == ["MONDAY"]
    assert text.string_normalizer(words, is_case_sensitive=1, stopwords=("the",)).tolist() == ["Monday", "THE"]
    assert text.string_normalizer(words[1:], stopwords=("the",)).tolist() == [""]


def test_body_for_each_element():
    data = parse("""g (float[n] x, float[m] w) => (float[n] y) {
        s = SplitToSequence <keepdims = 0> (x)
        t = SequenceMap (s, w) <body = b (float[] e, float[m] v) => (float[m] f) { f = Mul (e, v) }>
        y = ConcatFromSequence <axis = 0> (t) }""")
    x, w = np.float32([1, 2, 3]), np.float32([10, 20])
    np.testing.assert_array_equal(rnnfast.load(data)(x=x, w=w).y, np.outer(x, w).ravel())


# ------------------------------------------------------------------------------------------------------ refused
X = np.ones((1, 2, 4, 4), np.float32)
ROIS, FIRST = np.float32([[0, 0, 2, 2]]), np.array([0])


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda: vision.roi_align(X, ROIS, np.array([1])), InputError),
        (lambda: vision.roi_align(X, ROIS[:, :3], FIRST), InputError),
        (lambda: vision.roi_align(X, ROIS * np.nan, FIRST), InputError),
        (lambda: vision.roi_align(X, ROIS * 1e9, FIRST), Error),
        (lambda: vision.roi_align(X, ROIS, FIRST, output_height=0), InputError),
        (lambda: vision.max_roi_pool(X, np.float32([[2, 0, 0, 1, 1]]), pooled_shape=(1, 1)), InputError),
        (lambda: vision.max_unpool(X, np.full(X.shape, 99), kernel_shape=(1, 1)), InputError),
        (lambda: vision.max_unpool(X, np.zeros(X.shape, int), kernel_shape=(1,)), InputError),
        (lambda: vision.max_unpool(X, np.zeros(X.shape, int), kernel_shape=(1, 1), pads=(9, 9, 9, 9)), InputError),
        (lambda: vision.det(X[..., :3]), InputError),
        (lambda: vision.col2im(X[0], np.array([5, 5]), np.array([2, 2])), InputError),
        (lambda: vision.col2im(X[0], np.array([5, 5]), np.array([0, 2])), InputError),
        (lambda: vision.center_crop_pad(X, np.array([1, 1])), InputError),
        (lambda: vision.non_max_suppression(X[0], X[0][..., :3]), InputError),
        (lambda: vision.deform_conv(X, X, X), InputError),
        (lambda: vision.deform_conv(X, X[:, :, :2, :2], np.ones((1, 8, 3, 3), np.float32), group=3), InputError),
        (lambda: text.string_concat(strings("a", "b"), strings("a", "b", "c")), InputError),
        (lambda: text.string_concat(X, X), InputTypeError),
        (lambda: text.string_normalizer(strings(["a"], ["b"])), InputError),
        (
            lambda: text.tf_idf_vectorizer(
                FIRST,
                max_gram_length=1,
                max_skip_count=0,
                min_gram_length=1,
                mode="TF",
                ngram_counts=(0, 3),
                ngram_indexes=(0,),
                pool_int64s=(1, 2),
            ),
            ModelError,
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error):
        call()
