"""The live sequences of a served model: which stream of which Batcher has the state of which id.

Requests of one sequence run one after the other, in the order in which they came; those of others share batches with
them. A request that fails leaves its sequence as it was.

The streams of a pool have frames of one shape. Clients send what they like, so each of the first shapes that come has a
pool of its own, and a sequence whose shape changes moves with its state. Requests of further shapes are calls of the
model with the state as an input. All ways give the same bits.
"""

from __future__ import annotations

import asyncio
import collections
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, LimitError, Overloaded, UnsupportedError
from rnnfast.server.faults import UnavailableError, UnknownSequenceError

if TYPE_CHECKING:
    from rnnfast.server.requests import Parameters
    from rnnfast.server.statistics import Statistics
    from rnnfast.serving.batcher import Batcher
    from rnnfast.streaming.model_signature import ModelSignature

Arrays = dict[str, np.ndarray]

# The most requests of one sequence that wait for the one that runs.
MAX_WAITING = 64
# Closed sequences whose ids are kept, so that their next request is told what became of them.
MAX_CLOSED = 10_000
# The most shapes of frames that have pools.
MAX_POOLS = 8


def key_of(arrays: Arrays) -> tuple[Any, ...]:
    """Return what tells fixed inputs from others."""
    return tuple([(name, v.dtype, v.shape, v.tobytes()) for name, v in sorted(arrays.items())]) if arrays else ()


def shapes_of(frame: Arrays) -> tuple[Any, ...]:
    """Return what tells frames that a pool takes from others."""
    if len(frame) == 1:
        ((name, value),) = frame.items()
        return ((name, value.shape),)
    return tuple(sorted([(name, value.shape) for name, value in frame.items()]))


class Streams:
    """The streams of one Batcher: those that sequences have, and those that are free.

    A stream is kept open after its sequence ends, for the next one: opening waits for the batch that runs. What it held
    is gone with the first frame of that sequence, with which the Batcher lets it begin anew.

    Attributes:
        batcher: A Batcher of a pool.
        proven: Whether a frame of its shape was ever computed.
        taken: The number of streams that sequences have, or requests that are about to give them one.
    """

    def __init__(self, batcher: Batcher) -> None:
        self.batcher, self.proven, self.taken = batcher, False, 0
        self._free: dict[tuple[Any, ...], list[int]] = {}  # the key of fixed inputs -> streams

    def take(self, fixed: Arrays) -> int:
        """A stream that no sequence has, with these fixed inputs.

        Raises:
            Overloaded: There is none: sequences that begin anew have the streams beyond those of live ones.
            InputError: A fixed input does not fit.
        """
        key = key_of(fixed)
        stream = self._pop(key) if key in self._free else self._opened(fixed)
        self.taken += 1
        return stream

    def _opened(self, fixed: Arrays) -> int:
        """A new stream, in place of a free one with other fixed inputs if there is no room for more."""
        try:
            return self._open(fixed)
        except LimitError:
            if self._free:
                self.batcher.close(self._pop(next(iter(self._free))))
        try:
            return self._open(fixed)
        except LimitError as e:
            raise Overloaded(f"the sequence was not begun: {e}") from None

    def _pop(self, key: tuple[Any, ...]) -> int:
        """A free stream with these fixed inputs, which is free no more."""
        streams = self._free[key]
        stream = streams.pop()
        if not streams:
            del self._free[key]  # Clients may send any values: those of no stream are not kept.
        return stream

    def _open(self, fixed: Arrays) -> int:
        return self.batcher.open(None, **fixed)  # type: ignore[arg-type]  # none of them is `on_close`

    def give_back(self, stream: int, fixed: Arrays) -> None:
        """Keep a stream for sequences to come."""
        self.taken -= 1
        self._free.setdefault(key_of(fixed), []).append(stream)


