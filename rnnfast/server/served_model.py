"""One version of a model that a server serves: its requests, its sequences, and what clients may ask about it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rnnfast.errors import InputError, InputTypeError, UnsupportedError
from rnnfast.model import load
from rnnfast.onnx.graph import Value
from rnnfast.server.datatypes import datatype_of
from rnnfast.server.requests import InferRequest, InferResponse, Parameters, parameters_of
from rnnfast.server.sequences import Sequences
from rnnfast.server.settings import ModelSettings
from rnnfast.server.statistics import Statistics, all_batches
from rnnfast.serving.batcher import Batcher
from rnnfast.streaming.model_signature import ModelSignature
from rnnfast.streaming.state_pairs import find_state_pairs

PLATFORM = "rnnfast_onnx"
# Streams of a pool beyond the sequences that may be live: for those that begin anew with other fixed inputs.
SPARE_STREAMS = 64
# Seconds for which the requests of a model may hold up the event loop. With a small model the processor time of a
# request of a lone client is 0.6, and of one of 8 clients 0.8 of that with the hand-overs to the Batcher's thread.
MAX_INLINE = 0.0005
# Where so many sequences have streams, frames wait so many seconds for each other, unless the settings say otherwise.
# 500 streams of Silero VAD: a frame takes 44 us of CPU in place of 64.
WAIT_FROM, MAX_WAIT = 128, 0.001
# Called with the response of a request and None, or with None and its error.
Then = Callable[[InferResponse | None, BaseException | None], None]
# Seconds without a request after which metrics call a live sequence idle.
IDLE_SECONDS = 5.0
# The least seconds between two looks at the memory of a model's plans, which takes microseconds for each of them.
HELD_SECONDS = 5.0


class ServedModel:
    """A loaded model with its live sequences.

    Attributes:
        name: The name that clients know it by.
        version: Its version, a decimal number.
        path: The file.
        model: The Model.
        settings: Its ModelSettings.
        states: {state input: state output}; empty where the model has no states, and then no sequences.
        inputs: The inputs that a request of a sequence gives, or any request of a model without states.
        fixed_inputs: The names of those inputs that are the same in all requests of a sequence.
        outputs: The outputs that a request gets unless it asks for states too.
        statistics: The counts of its requests.
        sequences: Its live sequences; None where it has no states.
        why_no_sequences: Why it has none.
        batching: How requests share batches, in words.
    """

    def __init__(self, name: str, version: str, path: str, settings: ModelSettings) -> None:
        """Load the model and prove what may share batches.

        Raises:
            Error: As `rnnfast.load`; or the protocol has no datatype for an input or output.
        """
        self.name, self.version, self.path, self.settings = name, version, path, settings
        self.model = load(path, weights=settings.weights, activations=settings.activations, threads=settings.threads)
        self.statistics = Statistics()
        self._types = {v.name: v.type for v in (*self.model.inputs, *self.model.outputs)}
        for kind, values in ("input", self.model.inputs), ("output", self.model.outputs):
            for v in values:
                if v.type.kind != "tensor" or v.type.dtype is None:
                    raise UnsupportedError(f"model '{name}': {kind} {v.name!r} is {v.type}, which is no tensor")
                datatype_of(v.type.dtype, f"model '{name}': {kind} {v.name!r}")
        self.states, self.why_no_sequences = self._find_states()
        self.fixed_inputs = self._find_fixed_inputs()
        self.inputs = [v for v in self.model.inputs if v.name not in self.states and v.name not in settings.fixed]
        self.outputs = [v for v in self.model.outputs if v.name not in self.states.values()]
        self._state_of_output = {output: input for input, output in self.states.items()}
        self._single = self.outputs[0].name if len(self.outputs) == 1 else None
        self._known_inputs = frozenset(v.name for v in self.model.inputs)
        self._all_outputs = [v.name for v in self.model.outputs]
        self._plain_outputs = frozenset(v.name for v in self.outputs)
        self._held = (-math.inf, 0)  # when it was looked up, and the bytes
        # Runs calls, and whole sequences of a model without states; without waiting for others.
        most = settings.max_batch if settings.batch else 1
        self._calls = Batcher(self.model, most, 0.0, max_queue=settings.max_queue, max_inline=MAX_INLINE)
        self._in_progress = 0  # calls
        self.batching = "calls share batches where that is proven" if settings.batch else "calls run one by one"
        self.sequences: Sequences | None = None
        if self.states:
            problem = self._batch_problem()
            self.batching = f"sequences run one by one: {problem}" if problem else "sequences share batches"
            self._shares = problem is None
            self.sequences = Sequences(
                name,
                ModelSignature(self.model, self.states, settings.fixed),
                [v.name for v in self.inputs if v.name not in self.fixed_inputs],
                self._make_batcher,
                self._call,
                settings.max_sequences,
                settings.idle,
                self.statistics,
            )

    def _make_batcher(self, frame: dict[str, np.ndarray] | None, fixed: dict[str, np.ndarray]) -> Batcher:
        """A Batcher for sequences whose frames have one shape; with a frame, all plans for such are there."""
        settings = self.settings
        pool = self.model.pool(
            settings.max_sequences + SPARE_STREAMS, states=self.states, batch=self._shares, **settings.fixed
        )
        if frame is not None:
            pool.warm(frame, **fixed)
        wait, wait_from = (MAX_WAIT, WAIT_FROM) if settings.max_wait is None else (settings.max_wait, 0)
        return Batcher(
            pool, settings.max_batch, wait, max_queue=settings.max_queue, wait_from=wait_from, max_inline=MAX_INLINE
        )

    def _find_states(self) -> tuple[dict[str, str], str]:
        """The state pairs, and why there are none."""
        try:
            return find_state_pairs(self.model, self.settings.states), ""
        except InputError as e:
            if self.settings.states is not None:
                raise
            return {}, str(e)

    def _find_fixed_inputs(self) -> frozenset[str]:
        """The inputs that are the same in all requests of a sequence: those that leave no size open, beside others."""

        def is_open(value: Value) -> bool:
            return value.type.shape is None or any(type(n) is not int for n in value.type.shape)

        inputs = [v for v in self.model.inputs if v.name not in self.states]
        return frozenset(v.name for v in inputs if not is_open(v)) if any(map(is_open, inputs)) else frozenset()

    def _batch_problem(self) -> str | None:
        """Why sequences cannot share batches, None if they can or their first request will tell."""
        if not self.settings.batch:
            return "its settings say so"
        problem = self.model.batch_axes(self.settings.fixed).problem
        return None if problem is None or problem.startswith("a call with such inputs fails") else problem

    # ------------------------------------------------------------------------------------------ requests
    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request.

        Raises:
            Error: A name, a type, a shape or a parameter does not fit; or as `Sequences.step` and a call of the model.
        """
        begun = self.statistics.begin()
        try:
            parameters = parameters_of(request.parameters)
            wanted = self._wanted(request)
            future = self._submitted(request, parameters, None)
            if future is not None:
                answered = False
                try:
                    results = await future
                    answered = True
                finally:
                    self.sequences.settled(parameters.sequence, answered)  # type: ignore[union-attr, arg-type]
                outputs = self._named(results)
            elif parameters.sequence is not None:
                outputs = await self._in_sequence(request, parameters, wanted)
            else:
                outputs = await self._alone(request, parameters)
            outputs = self._chosen(outputs, wanted)
        except BaseException as e:
            self.statistics.failure(begun, e)
            raise
        self.statistics.success(begun)
        return InferResponse(self.name, self.version, request.id, outputs)

    def submit(self, request: InferRequest, then: Then, owner: object = None) -> asyncio.Future[Any] | None:
        """Run a further request of a live sequence, as `infer` does but without a task.

        Args:
            request: The request.
            then: Called later with the response and None, or with None and the error.
            owner: The connection with which the sequence has to end; None for any.

        Returns:
            A Future that is done before `then` is called, to cancel the request by; None where only `infer` can run it.

        Raises:
            Error: It was not taken.
        """
        begun = time.perf_counter_ns()
        try:
            parameters = parameters_of(request.parameters)
            future = self._submitted(request, parameters, owner)
        except BaseException as e:
            self.statistics.failure(self.statistics.begin(), e)
            raise
        if future is None:
            return None
        self.statistics.begun += 1

        def settle(future: asyncio.Future[Any]) -> None:
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            self.sequences.settled(parameters.sequence, error is None)  # type: ignore[union-attr, arg-type]
            if error is not None:
                self.statistics.failure(begun, error)
                then(None, error)
                return
            results = future.result()
            outputs = self._chosen(self._named(results), [output.name for output in request.outputs])
            self.statistics.success(begun)
            then(InferResponse(self.name, self.version, request.id, outputs), None)

        future.add_done_callback(settle)
        return future

    def _submitted(self, request: InferRequest, parameters: Parameters, owner: object) -> asyncio.Future[Any] | None:
        """The results of a further request of a live sequence as `Sequences.submit` gives them; None for others."""
        if self.sequences is None or parameters.start or parameters.sequence is None:
            return None
        frame, fixed = dict[str, np.ndarray](), dict[str, np.ndarray]()
        for name, value in request.inputs.items():
            if name not in self._known_inputs or name in self.states or name in self.settings.fixed:
                return None
            (fixed if name in self.fixed_inputs else frame)[name] = value
        if any(output.name not in self._plain_outputs for output in request.outputs):
            return None
        return self.sequences.submit(parameters, frame, fixed, owner)

    def _named(self, results: Any) -> dict[str, np.ndarray]:
        """The results of a stream's `step` by the names of outputs."""
        return {self._single: results} if self._single is not None else results

    def _chosen(self, outputs: dict[str, np.ndarray], wanted: list[str]) -> dict[str, np.ndarray]:
        """The wanted outputs, in the order of the file; all if none is named."""
        return {name: outputs[name] for name in self._all_outputs if name in wanted} if wanted else outputs

    def _wanted(self, request: InferRequest) -> list[str]:
        """The names of the outputs that a request asks for; empty for all."""
        for output in request.outputs:
            if output.name not in self._all_outputs:
                raise InputError(
                    f"unexpected inference output '{output.name}' for model '{self.name}', which has "
                    f"{', '.join(self._all_outputs)}"
                )
        for name in request.inputs:
            if name not in self._known_inputs:
                raise InputError(
                    f"unexpected inference input '{name}' for model '{self.name}', which has "
                    f"{', '.join(v.name for v in self.model.inputs)}"
                )
        return [output.name for output in request.outputs]

    async def _in_sequence(
        self, request: InferRequest, parameters: Parameters, wanted: list[str]
    ) -> dict[str, np.ndarray]:
        """The outputs of a request of a sequence."""
        if self.sequences is None:
            raise UnsupportedError(f"model '{self.name}' has no sequences: {self.why_no_sequences}")
        frame, fixed, state = dict[str, np.ndarray](), dict[str, np.ndarray](), dict[str, np.ndarray]()
        for name, value in request.inputs.items():
            (state if name in self.states else fixed if name in self.fixed_inputs else frame)[name] = value
            if name in self.settings.fixed:
                raise InputError(f"model '{self.name}': input {name!r} is fixed by the model's settings")
        wants_state = any(name in self._state_of_output for name in wanted)
        results, after = await self.sequences.step(parameters, frame, fixed, state or None, wants_state)
        if request.owner is not None and parameters.start:
            assert parameters.sequence is not None
            self.sequences.own(parameters.sequence, request.owner)
        outputs = self._named(results)
        if after is not None:
            outputs = dict(outputs) | {output: after[name] for name, output in self.states.items()}
        return outputs

    async def _alone(self, request: InferRequest, parameters: Parameters) -> dict[str, np.ndarray]:
        """The outputs of a request that is a whole call of the model."""
        if parameters.start or parameters.end:
            raise InputError(
                f"inference request to model '{self.name}' must specify a non-zero or non-empty correlation ID: "
                "sequence_start and sequence_end belong to a sequence_id"
            )
        missing = [name for name in self.model.required_inputs if name not in request.inputs]
        if missing and self.states:
            raise InputError(
                f"inference request to model '{self.name}' must specify a non-zero or non-empty correlation ID, or "
                f"give its states too: input '{missing[0]}' is missing"
            )
        return await self._call(request.inputs, parameters)

    async def _call(self, feed: dict[str, np.ndarray], parameters: Parameters) -> dict[str, np.ndarray]:
        """The outputs of a call of the model. A sequence that comes while others are in progress runs with them."""
        sequence = self._calls.sequence_of(feed) if self._in_progress and self.settings.batch else None
        self._in_progress += 1
        try:
            if sequence is None:
                return await self._calls.call(feed, parameters.timeout, parameters.priority)
            return self._calls.as_call(await self._calls.run(sequence, parameters.timeout, parameters.priority))
        finally:
            self._in_progress -= 1

    # ------------------------------------------------------------------------------------------ what it is
    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The model's metadata of the protocol."""
        return {
            "name": self.name,
            "versions": versions,
            "platform": PLATFORM,
            "inputs": [self._tensor(v) for v in self.inputs],
            "outputs": [self._tensor(v) for v in self.outputs],
        }

    def _tensor(self, value: Value) -> dict[str, Any]:
        assert value.type.dtype is not None
        return {"name": value.name, "datatype": datatype_of(value.type.dtype, value.name), "shape": _sizes(value)}

    def config(self) -> dict[str, Any]:
        """The model's configuration as Triton has it; the batch axis is one of the sizes (max_batch_size is 0)."""

        def tensors(values: list[Value]) -> list[dict[str, Any]]:
            return [{"name": v.name, "data_type": _config_type(v), "dims": _sizes(v)} for v in values]

        config: dict[str, Any] = {
            "name": self.name,
            "platform": PLATFORM,
            "backend": "rnnfast",
            "version_policy": {"latest": {"num_versions": self.settings.versions}},
            "max_batch_size": 0,
            "input": tensors(self.inputs),
            "output": tensors(self.outputs),
            "instance_group": [{"name": self.name, "kind": "KIND_CPU", "count": 1, "gpus": []}],
            "parameters": {"batching": {"string_value": self.batching}},
        }
        if self.sequences is not None:
            types = {v.name: v for v in (*self.model.inputs, *self.model.outputs)}
            config["sequence_batching"] = {
                "max_sequence_idle_microseconds": round(self.settings.idle * 1e6),
                "state": [
                    {
                        "input_name": name,
                        "output_name": output,
                        "data_type": _config_type(types[name]),
                        "dims": _sizes(types[name]),
                    }
                    for name, output in self.states.items()
                ],
            }
        return config

    def batch_counts(self) -> dict[str, dict[str, Any]]:
        """The histograms `batch_sizes`, `queue_seconds` and `compute_seconds` of what was computed so far."""
        batchers = [] if self.sequences is None else [*self.sequences.batchers, *self.sequences.ending]
        return all_batches([batcher.stats() for batcher in [self._calls, *batchers]], self.statistics)

    def held(self) -> int:
        """The bytes of plans and work memory, looked up at most every few seconds."""
        now = time.monotonic()
        if now - self._held[0] > HELD_SECONDS:
            self._held = now, self.model.memory() or 0
        return self._held[1]

    def numbers(self) -> dict[str, Any]:
        """Return what the server's metrics and its page show of the model, as plain data."""
        numbers = self.statistics.numbers() | self.batch_counts()
        live = self.sequences
        numbers["sequences"] |= {
            "live": 0 if live is None else len(live),
            "idle": 0 if live is None else live.idle(IDLE_SECONDS),
            "most": 0 if live is None else self.settings.max_sequences,
        }
        return numbers | {
            "name": self.name,
            "version": self.version,
            "weights": self.model.weights or "float32",
            "batching": self.batching,
            "why_no_sequences": self.why_no_sequences,
            "memory": self.held(),
            "plans": self.model.planned.plans.count,
        }

    # ------------------------------------------------------------------------------------------ life
    def warm(self) -> None:
        """Make the plans of the requests whose shapes the settings name, so that nobody waits for them.

        Raises:
            Error: A request of these shapes fails.
        """
        if not self.settings.warm:
            return
        feed = {}
        for name, shape in self.settings.warm.items():
            if name not in self._known_inputs:
                raise InputError(f"model '{self.name}': warm names input {name!r}, which it does not have")
            feed[name] = self._warm_input(name, shape)
        try:
            self._warm(feed)
        except (InputError, InputTypeError, UnsupportedError) as e:
            raise type(e)(f"model '{self.name}': warming it up fails: {e}") from None

    def _warm_input(self, name: str, shape: Any) -> np.ndarray:
        """An input of zeros, by its shape, or one of the file's shape, by its elements."""
        type_, element = self._types[name], 0
        if not isinstance(shape, list):
            shape, element = type_.shape, shape
            if shape is None or any(type(n) is not int for n in shape):
                raise InputError(
                    f"model '{self.name}': warm gives input {name!r} the number {element}, but its shape is open in "
                    "the file: give the shape"
                )
        assert type_.dtype is not None
        try:
            array = np.full(shape, element).astype(type_.dtype)
        except (TypeError, ValueError, OverflowError):
            array = None
        if array is None or type_.dtype.kind not in "fV" and not (array == element).all():
            raise InputError(f"model '{self.name}': warm gives input {name!r}, {type_}, the number {element}")
        return array

    def _warm(self, feed: dict[str, np.ndarray]) -> None:
        if self.sequences is None:
            self.model(feed)
            return
        fixed = {name: value for name, value in feed.items() if name in self.fixed_inputs}
        self.sequences.warm({name: value for name, value in feed.items() if name not in fixed}, fixed)

    def close(self) -> None:
        """End the model's threads after what waits is done. It blocks."""
        if self.sequences is not None:
            for batcher in self.sequences.batchers:
                batcher.drain()
        self._calls.drain()


def _sizes(value: Value) -> list[int]:
    """The sizes of an input or output, -1 for what the file leaves open."""
    shape = value.type.shape
    return [-1] if shape is None else [n if type(n) is int else -1 for n in shape]


def _config_type(value: Value) -> str:
    """The datatype as Triton's configuration calls it."""
    assert value.type.dtype is not None
    name = datatype_of(value.type.dtype, value.name)
    return f"TYPE_{'STRING' if name == 'BYTES' else name}"
