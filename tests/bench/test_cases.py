"""The tables of cases are whole and can be selected from."""

import collections
import itertools

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")


from bench import pools, streams
from bench.cases import CASES, KINDS, MAIN, POOLS, QUICK, STEPS, SWEEP, TRAINING, pool_sweep, select


def test_cases():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) and set(QUICK) <= set(names)
    assert select(["sweep"]) == SWEEP and select(["main"]) == MAIN and select([names[3]]) == [CASES[3]]
    assert {case.kind for case in select(["GRU*"])} == {"GRU"}
    with pytest.raises(ValueError, match="LSTM-T2"):
        select(["LSTM-T2"])


def test_sweep_meets_every_combination():
    pairs = collections.Counter((case.kind, case.B) for case in SWEEP)
    assert len(pairs) == len(KINDS) * 7
    assert {(case.T, case.B) for case in SWEEP if case.H < 300} == set(itertools.product(STEPS, {c.B for c in SWEEP}))


def test_training_cases():
    names = [case.name for case in TRAINING]
    assert len(set(names)) == len(names) == 8
    (ragged,) = (case for case in TRAINING if getattr(case, "lengths", ()))
    assert len(ragged.lengths) == ragged.B and (min(ragged.lengths), max(ragged.lengths)) == (10, 200) == (10, ragged.T)
    assert list(ragged.lengths) != sorted(ragged.lengths)


def test_pool_cases():
    """Every target is one that the table knows: an engine's, or one of those that are no ratio."""
    engines = {e.name for group in (streams.ALONE, streams.SEVERAL, streams.RAGGED) for e in group}
    assert len({case.name for case in POOLS}) == len(POOLS) == 5
    assert {what for case in POOLS for group in case.targets.values() for what in group} <= engines | set(pools.MEANING)
    (ragged,) = (case for case in POOLS if case.lengths)
    assert (min(ragged.lengths), max(ragged.lengths), len(ragged.lengths)) == (1, 1000, ragged.B)
    assert [case.B for case in pool_sweep("LSTM")] == [2**n for n in range(13)]
