"""A corpus of sequences: results lazily and in order, computed in batches of sequences of similar length.

Some sequences at a time, a window, are read, sorted by length and cut into batches. Each way of running a model or
layer gives a sequence the bits of a call of its own, so that windows and batches show in no result.
"""

from __future__ import annotations

import collections.abc
import concurrent.futures
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from rnnfast.errors import Error, InputError, InputTypeError, UnsupportedError, raise_if_from_handler, with_location

# Frames in one call, with which the rest of a call of a small model (LSTM with 64 units) takes a twentieth of it, and
# what it works on fits into the cache.
FRAMES = 2048
# Batches in a window: with as many, the sequences of a batch have nearly the same length.
WINDOW = 32
# The most threads.
MAX_THREADS = 1024


class Way:
    """How a model or layer runs sequences; subclasses run several in one call.

    Attributes:
        label: The name of the model or layer, which begins every error message.
        most: The most sequences in one call.
    """

    label: str
    most = sys.maxsize

    def taken(self, sequence: Any) -> tuple[Any, int, Any]:
        """Check a caller's sequence, or raise.

        Returns:
            What `together` and `alone` take; its number of frames; and a key, which all sequences have that may share a
            call, or None for a call of its own.
        """
        raise NotImplementedError

    def alone(self, item: Any) -> Any:
        """Return the result of one sequence."""
        raise NotImplementedError

    def together(self, items: list[Any]) -> list[Any]:
        """Return the results of sequences that have the same key, the longest first, in one call."""
        raise NotImplementedError