class Sequence:
    """A live sequence. Its state is in a stream, or here.

    Attributes:
        id: Its id.
        begun: Whether a request of it was answered.
        streams: The Streams that have its stream; None where `state` is its state.
        stream: The id of its stream.
        state: Its state by the names of inputs; None for zeros.
        fixed: The inputs that are the same in all its requests.
        since, used: When it began and when its last request came, in seconds of the monotonic clock.
        requests: The number of its requests that were answered.
        kept: Whether a request to begin anew failed in its stream, which then takes no frames but with a state.
        owner: The connection with which it ends; None if it may outlive its connection.
        on_close: Called with the reason when it is closed; None if nobody is told.
    """

    __slots__ = (
        "id", "begun", "streams", "stream", "state", "fixed", "since", "used", "requests", "kept", "owner", "on_close",
    )  # fmt: skip

    def __init__(self, id: int | str) -> None:
        self.id, self.begun, self.stream, self.fixed = id, False, 0, Arrays()
        self.streams: Streams | None = None
        self.state: Arrays | None = None
        self.since = self.used = time.monotonic()
        self.requests, self.kept = 0, False
        self.owner: object = None
        self.on_close: Callable[[str], None] | None = None

    def free_stream(self) -> None:
        """Give the stream back, if there is one."""
        if self.streams is not None:
            self.streams.give_back(self.stream, self.fixed)
            self.streams = None

    def copied_state(self) -> Arrays | None:
        """A copy of its state; it waits for the batch that runs."""
        return self.state if self.streams is None else self.streams.batcher.state(self.stream)


