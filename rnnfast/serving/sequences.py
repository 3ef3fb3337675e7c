"""Whole sequences in a Batcher: how some of them run together as streams of a pool."""

import numpy as np

from rnnfast.errors import LimitError

# Frames of each sequence in one batch: so long do sequences that come wait to join those that run.
SEQUENCE_FRAMES = 16


class ActiveSequence:
    """A whole sequence that runs: its call, when that received, its frames, its place, the frames taken, their results."""

    __slots__ = ("call", "arrived", "x", "place", "taken", "results")

    def __init__(self, call, arrived, x, place):
        self.call, self.arrived, self.x, self.place, self.taken, self.results = call, arrived, x, place, 0, []


class Sequences:
    """Sequences [T, ..] of a Pool: each is a stream while it runs."""

    def __init__(self, pool):
        self.pool = pool

    def validate(self, sequence):
        """A sequence, checked, as an array with the frames first."""
        return self.pool.validate_sequence(sequence)

    def open(self):
        """The place of a sequence that begins, None where there is none."""
        try:
            return self.pool.open()
        except LimitError:
            return None  # streams have all places

    def close(self, place):
        self.pool.close(place)

    def frames(self, sequence):
        """How many frames of a ActiveSequence sequence are next."""
        return min(len(sequence.x) - sequence.taken, SEQUENCE_FRAMES)

    def batches(self, running):
        """Lists of sequences whose next frames run together, the first ones last."""
        return list(grouped(running, lambda s: (s.x.shape[1:], s.x.dtype)).values())

    def run(self, places, parts):
        """The results of the next frames of the sequences of a batch."""
        lengths = np.array([len(part) for part in parts])
        y = self.pool.run(places, padded(parts, len(parts), lengths.max()), lengths=lengths)
        return [row[:n].copy() for row, n in zip(y, lengths)]

    def joined(self, results):
        """The result of a sequence, of those of its parts."""
        return np.concatenate(results)


def grouped(members, key):
    groups = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups


def padded(parts, rows, frames):
    """Arrays [n, ..] -> one [rows, frames, ..] with zeros in the place of what is not there."""
    x = np.zeros((rows, frames, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(x, parts):
        row[: len(part)] = part
    return x
