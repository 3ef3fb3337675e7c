"""Ray Serve: replicas that hold the states of live sequences and run their frames in batches."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import functools
import hashlib
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import ClosedError, DeadlineError, Error, InputError, LimitError, Overloaded, UnsupportedError
from rnnfast.ray.exchange import HAND_OVER, POLL, Exchange
from rnnfast.ray.map import import_ray, loaded, pickled_model
from rnnfast.ray.scaling import BySequences

if TYPE_CHECKING:
    from rnnfast.model import Model
    from rnnfast.nn import Module

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
NAMESPACE = "rnnfast"  # of the exchanges among Ray's named actors
HEAD = {"node:__internal_head__": 0.001}  # what Ray Serve asks for to be on the head node
ATTEMPTS = 20  # calls of an exchange that does not answer, a tenth of a second apart
# Errors and the statuses of HTTP with which they are answered; the first that fits counts.
STATUSES = ((Overloaded, 503), (LimitError, 503), (DeadlineError, 504), (InputError, 400), (Error, 400))


def deployment(
    model: Model | Module | str | os.PathLike[str],
    *,
    max_streams: int = 1024,
    max_batch: int = 256,
    max_wait: float = 0.001,
    idle: float = 300.0,
    target_sequences: int | None = None,
    fixed: collections.abc.Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Make a Ray Serve application that runs live sequences, chunk by chunk, and whole sequences.

    Each replica holds a pool and a Batcher. `Replica` has the methods that a handle calls; requests over HTTP are
    `Replica.__call__`. A sequence stays with a replica by its session id: `handle.options(session_id=ID)`, or the
    header `x-session-id`. Where its requests come to another replica, because replicas were added or drained or the
    application was deployed anew, its state follows.

    Args:
        model: A model, a layer, or the path of an ONNX file, which is read here.
        max_streams: The most live sequences of a replica.
        max_batch: The most frames in a batch.
        max_wait: The most seconds that a frame waits for others.
        idle: Seconds after which a sequence without frames is closed, and after which states that a drained replica
            left are forgotten.
        target_sequences: The live sequences of a replica that autoscaling aims at, where `options` has an
            `autoscaling_config`; None for seven tenths of `max_streams`.
        fixed: Inputs that are the same for each frame of each sequence.
        **options: Options of `ray.serve.deployment`, such as `name`, `num_replicas`, `autoscaling_config` (a dict) and
            `ray_actor_options`.

    Returns:
        The application, for `ray.serve.run`.

    Raises:
        UnsupportedError: Ray Serve is not installed.
        InputError: An argument is out of range.
        InputTypeError: `model` is none of these.
    """
    import_ray()
    from ray import serve
    from ray.serve.config import AutoscalingPolicy, RequestRouterConfig

    for name, count in (("max_streams", max_streams), ("target_sequences", target_sequences)):
        if (name, count) != ("target_sequences", None) and (type(count) is not int or count < 1):
            raise InputError(f"deployment: {name} is {count!r}, expected an int of at least 1")
    if isinstance(idle, bool) or not isinstance(idle, (int, float)) or not idle > 0:
        raise InputError(f"deployment: idle is {idle!r}, expected seconds")
    scaling = options.get("autoscaling_config")
    if isinstance(scaling, collections.abc.Mapping) and "policy" not in scaling:
        target = max(max_streams * 7 // 10, 1) if target_sequences is None else target_sequences
        policy = AutoscalingPolicy(policy_function=BySequences, policy_kwargs={"target": target})
        options["autoscaling_config"] = {**scaling, "policy": policy}
    router = RequestRouterConfig(request_router_class=ROUTER)
    # A replica takes all chunks of its sequences at once and batches them; the wait for those that run is short.
    defaults = {
        "name": "sequences",
        "max_ongoing_requests": 2 * max_streams,
        "graceful_shutdown_wait_loop_s": 0.1,
        "request_router_config": router,
    }
    settings = {
        "max_streams": max_streams,
        "max_batch": max_batch,
        "max_wait": max_wait,
        "idle": idle,
        "fixed": dict(fixed or {}),
    }
    return serve.deployment(Replica, **(defaults | options)).bind(pickled_model(model), settings)


class LiveSequence:
    """A sequence of a replica.

    Attributes:
        stream: Its id in the Batcher.
        claim: The number of its claim at the Exchange.
        turn: The lock of its chunks, which run one after the other.
        opened: (state that its stream was opened with,)
    """

    __slots__ = ("claim", "opened", "stream", "turn")

    def __init__(self, stream: int, claim: int, opened: tuple[Any]) -> None:
        self.stream, self.claim, self.opened, self.turn = stream, claim, opened, asyncio.Lock()


class Replica:
    """One replica of a deployment; a handle calls `step`, `state` and `run`.

    Args:
        pickle_of_model: The model or layer.
        settings: The arguments of `deployment`.
    """

    def __init__(self, pickle_of_model: bytes, settings: dict[str, Any]) -> None:
        from rnnfast.serving.batcher import Batcher

        model = loaded(hashlib.sha256(pickle_of_model).digest(), pickle_of_model)
        self._idle = settings["idle"]
        self._live: dict[str, LiveSequence] = {}
        self._claiming: dict[str, list[asyncio.Future[None]]] = {}  # sequence -> claims that are not answered
        self._dtype = _first_dtype(model)
        source: Any = model
        try:
            source = model.pool(settings["max_streams"], **settings["fixed"])
        except InputError:
            if settings["fixed"]:
                raise  # else the model may have no states, and runs whole sequences only
        # The queue has no limit of its own: Ray Serve limits how many requests are in a replica.
        self._batcher = Batcher(
            source, settings["max_batch"], settings["max_wait"], max_queue=sys.maxsize, idle=settings["idle"]
        )
        self._name = self._exchange = None
        self._answering: asyncio.Task[None] | None = None
        self._connect()

    # ------------------------------------------------------------------------------------------ requests
    async def step(
        self, frames: Any, sequence_id: str, sequence_start: bool = False, sequence_end: bool = False, state: Any = None
    ) -> Any:
        """Take a chunk of a live sequence: some frames, which follow those of its last chunk.

        A chunk that fails leaves the sequence as it was. Chunks of one sequence run in the order in which they come.

        Args:
            frames: [n, ...], as `stream.run` of the model takes them: an array or a mapping of arrays by input. None
                with `sequence_end` takes no frame.
            sequence_id: The id of the sequence, which is its session id too.
            sequence_start: True at the first chunk. A sequence of this id that lives begins anew.
            sequence_end: True at the last chunk, after which the sequence is closed.
            state: With `sequence_start`, the state to begin with, as `state` returns it; None begins with zeros.

        Returns:
            The results [n, ...], as `stream.run` returns them.

        Raises:
            ClosedError: The sequence is not known and this is not its first chunk: it never began, it ended, nothing
                came for `idle` seconds, or its state died with its replica. It can begin anew.
            LimitError: The replica has `max_streams` sequences.
            InputError: The frames or the state do not fit.
        """
        if state is not None and not sequence_start:
            raise InputError(f"sequence {sequence_id!r}: a state is given with sequence_start only")
        if frames is None and not sequence_end:
            raise InputError(f"sequence {sequence_id!r}: no frames")
        if sequence_start:
            live = await self._begin(sequence_id, state)
        else:
            live = self._live.get(sequence_id) or await self._fetch(sequence_id)
        async with live.turn:
            if self._live.get(sequence_id) is not live:  # it was closed or given away while this chunk waited
                if sequence_start:
                    raise ClosedError(f"sequence {sequence_id!r}: it began anew by another request")
                return await self.step(frames, sequence_id, False, sequence_end)
            try:
                results = None if frames is None else await self._chunk(live, frames)
            except BaseException:
                if sequence_start:
                    self._close(sequence_id, live)  # nothing began
                raise
            if sequence_end:
                self._close(sequence_id, live)
            return results

    async def state(self, sequence_id: str) -> Any:
        """Return a copy of a live sequence's state, as `stream.state` has it, to begin a sequence with.

        Raises:
            ClosedError: As for `step`.
        """
        live = self._live.get(sequence_id) or await self._fetch(sequence_id)
        async with live.turn:
            return await self._state(live)

    async def run(self, sequence: Any) -> Any:
        """Take a whole sequence [T, ...] and return its results [T, ...], as `Batcher.run` does.

        Raises:
            InputError: The sequence does not fit.
        """
        return await self._batcher.run(self._array(sequence))

    async def __call__(self, request: Any) -> Any:
        """Answer a request over HTTP: a JSON object.

        `inputs` has the frames, as an array or an object of arrays by input. With the header `x-session-id` they are a
        chunk of that sequence, and `sequence_start`, `sequence_end` and `state` mean what they do for `step`;
        `return_state` asks for the state afterwards. Without the header they are a whole sequence. The answer has
        `outputs` and `state`, or `error`, with the status 400, 503 where the replica is full, or 504.
        """
        from starlette.responses import JSONResponse

        try:
            answer = await self._answer(request)
            try:
                return JSONResponse(answer)
            except ValueError:
                raise UnsupportedError("the answer has a number that is not finite, which JSON has not") from None
        except Error as error:
            status = next(status for kind, status in STATUSES if isinstance(error, kind))
            return JSONResponse({"error": str(error)}, status)

    async def _answer(self, request):
        """The body of an answer over HTTP."""
        try:
            body = await request.json()
        except ValueError as error:
            raise InputError(f"the body is no JSON: {error}") from error
        known = ("inputs", "sequence_start", "sequence_end", "state", "return_state")
        if not isinstance(body, dict) or any(name not in known for name in body):
            raise InputError(f"the body is {str(body)[:100]}, expected an object with some of {list(known)}")
        for name in ("sequence_start", "sequence_end", "return_state"):
            if not isinstance(body.get(name, False), bool):
                raise InputError(f"{name} is {body[name]!r}, expected true or false")
        sequence, frames = request.headers.get("x-session-id"), body.get("inputs")
        if sequence is None:
            if "inputs" not in body or len(body) > 1:
                raise InputError("without the header x-session-id the body has inputs alone, a whole sequence")
            return {"outputs": _as_json(await self.run(frames))}
        start, end = body.get("sequence_start", False), body.get("sequence_end", False)
        given = body.get("state")
        state = {name: _from_json(v, np.float32) for name, v in given.items()} if isinstance(given, dict) else given
        if not body.get("return_state", False):
            return {"outputs": _as_json(await self.step(frames, sequence, start, end, state))}
        outputs = await self.step(frames, sequence, start, False, state)
        answer = {"outputs": _as_json(outputs), "state": _as_json(await self.state(sequence))}
        if end:
            await self.step(None, sequence, sequence_end=True)
        return answer

    # ------------------------------------------------------------------------------------------ sequences
    def _array(self, values):
        """Frames as an array; numbers of JSON become the type of the model's input."""
        return _from_json(values, self._dtype) if isinstance(values, list) else values

    async def _chunk(self, live, frames):
        """The results of the frames of a chunk, which join those of other sequences."""
        rows = _rows(frames, self._array)
        before = (await self._state(live),) if len(rows) > 1 else live.opened
        futures: list[Any] = []
        try:
            for row in rows:
                futures.append(self._batcher.step(live.stream, row))
            results = await asyncio.gather(*futures)
        except BaseException:
            await asyncio.gather(*futures, return_exceptions=True)
            if len(rows) > 1:  # frames before the one that failed are part of the state: back to the one before
                self._batcher.close(live.stream)
                live.stream, live.opened = self._batcher.open(before[0], on_close=self._closed), before
            raise
        if isinstance(results[0], collections.abc.Mapping):
            return {name: np.stack([result[name] for result in results]) for name in results[0]}
        return np.stack(results)

    async def _state(self, live):
        """The state of a sequence; that which it began with where there was no frame yet."""
        state = await asyncio.to_thread(self._batcher.state, live.stream)
        return live.opened[0] if state is None else state

    def _closed(self, stream):
        """A stream was closed for idleness."""
        for sequence, live in list(self._live.items()):
            if live.stream == stream:
                del self._live[sequence]
                self._ended(sequence, live)

    def _close(self, sequence, live):
        """End a sequence."""
        if self._live.get(sequence) is live:
            del self._live[sequence]
            self._ended(sequence, live)
        with contextlib.suppress(ClosedError):
            self._batcher.close(live.stream)

    async def _begin(self, sequence, state):
        """A new sequence, in place of one of the same id."""
        before = self._live.get(sequence)
        try:
            stream = self._batcher.open(state, on_close=self._closed)
        except LimitError:
            if before is None:
                raise
            self._close(sequence, before)
            stream = self._batcher.open(state, on_close=self._closed)
        try:
            claim, _ = await self._claim(sequence, True)
        except BaseException:
            self._batcher.close(stream)
            raise
        before = self._live.get(sequence)
        live = self._live[sequence] = LiveSequence(stream, claim, (state,))
        if before is not None:
            with contextlib.suppress(ClosedError):
                self._batcher.close(before.stream)
        return live

    async def _fetch(self, sequence):
        """A sequence that another replica has or has left behind."""
        claim, state = await self._claim(sequence, False)
        if self._live.get(sequence) is None and state is not None:
            stream = self._batcher.open(state[0], on_close=self._closed)
            self._live[sequence] = LiveSequence(stream, claim, state)
        if self._live.get(sequence) is None:
            raise ClosedError(
                f"sequence {sequence!r} is not known and this is not its first chunk: it never began, it ended, "
                f"nothing came for {self._idle:g} s, or its state died with its replica. Begin anew: sequence_start"
            )
        return self._live[sequence]

    # ------------------------------------------------------------------------------------------ other replicas
    def _connect(self):
        """Find the Exchange of this application, or make it, and begin to answer it."""
        ray = import_ray()
        from ray import serve

        context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        self._exchange_name = f"{context.app_name}/{context.deployment}"
        self._find_exchange = functools.partial(
            ray.remote(Exchange)
            .options(
                name=self._exchange_name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                resources=HEAD,
                max_restarts=-1,
                max_concurrency=100_000,
            )
            .remote,
            self._idle,
        )
        self._exchange = self._find_exchange()
        self._answering = asyncio.get_running_loop().create_task(self._give_on_request())

    async def _claim(self, sequence, begin):
        """Return what `Exchange.claim` answers."""
        claiming = self._claiming.setdefault(sequence, [])
        claiming.append(asyncio.get_running_loop().create_future())
        try:
            return await self._ask("claim", self._name, sequence, begin)
        finally:
            # After this turn of the event loop, in which the caller notes what it got.
            asyncio.get_running_loop().call_soon(self._claimed, sequence, claiming.pop())

    def _claimed(self, sequence, future):
        future.set_result(None)
        if not self._claiming.get(sequence, True):
            del self._claiming[sequence]

    async def _ask(self, method, *arguments):
        """Call the Exchange, again where it just begins anew."""
        ray = import_ray()
        for _ in range(ATTEMPTS):
            exchange = self._exchange
            try:
                return await getattr(exchange, method).remote(*arguments)
            except ray.exceptions.RayActorError as error:
                failure = error
                await asyncio.sleep(0.1)
                if self._exchange is exchange:
                    self._exchange = self._find_exchange()
        raise Overloaded(f"the exchange of states, actor {self._exchange_name!r}, does not answer: {failure}")

    def _ended(self, sequence, live):
        """Tell the Exchange that a sequence ended; where that is lost, it is asked for in vain later."""
        with contextlib.suppress(Exception):
            self._exchange.ended.remote(sequence, live.claim)

    async def _give_on_request(self):
        """Give away the sequences that other replicas ask for."""
        held: dict[str, int] | None = {}
        while True:
            try:
                wanted = await self._exchange.poll.remote(self._name, held)
            except Exception:  # It begins anew, or is gone: then a new one.
                wanted = None
                await asyncio.sleep(POLL / 5)
                with contextlib.suppress(Exception):
                    self._exchange = self._find_exchange()
            held = None if wanted is not None else {s: live.claim for s, live in self._live.items()}
            for sequence in wanted or ():
                asyncio.get_running_loop().create_task(self._give(sequence))

    async def _give(self, sequence):
        if sequence not in self._live and sequence in self._claiming:  # the answer is on its way
            await asyncio.wait(list(self._claiming[sequence]), timeout=HAND_OVER)
        state, live = None, self._live.get(sequence)
        if live is not None:
            async with live.turn:
                state = await self._removed(sequence, live)
        self._exchange.give.remote(sequence, state)

    async def _removed(self, sequence, live):
        """(state,) of a sequence that leaves this replica; None if it has left."""
        if self._live.get(sequence) is not live:
            return None
        try:
            state = (await self._state(live),)
        except ClosedError:
            return None
        del self._live[sequence]
        with contextlib.suppress(ClosedError):
            self._batcher.close(live.stream)
        return state

    def __del__(self) -> Any:
        """Leave all states to the Exchange; Ray Serve calls it when the requests in progress have ended, and awaits."""
        answering, self._answering = getattr(self, "_answering", None), None
        return None if answering is None else self._end(answering)

    async def _end(self, answering):
        answering.cancel()
        states = {sequence: await self._removed(sequence, live) for sequence, live in list(self._live.items())}
        states = {sequence: state for sequence, state in states.items() if state is not None}
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._ask("leave", self._name, states), 10)
        await asyncio.to_thread(self._batcher.drain)

    def record_autoscaling_stats(self) -> dict[str, int]:
        """Return the number of live sequences, for Ray Serve's autoscaling."""
        return {"sequences": len(self._live)}


def _rows(frames, as_array):
    """The frames of a chunk, one by one."""
    if not isinstance(frames, collections.abc.Mapping):
        frames = as_array(frames)
        rows = list(frames) if np.ndim(frames) else []
    else:
        parts = {name: as_array(values) for name, values in frames.items()}
        lengths = {name: len(values) if np.ndim(values) else 0 for name, values in parts.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"the inputs of a chunk have the numbers of frames {lengths}, expected the same")
        rows = [dict(zip(parts, row)) for row in zip(*parts.values())]
    if not rows:
        raise InputError("a chunk of no frames")
    return rows


def _from_json(values, dtype):
    """Numbers of JSON as an array."""
    try:
        return np.asarray(values, dtype)
    except (ValueError, TypeError) as error:
        raise InputError(f"a value is no array of numbers: {error}") from error


def _first_dtype(model):
    """The type of the numbers of a sequence."""
    inputs = getattr(model, "inputs", ())
    return inputs[0].type.dtype if inputs and inputs[0].type.kind == "tensor" else np.float32


def _as_json(value):
    """Arrays, and mappings and tuples of arrays, as JSON has them."""
    if isinstance(value, collections.abc.Mapping):
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_as_json(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
