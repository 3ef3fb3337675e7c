"""Symbolic integers: for sizes that meet the conditions, formulas and decisions are those of plain integers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnfast.native._formulas import arranged
from rnnfast.onnx.symbolic.builder import Formulas
from rnnfast.onnx.symbolic.integers import NotSymbolic, Sizes, SymbolicInt

OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "subtract_from": lambda a, b: b - a,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a // b if b > 0 else b,
    "remainder": lambda a, b: a % b if b > 0 else a,
    "negate": lambda a, b: -a,
    "absolute": lambda a, b: abs(a),
    "smaller": lambda a, b: min(a, b),
    "larger": lambda a, b: max(a, b, 3),
    "equal": lambda a, b: a if a == b else b + 1,
    "unequal": lambda a, b: a if a != 2 * b else 7,
    "less": lambda a, b: a * 2 if a < b else a,
    "at_least": lambda a, b: b if a >= b + 1 else a,
    "not_zero": lambda a, b: a if a else b,
    "numpy": lambda a, b: np.int64(3) * a + b,
}


def computed(steps, sizes):
    """Run a program of (operation, operand, operand), whose operands are sizes, constants and earlier results."""
    values = [*sizes, 0, 1, 4, -3]
    for name, a, b in steps:
        values.append(OPERATIONS[name](values[a % len(values)], values[b % len(values)]))
    return values[len(sizes) + 4 :]


STEPS = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 99), st.integers(0, 99)), max_size=8)


@given(STEPS, st.tuples(st.integers(2, 30), st.integers(2, 30)), st.data())
def test_formulas_are_exact_where_the_conditions_hold(steps, example, data):
    sizes = Sizes(example)
    formulas = Formulas(sizes)
    try:
        results = computed(steps, [sizes.size(0), sizes.size(1)])
    except NotSymbolic:
        return
    assert [int(getattr(r, "value", r)) for r in results] == computed(steps, example)
    places = [formulas.add(r) for r in results]
    formulas.finish()
    assert formulas.variables_of(example) is not None
    for other in data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20)):
        variables = formulas.variables_of(other)
        if variables is not None:
            _, values = formulas.values(variables)
            assert [int(values[place]) for place in places] == computed(steps, other)


def test_conditions_fail_where_a_decision_would_be_another_one():
    sizes = Sizes([10, 3])
    n, m = sizes.size(0), sizes.size(1)
    assert n > 3 * m and n % m == 1 and n != 5 * m
    formulas = Formulas(sizes)
    formulas.finish()
    for a, b in itertools.product(range(40), range(12)):
        expected = a >= 2 and b >= 2 and a > 3 * b and a % b == 1 and a != 5 * b
        assert (formulas.variables_of([a, b]) is not None) == expected, (a, b)


def test_what_is_true_of_all_sizes_is_no_condition():
    sizes = Sizes([10, 3])
    n, m = sizes.size(0), sizes.size(1)
    assert n > 1 and n != 0 and n and n * m + 3 > 4 and not n * 4 < 8 and n * m == m * n and (n * m) // m == n
    assert max(0, n) is n and abs(-n) == n and n - n == 0 and 0 not in (n, m)
    assert not sizes.conditions


@pytest.mark.parametrize(
    "use", [int, float, range, hash, str, repr, "{}".format, lambda n: [0][n], lambda n: np.empty(n), lambda n: {n: 0}]
)
def test_what_needs_the_value_is_refused(use):
    with pytest.raises(NotSymbolic):
        use(Sizes([5]).size(0))


def test_sizes_that_overflow_meet_no_condition():
    sizes = Sizes([5, 5])
    assert sizes.size(0) * sizes.size(1) * 8 < 10**9
    formulas = Formulas(sizes)
    formulas.finish()
    assert formulas.variables_of([10**4, 10**4]) is not None
    assert formulas.variables_of([10**5, 10**4]) is None
    assert formulas.variables_of([2**62, 2**62]) is None


def test_objects_are_made_for_each_set_of_sizes():
    class Table:
        def __init__(self, n, pairs):
            self.entries, self.last = n * 3, pairs[-1][0]

    sizes = Sizes([5])
    formulas = Formulas(sizes)
    from rnnfast.onnx.symbolic.integers import Made

    table = Made(sizes, Table, (sizes.size(0), [(1, 2), (sizes.size(0) + 1, 3)]))
    place = formulas.add(table.entries * 2 + sizes.size(0))
    half = formulas.add(sizes.computed(lambda n: n // 2, sizes.size(0)))
    with pytest.raises(NotSymbolic):
        assert table.entries > 3
    formulas.finish()
    for n in (2, 9):
        made, values = formulas.values(formulas.variables_of([n]))
        assert (made[0].entries, made[0].last) == (3 * n, n + 1)
        assert values[place] == 7 * n and values[half] == n // 2


def test_a_symbolic_integer_is_one_of_numpy_too():
    n = Sizes([5]).size(0)
    values = np.array([1, 2], object) * n
    assert isinstance(values[1], SymbolicInt) and values[1].value == 10


def test_floats_are_not_compared_without_a_condition():
    n = Sizes([4]).size(0)
    for other in (4.0, np.float64(4), np.float32(3)):
        with pytest.raises(NotSymbolic):
            n == other  # noqa: B015 - it is the comparison that raises
    assert n != "4" and n != None  # noqa: E711


def test_nothing_is_divided_by_zero():
    n = Sizes([4]).size(0)
    for divided in (lambda: 0 // (n - 4), lambda: 0 % (n - 4), lambda: 5 // (n - 4)):
        with pytest.raises(NotSymbolic):
            divided()


def test_sections_of_an_arena_lie_behind_each_other():
    indices = np.arange(3)
    starts = arranged(indices, np.array([0, 0, 1]), np.array([100, 200, 1]), 64, 64)
    assert starts.tolist() == [0, 320, 448]
    for sizes in ([1, 2**62, 2**62], [1, 1, 2**63 - 100]):
        with pytest.raises(OverflowError):
            arranged(indices, np.array([0, 1, 2]), np.array(sizes), 64, 64)
