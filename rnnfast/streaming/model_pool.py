"""Pools of a model: many live streams in one batch, each with the bits that it would get alone.

The first step settles which axis of each input, state and output is the batch.
"""

import dataclasses
import functools

import numpy as np

from rnnfast.errors import InputError, LimitError
from rnnfast.named_values import Outputs, merge_inputs
from rnnfast.nn.checks import check_flag
from rnnfast.onnx.inputs import validate
from rnnfast.onnx.tensors import type_name
from rnnfast.streaming._pools import BatchedProgram, StateTable, stacked, threads_for
from rnnfast.streaming.batch_axes import repeated, search, trace_call
from rnnfast.streaming.model_stream import Stream, native_buffers
from rnnfast.streaming.pool import Pool, batch_sizes

# The most streams that one plan takes.
LARGEST_BATCH = 64
# Sets of values of fixed inputs (a sample rate) that streams of one pool may have at a time.
MAX_GROUPS = 16


def all_or_nothing(step):
    """If the first step of a FixedInputGroup fails, it knows no more than before: another frame may settle its shapes."""

    @functools.wraps(step)
    def checked(self, *args):
        new = [group for group in self._fixed_groups if group.rows is None]
        try:
            return step(self, *args)
        except BaseException:
            for group in new:
                group.rows, group.batches, group.like = None, {}, None
            raise

    return checked


