"""Builds programs whose words are formulas of the input sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast.native import _programs
from rnnfast.native._formulas import Polynomials, arranged, completed
from rnnfast.native._programs import NativeProgram, address
from rnnfast.onnx.budget import owner
from rnnfast.onnx.compile.arena import CACHE_LINE, SLACK
from rnnfast.onnx.compile.builder import (
    ARENA,
    CONSTANT,
    Allocation,
    Builder,
    CommandNote,
    NotNative,
    Operand,
    Target,
    native_program,
    with_limit,
    words_of,
)
from rnnfast.onnx.symbolic.integers import LEAST, Made, NotSymbolic, Sizes, SymbolicInt, Terms, int_of
from rnnfast.onnx.symbolic.views import Memory, View, empty, made


class Formulas:
    """The formulas of a symbolic plan, each of which is computed once for each set of sizes.

    `add` returns the index that the value of a formula will have in what `values` returns.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._indices: dict[Any, int] = {}
        self._terms: list[Terms] = []

    def add(self, x: Any) -> int:
        """Return the index of the value of a symbolic or other integer."""
        terms: Terms = x.terms if type(x) is SymbolicInt else {(): int(x)}
        key = tuple(sorted(terms.items()))
        index = self._indices.get(key)
        if index is None:
            index = self._indices[key] = len(self._terms)
            self._terms.append(terms)
        return index

    def finish(self) -> None:
        """Prepare the evaluation; no formula is added after this."""
        sizes = self.sizes
        quotients = [(i, v) for i, v in enumerate(sizes.variables) if v[0] == "quotient"]
        self._quotients = [
            (sizes.inputs + i, Polynomials([dividend, divisor])) for i, (_, dividend, divisor) in quotients
        ]
        self._conditions = Polynomials([dict(terms) for terms, _ in sizes.conditions])
        self._says = np.array([says for _, says in sizes.conditions], np.int64)
        made: dict[int, list[tuple[int, str | None]]] = {}  # index of an object -> (variable, attribute) of it
        for i, variable in enumerate(sizes.variables):
            if variable[0] == "made":
                made.setdefault(variable[1], []).append((sizes.inputs + i, variable[2]))
        self._made = [(function, self._indexed(args), made.get(i, [])) for i, (function, args) in enumerate(sizes.made)]
        self._polynomials = Polynomials(self._terms)
        later = [i for i, terms in enumerate(self._terms) if sizes.depends_on_made(terms)]
        self._later, self._later_polynomials = np.array(later, np.intp), Polynomials([self._terms[i] for i in later])

    def _indexed(self, x: Any) -> Any:
        """Arguments with indices of formulas instead of symbolic integers."""
        if isinstance(x, (list, tuple)):
            return tuple([self._indexed(member) for member in x])
        if type(x) is Made:
            return _MadeIndex(x.index)
        return _Index(self.add(x)) if type(x) is SymbolicInt else x

    def variables_of(self, inputs: Sequence[int]) -> np.ndarray | None:
        """Return the values of the variables, without those that functions compute; None if a condition fails."""
        variables = np.zeros(len(self.sizes.values), np.int64)
        variables[: len(inputs)] = inputs
        if min(inputs) < LEAST:
            return None
        try:
            for i, pair in self._quotients:
                dividend, divisor = pair.values(variables).tolist()
                if divisor <= 0:
                    return None
                variables[i] = dividend // divisor
            return variables if self._conditions.hold(variables, self._says) else None
        except OverflowError:
            return None

    def values(self, variables: np.ndarray) -> tuple[list[Any], np.ndarray]:
        """Return the objects that functions make for these variables, which it completes, and the formulas' values."""
        made: list[Any] = []
        values = self._polynomials.values(variables)
        of = values.tolist()
        for function, args, wanted in self._made:
            result = function(*_resolved(args, of, made))
            made.append(result)
            for i, name in wanted:
                variables[i] = result if name is None else getattr(result, name)
        values[self._later] = self._later_polynomials.values(variables)
        return made, values


class _Index(int):
    """The index of the formula of an argument."""


class _MadeIndex(int):
    """The index of an object that is an argument."""


def _resolved(args: tuple[Any, ...], values: list[int], made: list[Any]) -> tuple[Any, ...]:
    """Return arguments with the values of formulas, and objects that were made, instead of their indices."""
    result: list[Any] = []
    for x in args:
        if type(x) is _Index:
            x = values[x]
        elif type(x) is _MadeIndex:
            x = made[x]
        elif type(x) is tuple:
            x = _resolved(x, values, made)
        result.append(x)
    return tuple(result)


