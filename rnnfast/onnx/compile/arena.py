"""Places the intermediate results of a native program in its arena."""

import bisect
import itertools
import operator

CACHE_LINE = 64  # bytes; each allocation begins at a cache line
SLACK = 64  # bytes that a kernel may read past the end of an allocation
# With more allocations than this, the time that `_place_by_size` takes, which grows with their square, is felt.
MAX_BY_SIZE = 2048

_start_of = operator.itemgetter(1)


def place(allocations):
    """Give each Allocation its `index`, the offset in the arena of memory that is free from its first to its last use.

    Returns the size of the arena and the most bytes in use at one command.
    """
    if not allocations:
        return 0, 0
    placed = (_place_by_size if len(allocations) <= MAX_BY_SIZE else _place_by_time)(allocations)
    changes = [0] * (max(a.last for a in allocations) + 2)
    for allocation, start, end in placed:
        allocation.index = start
        changes[allocation.first] += end - start
        changes[allocation.last + 1] -= end - start
    return max(end for _, _, end in placed), max(itertools.accumulate(changes))


def _lines(allocation):
    """Return the bytes of an allocation with its slack, in whole cache lines."""
    return (allocation.array.nbytes + SLACK + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


def _place_by_size(allocations):
    """Return (Allocation, start, end) for each: larger ones first, at the lowest offset that is free while in use."""
    placed = []  # by start
    for allocation in sorted(allocations, key=lambda a: -a.array.nbytes):
        nbytes, offset = _lines(allocation), 0
        for other, start, end in placed:
            if other.first <= allocation.last and allocation.first <= other.last:
                if start - offset >= nbytes:
                    break
                offset = max(offset, end)
        bisect.insort(placed, (allocation, offset, offset + nbytes), key=_start_of)
    return placed


def _place_by_time(allocations):
    """Return (Allocation, start, end) for each: in the order of first uses, in the smallest gap that is free then.

    The arena is a little larger than with `_place_by_size`, but the time is next to linear.
    """
    placed, size = [], 0
    gaps = []  # (bytes, start) of each gap, sorted
    starts, ends = {}, {}  # start -> end and end -> start of each gap
    used = sorted(allocations, key=operator.attrgetter("first"))
    released = sorted(range(len(used)), key=lambda i: used[i].last)  # indices in `used` and `placed`
    next_released = 0

    def add_gap(start, end):
        """Add a gap, joined with the gaps on both sides of it."""
        if start in ends:
            start = remove_gap(ends[start])[0]
        if end in starts:
            end = remove_gap(end)[1]
        starts[start], ends[end] = end, start
        bisect.insort(gaps, (end - start, start))

    def remove_gap(start):
        """Remove the gap at `start`; return its start and end."""
        end = starts.pop(start)
        del ends[end], gaps[bisect.bisect_left(gaps, (end - start, start))]
        return start, end

    for allocation in used:
        while used[released[next_released]].last < allocation.first:
            add_gap(*placed[released[next_released]][1:])
            next_released += 1
        nbytes = _lines(allocation)
        at = bisect.bisect_left(gaps, (nbytes, 0))
        if at < len(gaps):
            start, end = remove_gap(gaps[at][1])
            if end - start > nbytes:
                add_gap(start + nbytes, end)
        elif size in ends:  # a gap at the end grows
            start = remove_gap(ends[size])[0]
        else:
            start = size
        placed.append((allocation, start, start + nbytes))
        size = max(size, start + nbytes)
    return placed
