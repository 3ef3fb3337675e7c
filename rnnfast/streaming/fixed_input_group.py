"""The streams of a model's pool that share their fixed inputs: their batch axes, states, and plans."""

import numpy as np

from rnnfast.errors import InputError
from rnnfast.named_values import merge_inputs
from rnnfast.onnx.tensors import type_name
from rnnfast.streaming._pools import BatchedProgram, StateTable, commit, stacked, threads_for
from rnnfast.streaming.batch_axes import repeated, search, trace_call
from rnnfast.streaming.pool import batch_sizes, plan_sizes

# The most streams that one native program takes.
LARGEST_BATCH = 64


class FixedInputGroup:
    """Streams of a pool with the same values of fixed inputs (a sample rate, say).

    Attributes:
        signature: The ModelSignature, with the fixed inputs.
        table: The StateTable of the whole pool's slots; None before the first frame settles the shapes.
        frame_pattern: An array of the type and shape of a frame, if a frame is one array and the shapes are settled.
    """

    def __init__(self, signature, max_streams, batched):
        """`batched`: whether streams share a batch; else each runs alone."""
        self.signature, self.model, self.label = signature, signature.model, signature.label
        self.max_streams, self.batched = max_streams, batched
        self.inputs, self.single_input = signature.inputs, signature.single_input
        self.table, self.programs, self.flops = None, {}, 0
        self.frame_pattern = None

    def has_fixed(self, fixed):
        """Return whether the streams have exactly these values of fixed inputs."""
        mine = self.signature.fixed
        return mine.keys() == fixed.keys() and all(
            np.shape(value) == np.shape(fixed[name])
            and np.asarray(value).dtype == np.asarray(fixed[name]).dtype
            and np.asarray(value).tobytes() == np.asarray(fixed[name]).tobytes()
            for name, value in mine.items()
        )

    # ------------------------------------------------------------------------------------------ states
    def check_states(self, values, given):
        """Raise InputError where the initial states of a stream have other shapes than those of the others.

        Args:
            values: The states, each as a stream alone has it.
            given: The initial states of another stream, or None.
        """
        shapes = [value.shape for value in given or ()]
        if self.table is not None:
            shapes = [
                self.shape_alone(name, shape) for name, (shape, _) in zip(self.signature.states, self.state_forms)
            ]
        for name, value, shape in zip(self.signature.states, values, shapes):
            if value.shape != shape:
                raise InputError(f"{self.label}: state {name!r} has shape {value.shape}, expected {shape}")

    def load(self, slot, values):
        """Set the states of a stream; None sets zeros."""
        self._load(self.table, slot, values)

    def _load(self, table, slot, values):
        rows = None
        if values is not None:
            rows = [value.reshape(shape) for value, (shape, _) in zip(values, self.state_forms)]
        table.load(slot, rows)
        commit([(table, np.array([slot]))])

    def state(self, slot):
        """Copies of the states of a stream, each as a stream alone has it."""
        return [
            value.reshape(self.shape_alone(name, value.shape))
            for name, value in zip(self.signature.states, self.table.get(slot))
        ]

    def shape_alone(self, name, shape):
        """The shape that a row of this value has in a call for one stream: with a batch axis of length 1."""
        axis = self.axes[name]
        return shape if axis is None else (*shape[:axis], 1, *shape[axis:])

    # ------------------------------------------------------------------------------------------ frames
    def rank(self, name):
        """The number of axes of an input of a frame for one stream; None where it is not known."""
        if name not in self.inputs:
            return None
        if self.table is not None:
            return len(self.shape_alone(name, self.forms[name][0]))
        type_ = self.signature.types[name]
        return len(type_.shape) if type_.kind == "tensor" and type_.shape is not None else None

    def validate_frame(self, frame):
        """The arrays of one stream's frame in the order of `inputs`; the array itself where there is one input."""
        feed = merge_inputs(self.label, frame, {}, self.single_input)
        self.check_names(feed)
        values = tuple([self.signature.validate_input(name, feed[name]) for name in self.inputs])
        if self.table is not None:
            self.check_frame(values)
        return values[0] if self.single_input else values

    def by_name(self, frame):
        """A frame that `validate_frame` returned, by the names of the inputs."""
        return {self.single_input: frame} if self.single_input else dict(zip(self.inputs, frame))

    def check_names(self, feed):
        """Raise InputError unless these are the names of a frame's inputs."""
        self.signature.check_names(feed)
        for name in feed if len(feed) > len(self.inputs) else ():
            if name not in self.inputs:
                raise InputError(
                    f"{self.label}: input {name!r} has a value in the file; give another one when the "
                    f"stream is opened, open({name}=...)"
                )

    def check_frame(self, values):
        """Raise InputError unless a frame has the types and shapes of those before."""
        for name, value in zip(self.inputs, values):
            shape, dtype = self.forms[name]
            if value.shape != self.shape_alone(name, shape) or value.dtype != dtype:
                shape = self.shape_alone(name, shape)
                raise InputError(
                    f"{self.label}: input {name!r} is {type_name(value.dtype)} of shape {value.shape}, "
                    f"but the frames before were {type_name(dtype)} of shape {shape}"
                )

    def stack(self, frames):
        """The frames of some streams as arrays with the streams along the first axis."""
        arrays = []
        for name, values in zip(self.inputs, [frames] if self.single_input else zip(*frames)):
            shape, _ = self.forms[name]
            array = stacked(list(values), self.sample[name])
            if array is None:  # Frames that were validated before the first step, or objects.
                for frame in frames:
                    self.check_frame((frame,) if self.single_input else frame)
                array = np.stack(values)
            arrays.append(array.reshape(len(frames), *shape))
        return arrays

    def ready_rows(self, feed, count):
        """The arrays of a step whose values need no conversion; None for any other step."""
        if self.table is None or len(feed) != len(self.inputs):
            return None
        arrays = []
        for name in self.inputs:
            value, (shape, dtype) = feed.get(name), self.forms[name]
            if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != (count, *shape):
                return None
            if not (value.flags.c_contiguous and value.flags.aligned):
                return None
            arrays.append(value)
        return arrays

    def validate_rows(self, feed, count):
        """{input: array} of a step, each with `count` streams along the first axis."""
        self.check_names(feed)
        return {name: self.signature.validate_rows(name, feed[name], count) for name in self.inputs}

    def contiguous_rows(self, values):
        """The arrays of `validate_rows` with contiguous rows; InputError where they have other shapes than before."""
        arrays = []
        for name, value in values.items():
            shape, dtype = self.forms[name]
            if value.shape[1:] != shape or value.dtype != dtype:
                raise InputError(
                    f"{self.label}: input {name!r} has frames of {type_name(value.dtype)} "
                    f"{list(value.shape[1:])}, expected {type_name(dtype)} {list(shape)}"
                )
            ready = value[:1].flags.c_contiguous and value.flags.aligned
            arrays.append(value if ready else np.array(value, order="C"))
        return arrays

    # ------------------------------------------------------------------------------------------ batch axes
    def settle(self, frame, rows, initial):
        """Find the batch axes from the first frame of a stream.

        Args:
            frame: The frame, by name, without its batch axis if `rows`, else with it.
            rows: Whether the frame lacks its batch axis.
            initial: {slot: initial states} of the streams that do not begin with zeros.
        """
        given = next(iter(initial.values()), None)
        found = search(self.signature, frame, rows, given) if self.batched else self._without_batch(frame, given)
        self.axes, self.sample, (planned, plan, forms) = found
        self.forms = {name: (self._row_shape(name, value.shape), value.dtype) for name, value in self.sample.items()}
        self.results = [
            (self._row_shape(name, shape), dtype)
            for name, (shape, dtype) in forms.items()
            if name in self.signature.outputs
        ]
        self.state_forms = [self.forms[name] for name in self.signature.states]
        self.largest_batch = LARGEST_BATCH if self.batched else 1
        table = StateTable(self.max_streams, self.state_forms)
        for slot, values in initial.items():
            self._load(table, slot, values)
        self.programs[1] = self._batched_program(plan, planned.names, self.sample, 1)
        if self.single_input:
            self.frame_pattern = self.sample[self.single_input]
        self.table = table  # Last, so that a group is settled or not, whenever a fork or a signal comes.

    def unsettle(self):
        """Forget what the first frame settled, so that another one may settle it."""
        self.table, self.programs, self.frame_pattern = None, {}, None

    def _row_shape(self, name, shape):
        axis = self.axes[name]
        return tuple(shape) if axis is None else (*shape[:axis], *shape[axis + 1 :])

    def _without_batch(self, frame, given):
        """The result of `search` for streams that run one by one."""
        states = given or self.signature.zero_states(frame)
        sample = self.signature.call_values(frame, states)
        call = trace_call(self.model, sample)
        return dict.fromkeys([*sample, *call[2]]), sample, call

    # ------------------------------------------------------------------------------------------ running
    def program(self, size):
        """The BatchedProgram for so many streams; None where the plan is not native."""
        if size not in self.programs:
            feed = repeated(self.sample, self.axes, size)
            planned, plan, _ = trace_call(self.model, feed)
            self.programs[size] = self._batched_program(plan, planned.names, feed, size)
        return self.programs[size]

    def warm(self):
        """Make the plans of all sizes of batches."""
        for size in plan_sizes(min(self.max_streams, self.largest_batch)):
            if self.program(size) is None:
                planned, args = self.model.prepare(repeated(self.sample, self.axes, size))
                planned.run(args)

    def _batched_program(self, plan, names, feed, size):
        """The BatchedProgram of the plan of a call with `feed`; None if that plan is not one native program."""
        signature = self.signature
        bindings = signature.bindings(plan, names, [feed[name] for name in names])
        if bindings is None or any(names[i] not in signature.fixed for i, _ in plan.pinned):
            return None
        program, inputs, outputs = bindings
        self.flops = sum(note.flops for note in program.notes) // size
        axis = {name: -1 if a is None else a for name, a in self.axes.items()}
        return BatchedProgram(
            program,
            size,
            [(inputs[name], axis[name]) for name in self.inputs],
            [(inputs[name], outputs[output], axis[name]) for name, output in signature.states.items()],
            [(outputs[name], axis[name]) for name in signature.outputs],
            [(inputs[name], feed[name]) for name in signature.fixed],
        )

    def result_forms(self, count):
        """(shape, dtype) of each result of so many streams."""
        return [((count, *shape), dtype) for shape, dtype in self.results]

    def new_results(self, slots, arrays):
        """Advance the streams in these slots; return new arrays of results. The states wait for a commit."""
        results = [np.empty(shape, dtype) for shape, dtype in self.result_forms(len(slots))]
        self.advance(slots, arrays, results)
        return results

    def _parts(self, count):
        """(threads, parts) of a step of so many streams; `batch_sizes` says what parts are."""
        threads = threads_for(self.model.threads, self.flops * count)
        return threads, batch_sizes(count, self.largest_batch, threads)

    def is_planned(self, count):
        """Return whether a step of so many streams makes no plans."""
        return self.table is not None and all(size in self.programs for size, _, _ in self._parts(count)[1])

    def advance(self, slots, arrays, results):
        """Advance the streams in these slots and write `results`. The states wait for a commit."""
        threads, parts = self._parts(len(slots))
        chunks = [(self.program(size), first, count) for size, first, count in parts]
        if all(chunk[0] is not None for chunk in chunks):
            self.table.step(slots, arrays, results, chunks, threads)
            return
        for size, first, count in parts:
            end = first + count
            self._call(slots[first:end], [a[first:end] for a in arrays], [r[first:end] for r in results], size)

    def _call(self, slots, arrays, results, size):
        """Advance at most `size` streams by one call of the model, filled up with copies of the last stream."""
        count = len(slots)
        rows = np.minimum(np.arange(size), count - 1)
        states = [value[rows] for value in self.table.get(slots)]
        feed = repeated(self.signature.fixed, self.axes, size)
        for name, value in zip([*self.inputs, *self.signature.states], [*(a[rows] for a in arrays), *states]):
            axis = self.axes[name]
            feed[name] = value[0] if axis is None else np.moveaxis(value, 0, axis)
        planned, args = self.model.prepare(feed)
        outputs = dict(zip((v.name for v in self.model.outputs), planned.run(args)))
        streams_first = {
            name: value[None] if self.axes[name] is None else np.moveaxis(value, self.axes[name], 0)
            for name, value in outputs.items()
        }
        for result, (shape, _), name in zip(results, self.results, self.signature.outputs):
            if streams_first[name].shape[1:] != shape:
                raise InputError(
                    f"{self.label}: output {name!r} has shape {list(streams_first[name].shape[1:])} now, expected "
                    f"{list(shape)}"
                )
            result[:] = streams_first[name][:count]
        self.table.put(slots, [streams_first[output][:count] for output in self.signature.states.values()])