class SymbolicBuilder(Builder):
    """A Builder whose views have symbolic shapes and strides."""

    def __init__(self, target: Target, formulas: Formulas) -> None:
        super().__init__(target)
        self._formulas = formulas
        self._kept: dict[int, tuple[Any, View]] = {}  # id of a constant -> it and its view
        self._memories: dict[int, Memory] = {}  # id of the owner of a constant -> its memory

    def new(self, shape: Sequence[Any], dtype: Any = np.float32) -> View:
        view = empty(shape, dtype)
        self._allocations[id(view.memory)] = Allocation(ARENA, view.memory)
        return view

    def constant(self, array: Any) -> View:
        if type(array) is not np.ndarray and not isinstance(array, View) or array.dtype == np.object_:
            raise NotSymbolic("a constant that depends on sizes")
        if isinstance(array, View) and array.memory.make is not None:
            return self._made_constant(array)
        known: Any = array.memory.array if isinstance(array, View) else array
        kept = self._kept.get(id(array))
        if kept is None:
            base = owner(known)
            memory = self._memories.setdefault(id(base), Memory(base.nbytes, base))
            self._allocations[id(memory)] = Allocation(CONSTANT, memory)
            view = View(memory, address(known), array.shape, array.strides, array.dtype)
            kept = self._kept[id(array)] = array, view
        return kept[1]

    def _made_constant(self, view: View) -> View:
        """Return the view of a constant that is made for each set of sizes."""
        kept = self._kept.get(id(view.memory))
        if kept is None:
            memory = Memory(view.memory.nbytes)
            self._allocations[id(memory)] = Allocation(CONSTANT, memory)
            whole = View(memory, self._made_of(view).address, view.shape, view.strides, view.dtype)
            kept = self._kept[id(view.memory)] = view.memory, whole
        return kept[1]

    def _made_of(self, view: View) -> Made:
        """Return the object that makes the constant of a view, and those of its arguments before it."""
        memory = view.memory
        if memory.made is None:
            assert memory.make is not None
            function, args = memory.make
            args = [self._made_of(x) if type(x) is View else x for x in args]
            memory.made = self.made(Constant, function, view.shape, view.dtype, *args)
        return memory.made  # type: ignore[no-any-return]

    def zeros(self, count: Any) -> View:
        if type(count) is not SymbolicInt:
            return super().zeros(count)  # type: ignore[no-any-return]
        return self._made_constant(made((count,), np.float32, _zeros, count))

    def made(self, function: Any, *args: Any) -> Any:
        return Made(self._formulas.sizes, function, args)

    def computed(self, function: Any, *args: Any) -> Any:
        if any(type(x) is SymbolicInt for x in args):
            return self._formulas.sizes.computed(function, *args)
        return int(function(*args))

    def program(self, outputs: Sequence[Operand], work: Any) -> SymbolicProgram:
        if self.loops:
            raise NotNative("loops")
        self._place_outputs(outputs)
        arena = self._in_arena()
        sections = _sections(arena)
        section_of = {id(a): section for section, members in enumerate(sections) for a in members}
        words: list[int] = []
        changes: list[tuple[int, int, int]] = []  # (index of a word, index of its formula, its section + 1 or 0)
        add = self._formulas.add

        def put(x: Any, section: int = 0) -> None:
            if type(x) is SymbolicInt or section:
                changes.append((len(words), add(x), section))
                words.append(0)
            else:
                words.append(int(x))

        for name, parts in self.commands:
            start = len(words)
            words += (_programs.COMMANDS[name], 0)
            for word in parts:
                if type(word) is View:
                    allocation = self.allocation_of(word)
                    if allocation.kind == ARENA:
                        words.append(1)
                        put(word.offset, section_of[id(allocation)] + 1)
                    else:
                        words.append(0 if allocation.kind == CONSTANT else allocation.index)
                        put(word.offset)
                elif word is None:
                    words += (-1, 0)
                elif isinstance(word, float):
                    words += words_of(word)
                else:
                    put(word)
            words[start + 1] = len(words) - start
        sizes = [(add(a.array.nbytes), section) for section, members in enumerate(sections) for a in members]
        checks = []
        for status, error, message, where, limit in self._checks:
            allocation = self.allocation_of(status)
            if allocation.kind != ARENA:
                raise NotSymbolic("a status outside of the arena")
            checks.append((section_of[id(allocation)], error, message, where, add(limit)))
        constants = [
            a.array.array for a in self._allocations.values() if a.kind == CONSTANT and a.array.array is not None
        ]
        result = SymbolicProgram(
            self.target,
            np.array(words, np.int64),
            np.array(changes, np.int64).reshape(-1, 3).T.copy(),
            np.array(sizes, np.int64).reshape(-1, 2).T.copy(),
            [self._shape(o) for o in self.inputs],
            [self._shape(o) for o in outputs],
            constants + self.keep,
            [note._replace(**self._note(note)) for note in self.notes],
            checks,
            add(work),
        )
        self.forget()
        return result

    def _shape(self, operand: Operand) -> tuple[tuple[int, ...], Any]:
        return tuple([self._formulas.add(n) for n in operand.shape]), operand.dtype

    def _note(self, note: CommandNote) -> dict[str, Any]:
        """The fields of a note with indices of formulas instead of sizes."""
        add = self._formulas.add
        return {"shape": tuple([add(n) for n in note.shape]), "flops": add(note.flops), "nbytes": add(note.nbytes)}