class ModelPool(Pool):
    """A Pool of a Model. states: {state input: state output}; outputs: the names of a step's results."""

    def __init__(self, model, max_streams, states=None, batch=True, fixed=None):
        self._model, self._batch, self._fixed = model, check_flag(batch, "batch"), fixed or {}
        self.states = states
        first = FixedInputGroup(self, self._fixed)
        self.states, self.outputs = first.alone.states, first.alone.outputs
        super().__init__(model.source.label, max_streams)
        self._fixed_groups = [first]
        self._of = np.zeros(max_streams, np.intp)  # slot -> place of its FixedInputGroup

    def _group_of(self, fixed):
        """The place of the FixedInputGroup of streams with these values of fixed inputs."""
        if not fixed:
            return 0
        new = FixedInputGroup(self, self._fixed | fixed)
        for place, group in enumerate(self._fixed_groups):
            if group.same(new):
                return place
        for place, group in enumerate(self._fixed_groups):
            if place and not group.count:
                self._fixed_groups[place] = new
                return place
        if len(self._fixed_groups) == MAX_GROUPS:
            raise LimitError(
                f"{self.label}: streams with more than {MAX_GROUPS} different values of fixed inputs: give "
                "these inputs at each step"
            )
        self._fixed_groups.append(new)
        return len(self._fixed_groups) - 1

    def _validated(self, state, fixed):
        place = self._group_of(fixed)
        group = self._fixed_groups[place]
        return None if state is None else group.validated_state(state, self._given(group)), place

    def _begin(self, slot, place):
        self._of[slot] = place
        self._restart(slot)
        self._fixed_groups[place].count += 1

    def _end(self, slot):
        self._fixed_groups[self._of[slot]].count -= 1

    def _restart(self, slot):
        group = self._fixed_groups[self._of[slot]]
        if group.rows is not None:
            group.load(slot, self._begun.get(slot))

    def _state(self, slot):
        group = self._fixed_groups[self._of[slot]]
        values = self._begun.get(slot) if group.rows is None else group.state(slot)
        return None if values is None else {name: np.array(v) for name, v in zip(self.states, values)}

    def _single(self, slots):
        """The name of the input of the streams in these slots, if they have one."""
        return self._fixed_groups[self._of[slots[0]] if len(slots) else 0].single

    def _groups(self, slots):
        """(FixedInputGroup, places of its streams among `slots`, or None for all) of a step."""
        if len(self._fixed_groups) == 1:
            return [(self._fixed_groups[0], None)]
        of = self._of[slots]
        return [(self._fixed_groups[place], np.flatnonzero(of == place)) for place in np.unique(of)]

    def _given(self, group):
        """The initial states of a stream of a FixedInputGroup that has some, or None: all such have their shapes."""
        return next((state for slot, state in self._begun.items() if self._fixed_groups[self._of[slot]] is group), None)

    def _settle(self, group, frames, rows):
        """Find out the batch axes of a FixedInputGroup from the first frame."""
        if group.rows is None:
            group.settle(frames, rows, self._given(group))
            for slot, state in self._begun.items():
                if self._fixed_groups[self._of[slot]] is group:
                    group.load(slot, state)

    def _step(self, slots, feed, out):
        group = self._fixed_groups[0]
        arrays = group.quick_rows(feed, len(slots)) if len(self._fixed_groups) == 1 else None
        if arrays is None:
            return self._checked_step(slots, feed, out)
        results = group.alone._result_arrays(out, group.result_forms(len(slots)), arrays)
        group.advance(slots, arrays, results)
        group.rows.commit(slots)
        return out if out is not None else self._packed(results)

    @all_or_nothing
    def _checked_step(self, slots, feed, out):
        groups = []
        for group, places in self._groups(slots):
            values = group.validated_rows(feed, len(slots))
            if places is not None:
                values = {name: value[places] for name, value in values.items()}
            of_group = slots if places is None else slots[places]
            if len(of_group):
                self._settle(group, {name: value[0] for name, value in values.items()}, True)
                groups.append((group, places, of_group, group.checked_rows(values)))
        if not groups:
            if self._fixed_groups[0].rows is None:
                raise InputError(f"{self.label}: a step of no streams, and none before that settled the shapes")
            group = self._fixed_groups[0]
            groups = [(group, None, slots, group.checked_rows(group.validated_rows(feed, 0)))]
        forms = [group.result_forms(len(slots)) for group, *_ in groups]
        if any(form != forms[0] for form in forms):
            raise InputError(f"{self.label}: results of these streams have different shapes: step them apart")
        results = groups[0][0].alone._result_arrays(out, forms[0], list(feed.values()))
        for group, places, of_group, arrays in groups:
            if places is None:
                group.advance(of_group, arrays, results)
            else:
                for result, made in zip(results, group.stepped(of_group, arrays)):
                    result[places] = made
        for group, _, of_group, _ in groups:
            group.rows.commit(of_group)
        return out if out is not None else self._packed(results)

    @all_or_nothing
    def _run(self, slots, feed, lengths):
        """Frame by frame, for those streams that have one."""
        before, results = [], None
        for group, places in self._groups(slots):
            if group.rows is not None:
                of_group = slots if places is None else slots[places]
                before.append((group.rows, of_group, group.rows.get(of_group)))
        try:
            for t in range(lengths.max(initial=0)):
                rows = np.flatnonzero(lengths > t)
                made = self._step(slots[rows], {name: np.asarray(value)[rows, t] for name, value in feed.items()}, None)
                made = [made] if len(self.outputs) == 1 else list(made.values())
                if results is None:
                    axes = np.shape(next(iter(feed.values())))[:2]
                    results = [np.zeros((*axes, *m.shape[1:]), m.dtype) for m in made]
                for result, m in zip(results, made):
                    result[rows, t] = m
        except BaseException:
            for rows, of_group, states in before:
                rows.put(of_group, states)
                rows.commit(of_group)
            raise
        if results is None:
            raise InputError(f"{self.label}: a run of no frames")
        return self._packed(results)

    def validate(self, stream, frame):
        """A frame of a stream, as `step` takes it in a mapping, checked and in the form that `step_validated` takes."""
        return self._fixed_groups[self._of[stream % self.max_streams]].validated_frame(frame)

    @property
    def like(self):
        group = self._fixed_groups[0]
        return group.like if len(self._fixed_groups) == 1 else None

    @all_or_nothing
    def _step_frames(self, slots, frames):
        results = [None] * len(frames)
        groups = []
        for group, places in self._groups(slots):
            places = range(len(frames)) if places is None else places.tolist()
            if len(places):
                of_group = frames if len(places) == len(frames) else [frames[place] for place in places]
                slots_of = slots if len(places) == len(frames) else slots[places]
                self._settle(group, group.named(of_group[0]), False)
                groups.append((group, places, slots_of, group.stacked(of_group)))
        for group, places, slots_of, arrays in groups:
            made = [
                list(values.reshape(len(values), *group.shape_alone(name, values.shape[1:])))
                for name, values in zip(self.outputs, group.stepped(slots_of, arrays))
            ]
            made = made[0] if len(made) == 1 else [Outputs(zip(self.outputs, values)) for values in zip(*made)]
            for place, result in zip(places, made):
                results[place] = result
        for group, _, slots_of, _ in groups:
            group.rows.commit(slots_of)
        return results

    def _packed(self, results):
        return results[0] if len(self.outputs) == 1 else Outputs(zip(self.outputs, results))

    def __repr__(self):
        return (
            f"<rnnfast.Pool of {self.label}: {len(self)} of {self.max_streams} streams open, "
            f"({', '.join(self._fixed_groups[0].inputs)}) -> ({', '.join(self.outputs)})>"
        )


