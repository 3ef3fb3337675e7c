"""A live stream of a model: a frame goes in, its results come out, and the states stay inside.

A plan that is one native program runs on a StreamRunner; any other plan runs as calls of the model do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.errors import InputError, LimitError, no_memory
from rnnfast.streaming._streams import StreamRunner
from rnnfast.streaming.handle import Handle
from rnnfast.streaming.model_signature import ModelSignature, form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from rnnfast.model import Model
    from rnnfast.named_values import Outputs


class Stream(Handle):
    """One live stream of a Model; `model.stream` makes it.

    Streams are independent of each other, and each serves one thread at a time. The first frame settles the shapes. A
    call that raises leaves the state as it was.

    Attributes:
        states: {state input: state output}: the pairs that the stream feeds back.
        inputs: The names of the inputs that a frame has.
        outputs: The names of a frame's results.
    """

    states: dict[str, str]
    inputs: list[str]
    outputs: list[str]

    def __init__(
        self,
        model: Model,
        state: Mapping[str, ArrayLike] | None = None,
        states: Mapping[str, str] | None = None,
        fixed: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        super().__init__(model.source.label)
        self._model, self._signature = model, ModelSignature(model, states, fixed)
        self.states, self.inputs, self.outputs = (
            self._signature.states,
            self._signature.inputs,
            self._signature.outputs,
        )
        self._release()
        self._initial_states = None if state is None else self._signature.validate_state(state)
        self._values = self._initial_states

    # ------------------------------------------------------------------------------------------ the user's calls
    def step(
        self, feed: Mapping[str, ArrayLike] | None = None, /, *, out: Any = None, **inputs: ArrayLike
    ) -> NDArray[Any] | Outputs:
        """Take one frame and advance the states.

        Args:
            feed: The frame, by the names of `inputs`, for names that are no identifiers.
            out: An array that the result is written to, or a mapping of arrays by the names of `outputs`. With it a
                step allocates nothing. The arrays are contiguous and share no memory with the inputs.
            **inputs: The frame, by keyword.

        Returns:
            The result, an array; an Outputs of them by name where there are several; `out` where that is given.

        Raises:
            InputError: Names, shapes or values do not fit.
            InputTypeError: A dtype does not fit, or a value is no array.
        """
        try:
            return self._lock.call(self._step, feed, out, inputs)
        except MemoryError as error:
            raise no_memory(error) from None

    def run(
        self, feed: Mapping[str, ArrayLike] | None = None, /, *, out: Any = None, **inputs: ArrayLike
    ) -> NDArray[Any] | Outputs:
        """Take many frames: the same as that many steps, in one native loop where the plan is native.

        Args:
            feed: The frames, by the names of `inputs`. An input has the frames along a new leading axis; one without
                that axis is the same for all frames.
            out: As for `step`, with the frames along a leading axis.
            **inputs: The frames, by keyword.

        Returns:
            The results as `step` returns them, with the frames along a new leading axis.

        Raises:
            InputError: Names, shapes, values or numbers of frames do not fit.
            InputTypeError: A dtype does not fit, or a value is no array.
            LimitError: The results need more memory than one call may take.
        """
        try:
            return self._lock.call(self._run, feed, out, inputs)
        except MemoryError as error:
            raise no_memory(error) from None

    def reset(self) -> None:
        """Begin anew with the initial state that was given, else with zeros. The next frame may have another shape."""
        self._lock.renew(self._restart)

    @property
    def state(self) -> dict[str, NDArray[Any]] | None:
        """A copy of the states by the names of their inputs; keep it, pickle it, give it to any stream of the model.

        It is None before the first frame where that is to settle a shape. Setting it copies; None sets zeros.
        """
        return self._lock.call(self._copied_state)

    @state.setter
    def state(self, state: Mapping[str, ArrayLike] | None) -> None:
        self._lock.call(self._load, state)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<rnnfast.Stream{state} of {self._label} ({', '.join(self.inputs)}) -> ({', '.join(self.outputs)})>"

    # ------------------------------------------------------------------------------------------ state
    def _release(self):
        """Forget the states, the plan and the settled shapes, as before the first frame."""
        self._runner = self._planned = self._settled = self._values = None

    def _restart(self):
        """Begin anew with the initial state."""
        self._release()
        self._values = self._initial_states

    def _copied_state(self):
        """A copy of the states by the names of their inputs; None before the first frame settles their shapes."""
        values = self._current_states()
        if values is None and self._signature.has_fixed_states():
            values = self._signature.zero_states({})
        return None if values is None else {name: np.array(v) for name, v in zip(self.states, values)}

    def _load(self, state):
        """Set the states to a copy of these, by the names of their inputs; None sets zeros."""
        values = None if state is None else self._signature.validate_state(state)
        if values is None and self._settled is not None:
            values = [np.zeros_like(v) for v in self._current_states()]
        if self._settled is not None:
            current: list[NDArray[Any]] = self._current_states()
            for name, value, now in zip(self.states, values or (), current):
                if value.shape != now.shape:
                    raise InputError(f"{self._label}: state {name!r} has shape {value.shape}, expected {now.shape}")
        if self._runner is not None:
            self._runner.load(values)
        else:
            self._values = values

    def _current_states(self):
        """The states in the order of `states`; None before they are known."""
        return self._values if self._runner is None else self._runner.state()

    def _commit(self, values, runner, planned, states):
        """Keep what a frame settled, and the states where no runner has them: all at once, or nothing."""
        vars(self).update(  # No signal handler runs in the midst of it.
            _settled=self._settled or {name: form(value) for name, value in values.items()},
            _planned=planned,
            _runner=runner,
            _values=None if runner is not None else states,
        )

    # ------------------------------------------------------------------------------------------ running
    def _step(self, feed, out, inputs):
        """One frame, as `step` takes it."""
        if self._runner is not None and (feed is None or not inputs):
            results = self._runner.step(inputs if feed is None else feed, out)
            if results is not None:
                return out if out is not None else self._signature.pack(results)
        return self._checked_step(self._model.merge_inputs(feed, inputs), out)

    def _checked_step(self, feed, out):
        """One frame of values that may need conversion, or of a stream whose plan is not native."""
        signature = self._signature
        signature.check_names(feed, self._settled)
        values = {name: signature.validate_input(name, value) for name, value in feed.items()}
        signature.check_form(values, self._settled)
        runner, planned, states = self._runner_for(values)
        if runner is None:
            outputs, states = self._call(planned, values, states)
            results = outputs
            if out is not None:
                results = signature.result_arrays(out, [form(v) for v in outputs], [])
                for result, output in zip(results, outputs):
                    np.copyto(result, output)
        else:
            arrays = [np.require(values[name], requirements=("C", "A")) for name in runner.names]
            results = signature.result_arrays(out, runner.shapes(), arrays)
            runner.run(arrays, results, 1)
            for i, name in enumerate(runner.names):
                if type(feed[name]) is int:
                    runner.scalars[i] = feed[name], arrays[i]
        self._commit(values, runner, planned, states)
        return out if out is not None else signature.pack(results)

    def _run(self, feed, out, inputs):
        """Many frames, as `run` takes them."""
        feed, signature = self._model.merge_inputs(feed, inputs), self._signature
        signature.check_names(feed, self._settled)
        framed = [name for name, value in feed.items() if signature.has_frame_axis(name, value, self._settled)]
        values = {name: signature.validate_input(name, value, name in framed) for name, value in feed.items()}
        counts = {name: len(values[name]) for name in framed}
        if not framed:
            raise InputError(f"{self._label}: no input has frames along a leading axis")
        if len(set(counts.values())) > 1:
            raise InputError(f"{self._label}: inputs have different numbers of frames: {counts}")
        n = counts[framed[0]]
        first = values | {
            name: values[name][0] if n else np.zeros(values[name].shape[1:], values[name].dtype) for name in framed
        }
        signature.check_form(first, self._settled)
        runner, planned, states = self._runner_for(first)
        if runner is not None and not all(
            pin is None or name not in framed or np.all(values[name] == pin)
            for name, pin in zip(runner.names, runner.pins)
        ):
            runner, states = None, states or self._current_states()
        if runner is None:
            results, states = self._run_by_calls(planned, values, framed, n, first, states, out)
        else:
            forms = self._stacked_forms(runner.shapes(), n)
            arrays = [self._contiguous_frames(name, values[name], name in framed) for name in runner.names]
            results = signature.result_arrays(out, forms, arrays)
            runner.run(arrays, results, n)
        if n:
            self._commit(first, runner, planned, states)
        return out if out is not None else signature.pack(results)

    def _contiguous_frames(self, name, value, framed):
        """The array itself if each frame of it is contiguous, else a copy."""
        one = value[0] if framed and len(value) else value
        if one.flags.c_contiguous and one.flags.aligned:
            return value
        try:
            return np.array(value, order="C")
        except MemoryError as e:
            raise LimitError(f"{self._label}: no memory for contiguous frames of {name!r}, {value.shape}") from e

    def _stacked_forms(self, forms, n):
        """(shape, dtype) of the results of n frames; LimitError if they are too large."""
        stacked = [((n, *shape), dtype) for shape, dtype in forms]
        nbytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in stacked)
        self._model.limits.check(
            "bytes_of_a_call", nbytes, f"{self._label}: give fewer frames at a time: the bytes of {n} results are"
        )
        return stacked

    def _run_by_calls(self, planned, values, framed, n, first, states, out):
        """Run many frames by as many calls of the model: (results, next states)."""
        found = []
        for i in range(max(n, 1)):
            frame = {name: value[i] if name in framed else value for name, value in values.items()} if n else first
            outputs, states = self._call(planned, frame, states)
            if [form(v) for v in outputs] != [form(v) for v in (found[0] if found else outputs)]:
                raise InputError(
                    f"{self._label}: results of frame {i} have shapes {[v.shape for v in outputs]}, those "
                    f"of the first {[v.shape for v in found[0]]}"
                )
            if not found:
                forms = self._stacked_forms([form(v) for v in outputs], n)
            found.append(outputs)
        results = self._signature.result_arrays(out, forms, list(values.values()))
        for i, outputs in enumerate(found if n else ()):
            for result, output in zip(results, outputs):
                result[i] = output
        return results, states

    def _call(self, planned, frame, states):
        """(results, next states) of one frame, by a call of the model."""
        feed = self._signature.call_values(frame, states)
        outputs = planned.plans.run(feed) or planned.run([feed[name] for name in planned.names])
        return self._signature.split_outputs(outputs, states)

    def _runner_for(self, values):
        """(StreamRunner or None, planned graph, states) for frames like this one."""
        runner = self._runner
        if self._settled is not None and (runner is None or runner.takes([values[name] for name in runner.names])):
            return runner, self._planned, self._values
        states = self._current_states() or self._signature.zero_states(values)
        planned, args = self._model.prepare(self._signature.call_values(values, states))
        plan = planned.plan(args)
        return self._new_runner(plan, planned.names, args, values, states), planned, states

    def _new_runner(self, plan, names, args, values, states):
        """The StreamRunner of a plan; None if it is not one native program that makes all outputs."""
        bindings, fixed = self._signature.bindings(plan, names, args), self._signature.fixed
        if bindings is None:
            return None
        program, inputs, outputs = bindings
        pins = {names[i]: value for i, value in plan.pinned}
        for value, name in zip(states, self.states.values()):
            if program.outputs[outputs[name] - len(program.inputs)] != form(value):
                return None
        return StreamRunner(
            program,
            tuple((name, inputs[name], values[name], pins.get(name)) for name in names if name in values),
            tuple((inputs[name], fixed[name]) for name in names if name in fixed),
            tuple((inputs[name], outputs[self.states[name]], value) for name, value in zip(self.states, states)),
            tuple((name, outputs[name]) for name in self.outputs),
        )
