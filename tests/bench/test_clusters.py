"""`python -m bench.clusters`: the engines give the same tables, and wrong ones are found."""

import pickle

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")

from bench import clusters
from rnnfast.ray import columns


def test_engines(tmp_path):
    """Each engine, as it travels to a worker, is right and keeps the order; a wrong result or order is an error."""
    rows, (table,) = clusters.corpus(50)
    engines, alone = clusters.engines(tmp_path)
    right = [alone(x=row[:, None]).y[:, 0] for row in rows]
    for name, engine in engines.items():
        timed = clusters.Timed(pickle.loads(pickle.dumps(engine)), table.slice(0, 3))
        result = timed(table)
        clusters.check(result, right, name.startswith("rnnfast"))
        assert set(result.column_names) == {"id", "y", "begin", "end", "cpu"}
        assert result["end"][0].as_py() >= result["begin"][0].as_py() and result["cpu"][0].as_py() >= 0
    with pytest.raises(SystemExit, match="apart"):
        clusters.check(result, [row + 1e-5 for row in right], False)
    with pytest.raises(SystemExit, match="another order"):
        clusters.check(result.take(np.arange(50)[::-1]), right, False)
    with pytest.raises(SystemExit, match="expected"):
        clusters.check(result, [row[:-1] for row in right], False)


def test_corpus():
    """The rows of the tables are those of the corpus, and their lengths are between the bounds."""
    rows, tables = clusters.corpus(2500)
    assert [len(table) for table in tables] == [1000, 1000, 500]
    assert {len(row) for row in rows} == set(range(clusters.SHORTEST, clusters.LONGEST + 1))
    assert np.array_equal(columns.sequences_of(tables[2]["x"], "x")[3], rows[2003])
