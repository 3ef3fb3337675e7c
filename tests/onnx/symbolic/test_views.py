"""Views: shapes, strides and places are those of NumPy's views of the same memory.

The strides of axes of one element too: emitters sort axes by them.
"""

import numpy as np
import pytest

from rnnfast.native._programs import address
from rnnfast.onnx.symbolic.integers import NotSymbolic, Sizes, int_of
from rnnfast.onnx.symbolic.views import Memory, View, empty


def random_slice(rng, n):
    start, stop = (None if rng.random() < 0.3 else int(rng.integers(-n - 2, n + 3)) for _ in range(2))
    return slice(start, stop, [None, 1, 2, 3, -1, -2][rng.integers(6)])


def random_index(rng, shape):
    index = []
    for n in shape:
        kind = rng.integers(5)
        if kind == 0 and n:
            index.append(int(rng.integers(-n, n)))
        elif kind == 1:
            index += [None, slice(None)]
        else:
            index.append(random_slice(rng, n))
    at = int(rng.integers(len(index) + 1))  # with an ellipsis NumPy gives views, no scalars
    return (*index[:at], Ellipsis) if rng.random() < 0.5 else (Ellipsis, *index[at:])


def random_reshape(rng, view):
    factors, shape = [], []
    n = view.size
    for prime in (2, 3, 5, 7, 11, 13):
        while n and n % prime == 0:
            factors.append(prime)
            n //= prime
    rng.shuffle(factors)
    while factors:
        k = int(rng.integers(1, len(factors) + 1))
        shape.append(int(np.prod(factors[:k])))
        factors = factors[k:]
    if rng.random() < 0.3 and shape:
        shape[rng.integers(len(shape))] = -1
    if rng.random() < 0.4:
        shape.insert(int(rng.integers(len(shape) + 1)), 1)
    return tuple(shape)


def random_step(rng, view):
    """Return a random step: a function of a view of this shape."""
    kind = rng.integers(7)
    if kind == 0:
        order = [int(i) for i in rng.permutation(view.ndim)]
        return lambda v: v.transpose(order)
    if kind == 1 and view.ndim:
        a, b = (int(rng.integers(view.ndim)) for _ in range(2))
        return rng.choice([lambda v: np.moveaxis(v, a, b), lambda v: v.swapaxes(a, b), lambda v: np.swapaxes(v, a, b)])
    if kind == 2:
        index = random_index(rng, view.shape)
        return lambda v: v[index]
    if kind == 3:
        axis = int(rng.integers(-view.ndim - 1, view.ndim + 1))
        return lambda v: np.expand_dims(v, axis)
    if kind == 4:
        return lambda v: np.squeeze(v)
    if kind == 5:
        shape = [int(rng.integers(1, 3)), *[3 if n == 1 and rng.random() < 0.5 else n for n in view.shape]]
        return lambda v: np.broadcast_to(v, shape)
    shape = random_reshape(rng, view)
    return lambda v: reshaped(v, shape)


def reshaped(view, shape):
    """Reshape without a copy; None where it takes one."""
    if isinstance(view, View):
        try:
            return view.reshaped(shape)
        except ValueError:
            return None
    result = view.view()
    try:
        result = np.reshape(view, shape)
    except ValueError:
        return None
    return result if np.shares_memory(result, view) or not view.size else None


@pytest.mark.parametrize("seed", range(300))
def test_views_are_those_of_numpy(seed):
    """The sizes of the memory are symbolic; each decision about them is the one that their values call for."""
    rng = np.random.default_rng(seed)
    shape = [int(n) for n in rng.integers(2, 7, rng.integers(1, 5))]
    array = np.zeros(shape, np.float32)
    sizes = Sizes(shape)
    view = empty([sizes.size(i) if rng.random() < 0.7 else n for i, n in enumerate(shape)], np.float32)
    start = address(array)
    for _ in range(6):
        step = random_step(rng, array)
        found, expected = step(view), step(array)
        assert (found is None) == (expected is None)
        if found is None:
            continue
        view, array = found, np.asarray(expected)
        assert tuple(map(int_of, view.shape)) == array.shape
        assert view.flags.c_contiguous == array.flags.c_contiguous
        if array.size:
            assert start + int_of(view.offset) == address(array)
            assert tuple(map(int_of, view.strides)) == array.strides
        assert (view.ndim, int_of(view.size), int_of(view.nbytes)) == (array.ndim, array.size, array.nbytes)


def test_a_view_has_no_elements():
    view = View(Memory(8), 0, (2,), (4,), np.dtype(np.float32))
    for use in (np.asarray, np.sum, lambda v: v + 1, lambda v: v[np.array([0])]):
        with pytest.raises((NotSymbolic, TypeError)):
            use(view)