class Sequences:
    """The live sequences of one model.

    Args:
        name: The model's name, for messages.
        signature: The names and types of the model's frames and states.
        inputs: The names of the inputs of a frame.
        make_batcher: Makes a Batcher of a pool of the model; with a frame and its fixed inputs, of a pool that has all
            its plans.
        call: Calls the model with all inputs, states included, and returns its outputs by name.
        most: The most live sequences.
        idle: Seconds without a request after which a sequence is closed.
        statistics: Counts sequences.

    Attributes:
        ending: Batchers of no use, with the tasks that end them.
    """

    def __init__(
        self,
        name: str,
        signature: ModelSignature,
        inputs: list[str],
        make_batcher: Callable[[Arrays | None, Arrays], Batcher],
        call: Callable[[Arrays, Parameters], Awaitable[Arrays]],
        most: int,
        idle: float,
        statistics: Statistics,
    ) -> None:
        self.name, self._signature, self._make_batcher, self._call = name, signature, make_batcher, call
        self._single = inputs[0] if len(inputs) == 1 else None
        self._most, self._idle, self._statistics = most, idle, statistics
        self._live: dict[int | str, Sequence] = {}  # the one that was used last is last
        # Of each id whose sequence begins, runs or ends now: what its other requests wait for, in their order.
        self._turns: dict[int | str, collections.deque[asyncio.Future[None]]] = {}
        self._closed: collections.OrderedDict[int | str, str] = collections.OrderedDict()
        self._pools: dict[tuple[Any, ...], Streams] = {}  # the shapes of a frame -> its Streams
        self.ending: dict[Batcher, asyncio.Task[None]] = {}
        self.draining = False

    def __len__(self) -> int:
        return len(self._live)

    @property
    def batchers(self) -> list[Batcher]:
        """The Batchers of all shapes."""
        return [streams.batcher for streams in self._pools.values()]

    async def step(
        self, parameters: Parameters, frame: Arrays, fixed: Arrays, state: Arrays | None, wants_state: bool
    ) -> tuple[Any, Arrays | None]:
        """Run a request of a sequence.

        Args:
            parameters: What the parameters of the request say.
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
        if self.draining and parameters.start:
            raise UnavailableError(f"model '{self.name}': the server is ending and takes no new sequences")
        id: int | str = parameters.sequence  # type: ignore[assignment]
        turns = self._turns.get(id)
        if turns is None:
            self._turns[id] = collections.deque()
        elif len(turns) >= MAX_WAITING:
            raise Overloaded(
                f"model '{self.name}': {MAX_WAITING} requests of sequence {id!r} wait already: nothing was taken"
            )
        else:
            await self._turn(id, turns)
        try:
            sequence = self._live.get(id)
            if sequence is None:
                sequence = self._begin(parameters)
            sequence.used = time.monotonic()
            self._live[id] = self._live.pop(id)
            try:
                return await self._run(sequence, parameters, frame, fixed, state, wants_state)
            finally:
                if not sequence.begun:
                    del self._live[id]  # Its first request failed.
        finally:
            self._turn_ended(id)

    async def _turn(self, id: int | str, turns: collections.deque[asyncio.Future[None]]) -> None:
        """Wait until the requests of an id that came before have run. A submitted one of them has no task."""
        future = asyncio.get_running_loop().create_future()
        turns.append(future)
        try:
            await future
        except BaseException:
            if future.cancelled():
                turns.remove(future)
            else:
                self._turn_ended(id)  # It was its turn already.
            raise

    def _turn_ended(self, id: int | str) -> None:
        """Let the next request of an id run."""
        turns = self._turns[id]
        for future in turns:
            if not future.done():
                future.set_result(None)
                turns.remove(future)
                return
        del self._turns[id]

    def _begin(self, parameters: Parameters) -> Sequence:
        """A new live sequence without a state yet, for the first request of one."""
        assert parameters.sequence is not None
        if not parameters.start:
            why = self._closed.get(parameters.sequence)
            raise UnknownSequenceError(
                f"inference request for sequence {parameters.sequence} to model '{self.name}' must specify the "
                f"START flag on the first request of the sequence{'' if why is None else f': it {why}'}"
            )
        if len(self._live) >= self._most:
            raise Overloaded(f"model '{self.name}': all {self._most} sequences are live: the sequence was not begun")
        sequence = self._live[parameters.sequence] = Sequence(parameters.sequence)
        return sequence

    async def _run(
        self,
        sequence: Sequence,
        parameters: Parameters,
        frame: Arrays,
        fixed: Arrays,
        state: Arrays | None,
        wants_state: bool,
    ) -> tuple[Any, Arrays | None]:
        """The same, while the sequence's lock is held."""
        if not parameters.start:
            self._check_followers(sequence, fixed, state)
            fixed = sequence.fixed
        streams = self._streams(frame)
        ran = None
        if streams is not None:
            ran = await self._run_frame(sequence, streams, parameters, frame, fixed, state, wants_state)
        if ran is None:
            ran = await self._run_call(sequence, parameters, frame, fixed, state)
        if parameters.start:
            self._closed.pop(sequence.id, None)
            self._statistics.opened += 1
            self._statistics.replaced += sequence.begun
            sequence.begun, sequence.since, sequence.requests = True, sequence.used, 0
            sequence.owner = sequence.on_close = None
        sequence.requests += 1
        if parameters.end:
            self._end(sequence, "was ended by its client")
            self._statistics.ended += 1
        return ran

    async def _run_frame(
        self,
        sequence: Sequence,
        streams: Streams,
        parameters: Parameters,
        frame: Arrays,
        fixed: Arrays,
        state: Arrays | None,
        wants_state: bool,
    ) -> tuple[Any, Arrays | None] | None:
        """Run a request in a pool; None if a pool cannot run frames of such shapes."""
        begin: bool | Arrays = False
        stays = sequence.streams is streams and (not parameters.start or key_of(fixed) == key_of(sequence.fixed))
        if parameters.start:
            begin = True if state is None else state
        elif not stays or sequence.kept:
            moved = await asyncio.to_thread(sequence.copied_state)
            begin = True if moved is None else moved
        stream: int | None = sequence.stream if stays else None
        try:
            if stream is None:
                stream = streams.take(fixed)
            results = await streams.batcher.step(
                stream, self._packed(frame), parameters.timeout, begin, parameters.priority
            )
            after = await asyncio.to_thread(streams.batcher.state, stream) if wants_state else None
        except BaseException as e:
            if stays:
                sequence.kept |= parameters.start
            elif stream is not None:
                streams.give_back(stream, fixed)
            if not streams.proven:
                self._forget(streams)
                if isinstance(e, UnsupportedError):
                    return None
            raise
        streams.proven, sequence.kept = True, False
        if not stays:
            sequence.free_stream()
            sequence.streams, sequence.stream, sequence.state, sequence.fixed = streams, stream, None, fixed
        return results, after

    async def _run_call(
        self, sequence: Sequence, parameters: Parameters, frame: Arrays, fixed: Arrays, state: Arrays | None
    ) -> tuple[Any, Arrays | None]:
        """Run a request as a call of the model."""
        signature = self._signature
        before = state if parameters.start else await asyncio.to_thread(sequence.copied_state)
        signature.check_names(frame | fixed)
        values = {name: signature.validate_input(name, value) for name, value in (frame | fixed).items()}
        if before is None:
            states = signature.zero_states(values)
        else:
            states = signature.validate_state(before)
        outputs = await self._call(signature.call_values(values, states), parameters)
        results, after = signature.split_outputs([outputs[name] for name in signature.output_indices], states)
        sequence.free_stream()
        sequence.state, sequence.fixed = dict(zip(signature.states, after)), fixed
        return signature.pack(results), sequence.state

    def _streams(self, frame: Arrays) -> Streams | None:
        """The Streams for frames of these shapes; None where they run as calls."""
        key = shapes_of(frame)
        streams = self._pools.get(key)
        if streams is None and len(self._pools) < MAX_POOLS:
            streams = self._pools[key] = Streams(self._make_batcher(None, {}))
        return streams

    def _packed(self, frame: Arrays) -> Arrays | np.ndarray:
        """A frame as the Batcher takes it soonest: as an array where it has one input."""
        return frame[self._single] if self._single is not None and frame.keys() == {self._single} else frame

    def _forget(self, streams: Streams) -> None:
        """Close a pool whose shape was never computed, once no other request runs in it."""
        key = next((key for key, kept in self._pools.items() if kept is streams), None)
        if key is not None and not streams.taken:
            del self._pools[key]
            self.ending[streams.batcher] = asyncio.create_task(self._end_batcher(streams.batcher))

    async def _end_batcher(self, batcher: Batcher) -> None:
        """End a Batcher; what it did stays counted."""
        await asyncio.to_thread(batcher.drain)
        del self.ending[batcher]
        self._statistics.keep(batcher.stats())

    def _check_followers(self, sequence: Sequence, fixed: Arrays, state: Arrays | None) -> None:
        """Raise InputError if a request that follows others brings what only the first one may."""
        where = f"model '{self.name}', sequence {sequence.id!r}"
        if state is not None:
            raise InputError(
                f"{where}: input {next(iter(state))!r} is a state, which only a request with sequence_start may give"
            )
        for name, value in fixed.items():
            before = sequence.fixed.get(name)
            if (
                before is None
                or before.dtype != value.dtype
                or before.shape != value.shape
                or before.tobytes() != value.tobytes()
            ):
                raise InputError(f"{where}: input {name!r} is not what it was when the sequence began")

    def _end(self, sequence: Sequence, why: str) -> None:
        """Forget a live sequence; its next request is told why."""
        del self._live[sequence.id]
        sequence.free_stream()
        if sequence.on_close is not None:
            sequence.on_close(why)
        self._closed[sequence.id] = why
        self._closed.move_to_end(sequence.id)
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    # ------------------------------------------------------------------------------------------ without requests
    def warm(self, frame: Arrays, fixed: Arrays) -> None:
        """Make the pool of frames of these shapes, and its plans for batches of all sizes. It blocks.

        Raises:
            InputError: Such a frame does not fit.
        """
        try:
            batcher = self._make_batcher(frame, fixed)
        except UnsupportedError:
            return  # They run as calls.
        streams = self._pools[shapes_of(frame)] = Streams(batcher)
        streams.proven = True

    def close_idle(self) -> None:
        """Close the sequences that had no requests for `idle` seconds."""
        now = time.monotonic()
        for sequence in list(self._live.values()):
            if now - sequence.used < self._idle:
                break  # Those behind it were used later.
            if sequence.id not in self._turns:
                self._end(sequence, f"was closed after {self._idle:g} s without a request")
                self._statistics.idled += 1

    def own(self, id: int | str, owner: object, on_close: Callable[[str], None] | None = None) -> None:
        """Let a live sequence end with a connection, whose `owner` is any object, unless it begins anew elsewhere.

        `on_close` is called with the reason when it is closed.
        """
        sequence = self._live.get(id)
        if sequence is not None:
            sequence.owner, sequence.on_close = owner, on_close

    def submit(
        self, parameters: Parameters, frame: Arrays, fixed: Arrays, owner: object = None
    ) -> asyncio.Future[Any] | None:
        """Run a further frame of a live sequence without a task.

        Args:
            parameters: What the parameters of the request say.
            frame: Its inputs that are neither fixed nor states.
            fixed: Its inputs that are the same in all requests of a sequence.
            owner: The connection with which the sequence has to end; None for any.

        Returns:
            A Future of the results as `step` returns them, behind which the caller calls `settled`; None where only
            `step` can run the frame, because it begins or ends the sequence or waits for another one, say.

        Raises:
            Error: As `step`.
        """
        id: int | str = parameters.sequence  # type: ignore[assignment]
        sequence = self._live.get(id)
        if sequence is None or parameters.start or parameters.end or id in self._turns or sequence.kept:
            return None
        streams = sequence.streams  # No pool is made here: only a request that runs in one knows when to end it.
        if streams is None or streams is not self._pools.get(shapes_of(frame)):
            return None
        if owner is not None and sequence.owner is not owner:
            return None
        if fixed:
            self._check_followers(sequence, fixed, None)
        future = streams.batcher.step(
            sequence.stream, self._packed(frame), parameters.timeout, False, parameters.priority
        )
        self._turns[id], sequence.used = collections.deque(), time.monotonic()
        self._live[id] = self._live.pop(id)
        return future  # type: ignore[return-value]

    def settled(self, id: int | str, answered: bool) -> None:
        """Note that a frame that was submitted has its results or an error."""
        self._turn_ended(id)
        sequence = self._live.get(id)
        if sequence is not None:
            sequence.requests += answered

    def drop(self, id: int | str, why: str, by_client: bool = False, owner: object = None) -> None:
        """Close a sequence whose client or model is gone, if it is live and no request of it runs.

        With `owner` only if the sequence still ends with that connection; `by_client` counts it as ended by its client.
        """
        sequence = self._live.get(id)
        if sequence is not None and id not in self._turns and (owner is None or sequence.owner == owner):
            if owner is not None:
                sequence.on_close = None  # It knows.
            self._end(sequence, why)
            if by_client:
                self._statistics.ended += 1
            else:
                self._statistics.dropped += 1

    def idle(self, seconds: float) -> int:
        """The number of live sequences that had no request for some seconds."""
        limit = time.monotonic() - seconds
        return sum(1 for _ in itertools.takewhile(lambda s: s.used < limit, self._live.values()))

    def oldest(self, most: int) -> list[dict[str, Any]]:
        """Id, age, requests and seconds without a request of the live sequences that began first."""
        now = time.monotonic()
        return [
            {"id": str(s.id), "age": now - s.since, "requests": s.requests, "unused": now - s.used}
            for s in heapq.nsmallest(most, self._live.values(), key=lambda s: s.since)
        ]

    def ids(self) -> list[int | str]:
        """The ids of the live sequences."""
        return list(self._live)

    def states(self) -> dict[int | str, tuple[Arrays | None, Arrays]]:
        """{id: (state, fixed inputs)} of the live sequences; None for a state of zeros. It waits for batches.

        A sequence of which a request waits or runs is left out, and one that is told of its end, because it is a
        connection: it has no other one to go on with.
        """
        quiet = [s for s in list(self._live.values()) if s.id not in self._turns and s.on_close is None]
        return {s.id: (s.copied_state(), s.fixed) for s in quiet}

    def restore(self, states: dict[int | str, tuple[Arrays | None, Arrays]]) -> None:
        """Take up the states of another server: their sequences go on with their next request."""
        for id, (state, fixed) in states.items():
            if id in self._live:
                continue  # It began anew.
            sequence = self._live[id] = Sequence(id)
            sequence.begun, sequence.state, sequence.fixed = True, state, fixed
            self._statistics.resumed += 1
