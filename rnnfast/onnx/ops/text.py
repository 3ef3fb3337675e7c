"""Operators on strings (ONNX operator specification, for example StringSplit-20).

RegexFullMatch is left out: its patterns are those of RE2, which end in time that is linear in the text. Python's own
may take for ever.
"""

from typing import Literal

import numpy as np

from rnnfast.errors import InputError, InputTypeError, ModelError
from rnnfast.onnx.ops.types import Flag, Floats, Ints, Strs, check_size


def _check_text(x, name):
    """Raise InputTypeError unless x is a tensor of strings."""
    if x.dtype != object:
        raise InputTypeError(f"{name} of type {x.dtype}, expected strings")


def _texts(values, shape):
    """Return strings as a tensor."""
    result = np.empty(len(values), object)
    result[:] = values
    return result.reshape(shape)


def string_concat(x, y):
    """StringConcat: x and y one behind the other, with broadcasting."""
    _check_text(x, "X")
    _check_text(y, "Y")
    try:
        shape = np.broadcast_shapes(x.shape, y.shape)
    except ValueError as e:
        raise InputError(f"shapes {x.shape} and {y.shape} do not broadcast") from e
    check_size(shape, object)
    pairs = zip(np.broadcast_to(x, shape).flat, np.broadcast_to(y, shape).flat)
    return _texts([a + b for a, b in pairs], shape)


def string_split(x, *, delimiter: str = "", maxsplit: int | None = None):
    """StringSplit: the parts of each string, filled up with empty ones, and their numbers.

    Without a delimiter parts lie between white space.
    """
    _check_text(x, "the input")
    most = -1 if maxsplit is None else maxsplit
    parts = [text.split(delimiter or None, most) if text else [] for text in x.flat]
    longest = max(map(len, parts), default=0)
    check_size((*x.shape, longest), object)
    filled = [part for found in parts for part in found + [""] * (longest - len(found))]
    return _texts(filled, (*x.shape, longest)), np.array([len(found) for found in parts], np.int64).reshape(x.shape)


def string_normalizer(
    x,
    *,
    case_change_action: Literal["NONE", "LOWER", "UPPER"] = "NONE",
    is_case_sensitive: Flag = 0,
    locale: str = "en_US",
    stopwords: Strs | None = None,
):
    """StringNormalizer: the strings that are no stop words, in lower or upper case; one empty string if none is left.

    The case is Unicode's, whatever the locale.
    """
    _check_text(x, "the input")
    if x.ndim not in (1, 2) or x.ndim == 2 and x.shape[0] != 1:
        raise InputError(f"an input of shape {x.shape}, expected [C] or [1, C]")
    fold = (lambda text: text) if is_case_sensitive else str.lower
    stops = {fold(word) for word in stopwords or ()}
    left = [text for text in x.flat if fold(text) not in stops] or [""]
    change = {"NONE": lambda text: text, "LOWER": str.lower, "UPPER": str.upper}[case_change_action]
    return _texts([change(text) for text in left], (*x.shape[:-1], len(left)))


def tf_idf_vectorizer(
    x,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: Literal["TF", "IDF", "TFIDF"],
    ngram_counts: Ints,
    ngram_indexes: Ints,
    pool_int64s: Ints | None = None,
    pool_strings: Strs | None = None,
    weights: Floats | None = None,
):
    """TfIdfVectorizer: how often each n-gram of the pool is in each row, its members up to max_skip_count apart."""
    pool = pool_int64s if pool_strings is None else pool_strings
    if pool is None or (x.dtype == object) != (pool_strings is not None):
        raise InputTypeError(f"an input of type {x.dtype}, expected that of the pool")
    if x.ndim not in (1, 2):
        raise InputError(f"an input of shape {x.shape}, expected [C] or [N, C]")
    if not 1 <= min_gram_length <= max_gram_length or max_skip_count < 0:
        raise ModelError(f"n-grams of {min_gram_length} to {max_gram_length} with {max_skip_count} skips")
    ends = [*ngram_counts[1:], len(pool)]
    grams = []  # in the order of ngram_indexes
    for n, (first, last) in enumerate(zip(ngram_counts, ends), 1):
        if not 0 <= first <= last <= len(pool) or (last - first) % n:
            raise ModelError(f"ngram_counts {list(ngram_counts)} do not cut a pool of {len(pool)} into n-grams")
        grams += [(n, tuple(pool[i : i + n])) for i in range(first, last, n)]
    if len(grams) != len(ngram_indexes) or min(ngram_indexes, default=0) < 0:
        raise ModelError(f"{len(ngram_indexes)} ngram_indexes for {len(grams)} n-grams")
    if weights is not None and len(weights) != len(grams):
        raise ModelError(f"{len(weights)} weights for {len(grams)} n-grams")
    size = max(ngram_indexes, default=-1) + 1
    rows = x.reshape(-1, x.shape[-1]) if x.size else x.reshape(x.shape[0] if x.ndim == 2 else 1, -1)
    check_size((len(rows), size), np.float32)
    places = {gram: at for at, (n, gram) in enumerate(grams) if min_gram_length <= n <= max_gram_length}
    lengths = sorted({len(gram) for gram in places})
    counts = np.zeros((len(rows), len(grams)), np.float32)
    for i, row in enumerate(rows.tolist()):
        for n in lengths:
            for step in range(1, max_skip_count + 2 if n > 1 else 2):
                for start in range(len(row) - (n - 1) * step):
                    at = places.get(tuple(row[start : start + (n - 1) * step + 1 : step]))
                    if at is not None:
                        counts[i, at] += 1
    if mode == "IDF":
        counts = (counts > 0).astype(np.float32)
    if mode != "TF" and weights is not None:
        counts = counts * np.array(weights, np.float32)
    y = np.zeros((len(rows), size), np.float32)
    y[:, list(ngram_indexes)] = counts
    return y if x.ndim == 2 else y[0]


OPS = {
    "StringConcat": {20: string_concat},
    "StringSplit": {20: string_split},
    "StringNormalizer": {10: string_normalizer},
    "TfIdfVectorizer": {9: tf_idf_vectorizer},
}
