"""The live sequences of a served model: which stream of the Batcher has the state of which id.

Requests of one sequence run one after the other, in the order in which they came; those of others share batches with
them. A request that fails leaves its sequence as it was.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, LimitError, Overloaded
from rnnfast.server.faults import UnavailableError, UnknownSequenceError

if TYPE_CHECKING:
    from rnnfast.server.requests import Call
    from rnnfast.server.statistics import Statistics
    from rnnfast.serving.batcher import Batcher

# The most requests of one sequence that wait for the one that runs.
MAX_WAITING = 64
# Closed sequences whose ids are kept, so that their next request is told what became of them.
MAX_CLOSED = 10_000


def key_of(fixed: dict[str, np.ndarray]) -> tuple[Any, ...]:
    """What tells fixed inputs from others."""
    return tuple([(name, v.dtype, v.shape, v.tobytes()) for name, v in sorted(fixed.items())]) if fixed else ()


class Sequence:
    """A live sequence.

    Attributes:
        id: Its id.
        stream: The id of its stream in the Batcher; None before its first request was answered.
        fixed: {input: value} of the inputs that are the same in all its requests.
        used: When its last request came, in seconds of the monotonic clock.
        lock: Held by the request that runs.
        waiting: The number of requests that wait for the lock or hold it.
    """

    __slots__ = ("id", "stream", "fixed", "used", "lock", "waiting")

    def __init__(self, id: int | str) -> None:
        self.id, self.stream, self.fixed = id, None, dict[str, np.ndarray]()
        self.used, self.lock, self.waiting = time.monotonic(), asyncio.Lock(), 0
        self.stream: int | None


class Sequences:
    """The live sequences of one model.

    Args:
        name: The model's name, for messages.
        batcher: A Batcher of a pool of the model.
        most: The most live sequences.
        idle: Seconds without a request after which a sequence is closed.
        statistics: Counts sequences.
    """

    def __init__(self, name: str, batcher: Batcher, most: int, idle: float, statistics: Statistics) -> None:
        self.name, self._batcher, self._most, self._idle = name, batcher, most, idle
        self._statistics = statistics
        self._live: dict[int | str, Sequence] = {}  # the one that was used last is last
        self._closed: collections.OrderedDict[int | str, str] = collections.OrderedDict()
        self._restored: dict[int | str, tuple[Any, dict[str, np.ndarray]]] = {}  # states of the server before
        self._free: dict[tuple[Any, ...], list[int]] = {}  # the key of fixed inputs -> streams without a sequence
        self.draining = False

    def __len__(self) -> int:
        return len(self._live)

    async def step(
        self,
        call: Call,
        frame: dict[str, np.ndarray],
        fixed: dict[str, np.ndarray],
        state: dict[str, np.ndarray] | None,
        wants_state: bool,
    ) -> tuple[Any, dict[str, np.ndarray] | None]:
        """Run a request of a sequence.

        Args:
            call: The parameters of the request.
            frame: Its inputs that are neither fixed nor states.
            fixed: Its inputs that are the same in all requests of a sequence.
            state: The state that the sequence begins with; None for zeros. Only where it begins.
            wants_state: Whether the state after the request is asked for.

        Returns:
            (the results as a stream's `step` returns them, the state by the names of inputs if it is asked for)

        Raises:
            UnknownSequenceError: There is no such sequence, and the request does not begin one.
            Overloaded: Too many sequences are live, or too many requests wait.
            UnavailableError: The server is ending and takes no new sequences.
            InputError: An input or a state does not fit.
            Error: As the Batcher's `step`.
        """
        while True:
            sequence = self._live.get(call.sequence)  # type: ignore[arg-type]
            if sequence is None:
                sequence = self._begin(call)
            if sequence.waiting >= MAX_WAITING:
                raise Overloaded(
                    f"{self.name}: {MAX_WAITING} requests of sequence {call.sequence!r} wait already: nothing was taken"
                )
            sequence.waiting += 1
            try:
                async with sequence.lock:
                    if self._live.get(sequence.id) is not sequence:
                        continue  # The request before ended it, or failed to begin it.
                    sequence.used = time.monotonic()
                    self._live[sequence.id] = self._live.pop(sequence.id)
                    return await self._run(sequence, call, frame, fixed, state, wants_state)
            finally:
                sequence.waiting -= 1
                if sequence.stream is None and not sequence.waiting and self._live.get(sequence.id) is sequence:
                    del self._live[sequence.id]  # Its first request failed.

    def _begin(self, call: Call) -> Sequence:
        """A new live sequence without a stream yet, for the first request of one."""
        assert call.sequence is not None
        if not call.start and call.sequence not in self._restored:
            why = self._closed.get(call.sequence)
            raise UnknownSequenceError(
                f"inference request for sequence {call.sequence} to model '{self.name}' must specify the START flag on "
                f"the first request of the sequence{'' if why is None else f': it {why}'}"
            )
        if self.draining:
            raise UnavailableError(f"model '{self.name}': the server is ending and takes no new sequences")
        if len(self._live) >= self._most:
            raise Overloaded(f"model '{self.name}': all {self._most} sequences are live: sequence was not begun")
        sequence = self._live[call.sequence] = Sequence(call.sequence)
        return sequence

    async def _run(
        self,
        sequence: Sequence,
        call: Call,
        frame: dict[str, np.ndarray],
        fixed: dict[str, np.ndarray],
        state: dict[str, np.ndarray] | None,
        wants_state: bool,
    ) -> tuple[Any, dict[str, np.ndarray] | None]:
        begins = call.start or sequence.stream is None
        if begins and not call.start:
            state, restored = self._restored[sequence.id]
            fixed = restored | fixed
        if not begins:
            self._check_followers(sequence, fixed, state)
        stream, begin = sequence.stream, begins and (True if state is None else state)
        if stream is None or begins and key_of(fixed) != key_of(sequence.fixed):
            stream = self._free_stream(fixed)
        try:
            results = await self._batcher.step(stream, frame, call.timeout, begin)
            after = await asyncio.to_thread(self._batcher.state, stream) if wants_state else None
        except BaseException:
            if stream != sequence.stream:
                self._keep_free(stream, fixed)
            raise
        if begins:
            self._began(sequence, stream, fixed, call.start)
        if call.end:
            self._end(sequence, "was ended by its client")
            self._statistics.ended += 1
        return results, after

    # ------------------------------------------------------------------------------------------ streams
    # A stream is kept open after its sequence ends, for the next one: opening waits for the batch that runs. What it
    # held is gone with the first frame of that sequence, which the Batcher lets begin anew.
    def _free_stream(self, fixed: dict[str, np.ndarray]) -> int:
        """A stream that no sequence has, with these fixed inputs.

        Raises:
            Overloaded: Sequences that begin anew with other fixed inputs have all of them.
            InputError: A fixed input does not fit.
        """
        streams = self._free.get(key_of(fixed))
        if streams:
            return streams.pop()
        try:
            return self._batcher.open(**fixed)
        except LimitError:
            for others in self._free.values():
                if others:
                    self._batcher.close(others.pop())
                    break
        try:
            return self._batcher.open(**fixed)
        except LimitError as e:
            raise Overloaded(f"model '{self.name}': the sequence was not begun: {e}") from None

    def _keep_free(self, stream: int, fixed: dict[str, np.ndarray]) -> None:
        """Keep a stream for sequences to come."""
        self._free.setdefault(key_of(fixed), []).append(stream)

    def _check_followers(
        self, sequence: Sequence, fixed: dict[str, np.ndarray], state: dict[str, np.ndarray] | None
    ) -> None:
        """Raise InputError if a request that follows others brings what only the first one may."""
        where = f"model '{self.name}', sequence {sequence.id!r}"
        if state is not None:
            raise InputError(
                f"{where}: input {next(iter(state))!r} is a state, which only a request with sequence_start may give"
            )
        for name, value in fixed.items():
            before = sequence.fixed.get(name)
            if before is None or key_of({name: before}) != key_of({name: value}):
                raise InputError(f"{where}: input {name!r} is not what it was when the sequence began")

    def _began(self, sequence: Sequence, stream: int, fixed: dict[str, np.ndarray], anew: bool) -> None:
        """Note that the first request of a sequence was answered."""
        if sequence.stream is not None and sequence.stream != stream:
            self._keep_free(sequence.stream, sequence.fixed)
        sequence.stream, sequence.fixed = stream, fixed
        self._restored.pop(sequence.id, None)
        self._closed.pop(sequence.id, None)
        self._statistics.opened += anew

    def _end(self, sequence: Sequence, why: str) -> None:
        """Forget a live sequence; its next request is told why."""
        del self._live[sequence.id]
        if sequence.stream is not None:
            self._keep_free(sequence.stream, sequence.fixed)
        self._note_closed(sequence.id, why)

    def _note_closed(self, id: int | str, why: str) -> None:
        self._closed[id] = why
        self._closed.move_to_end(id)
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    # ------------------------------------------------------------------------------------------ without requests
    def close_idle(self) -> None:
        """Close the sequences that had no requests for `idle` seconds."""
        now = time.monotonic()
        for sequence in list(self._live.values()):
            if now - sequence.used < self._idle:
                break  # Those behind it were used later.
            if not sequence.waiting:
                self._end(sequence, f"was closed after {self._idle:g} s without a request")
                self._statistics.idled += 1

    def drop(self, id: int | str, why: str) -> None:
        """Close a sequence whose client or model is gone, if it is live and no request of it runs."""
        sequence = self._live.get(id)
        if sequence is not None and not sequence.waiting:
            self._end(sequence, why)
            self._statistics.dropped += 1

    def ids(self) -> list[int | str]:
        """The ids of the live sequences."""
        return list(self._live)

    def states(self) -> dict[int | str, tuple[Any, dict[str, np.ndarray]]]:
        """{id: (state, fixed inputs)} of the live sequences, and of those that were restored and not used since."""
        live = {s.id: (self._batcher.state(s.stream), s.fixed) for s in self._live.values() if s.stream is not None}
        return self._restored | live

    def restore(self, states: dict[int | str, tuple[Any, dict[str, np.ndarray]]]) -> None:
        """Take up the states of another server: their sequences go on with their next request."""
        self._restored.update(states)
