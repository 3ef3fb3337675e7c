"""A live stream of a model: a frame in, its results out, the states stay inside.

A plan that is one native NativeProgram runs on a StreamRunner; any other runs as calls of the model do.
"""

import collections.abc
import dataclasses
import math

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError
from rnnfast.named_values import Outputs
from rnnfast.native._programs import NativeProgram
from rnnfast.onnx.budget import MAX_RUN_BYTES
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.tensors import type_name
from rnnfast.streaming._streams import StreamRunner
from rnnfast.streaming.handle import Handle
from rnnfast.streaming.state_pairs import pairs


class Stream(Handle):
    """One stream of a Model; `model.stream` makes it. Streams are independent, each for one thread at a time.

    states: {state input: state output}; inputs: the names that a step takes; outputs: those of its results.
    The first frame settles the shapes. A call that raises leaves the state as it was.
    """

    def __init__(self, model, state=None, states=None, fixed=None):
        super().__init__(model.source.label)
        self._model, self._types = model, {v.name: v.type for v in model.inputs}
        self.states = pairs(model, states)
        self.outputs = [v.name for v in model.outputs if v.name not in self.states.values()]
        self._places = {v.name: i for i, v in enumerate(model.outputs)}
        self._fixed = {}
        for name, value in (fixed or {}).items():
            self._check_name(name)
            value = validate(value, self._types[name], f"{self._label}: input {name!r}")
            self._fixed[name] = value.copy() if isinstance(value, np.ndarray) else value
        self.inputs = [name for name in model.required_inputs if name not in self.states and name not in self._fixed]
        self._release()
        self._begun = None if state is None else self._validated_state(state)
        self._values = self._begun

    # ------------------------------------------------------------------------------------------ the user's
    def step(self, feed=None, /, *, out=None, **inputs):
        """One frame, by keyword or in one mapping: its result, an array; an Outputs of them where there are several.

        out: an array that the result is written to and that is returned, or a mapping of arrays by the results' names:
        then nothing is allocated. They are contiguous and share no memory with the inputs.
        """
        if not self._busy.acquire(False):
            self._enter()
        try:
            if self._runner is not None and (feed is None or not inputs):
                results = self._runner.step(inputs if feed is None else feed, out)
                if results is not None:
                    return out if out is not None else self._packed(results)
            return self._slow_step(self._model.merge_inputs(feed, inputs), out)
        finally:
            self._busy.release()

    def run(self, feed=None, /, *, out=None, **inputs):
        """Many frames: like as many steps, in one native loop where the plan is native, results along a new leading
        axis. Inputs have the frames along a leading axis; those without it are the same for all."""
        self._enter()
        try:
            return self._run(self._model.merge_inputs(feed, inputs), out)
        finally:
            self._busy.release()

    def reset(self):
        """As it began: with the state that it was given, else zeros. The next frame may have another shape."""
        self._enter()
        try:
            self._release()
            self._values = self._begun
        finally:
            self._busy.release()

    @property
    def state(self):
        """A copy of the states by the names of their inputs; to be kept, pickled, given to any stream of the model.

        None before the first frame where that is to settle the shape. Setting it copies; None is zeros.
        """
        self._enter()
        try:
            values = self._current()
            if values is None and all(_is_fixed(self._types[name].shape) for name in self.states):
                values = self._zeros({})
            return None if values is None else {name: np.array(v) for name, v in zip(self.states, values)}
        finally:
            self._busy.release()

    @state.setter
    def state(self, state):
        self._enter()
        try:
            values = None if state is None else self._validated_state(state)
            if values is None and self._frame is not None:
                values = [np.zeros_like(v) for v in self._current()]
            if self._frame is not None:
                for name, value, now in zip(self.states, values, self._current()):
                    if value.shape != now.shape:
                        raise InputError(f"{self._label}: state {name!r} has shape {value.shape}, expected {now.shape}")
            if self._runner is not None:
                self._runner.load(values)
            else:
                self._values = values
        finally:
            self._busy.release()

    def __repr__(self):
        state = " closed" if self._closed else ""
        return f"<rnnfast.Stream{state} of {self._label} ({', '.join(self.inputs)}) -> ({', '.join(self.outputs)})>"

    # ------------------------------------------------------------------------------------------ state
    def _release(self):
        """As before the first frame."""
        self._runner = self._planned = self._frame = self._values = None

    def _current(self):
        """The states' values, None before they are known."""
        return self._values if self._runner is None else self._runner.state()

    def _validated_state(self, state):
        if not isinstance(state, collections.abc.Mapping):
            raise InputTypeError(
                f"{self._label}: state is {type(state).__name__}, expected a mapping by {list(self.states)}"
            )
        if set(state) != set(self.states):
            raise InputError(f"{self._label}: state has {list(state)}, expected {list(self.states)}")
        return [
            np.array(validate(state[name], self._types[name], f"{self._label}: state {name!r}"), order="C")
            for name in self.states
        ]

    def _zeros(self, values):
        """Initial states for a frame. An open dimension is that of an input with the same name for it; else the batch,
        which is the first input's first."""
        sizes, batch = {}, None
        for name, value in (self._fixed | values).items():
            shape = self._types[name].shape
            if shape:
                sizes |= {n: m for n, m in zip(shape, value.shape) if type(n) is str}
                batch = value.shape[0] if batch is None and name in values and type(shape[0]) is not int else batch
        zeros = []
        for name in self.states:
            type_ = self._types[name]
            shape = None if type_.shape is None else [sizes.get(n, n) for n in type_.shape]
            unknown = [] if shape is None else [n for n in shape if type(n) is not int]
            if shape is None or len(unknown) > 1 or unknown and batch is None:
                raise InputError(
                    f"{self._label}: state {name!r} has the shape {type_.shape} in the file, which the "
                    "frame does not settle: give the initial state, stream(state={...})"
                )
            zeros.append(np.zeros([batch if type(n) is not int else n for n in shape], type_.dtype))
        return zeros

    # ------------------------------------------------------------------------------------------ checks
    def _check_name(self, name):
        if name not in self._types:
            raise InputError(f"{self._label}: there is no input {name!r}, only {list(self._types)}")
        if name in self.states:
            raise InputError(
                f"{self._label}: input {name!r} is a state of the stream and comes back as "
                f"{self.states[name]!r}; if it is none, name the pairs: stream(states=...)"
            )

    def _check_names(self, feed):
        for name in feed:
            self._check_name(name)
            if name in self._fixed:
                raise InputError(f"{self._label}: input {name!r} is fixed for this stream")
        expected = self.inputs if self._frame is None else list(self._frame)
        missing = [name for name in expected if name not in feed]
        if missing:
            raise InputError(f"{self._label}: input {missing[0]!r} is missing: a frame has {expected}")
        if self._frame is not None and len(feed) > len(expected):
            raise InputError(f"{self._label}: a frame has {list(feed)}, but the first one had {expected}")

    def _check_frame(self, values):
        """That a frame is like the first."""
        for name, value in values.items() if self._frame is not None else ():
            if _form(value) != self._frame[name]:
                raise InputError(
                    f"{self._label}: input {name!r} is {_describe(_form(value))}, but the first "
                    f"frame had {_describe(self._frame[name])}; reset() lets another one begin"
                )

    def _validated(self, name, value, frames=False):
        type_ = self._types[name]
        if frames and type_.shape is not None:
            type_ = dataclasses.replace(type_, shape=(None, *type_.shape))
        return validate(value, type_, f"{self._label}: input {name!r}")

    def _is_frames(self, name, value):
        """Whether a value has one axis more than the input has."""
        type_ = self._types[name]
        if type_.kind != "tensor":
            return False
        rank = None if type_.shape is None else len(type_.shape)
        if self._frame is not None and name in self._frame:
            rank = len(self._frame[name][0])
        try:
            return np.ndim(value) != (0 if rank is None else rank)
        except Exception:  # no array: the check of the value says so
            return False

    def _result_arrays(self, out, shapes, values):
        """Arrays for results of these (shape, type)s: new ones, or the caller's."""
        if out is None:
            try:
                return [np.empty(shape, dtype) for shape, dtype in shapes]
            except (MemoryError, ValueError) as e:
                raise LimitError(f"{self._label}: no memory for results of shapes {[s for s, _ in shapes]}") from e
        if not isinstance(out, collections.abc.Mapping):
            if len(self.outputs) != 1:
                raise InputTypeError(
                    f"{self._label}: out is {type(out).__name__}, expected a mapping by {self.outputs}"
                )
            out = {self.outputs[0]: out}
        if set(out) != set(self.outputs):
            raise InputError(f"{self._label}: out has {list(out)}, expected {self.outputs}")
        arrays = [out[name] for name in self.outputs]
        for i, (name, array, (shape, dtype)) in enumerate(zip(self.outputs, arrays, shapes)):
            where = f"{self._label}: out {name!r}"
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                received = type_name(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
                raise InputTypeError(f"{where} is {received}, expected an array of {type_name(dtype)}")
            if array.shape != shape:
                raise InputError(f"{where} has shape {array.shape}, expected {shape}")
            if not array.flags.carray:
                raise InputError(f"{where} is not a contiguous, aligned, writeable array")
            others = arrays[:i] + [v for v in values if isinstance(v, np.ndarray)]
            if any(np.may_share_memory(array, other) for other in others):
                raise InputError(f"{where} shares memory with an input or another output")
        return arrays

    # ------------------------------------------------------------------------------------------ running
    def _packed(self, results):
        return results[0] if len(self.outputs) == 1 else Outputs(zip(self.outputs, results))

    def _slow_step(self, feed, out):
        self._check_open()
        self._check_names(feed)
        values = {name: self._validated(name, value) for name, value in feed.items()}
        self._check_frame(values)
        runner, planned, states = self._runner_for(values)
        if runner is None:
            outputs, states = self._call(planned, values, states)
            results = self._result_arrays(out, [_form(v) for v in outputs], []) if out is not None else outputs
            for result, output in zip(results, outputs) if out is not None else ():
                np.copyto(result, output)
        else:
            arrays = [np.require(values[name], requirements=("C", "A")) for name in runner.names]
            results = self._result_arrays(out, runner.shapes(), arrays)
            runner.run(arrays, results, 1)
            for i, name in enumerate(runner.names):
                if type(feed[name]) is int:
                    runner.scalars[i] = feed[name], arrays[i]
        self._commit(values, runner, planned, states)
        return out if out is not None else self._packed(results)

    def _run(self, feed, out):
        self._check_names(feed)
        framed = [name for name, value in feed.items() if self._is_frames(name, value)]
        values = {name: self._validated(name, value, name in framed) for name, value in feed.items()}
        counts = {name: len(values[name]) for name in framed}
        if not framed:
            raise InputError(f"{self._label}: no input has frames along a leading axis")
        if len(set(counts.values())) > 1:
            raise InputError(f"{self._label}: inputs have different numbers of frames: {counts}")
        n = counts[framed[0]]
        first = values | {
            name: values[name][0] if n else np.zeros(values[name].shape[1:], values[name].dtype) for name in framed
        }
        self._check_frame(first)
        runner, planned, states = self._runner_for(first)
        if runner is not None and not all(
            pin is None or name not in framed or np.all(values[name] == pin)
            for name, pin in zip(runner.names, runner.pins)
        ):
            runner, states = None, states or self._current()
        if runner is None:
            results, states = self._loop(planned, values, framed, n, first, states, out)
        else:
            shapes = self._stacked(runner.shapes(), n)
            arrays = [self._frames(name, values[name], name in framed) for name in runner.names]
            results = self._result_arrays(out, shapes, arrays)
            runner.run(arrays, results, n)
        if n:
            self._commit(first, runner, planned, states)
        return out if out is not None else self._packed(results)

    def _frames(self, name, value, framed):
        """The array itself if each frame of it is contiguous, else a copy."""
        one = value[0] if framed and len(value) else value
        if one.flags.c_contiguous and one.flags.aligned:
            return value
        try:
            return np.array(value, order="C")
        except MemoryError as e:
            raise LimitError(f"{self._label}: no memory for contiguous frames of {name!r}, {value.shape}") from e

    def _stacked(self, forms, n):
        """(shape, type)s of the results of n frames, if they are not too large."""
        shapes = [((n, *shape), dtype) for shape, dtype in forms]
        if sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes) > MAX_RUN_BYTES:
            raise LimitError(
                f"{self._label}: results of {n} frames need more than {MAX_RUN_BYTES} bytes: give fewer at a time"
            )
        return shapes

    def _loop(self, planned, values, framed, n, first, states, out):
        """Many frames by as many calls."""
        found = []
        for i in range(max(n, 1)):
            frame = {name: value[i] if name in framed else value for name, value in values.items()} if n else first
            outputs, states = self._call(planned, frame, states)
            if [_form(v) for v in outputs] != [_form(v) for v in (found[0] if found else outputs)]:
                raise InputError(
                    f"{self._label}: results of frame {i} have shapes {[v.shape for v in outputs]}, those "
                    f"of the first {[v.shape for v in found[0]]}"
                )
            if not found:
                shapes = self._stacked([_form(v) for v in outputs], n)
            found.append(outputs)
        results = self._result_arrays(out, shapes, list(values.values()))
        for i, outputs in enumerate(found if n else ()):
            for result, output in zip(results, outputs):
                result[i] = output
        return results, states

    def _call(self, planned, values, states):
        """(results, next states) of one frame by a call of the model."""
        feed = self._fixed | values | dict(zip(self.states, states))
        outputs = planned.plans.run(feed) or planned.run([feed[name] for name in planned.names])
        after = [outputs[self._places[name]] for name in self.states.values()]
        for (name, received), before, value in zip(self.states.items(), states, after):
            if _form(value) != _form(before):
                raise InputError(
                    f"{self._label}: output {received!r} is {_describe(_form(value))}, but the state {name!r} "
                    f"that it becomes {_describe(_form(before))}"
                )
        return [outputs[self._places[name]] for name in self.outputs], after

    def _runner_for(self, values):
        """(StreamRunner or None, planned, states) for frames like this one."""
        runner = self._runner
        if self._frame is not None and (runner is None or runner.takes([values[name] for name in runner.names])):
            return runner, self._planned, self._values
        states = self._current() or self._zeros(values)
        planned, args = self._model.prepare(self._fixed | values | dict(zip(self.states, states)))
        plan = planned.plan(args)
        return self._native(plan, planned.names, args, values, states), planned, states

    def _native(self, plan, names, args, values, states):
        """The StreamRunner of a plan, None if it is not one NativeProgram that makes all outputs."""
        found = native_buffers(plan, names, args, self._places)
        if found is None:
            return None
        program, buffer, made = found
        pins = {names[i]: value for i, value in plan.pinned}
        for value, name in zip(states, self.states.values()):
            if program.outputs[made[name] - len(program.inputs)] != _form(value):
                return None
        return StreamRunner(
            program,
            tuple((name, buffer[name], values[name], pins.get(name)) for name in names if name in values),
            tuple((buffer[name], self._fixed[name]) for name in names if name in self._fixed),
            tuple((buffer[name], made[self.states[name]], value) for name, value in zip(self.states, states)),
            tuple((name, made[name]) for name in self.outputs),
        )

    def _commit(self, values, runner, planned, states):
        """After a frame: what it settled, and the states if no runner has them."""
        self._frame = self._frame or {name: _form(value) for name, value in values.items()}
        self._planned = planned
        self._runner, self._values = runner, None if runner is not None else states


def native_buffers(plan, names, args, places):
    """(program, input -> its buffer or -1, output -> its buffer) of a plan that is one NativeProgram which makes all outputs,
    else None. places: output -> its place among those of the plan."""
    if len(plan.steps) != 1 or type(plan.steps[0][0]) is not NativeProgram or not plan.fresh:
        return None
    program, reads, makes = plan.steps[0][:3]
    if any(place >= len(args) for place in reads) or not all(type(a) is np.ndarray for a in args):
        return None
    buffer = {name: reads.index(i) if i in reads else -1 for i, name in enumerate(names)}
    return program, buffer, {name: len(reads) + makes.index(plan.outputs[i]) for name, i in places.items()}


def _form(value):
    return (value.shape, value.dtype) if isinstance(value, np.ndarray) else ((), type(value))


def _describe(form):
    shape, dtype = form
    return f"{type_name(dtype) if isinstance(dtype, np.dtype) else dtype.__name__} of shape {shape}"


def _is_fixed(shape):
    return shape is not None and all(type(n) is int for n in shape)