class Window:
    """Sequences that were read and are sorted together.

    Attributes:
        first: The index of its first sequence in the corpus.
        items: What the way took of each sequence.
        frames: Their numbers of frames.
        groups: {key: indices of the sequences in the window that have it}.
        results: {index of a sequence in the window: its result}.
        errors: {index of a sequence in the window: what it raised}.
        stop: What the caller's iterable raised after these sequences, or None.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.items: list[Any] = []
        self.frames: list[int] = []
        self.groups: dict[Any, list[int]] = {}
        self.results: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}
        self.stop: Exception | None = None

    def batches(self, batch: int, most: int) -> list[list[int]]:
        """Lists of indices that run in one call each: of one key, the longest first.

        The number of rows follows from the longest one alone, so that the shapes of calls are few.
        """
        batches = [[i] for i in self.groups.pop(None, ())]
        for group in self.groups.values():
            group.sort(key=self.frames.__getitem__, reverse=True)
            first = 0
            while first < len(group):
                rows = max(min(batch // max(self.frames[group[first]], 1), most), 1)
                batches.append(group[first : first + rows])
                first += rows
        return batches


def mapped(
    way: Way,
    sequences: Iterable[Any],
    batch: int | None,
    threads: int,
    progress: bool | Callable[[int, int | None], object],
) -> Iterator[Any]:
    """The results of sequences, lazily and in order; `Model.map` documents the arguments."""
    batch = FRAMES if batch is None else batch
    for name, count, most in (("batch", batch, sys.maxsize), ("threads", threads, MAX_THREADS)):
        if type(count) is not int or not 1 <= count <= most:
            raise InputError(f"{way.label}: {name} is {count!r}, expected an int of 1 to {most}")
    if isinstance(sequences, (str, bytes, collections.abc.Mapping)) or not isinstance(sequences, Iterable):
        raise InputTypeError(
            f"{way.label}: sequences is a {type(sequences).__name__}, expected an iterable of sequences"
        )
    if not isinstance(progress, bool) and not callable(progress):
        raise InputTypeError(
            f"{way.label}: progress is a {type(progress).__name__}, expected True, False or a function of (done, total)"
        )
    if progress is True and find_spec("rich") is None:
        raise UnsupportedError(f"{way.label}: progress=True needs rich: pip install 'rnnfast[cli]'")
    try:
        total = len(sequences)  # type: ignore[arg-type]
    except TypeError:
        total = None
    return _results(way, iter(sequences), batch, threads, progress, total)


def _results(way, sequences, batch, threads, progress, total):
    """The generator that `mapped` returns. No thread is left when it ends or is closed."""
    bar = executor = None
    if progress is True:
        bar, progress = _bar(way.label, total)
    try:
        if threads > 1:
            executor = concurrent.futures.ThreadPoolExecutor(threads, "rnnfast-map")
        waiting, done = collections.deque(), 0
        for window in _windows(way, sequences, batch):
            batches = window.batches(batch, way.most)
            waiting.append((window, batches if executor is None else _submitted(executor, way, window, batches)))
            # With threads, the next window is read while this one is computed.
            while len(waiting) > (executor is not None):
                done = yield from _delivered(way, *waiting.popleft(), done, progress, total)
        while waiting:
            done = yield from _delivered(way, *waiting.popleft(), done, progress, total)
    finally:
        if executor is not None:
            executor.shutdown(cancel_futures=True)
        if bar is not None:
            bar.__exit__(None, None, None)


def _windows(way, sequences, batch):
    """Read Windows of sequences, each as large as WINDOW batches, until they end or fail."""
    count, ended = 0, False
    while not ended:
        window = Window(count)
        ended = _read(window, way, sequences, WINDOW * batch)
        count += len(window.items)
        if window.items or window.stop is not None:
            yield window


def _read(window, way, sequences, room):
    """Read sequences of so many frames together into a Window; return whether no others follow."""
    items, frames, groups = window.items, window.frames, window.groups
    while room > 0:
        try:
            sequence = next(sequences)
        except StopIteration:
            return True
        except Exception as e:  # the caller's own: results of what came before are delivered first
            window.stop = e
            return True
        index = len(items)
        try:
            item, n, key = way.taken(sequence)
        except Exception as e:
            raise_if_from_handler(e)
            item, n, window.errors[index] = None, 0, e
        items.append(item)
        frames.append(n)
        if window.errors:
            return True
        if key in groups:
            groups[key].append(index)
        else:
            groups[key] = [index]
        room -= n or 1
    return False


def _submitted(executor, way, window, batches):
    """The futures of the batches of a window; the value of each is the number of its sequences."""
    return [executor.submit(_run, way, window, indices) for indices in batches]


def _run(way, window, indices):
    """Compute the results of a batch. If it fails, each sequence is run by itself, so that the guilty one is known."""
    items = window.items
    if len(indices) > 1:
        try:
            for i, result in zip(indices, way.together([items[i] for i in indices]), strict=True):
                window.results[i] = result
            return len(indices)
        except Exception as e:
            raise_if_from_handler(e)
    for i in indices:
        try:
            window.results[i] = way.alone(items[i])
        except Exception as e:
            raise_if_from_handler(e)
            window.errors[i] = e
    return len(indices)


def _delivered(way, window, batches, done, progress, total):
    """Wait for the batches of a window, then yield its results in order, or raise at the first error.

    Returns:
        How many sequences are done, of which `done` were before.
    """
    for work in batches:
        done += work.result() if isinstance(work, concurrent.futures.Future) else _run(way, window, work)
        if progress is not False:
            progress(done, total)
    count, results, errors = len(window.items), window.results, window.errors
    window.items = None
    for i in range(count):
        if i in errors:
            raise _with_index(errors[i], way.label, window.first + i)
        yield results.pop(i)
    if window.stop is not None:
        raise window.stop
    return done


def _with_index(error, label, index):
    """The error of a sequence as one of rnnfast's family whose message begins with the sequence's index."""
    where = f"{label}: sequence {index}"
    if isinstance(error, Error):
        new = type(error)(f"{where}: {str(error).removeprefix(f'{label}: ')}")
        new.located = True
    else:
        new = with_location(error, where)
    new.__cause__ = error
    return new


def length(value: Any) -> int:
    """The length of the first axis of an array, or of anything that has a length; 1 if there is none."""
    try:
        return len(value)
    except TypeError:
        return 1


def _bar(label, total):
    """(a display of the progress, the function that moves it)."""
    from rnnfast.train import progress

    bar = progress.make(True)
    bar.__enter__()
    bar.begin(label, total)
    return bar, lambda done, total: bar.advance(done)
