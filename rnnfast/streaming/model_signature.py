"""The signature of a model that is stepped frame by frame: its inputs, states and outputs, and every check of them.

A stream of a model has one signature; a pool has one for each set of fixed inputs.
"""

from __future__ import annotations

import collections.abc
import dataclasses
from typing import NamedTuple

import numpy as np

from rnnfast.errors import InputError, InputTypeError, LimitError, raise_if_from_handler
from rnnfast.named_values import Outputs
from rnnfast.native._programs import NativeProgram
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.tensors import type_name
from rnnfast.streaming.state_pairs import find_state_pairs


class Bindings(NamedTuple):
    """A plan that is one native program, and the buffer of each input and output.

    A buffer is given by its number, which counts the program's inputs and then its outputs, without the constants and
    the arena.
    """

    program: NativeProgram
    inputs: dict
    """Input name -> its buffer, -1 if the program does not read it."""
    outputs: dict
    """Output name -> its buffer."""


class ModelSignature:
    """Names, types and checks of the values of a model's streams.

    Attributes:
        states: {state input: state output}.
        fixed: {input: value} of the inputs that are the same for each frame.
        inputs: The names that a frame has.
        outputs: The names of a frame's results.
        single_input: The name of the only input of a frame; None where there are several.
    """

    def __init__(self, model, states=None, fixed=None):
        self.model, self.label = model, model.source.label
        self.types = {v.name: v.type for v in model.inputs}
        self.states = find_state_pairs(model, states)
        self.outputs = [v.name for v in model.outputs if v.name not in self.states.values()]
        self.output_indices = {v.name: i for i, v in enumerate(model.outputs)}
        self.fixed = {}
        for name, value in (fixed or {}).items():
            self.check_input_name(name)
            value = self.validate_input(name, value)
            self.fixed[name] = value.copy() if isinstance(value, np.ndarray) else value
        self.inputs = [name for name in model.required_inputs if name not in self.states and name not in self.fixed]
        self.single_input = self.inputs[0] if len(self.inputs) == 1 else None

    # ------------------------------------------------------------------------------------------ inputs
    def check_input_name(self, name):
        """Raise InputError unless a caller may give a value for this input."""
        if name not in self.types:
            raise InputError(f"{self.label}: there is no input {name!r}, only {list(self.types)}")
        if name in self.states:
            raise InputError(
                f"{self.label}: input {name!r} is a state of the stream and comes back as "
                f"{self.states[name]!r}; if it is none, name the pairs: stream(states=...)"
            )

    def check_names(self, feed, settled=None):
        """Raise InputError unless a frame has these names.

        Args:
            feed: The frame, by name.
            settled: {name: (shape, dtype)} of the frames before; None for the first one.
        """
        for name in feed:
            self.check_input_name(name)
            if name in self.fixed:
                raise InputError(f"{self.label}: input {name!r} is fixed for this stream")
        expected = self.inputs if settled is None else list(settled)
        missing = [name for name in expected if name not in feed]
        if missing:
            raise InputError(f"{self.label}: input {missing[0]!r} is missing: a frame has {expected}")
        if settled is not None and len(feed) > len(expected):
            raise InputError(f"{self.label}: a frame has {list(feed)}, but the first one had {expected}")

    def check_form(self, values, settled):
        """Raise InputError where a validated frame has another type or shape than the frames before."""
        for name, value in values.items() if settled is not None else ():
            if form(value) != settled[name]:
                raise InputError(
                    f"{self.label}: input {name!r} is {describe(form(value))}, but the first "
                    f"frame had {describe(settled[name])}; reset() lets another one begin"
                )

    def validate_input(self, name, value, many=False):
        """Convert a caller's value to the declared type of an input, or raise; `many` adds a leading axis of frames."""
        type_ = self.types[name]
        if many and type_.shape is not None:
            type_ = dataclasses.replace(type_, shape=(None, *type_.shape))
        return validate(value, type_, f"{self.label}: input {name!r}")

    def validate_rows(self, name, value, count):
        """Convert the frames of `count` streams, which lie along the first axis, or raise."""
        type_ = dataclasses.replace(self.types[name], shape=None)
        value = validate(value, type_, f"{self.label}: input {name!r}")
        if not isinstance(value, np.ndarray) or value.ndim == 0 or len(value) != count:
            raise InputError(
                f"{self.label}: input {name!r} has shape {list(np.shape(value))}, expected {count} "
                "frames along the first axis"
            )
        return value

    def has_frame_axis(self, name, value, settled=None):
        """Return whether a value has one axis more than the input, along which frames lie."""
        type_ = self.types[name]
        if type_.kind != "tensor":
            return False
        rank = None if type_.shape is None else len(type_.shape)
        if settled is not None and name in settled:
            rank = len(settled[name][0])
        try:
            return np.ndim(value) != (0 if rank is None else rank)
        except Exception as e:  # The value is no array; validating it says so.
            raise_if_from_handler(e)
            return False

    # ------------------------------------------------------------------------------------------ states
    def validate_state(self, state):
        """Copy a caller's mapping of states into a list of contiguous arrays, in the order of `states`, or raise."""
        if not isinstance(state, collections.abc.Mapping):
            raise InputTypeError(
                f"{self.label}: state is {type(state).__name__}, expected a mapping by {list(self.states)}"
            )
        if set(state) != set(self.states):
            raise InputError(f"{self.label}: state has {list(state)}, expected {list(self.states)}")
        return [
            np.array(validate(state[name], self.types[name], f"{self.label}: state {name!r}"), order="C")
            for name in self.states
        ]

    def has_fixed_states(self):
        """Return whether the file gives every state a shape without open dimensions."""
        shapes = [self.types[name].shape for name in self.states]
        return all(shape is not None and all(type(n) is int for n in shape) for shape in shapes)

    def zero_states(self, values):
        """The initial states, all zero, for a frame.

        An open dimension has the size of an input's dimension of the same name. If there is none, it is the batch: the
        first axis of the first input of the frame whose first axis is open in the file.
        """
        sizes, batch = {}, None
        for name, value in (self.fixed | values).items():
            shape = self.types[name].shape
            if shape:
                sizes |= {n: m for n, m in zip(shape, value.shape) if type(n) is str}
                batch = value.shape[0] if batch is None and name in values and type(shape[0]) is not int else batch
        zeros = []
        for name in self.states:
            type_ = self.types[name]
            shape = None if type_.shape is None else [sizes.get(n, n) for n in type_.shape]
            unknown = [] if shape is None else [n for n in shape if type(n) is not int]
            if shape is None or len(unknown) > 1 or unknown and batch is None:
                raise InputError(
                    f"{self.label}: state {name!r} has the shape {type_.shape} in the file, which the "
                    "frame does not settle: give the initial state, stream(state={...})"
                )
            zeros.append(np.zeros([batch if type(n) is not int else n for n in shape], type_.dtype))
        return zeros

    def call_values(self, frame, states):
        """All inputs of a call of the model, by name."""
        return self.fixed | frame | dict(zip(self.states, states))

    def split_outputs(self, outputs, states):
        """(results, next states) of the outputs of a call that began with `states`.

        Raises:
            InputError: A state came back with another type or shape.
        """
        after = [outputs[self.output_indices[name]] for name in self.states.values()]
        for (name, output), before, value in zip(self.states.items(), states, after):
            if form(value) != form(before):
                raise InputError(
                    f"{self.label}: output {output!r} is {describe(form(value))}, but the state {name!r} "
                    f"that it becomes {describe(form(before))}"
                )
        return [outputs[self.output_indices[name]] for name in self.outputs], after

    # ------------------------------------------------------------------------------------------ results
    def result_arrays(self, out, forms, values):
        """The arrays that results are written to: new ones, or the caller's, checked.

        Args:
            out: None, an array, or a mapping of arrays by the names of `outputs`.
            forms: (shape, dtype) of each result.
            values: The inputs, with which the caller's arrays may share no memory.
        """
        if out is None:
            try:
                return [np.empty(shape, dtype) for shape, dtype in forms]
            except (MemoryError, ValueError) as e:
                raise LimitError(f"{self.label}: no memory for results of shapes {[s for s, _ in forms]}") from e
        if not isinstance(out, collections.abc.Mapping):
            if len(self.outputs) != 1:
                raise InputTypeError(f"{self.label}: out is {type(out).__name__}, expected a mapping by {self.outputs}")
            out = {self.outputs[0]: out}
        if set(out) != set(self.outputs):
            raise InputError(f"{self.label}: out has {list(out)}, expected {self.outputs}")
        arrays = [out[name] for name in self.outputs]
        for i, (name, array, (shape, dtype)) in enumerate(zip(self.outputs, arrays, forms)):
            where = f"{self.label}: out {name!r}"
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

    def pack(self, results):
        """Results as a caller gets them: the array if there is one, else Outputs by name."""
        return results[0] if len(self.outputs) == 1 else Outputs(zip(self.outputs, results))

    # ------------------------------------------------------------------------------------------ plans
    def bindings(self, plan, names, values):
        """The Bindings of a plan that is one native program which makes all outputs; None for any other.

        Args:
            plan: The Plan of a call.
            names: The inputs of the call, in the order of the plan.
            values: Their values.
        """
        if len(plan.steps) != 1 or type(plan.steps[0][0]) is not NativeProgram or not plan.fresh:
            return None
        program, reads, writes = plan.steps[0][:3]
        if any(slot >= len(values) for slot in reads) or not all(type(value) is np.ndarray for value in values):
            return None
        inputs = {name: reads.index(i) if i in reads else -1 for i, name in enumerate(names)}
        outputs = {name: len(reads) + writes.index(plan.outputs[i]) for name, i in self.output_indices.items()}
        return Bindings(program, inputs, outputs)


def form(value):
    """The shape and dtype of an array; an empty shape and the Python type of any other value."""
    return (value.shape, value.dtype) if isinstance(value, np.ndarray) else ((), type(value))


def describe(form):
    """A form in words, for messages."""
    shape, dtype = form
    return f"{type_name(dtype) if isinstance(dtype, np.dtype) else dtype.__name__} of shape {shape}"