class Constant:
    """A constant that a function makes, and its address."""

    def __init__(self, function: Any, shape: tuple[int, ...], dtype: Any, *args: Any) -> None:
        result = np.require(function(*[x.array if type(x) is Constant else x for x in args]), None, ("C", "A"))
        if result.shape != shape or result.dtype != dtype:
            raise NotSymbolic(f"a constant of shape {result.shape}, not {shape}")
        self.array: np.ndarray = result
        self.address = address(self.array)


def _zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.float32)


def _sections(allocations: Sequence[Allocation]) -> list[list[Allocation]]:
    """Share Allocations out to sections of the arena, in each of which no two are in use at the same time.

    A section is as large as the largest of its members, for whatever sizes; those of similar sizes go together.
    """
    sections: list[list[Allocation]] = []
    for allocation in sorted(allocations, key=lambda a: -int_of(a.array.nbytes)):
        for section in sections:
            if all(a.last < allocation.first or allocation.last < a.first for a in section):
                section.append(allocation)
                break
        else:
            sections.append([allocation])
    return sections


def _note_of(note: CommandNote, values: list[int]) -> CommandNote:
    """Return a note with the values of formulas instead of their indices."""
    shape = tuple([values[n] for n in note.shape])
    return note._replace(shape=shape, flops=values[note.flops], nbytes=values[note.nbytes])


class SymbolicProgram:
    """A program for any sizes. The indices of formulas are those of their values in `Formulas.values`.

    words: those that are the same for all sizes, 0 for others. changes: [3, n]: the index of each other word, the index
    of its formula, and 1 + the section of the arena to whose start it counts, or 0. sizes: [2, n]: for each allocation
    the index of the formula of its bytes, and its section. inputs, outputs: (indices of the formulas of the shape,
    dtype). checks: (section of the status, class of the error, its message, where, index of the formula of the limit).
    work: the index of the formula of the work of a run.
    """

    loops = False

    def __init__(
        self,
        target: Target,
        words: np.ndarray,
        changes: np.ndarray,
        sizes: np.ndarray,
        inputs: list[Any],
        outputs: list[Any],
        keep: list[Any],
        notes: list[CommandNote],
        checks: list[Any],
        work: int,
    ) -> None:
        self.target, self.words, self.sizes, self.keep, self.notes = target, words, sizes, keep, notes
        self.indices, self.formulas, self.sections = changes
        self.inputs, self.outputs, self.checks, self.work = inputs, outputs, checks, work

    def held(self) -> list[np.ndarray]:
        """Return the arrays that hold its memory."""
        arrays = [self.words, self.indices, self.formulas, self.sections, *self.sizes, *self.keep]
        return [array for array in arrays if isinstance(array, np.ndarray)]

    def program(self, values: np.ndarray, made: list[Any]) -> NativeProgram:
        """Return the program for the sizes that have these values of formulas, and these objects."""
        allocations, sections = self.sizes
        starts = arranged(allocations, sections, values, CACHE_LINE, SLACK)
        words = completed(self.words, self.indices, self.formulas, self.sections, values, starts)
        of = values.tolist()
        inputs, outputs = (
            [(tuple([of[n] for n in s]), dtype) for s, dtype in group] for group in (self.inputs, self.outputs)
        )
        size = int(starts[-1])
        return native_program(
            self.target,
            words,
            size,
            size,
            inputs,
            outputs,
            [*self.keep, *[getattr(x, "array", x) for x in made if type(x) is not int]],
            lambda: tuple([_note_of(note, of) for note in self.notes]),
            [
                (int(starts[section]), error, with_limit(message, of[limit]), where)
                for section, error, message, where, limit in self.checks
            ],
            False,
            of[self.work],
        )
