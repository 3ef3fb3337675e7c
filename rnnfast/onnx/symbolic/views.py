"""Views whose shapes and strides may be symbolic: what emitters use of NumPy's arrays, without their memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnfast.onnx.symbolic.integers import NotSymbolic


class Memory:
    """The memory that views show: an allocation of so many bytes, or that of a constant.

    array: the constant; None if there is none, or if it depends on sizes. make: (function, arguments) that makes a
    constant that depends on sizes; None for others. made: the Made object of that, once a builder needs it.
    """

    __slots__ = ("nbytes", "array", "make", "made")

    def __init__(
        self, nbytes: Any, array: np.ndarray | None = None, make: tuple[Callable[..., np.ndarray], Any] | None = None
    ) -> None:
        self.nbytes, self.array, self.make = nbytes, array, make
        self.made: Any = None


class _Flags:
    __slots__ = ("c_contiguous",)

    def __init__(self, c_contiguous: bool) -> None:
        self.c_contiguous = c_contiguous


class View:
    """A view of `memory` from `offset` on, in bytes, like an array of NumPy of this shape, these strides and this type.

    NumPy's functions on views give views, as far as they are in `FUNCTIONS`.
    """

    __slots__ = ("memory", "offset", "shape", "strides", "dtype")

    def __init__(self, memory: Memory, offset: Any, shape: Sequence[Any], strides: Sequence[Any], dtype: Any) -> None:
        self.memory, self.offset, self.dtype = memory, offset, dtype
        self.shape, self.strides = tuple(shape), tuple(strides)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize  # type: ignore[no-any-return]

    @property
    def size(self) -> Any:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> Any:
        return self.size * self.itemsize

    @property
    def flags(self) -> _Flags:
        return _Flags(self._is_contiguous())

    @property
    def T(self) -> View:
        return self.transpose()

    def _is_contiguous(self) -> bool:
        step = self.itemsize
        for n, stride in zip(self.shape[::-1], self.strides[::-1]):
            if n == 0:
                return True
            if n != 1:
                if stride != step:
                    return 0 in self.shape
                step = step * n
        return True

    def copy(self) -> View:
        """A contiguous view of memory of its own."""
        return empty(self.shape, self.dtype)

    def repeated_element(self) -> np.ndarray | None:
        """Return the one element of a constant that it shows everywhere, as a scalar; None if there is none."""
        array = self.memory.array
        return array.reshape(()) if array is not None and array.size == 1 else None

    def any(self) -> bool:
        """Return whether an element of a constant that is repeated is not zero."""
        if self.memory.array is None:
            raise NotSymbolic("the elements of a view")
        return bool(self.memory.array.any())

    def strided(self, shape: Sequence[Any], strides: Sequence[Any]) -> View:
        """The view of another shape and other strides that begins where this one does."""
        return View(self.memory, self.offset, shape, strides, self.dtype)

    # ------------------------------------------------------------------------------------------- as in NumPy
    def transpose(self, *axes: Any) -> View:
        if len(axes) == 1 and (axes[0] is None or not isinstance(axes[0], int)):
            axes = () if axes[0] is None else tuple(axes[0])
        order = [axis % self.ndim for axis in axes] if axes or not self.ndim else range(self.ndim)[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"axes {axes} of {self.ndim}")
        return self.strided([self.shape[i] for i in order], [self.strides[i] for i in order])

    def swapaxes(self, a: int, b: int) -> View:
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.transpose(order)

    def squeeze(self, axis: Any = None) -> View:
        axes = {i for i, n in enumerate(self.shape) if n == 1} if axis is None else set()
        for i in () if axis is None else axis if isinstance(axis, tuple) else (axis,):
            axes.add(i % self.ndim)
        if any(self.shape[i] != 1 for i in axes):
            raise ValueError("an axis that is not 1")
        kept = [i for i in range(self.ndim) if i not in axes]
        return self.strided([self.shape[i] for i in kept], [self.strides[i] for i in kept])

    def reshape(self, *shape: Any) -> View:
        """The view in another shape. NumPy would copy where there is none, and emitters never let it."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        try:
            return self.reshaped(wanted)
        except ValueError as e:
            raise NotSymbolic(str(e)) from None

    def reshaped(self, shape: Sequence[Any]) -> View:
        """The view in another shape; ValueError where that takes a copy, or for another size."""
        wanted = list(shape)
        unknown = [i for i, n in enumerate(wanted) if type(n) is int and n == -1]
        if unknown:
            others = math.prod(n for i, n in enumerate(wanted) if i != unknown[0])
            if others == 0:
                raise ValueError("a reshape without elements")
            wanted[unknown[0]] = self.size // others
        if math.prod(wanted) != self.size:
            raise ValueError("a reshape to another size")
        if not unknown and 1 in wanted and len(wanted) == self.ndim and all(n == m for n, m in zip(wanted, self.shape)):
            return self  # as NumPy does, whose other reshapes give axes of one element new strides
        strides = _reshaped_strides(self.shape, self.strides, wanted, self.itemsize)
        if strides is None:
            raise ValueError("a reshape that takes a copy")
        return self.strided(wanted, strides)

    def broadcast(self, shape: Sequence[Any]) -> View:
        """The view broadcast to a shape."""
        shape, missing = tuple(shape), len(shape) - self.ndim
        if missing < 0:
            raise ValueError("a broadcast to fewer axes")
        strides: list[Any] = [0] * missing
        for n, stride, wanted in zip(self.shape, self.strides, shape[missing:]):
            if n == 1:
                strides.append(0)
            elif n == wanted:
                strides.append(stride)
            else:
                raise ValueError("a broadcast of sizes that differ")
        return self.strided(shape, strides)

    def __getitem__(self, index: Any) -> View:
        index = list(index) if isinstance(index, tuple) else [index]
        taken = sum(1 for i in index if i is not None and i is not Ellipsis)
        at = next((place for place, i in enumerate(index) if i is Ellipsis), None)
        if at is None:
            index.append(Ellipsis)
            at = len(index) - 1
        index[at : at + 1] = [slice(None)] * (self.ndim - taken)
        offset, shape, strides, axis = self.offset, [], [], 0
        for i in index:
            if i is None:
                shape.append(1)
                strides.append(0)
                continue
            n, stride = self.shape[axis], self.strides[axis]
            axis += 1
            if isinstance(i, slice):
                start, count, step = positions(i, n)
                shape.append(count)
                strides.append(stride * step)
                offset = offset + start * stride if count != 0 else offset
            elif isinstance(i, (int, np.integer)):
                if not -n <= i < n:
                    raise IndexError(i)
                offset = offset + (i + n if i < 0 else i) * stride
            else:
                raise NotSymbolic("an index that is no slice")
        return View(self.memory, offset, shape, strides, self.dtype)

    def __len__(self) -> int:
        return self.shape[0].__index__()  # type: ignore[no-any-return]

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        mine = FUNCTIONS.get(function)
        if mine is None:
            raise NotSymbolic(f"numpy.{function.__name__}")
        return mine(*args, **kwargs)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise NotSymbolic("the elements of a view")

    __array_ufunc__ = None