class FixedInputGroup:
    """What the streams of a pool with the same values of fixed inputs share: the batch axes and plans.

    alone: a Stream that never runs, which knows the names and checks the values; inputs: those that a step takes;
    rows: the states, None before the first frame; results: (shape, type) of each result of one stream, without the
    batch axis.
    """

    def __init__(self, pool, fixed):
        self.model, self.pool = pool._model, pool
        self.alone = Stream(pool._model, states=pool.states, fixed=fixed)
        self.inputs, self.label = self.alone.inputs, pool._model.source.label
        self.single = self.inputs[0] if len(self.inputs) == 1 else None
        self.rows, self.count, self.batches, self.flops = None, 0, {}, 0
        self.like = None  # frames of its one input are of this one's type and shape

    def same(self, other):
        mine, others = self.alone._fixed, other.alone._fixed
        return mine.keys() == others.keys() and all(
            np.shape(value) == np.shape(others[name])
            and np.asarray(value).dtype == np.asarray(others[name]).dtype
            and np.asarray(value).tobytes() == np.asarray(others[name]).tobytes()
            for name, value in mine.items()
        )

    # ------------------------------------------------------------------------------------------ values
    def validated_state(self, state, given):
        """Initial states of a stream, each as a stream alone has it. given: those of another one, or None."""
        values, shapes = self.alone._validated_state(state), [value.shape for value in given or ()]
        if self.rows is not None:
            shapes = [self.shape_alone(name, shape) for name, (shape, _) in zip(self.alone.states, self.state_forms)]
        for name, value, shape in zip(self.alone.states, values, shapes):
            if value.shape != shape:
                raise InputError(f"{self.label}: state {name!r} has shape {value.shape}, expected {shape}")
        return values

    def load(self, slot, values):
        self.rows.load(
            slot,
            None if values is None else [value.reshape(shape) for value, (shape, _) in zip(values, self.state_forms)],
        )

    def state(self, slot):
        return [self.as_alone(name, value) for name, value in zip(self.alone.states, self.rows.get(slot))]

    def shape_alone(self, name, shape):
        axis = self.axes[name]
        return shape if axis is None else (*shape[:axis], 1, *shape[axis:])

    def as_alone(self, name, value):
        return value.reshape(self.shape_alone(name, value.shape))

    def validated_frame(self, frame):
        """A frame as a stream alone takes it -> its arrays in the order of `inputs`; of one, the array."""
        feed = merge_inputs(self.label, frame, {}, self.single)
        self.check_names(feed)
        values = tuple([self.alone._validated(name, feed[name]) for name in self.inputs])
        if self.rows is not None:
            self.check_frame(values)
        return values[0] if self.single else values

    def named(self, frame):
        """What `validated_frame` made, by the names of the inputs."""
        return {self.single: frame} if self.single else dict(zip(self.inputs, frame))

    def check_names(self, feed):
        self.alone._check_names(feed)
        for name in feed if len(feed) > len(self.inputs) else ():
            if name not in self.inputs:
                raise InputError(
                    f"{self.label}: input {name!r} has a value in the file; give another one when the "
                    f"stream is opened, open({name}=...)"
                )

    def check_frame(self, values):
        for name, value in zip(self.inputs, values):
            shape, dtype = self.forms[name]
            if value.shape != self.shape_alone(name, shape) or value.dtype != dtype:
                shape = self.shape_alone(name, shape)
                raise InputError(
                    f"{self.label}: input {name!r} is {type_name(value.dtype)} of shape {value.shape}, "
                    f"but the frames before were {type_name(dtype)} of shape {shape}"
                )

    def stacked(self, frames):
        """Frames of some streams -> arrays with the streams first."""
        arrays = []
        for name, values in zip(self.inputs, [frames] if self.single else zip(*frames)):
            shape, _ = self.forms[name]
            array = stacked(list(values), self.sample[name])
            if array is None:  # validated before the first step, or objects
                for frame in frames:
                    self.check_frame((frame,) if self.single else frame)
                array = np.stack(values)
            arrays.append(array.reshape(len(frames), *shape))
        return arrays

    def quick_rows(self, feed, count):
        """The arrays of frames that need no conversion, else None."""
        if self.rows is None or len(feed) != len(self.inputs):
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

    def validated_rows(self, feed, count):
        """Frames with the streams first; each is an array of `count`."""
        self.check_names(feed)
        values = {}
        for name in self.inputs:
            type_ = dataclasses.replace(self.alone._types[name], shape=None)
            value = validate(feed[name], type_, f"{self.label}: input {name!r}")
            if not isinstance(value, np.ndarray) or value.ndim == 0 or len(value) != count:
                raise InputError(
                    f"{self.label}: input {name!r} has shape {list(np.shape(value))}, expected {count} "
                    "frames along the first axis"
                )
            values[name] = value
        return values

    def checked_rows(self, values):
        """The same as a list of arrays of contiguous rows of the right shapes."""
        arrays = []
        for name, value in values.items():
            shape, dtype = self.forms[name]
            if value.shape[1:] != shape or value.dtype != dtype:
                raise InputError(
                    f"{self.label}: input {name!r} has frames of {type_name(value.dtype)} "
                    f"{list(value.shape[1:])}, expected {type_name(dtype)} {list(shape)}"
                )
            arrays.append(value if value[:1].flags.c_contiguous and value.flags.aligned else np.array(value, order="C"))
        return arrays

    # ------------------------------------------------------------------------------------------ batch axes
    def settle(self, frames, rows, given):
        """From the first frame of a stream, without (`rows`) or with its batch axis, and its states if given."""
        if not self.pool._batch:
            found = self.unbatched(frames, given)
        else:
            found = search(self.alone, frames, rows, given)
        self.axes, self.sample, (planned, plan, forms) = found
        self.forms = {name: (self.row_shape(name, value.shape), value.dtype) for name, value in self.sample.items()}
        self.results = [
            (self.row_shape(name, shape), dtype) for name, (shape, dtype) in forms.items() if name in self.alone.outputs
        ]
        self.state_forms = [self.forms[name] for name in self.alone.states]
        self.largest = LARGEST_BATCH if self.pool._batch else 1
        self.rows = StateTable(self.pool.max_streams, self.state_forms)
        self.batches[1] = self.native(plan, planned, self.sample, 1)
        if self.single:
            self.like = self.sample[self.single]

    def row_shape(self, name, shape):
        axis = self.axes[name]
        return tuple(shape) if axis is None else (*shape[:axis], *shape[axis + 1 :])

    def unbatched(self, frames, given):
        states = given or self.alone._zeros(frames)
        sample = self.alone._fixed | frames | dict(zip(self.alone.states, states))
        found = trace_call(self.model, sample)
        return dict.fromkeys([*sample, *found[2]]), sample, found

    # ------------------------------------------------------------------------------------------ running
    def batch(self, size):
        """The BatchedProgram of so many streams; None where the plan is not native."""
        if size not in self.batches:
            feed = repeated(self.sample, self.axes, size)
            planned, plan, _ = trace_call(self.model, feed)
            self.batches[size] = self.native(plan, planned, feed, size)
        return self.batches[size]

    def native(self, plan, planned, feed, size):
        names = planned.names
        found = native_buffers(plan, names, [feed[name] for name in names], self.alone._places)
        if found is None or any(names[i] not in self.alone._fixed for i, _ in plan.pinned):
            return None
        program, buffer, made = found
        self.flops = sum(note.flops for note in program.notes) // size
        axis = {name: -1 if a is None else a for name, a in self.axes.items()}
        return BatchedProgram(
            program,
            size,
            [(buffer[name], axis[name]) for name in self.inputs],
            [(buffer[name], made[received], axis[name]) for name, received in self.alone.states.items()],
            [(made[name], axis[name]) for name in self.alone.outputs],
            [(buffer[name], feed[name]) for name in self.alone._fixed],
        )

    def result_forms(self, count):
        """(shape, type) of each result of so many streams."""
        return [((count, *shape), dtype) for shape, dtype in self.results]

    def stepped(self, slots, arrays):
        """New results of a step that is not committed."""
        results = [np.empty(shape, dtype) for shape, dtype in self.result_forms(len(slots))]
        self.advance(slots, arrays, results)
        return results

    def advance(self, slots, arrays, results):
        threads = threads_for(self.model.threads, self.flops * len(slots))
        parts = batch_sizes(len(slots), self.largest, threads)
        chunks = [(self.batch(size), first, count) for size, first, count in parts]
        if all(chunk[0] is not None for chunk in chunks):
            self.rows.step(slots, arrays, results, chunks, threads)
            return
        for size, first, count in parts:
            self.call(
                slots[first : first + count],
                [a[first : first + count] for a in arrays],
                [r[first : first + count] for r in results],
                size,
            )

    def call(self, slots, arrays, results, size):
        """A part of a step by a call of the model."""
        count = len(slots)
        rows = np.minimum(np.arange(size), count - 1)
        states = [value[rows] for value in self.rows.get(slots)]
        feed = repeated(self.alone._fixed, self.axes, size)
        for name, value in zip([*self.inputs, *self.alone.states], [*(a[rows] for a in arrays), *states]):
            axis = self.axes[name]
            feed[name] = value[0] if axis is None else np.moveaxis(value, 0, axis)
        planned, args = self.model.prepare(feed)
        outputs = dict(zip((v.name for v in self.model.outputs), planned.run(args)))
        first = {
            name: value[None] if self.axes[name] is None else np.moveaxis(value, self.axes[name], 0)
            for name, value in outputs.items()
        }
        for result, (shape, dtype), name in zip(results, self.results, self.alone.outputs):
            if first[name].shape[1:] != shape:
                raise InputError(
                    f"{self.label}: output {name!r} has shape {list(first[name].shape[1:])} now, expected {list(shape)}"
                )
            result[:] = first[name][:count]
        self.rows.put(slots, [first[received][:count] for received in self.alone.states.values()])
