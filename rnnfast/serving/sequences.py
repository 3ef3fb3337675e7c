"""Whole sequences in a Batcher: how several of them run together as streams of a pool."""

import numpy as np

from rnnfast.errors import LimitError, UnsupportedError

# Frames of each sequence in one batch: sequences that come wait that long to join those that run.
SEQUENCE_FRAMES = 16


class ActiveSequence:
    """A whole sequence that is being run.

    Attributes:
        request: Its Request.
        arrived: When the request came, in seconds of the monotonic clock.
        x: Its frames [T, ...].
        state: What `Sequences.open` returned for it.
        taken: How many frames were run.
        results: The results of the parts that were run.
    """

    __slots__ = ("request", "arrived", "x", "state", "taken", "results")

    def __init__(self, request, arrived, x, state):
        self.request, self.arrived, self.x, self.state, self.taken, self.results = request, arrived, x, state, 0, []


class Sequences:
    """Sequences [T, ...] of a Pool: each is a stream of the pool while it runs."""

    def __init__(self, pool):
        self.pool = pool

    def validate(self, sequence):
        """Check a sequence and return it as an array with the frames first, or raise."""
        return self.pool.validate_sequence(sequence)

    def of_call(self, feed):
        """The sequence that the inputs of a call of the model are, for `validate`; None if they are none or several."""
        return None

    def open(self):
        """Return what holds the state of a new sequence (here a stream's id); None if there is no room."""
        try:
            return self.pool.open()
        except LimitError:
            return None  # All streams are open.

    def close(self, state):
        """Free what `open` returned."""
        self.pool.close(state)

    def frames(self, sequence):
        """How many frames of an ActiveSequence are run next."""
        return min(len(sequence.x) - sequence.taken, SEQUENCE_FRAMES)

    def batches(self, active):
        """Lists of sequences whose next frames run together.

        The last list runs first, because the Batcher's `_in_halves` takes its parts from the end.
        """
        return list(grouped(active, lambda s: (s.x.shape[1:], s.x.dtype)).values())

    def run(self, states, parts):
        """The results of the next frames of the sequences of a batch."""
        lengths = np.array([len(part) for part in parts])
        y = self.pool.run(states, padded(parts, len(parts), lengths.max()), lengths=lengths)
        return [row[:n].copy() for row, n in zip(y, lengths)]

    def joined(self, results):
        """The result of a whole sequence, from those of its parts."""
        return np.concatenate(results)


class NoSequences:
    """Stands for Sequences of a model whose sequences cannot share batches."""

    def __init__(self, problem):
        self.problem = problem

    def validate(self, sequence):
        raise UnsupportedError(self.problem)

    def of_call(self, feed):
        return None


def grouped(members, key):
    """{key: list of members that have it}."""
    groups = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups


def padded(parts, rows, frames):
    """Arrays [n, ...] of different lengths as one [rows, frames, ...], filled up with zeros."""
    x = np.zeros((rows, frames, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(x, parts):
        row[: len(part)] = part
    return x