def empty(shape: Sequence[Any], dtype: Any) -> View:
    """A contiguous view of new memory."""
    dtype = np.dtype(dtype)
    return View(Memory(math.prod(shape) * dtype.itemsize), 0, shape, contiguous_strides(shape, dtype.itemsize), dtype)


def made(shape: Sequence[Any], dtype: Any, function: Callable[..., np.ndarray], *args: Any) -> View:
    """A view of the constant of this shape and type that a function makes of sizes, such views, and other arguments."""
    view = empty(shape, dtype)
    view.memory.make = function, args
    return view


def repeated(array: np.ndarray, shape: Sequence[Any]) -> View:
    """A view of an array broadcast to a shape."""
    own = View(Memory(array.nbytes, array), 0, array.shape, array.strides, array.dtype)
    return own.broadcast(shape)


def positions(part: slice, n: Any) -> tuple[Any, Any, int]:
    """Return the first position, the number of positions and the step of a slice of an axis of n elements."""
    step = 1 if part.step is None else part.step
    if type(step) is not int:
        raise NotSymbolic("a step that is no int")
    low, high = (0, n) if step > 0 else (-1, n - 1)

    def place(position: Any, default: Any) -> Any:
        if position is None:
            return default
        if position < 0:
            position = position + n
        return low if position < low else high if position > high else position

    start = place(part.start, low if step > 0 else high)
    end = place(part.stop, high if step > 0 else low)
    if step > 0:
        return start, (end - start + step - 1) // step if end > start else 0, step
    return start, (start - end - step - 1) // -step if end < start else 0, step


