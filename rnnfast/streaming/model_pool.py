"""Pools of a model: many live streams in one batch, each with the bits that it would get alone.

The first step settles which axis of each input, state and output is the batch.
"""

from __future__ import annotations

import functools

import numpy as np

from rnnfast.errors import InputError, LimitError
from rnnfast.named_values import Outputs, merge_inputs
from rnnfast.nn.checks import check_flag
from rnnfast.streaming._pools import commit, unstacked
from rnnfast.streaming.fixed_input_group import FixedInputGroup
from rnnfast.streaming.model_signature import ModelSignature
from rnnfast.streaming.pool import Pool, with_rank

# Sets of values of fixed inputs (a sample rate) that streams of one pool may have at a time.
MAX_GROUPS = 16


def unsettle_on_failure(step):
    """If the first step of a FixedInputGroup fails, let another frame settle its shapes."""

    @functools.wraps(step)
    def checked(self, *args):
        unsettled = [group for group in self._fixed_groups if group.table is None]
        try:
            return step(self, *args)
        except BaseException:
            for group in unsettled:
                group.unsettle()
            raise

    return checked


class ModelPool(Pool):
    """A Pool of a Model; `model.pool` makes it.

    Attributes:
        model: The Model.
        states: {state input: state output}.
        outputs: The names of a step's results.
    """

    def __init__(self, model, max_streams, states=None, batch=True, fixed=None):
        self.model, self._batched = model, check_flag(batch, "batch")
        signature = ModelSignature(model, states, fixed)
        self.states, self.outputs = signature.states, signature.outputs
        super().__init__(signature.label, max_streams)
        self._signature = signature
        self._fixed_groups = [FixedInputGroup(signature, max_streams, self._batched)]
        self._group_of_slot = np.zeros(max_streams, np.intp)  # slot -> index of its FixedInputGroup

    # ------------------------------------------------------------------------------------------ groups
    def _group_index(self, signature):
        """The index of the FixedInputGroup with the fixed inputs of a ModelSignature; a new one if there is none."""
        if signature is self._signature:
            return 0
        for index, group in enumerate(self._fixed_groups):
            if group.has_fixed(signature.fixed):
                return index
        new = FixedInputGroup(signature, self.max_streams, self._batched)
        used = self._group_of_slot[self._slots.opened() % self.max_streams]
        for index in range(1, len(self._fixed_groups)):
            if index not in used:
                self._fixed_groups[index] = new
                return index
        if len(self._fixed_groups) == MAX_GROUPS:
            raise LimitError(
                f"{self.label}: streams with more than {MAX_GROUPS} different values of fixed inputs: give "
                "these inputs at each step"
            )
        self._fixed_groups.append(new)
        return len(self._fixed_groups) - 1

    def _group(self, slot):
        """The FixedInputGroup of the stream in a slot."""
        return self._fixed_groups[self._group_of_slot[slot]]

    def _members(self, slots):
        """(FixedInputGroup, indices of its streams among `slots`, or None for all) of each group in a step."""
        if len(self._fixed_groups) == 1:
            return [(self._fixed_groups[0], None)]
        indices = self._group_of_slot[slots]
        return [(self._fixed_groups[index], np.flatnonzero(indices == index)) for index in np.unique(indices)]

    def _given_states(self, group):
        """{slot: initial states} of the streams of a group that do not begin with zeros; all have the same shapes."""
        return {slot: states for slot, states in self._initial_states.items() if self._group(slot) is group}

    def _settle(self, group, frame, rows):
        """Settle the shapes and batch axes of a group from the first frame of one of its streams."""
        if group.table is None:
            group.settle(frame, rows, self._given_states(group))

    # ------------------------------------------------------------------------------------------ streams
    def _validate_opening(self, state, fixed):
        signature = self._signature
        if fixed:
            signature = ModelSignature(self.model, self.states, signature.fixed | fixed)
        return None if state is None else signature.validate_state(state), signature

    def _begin(self, slot, state, signature):
        index = self._group_index(signature)
        group = self._fixed_groups[index]
        if state is not None:
            group.check_states(state, next(iter(self._given_states(group).values()), None))
            self._initial_states[slot] = state
        self._group_of_slot[slot] = index
        self._restart(slot)

    def _check_initial(self, slot, state):
        group = self._group(slot)
        others = (states for other, states in self._given_states(group).items() if other != slot)
        group.check_states(state, next(others, None))

    def _restart(self, slot):
        group = self._group(slot)
        if group.table is not None:
            group.load(slot, self._initial_states.get(slot))

    def _tables(self, slot):
        table = self._group(slot).table
        return [] if table is None else [table]

    def _state(self, slot):
        group = self._group(slot)
        values = self._initial_states.get(slot) if group.table is None else group.state(slot)
        return None if values is None else {name: np.array(v) for name, v in zip(self.states, values)}

    def _converted(self, slots, feed):
        signature = (self._group(slots[0]) if len(slots) else self._fixed_groups[0]).signature
        return {
            name: signature.validate_rows(name, value, len(slots))
            if name in signature.inputs and type(value) is not np.ndarray
            else value
            for name, value in feed.items()
        }

    def _single_input(self, slots):
        return (self._group(slots[0]) if len(slots) else self._fixed_groups[0]).single_input

    # ------------------------------------------------------------------------------------------ steps
    def _step(self, slots, feed, out):
        group = self._fixed_groups[0]
        arrays = group.ready_rows(feed, len(slots)) if len(self._fixed_groups) == 1 else None
        if arrays is None:
            return self._checked_step(slots, feed, out)
        results = self._signature.result_arrays(out, group.result_forms(len(slots)), arrays)
        group.advance(slots, arrays, results)
        packed = out if out is not None else self._signature.pack(results)
        commit([(group.table, slots)])
        return packed

    @unsettle_on_failure
    def _checked_step(self, slots, feed, out):
        """A step whose values may need conversion, or whose streams differ in their fixed inputs."""
        parts = []
        for group, members in self._members(slots):
            values = group.validate_rows(feed, len(slots))
            if members is not None:
                values = {name: value[members] for name, value in values.items()}
            group_slots = slots if members is None else slots[members]
            if len(group_slots):
                self._settle(group, {name: value[0] for name, value in values.items()}, True)
                parts.append((group, members, group_slots, group.contiguous_rows(values)))
        if not parts:
            group = self._fixed_groups[0]
            if group.table is None:
                raise InputError(f"{self.label}: a step of no streams, and none before that settled the shapes")
            parts = [(group, None, slots, group.contiguous_rows(group.validate_rows(feed, 0)))]
        forms = [group.result_forms(len(slots)) for group, *_ in parts]
        if any(form != forms[0] for form in forms):
            raise InputError(f"{self.label}: results of these streams have different shapes: step them apart")
        results = self._signature.result_arrays(out, forms[0], list(feed.values()))
        for group, members, group_slots, arrays in parts:
            if members is None:
                group.advance(group_slots, arrays, results)
            else:
                for result, of_group in zip(results, group.new_results(group_slots, arrays)):
                    result[members] = of_group
        packed = out if out is not None else self._signature.pack(results)
        commit([(group.table, group_slots) for group, _, group_slots, _ in parts])
        return packed

    @unsettle_on_failure
    def _run(self, slots, feed, lengths):
        """Step frame by frame those streams that have a frame left; if one fails, restore the states of all."""
        before, results = [], None
        for group, members in self._members(slots):
            if group.table is not None:
                group_slots = slots if members is None else slots[members]
                before.append((group.table, group_slots, group.table.get(group_slots)))
        try:
            for t in range(lengths.max(initial=0)):
                rows = np.flatnonzero(lengths > t)
                frame = {name: np.asarray(value)[rows, t] for name, value in feed.items()}
                of_frame = self._step(slots[rows], frame, None)
                of_frame = [of_frame] if len(self.outputs) == 1 else list(of_frame.values())
                if results is None:
                    axes = np.shape(next(iter(feed.values())))[:2]
                    results = [np.zeros((*axes, *r.shape[1:]), r.dtype) for r in of_frame]
                for result, r in zip(results, of_frame):
                    result[rows, t] = r
        except BaseException:
            for table, group_slots, states in before:
                table.put(group_slots, states)
            commit([(table, group_slots) for table, group_slots, _ in before])
            raise
        if results is None:
            raise InputError(f"{self.label}: a run of no frames")
        return self._signature.pack(results)

    @unsettle_on_failure
    def _warm(self, frame, signature):
        group = self._fixed_groups[self._group_index(signature)]
        self._settle(group, group.by_name(group.validate_frame(frame)), False)
        group.warm()

    def with_frame_axes(self, stream, frame):
        group = self._group(stream % self.max_streams)
        feed = merge_inputs(self.label, frame, {}, group.single_input)
        return {name: with_rank(value, group.rank(name)) for name, value in feed.items()}

    def validate(self, stream, frame):
        return self._group(stream % self.max_streams).validate_frame(frame)

    @property
    def frame_pattern(self):
        return self._fixed_groups[0].frame_pattern if len(self._fixed_groups) == 1 else None

    def is_planned(self, streams):
        if len(self._fixed_groups) == 1:
            return self._fixed_groups[0].is_planned(len(streams))
        indices, counts = np.unique(self._group_of_slot[np.array(streams) % self.max_streams], return_counts=True)
        return all(self._fixed_groups[i].is_planned(n) for i, n in zip(indices.tolist(), counts.tolist()))

    @unsettle_on_failure
    def _step_frames(self, slots, frames):
        results = [None] * len(frames)
        parts = []
        for group, members in self._members(slots):
            members = range(len(frames)) if members is None else members.tolist()
            if len(members):
                everyone = len(members) == len(frames)
                group_frames = frames if everyone else [frames[member] for member in members]
                group_slots = slots if everyone else slots[members]
                self._settle(group, group.by_name(group_frames[0]), False)
                parts.append((group, members, group_slots, group.stack(group_frames)))
        for group, members, group_slots, arrays in parts:
            rows = [
                unstacked(values, group.shape_alone(name, values.shape[1:]))
                for name, values in zip(self.outputs, group.new_results(group_slots, arrays))
            ]
            rows = rows[0] if len(rows) == 1 else [Outputs(zip(self.outputs, values)) for values in zip(*rows)]
            for member, result in zip(members, rows):
                results[member] = result
        commit([(group.table, group_slots) for group, _, group_slots, _ in parts], self._slots)
        return results

    def __repr__(self):
        return (
            f"<rnnfast.Pool of {self.label}: {len(self)} of {self.max_streams} streams open, "
            f"({', '.join(self._signature.inputs)}) -> ({', '.join(self.outputs)})>"
        )
