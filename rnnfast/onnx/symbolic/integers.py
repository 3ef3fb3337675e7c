"""Integers that carry the formula by which they follow from the sizes of a call's inputs.

A formula is a polynomial with integer coefficients. Its variables are input sizes, quotients that are no polynomials,
and values that functions compute. Each symbolic integer also has its value in the call that is traced. A comparison
returns what is true of these values, and notes the condition under which it stays true; for other sizes the trace is
worth as much as long as all conditions hold. Whatever else needs the value of a symbolic integer raises NotSymbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# The exponents of a term: the sorted indices of its variables, each as often as it is a factor.
Term = tuple[int, ...]
Terms = dict[Term, int]
LEAST = 2  # of an input size that is symbolic: many decisions depend on whether a size is 0 or 1
MAX_DEGREE = 4
MAX_CONDITIONS = 256

# What a condition says of its polynomial.
NEGATIVE, NOT_NEGATIVE, ZERO, NOT_ZERO = range(4)


class NotSymbolic(Exception):
    """A trace needs the value of a symbolic integer, or cannot do something with it."""


class Made:
    """An object that a function makes of symbolic integers and other such objects; its attributes are symbolic
    integers.

    index: which of those that `Sizes.made` knows it is. example: the object for the sizes of the call that is traced.
    """

    def __init__(self, sizes: Sizes, function: Callable[..., Any], args: Sequence[Any]) -> None:
        self._sizes, self.index = sizes, len(sizes.made)
        self.example = function(*_examples(args))
        sizes.made.append((function, tuple(args)))

    def __getattr__(self, name: str) -> SymbolicInt:
        value = getattr(self.example, name)
        variable = self._sizes.variable(("made", self.index, name), value, None)
        setattr(self, name, variable)
        return variable


class Sizes:
    """The variables of a symbolic trace, and the conditions that it depends on.

    values: of the variables, in the call that is traced. least: the least values that they may have, or None.
    variables: how each is computed after the input sizes, which come first: ("quotient", terms, terms) or ("made", the
    index of an object in `made`, the name of its attribute; None for the object itself). made: (function, arguments).
    conditions: {(sorted terms, what it says): None}.
    """

    def __init__(self, inputs: Sequence[int]) -> None:
        self.inputs = len(inputs)
        self.values: list[int] = list(inputs)
        self.least: list[int | None] = [LEAST] * len(inputs)
        self.variables: list[tuple[Any, ...]] = []
        self.made: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.conditions: dict[tuple[tuple[tuple[Term, int], ...], int], None] = {}
        self._quotients: dict[Any, SymbolicInt] = {}

    def size(self, i: int) -> SymbolicInt:
        """The symbolic integer of an input size."""
        return SymbolicInt(self, {(i,): 1}, self.values[i])

    def variable(self, made_by: tuple[Any, ...], value: int, least: int | None) -> SymbolicInt:
        """A new variable."""
        self.values.append(value)
        self.least.append(least)
        self.variables.append(made_by)
        return SymbolicInt(self, {(len(self.values) - 1,): 1}, value)

    def computed(self, function: Callable[..., int], *args: Any) -> Any:
        """The integer that a function computes of symbolic and other integers."""
        self.made.append((function, args))
        return self.variable(("made", len(self.made) - 1, None), function(*_examples(args)), None)

    def quotient(self, a: SymbolicInt | int, b: SymbolicInt | int) -> SymbolicInt:
        """The quotient a // b as a variable of its own."""
        terms: list[Terms] = [x.terms if isinstance(x, SymbolicInt) else {(): x} for x in (a, b)]
        key = tuple(tuple(sorted(t.items())) for t in terms)
        found = self._quotients.get(key)
        if found is None:
            if b <= 0 or any(self.depends_on_made(t) for t in terms):
                raise NotSymbolic("a quotient")
            least = 0 if a >= 0 else None
            found = self._quotients[key] = self.variable(("quotient", *terms), int_of(a) // int_of(b), least)
        return found

    def depends_on_made(self, terms: Terms) -> bool:
        """Return whether a polynomial has a variable that a function computes."""
        return any(i >= self.inputs and self.variables[i - self.inputs][0] == "made" for term in terms for i in term)

    def bound(self, terms: Terms) -> int | None:
        """Return a value below which a polynomial never is; None if none is known."""
        total = 0
        for term, factor in terms.items():
            if not term:
                total += factor
                continue
            if factor < 0:
                return None
            for i in term:
                least = self.least[i]
                if least is None or least < 0:
                    return None
                factor *= least
            total += factor
        return total

    def is_positive(self, terms: Terms) -> bool:
        """Return whether a polynomial is known to be more than 0 for all sizes."""
        bound = self.bound(terms)
        return bound is not None and bound > 0

    def note(self, terms: Terms, says: int) -> None:
        """Note a condition."""
        if self.depends_on_made(terms):
            raise NotSymbolic("a comparison with what a function computes")
        self.conditions[tuple(sorted(terms.items())), says] = None
        if len(self.conditions) > MAX_CONDITIONS:
            raise NotSymbolic("too many conditions")


def int_of(x: Any) -> int:
    """The value of a symbolic or other integer in the call that is traced."""
    return x.value if isinstance(x, SymbolicInt) else int(x)


def is_symbolic(x: Any) -> bool:
    """Return whether a value is a symbolic integer."""
    return type(x) is SymbolicInt


def _examples(args: Any) -> Any:
    """Arguments with the examples of symbolic integers and Made objects in place of these."""
    return tuple([_examples(x) if isinstance(x, (list, tuple)) else _example(x) for x in args])


def _example(x: Any) -> Any:
    return x.example if type(x) is Made else int_of(x) if is_symbolic(x) else x


def _terms(x: Any) -> Terms | None:
    """The terms of a symbolic or other integer; None for anything else."""
    if type(x) is SymbolicInt:
        return x.terms
    if type(x) is int or isinstance(x, (int, np.integer)):
        return {(): int(x)} if x else {}
    return None


class SymbolicInt:
    """A symbolic integer: a polynomial, and its value in the call that is traced."""

    __slots__ = ("sizes", "terms", "value")

    def __init__(self, sizes: Sizes, terms: Terms, value: int) -> None:
        self.sizes, self.terms, self.value = sizes, terms, value

    def _new(self, terms: Terms, value: int) -> Any:
        """The integer of these terms, none of which is 0: a plain one if it is constant."""
        if not terms or len(terms) == 1 and () in terms:
            return value
        return SymbolicInt(self.sizes, terms, value)

    def __add__(self, other: Any) -> Any:
        others = _terms(other)
        if others is None:
            return NotImplemented
        terms = dict(self.terms)
        for term, factor in others.items():
            total = terms.get(term, 0) + factor
            if total:
                terms[term] = total
            else:
                del terms[term]
        return self._new(terms, self.value + int_of(other))

    __radd__ = __add__

    def __neg__(self) -> Any:
        return SymbolicInt(self.sizes, {term: -factor for term, factor in self.terms.items()}, -self.value)

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        others = _terms(other)
        if others is None:
            return NotImplemented
        if len(others) == 1 and () in others:  # as most are
            factor = others[()]
            terms = {term: factor * own for term, own in self.terms.items()}
            return SymbolicInt(self.sizes, terms, self.value * factor)
        terms = {}
        for term, factor in self.terms.items():
            for term2, factor2 in others.items():
                both = tuple(sorted(term + term2))
                if len(both) > MAX_DEGREE:
                    raise NotSymbolic("a product of many sizes")
                terms[both] = terms.get(both, 0) + factor * factor2
        return self._new({term: factor for term, factor in terms.items() if factor}, self.value * int_of(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        terms = _terms(other)
        if terms is None:
            return NotImplemented
        exact = self._exact_quotient(terms)
        return self.sizes.quotient(self, other) if exact is None else exact

    def __rfloordiv__(self, other: Any) -> Any:
        if self == 0:
            raise NotSymbolic("a division by zero")
        return self.sizes.quotient(other, self) if other else 0

    def _exact_quotient(self, other: Terms) -> Any:
        """The quotient by one term that divides all terms, or None."""
        if len(other) != 1:
            return None
        (term, factor), terms = next(iter(other.items())), {}
        for own, n in self.terms.items():
            left = list(own)
            for i in term:
                if i not in left:
                    return None
                left.remove(i)
            if n % factor:
                return None
            terms[tuple(left)] = n // factor
        if term and not self.sizes.is_positive(other):
            return None
        divisor = factor
        for i in term:
            divisor *= self.sizes.values[i]
        return self._new(terms, self.value // divisor)

    def __mod__(self, other: Any) -> Any:
        return self - self // other * other

    def __rmod__(self, other: Any) -> Any:
        return other - other // self * self

    def __divmod__(self, other: Any) -> Any:
        quotient = self // other
        return quotient, self - quotient * other

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __pos__(self) -> Any:
        return self

    # ------------------------------------------------------------------------------------------- decisions
    def _is_negative(self) -> bool:
        sizes = self.sizes
        bound = sizes.bound(self.terms)
        if bound is not None and bound >= 0:
            return False
        if sizes.is_positive({term: -factor for term, factor in self.terms.items()}):
            return True
        sizes.note(self.terms, NEGATIVE if self.value < 0 else NOT_NEGATIVE)
        return self.value < 0

    def _is_zero(self) -> bool:
        sizes = self.sizes
        if sizes.is_positive(self.terms) or sizes.is_positive({term: -n for term, n in self.terms.items()}):
            return False
        sizes.note(self.terms, ZERO if self.value == 0 else NOT_ZERO)
        return self.value == 0

    def _less(self, other: Any) -> Any:
        """Return whether self < other, or NotImplemented."""
        if isinstance(other, float):
            return self.value < other if other in (float("inf"), float("-inf")) else NotImplemented
        if _terms(other) is None:
            return NotImplemented
        difference = self - other
        return difference._is_negative() if type(difference) is SymbolicInt else difference < 0

    def __lt__(self, other: Any) -> Any:
        return self._less(other)

    def __ge__(self, other: Any) -> Any:
        less = self._less(other)
        return less if less is NotImplemented else not less

    def __le__(self, other: Any) -> Any:
        return self < other if isinstance(other, float) else self._less(other + 1)

    def __gt__(self, other: Any) -> Any:
        less = self <= other
        return less if less is NotImplemented else not less

    def __eq__(self, other: Any) -> Any:
        if self is other:
            return True
        if _terms(other) is None:
            if isinstance(other, (float, np.floating)):
                raise NotSymbolic("a comparison with a float")
            return NotImplemented
        difference = self - other
        return difference._is_zero() if type(difference) is SymbolicInt else difference == 0

    def __ne__(self, other: Any) -> Any:
        equal = self == other
        return equal if equal is NotImplemented else not equal

    def __bool__(self) -> bool:
        return not self._is_zero()

    # --------------------------------------------------------------------------- what needs the value itself
    def _needs_value(self, *_: Any) -> Any:
        raise NotSymbolic("a place that needs the value of a size")

    __index__ = __int__ = __float__ = __hash__ = __repr__ = __format__ = _needs_value  # type: ignore[assignment]