def _reshaped_strides(shape: Sequence[Any], strides: Sequence[Any], wanted: Sequence[Any], item: int) -> Any:
    """Return the strides of the same elements in the wanted shape, which has as many; None if it takes a copy.

    Axes of both shapes are taken together as far as needed for equal numbers of elements: the old ones of such a group
    must lie like one axis. Axes of one element get the strides that NumPy gives them, which decide about their order.
    """
    old = [(n, stride) for n, stride in zip(shape, strides) if n != 1]
    if any(n == 0 for n in wanted):
        return contiguous_strides(wanted, item)
    result: list[Any] = [None] * len(wanted)
    i = j = 0
    while i < len(old):
        first, first_wanted = i, j
        n, m = old[i][0], 1
        while j < len(wanted) and wanted[j] == 1:
            j += 1
        m = wanted[j]
        i, j = i + 1, j + 1
        while n != m:
            if m < n:
                m = m * wanted[j]
                j += 1
            else:
                n = n * old[i][0]
                i += 1
        if any(a[1] != b[0] * b[1] for a, b in zip(old[first:i], old[first + 1 : i])):
            return None
        step = old[i - 1][1]
        for place in range(first_wanted, j)[::-1]:
            result[place] = step
            step = step * wanted[place]
    step = next((stride for stride in result[::-1] if stride is not None), item)
    for place in range(len(wanted))[::-1]:
        if result[place] is None:
            result[place] = step
        else:
            step = result[place] * wanted[place]
    return result


def contiguous_strides(shape: Sequence[Any], item: int) -> tuple[Any, ...]:
    """Return the strides of a C-contiguous array."""
    strides: list[Any] = []
    for n in reversed(shape):
        strides.append(item)
        item = item * n
    return tuple(strides[::-1])


def _concatenated(views: Sequence[Any], axis: int = 0) -> View:
    shape = list(views[0].shape)
    shape[axis] = sum(view.shape[axis] for view in views)
    return empty(shape, views[0].dtype)


def _moved(view: View, source: Any, destination: Any) -> View:
    sources, destinations = ([a] if isinstance(a, int) else list(a) for a in (source, destination))
    sources, destinations = ([axis % view.ndim for axis in axes] for axes in (sources, destinations))
    order = [axis for axis in range(view.ndim) if axis not in sources]
    for to, axis in sorted(zip(destinations, sources)):
        order.insert(to, axis)
    return view.transpose(order)


def _expanded(view: View, axis: Any) -> View:
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    rank = view.ndim + len(axes)
    places, sizes = {a % rank for a in axes}, iter(view.shape)
    return view.reshape([1 if i in places else next(sizes) for i in range(rank)])


# function of NumPy -> what does the same for views
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: _concatenated,
    np.broadcast_to: lambda view, shape: view.broadcast(shape),
    np.expand_dims: _expanded,
    np.moveaxis: _moved,
    np.reshape: lambda view, shape: view.reshape(shape),
    np.shape: lambda view: view.shape,
    np.squeeze: lambda view, axis=None: view.squeeze(axis),
    np.swapaxes: lambda view, a, b: view.swapaxes(a, b),
    np.transpose: lambda view, axes=None: view.transpose(axes),
}
