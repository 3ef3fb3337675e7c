"""rnnfast.ray.Map without Ray: what it gives, that it travels, and what it refuses."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import rnnfast
from rnnfast import nn
from rnnfast.errors import InputError, InputTypeError
from rnnfast.ray import Map
from rnnfast.ray import map as map_module
from tests.graphs import random
from tests.paths import MODELS, ROOT

LENGTHS = (4, 1, 9, 4, 30, 2)
ROWS = [random(seed, length, 5) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def net():
    return nn.Sequential(nn.LSTM(5, 7, rng=0), nn.Linear(7, 3, rng=1))


@pytest.fixture(scope="module")
def right(net):
    return [net.stream().run(row) for row in ROWS]


def same(results, right):
    return len(results) == len(right) and all(
        np.array_equal(np.asarray([np.asarray(step) for step in result], np.float32), wanted)
        for result, wanted in zip(results, right)
    )


# -------------------------------------------------------------------------------------------------- what it gives
def test_lists(net, right):
    """An iterable of sequences gives a list of results, in order and with the bits of each alone."""
    assert same(Map(net)(ROWS), right)
    assert same(Map(net)(iter(ROWS)), right)
    assert same(Map(net)([row.tolist() for row in ROWS]), right)
    assert Map(net)([]) == []


def test_a_recurrent_layer_gives_its_outputs():
    layer = nn.GRU(5, 4, rng=3)
    assert same(Map(layer)(ROWS), [layer.stream().run(row) for row in ROWS])


def test_columns_of_arrays(net, right):
    """Ray Data's batches are dicts; ragged columns are arrays of arrays, and equal lengths one array."""
    column = np.empty(len(ROWS), object)
    column[:] = ROWS
    batch = {"x": column, "id": np.arange(len(ROWS)), "more": np.zeros(len(ROWS))}
    result = Map(net, "x", "y", keep=["id"])(batch)
    assert list(result) == ["id", "y"] and same(result["y"], right)
    assert result["id"] is batch["id"]
    assert list(Map(net, "x", "y")(batch)) == ["x", "id", "more", "y"]
    equal = np.stack([row[:1] for row in ROWS])
    assert same(Map(net)({"x": equal})["output"], [net.stream().run(row[:1]) for row in ROWS])


def test_inputs_and_outputs_by_name():
    """A model of several inputs takes a mapping of columns; one of several results has a column of each."""
    model = rnnfast.load(MODELS / "tagger.onnx")
    tokens = [np.arange(n, dtype=np.int64) % 40 for n in (3, 8, 1)]
    right = [model(tokens=row[None], lengths=[len(row)]).tags[0] for row in tokens]
    column = np.empty(3, object)
    column[:] = tokens
    assert same(Map(model, {"tokens": "words"}, "tags")({"words": column, "id": np.arange(3)})["tags"], right)


def test_fixed_inputs_and_states():
    """A model with states begins each row with zeros."""
    model = rnnfast.load(MODELS / "denoiser.onnx")
    bands = [random(seed, n, 22) for seed, n in enumerate((3, 8, 1))]
    right = [model.stream().run(bands=row[:, None])[:, 0] for row in bands]
    assert same(Map(MODELS / "denoiser.onnx")(bands), right)


@pytest.mark.parametrize("nested", [False, True], ids=["numbers", "nested"])
def test_pandas(net, right, nested):
    pandas = pytest.importorskip("pandas")
    column = np.empty(len(ROWS), object)
    column[:] = [row.tolist() if nested else [*row] for row in ROWS]
    frame = pandas.DataFrame({"x": column, "id": np.arange(len(ROWS))}, index=np.arange(len(ROWS)) * 3)
    result = Map(net, "x", "y", keep=["id"])(frame)
    assert list(result) == ["id", "y"] and (result.index == frame.index).all() and same(result["y"], right)
    series = Map(net)(frame["x"])
    assert isinstance(series, pandas.Series) and (series.index == frame.index).all() and same(series, right)


def test_pyarrow(net, right):
    """Nested lists, in chunks, slices and lists of a fixed size, give nested lists."""
    pyarrow = pytest.importorskip("pyarrow")
    rows = [row.tolist() for row in ROWS]
    nested = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    for kind in (nested, pyarrow.list_(pyarrow.list_(pyarrow.float32(), 5)), pyarrow.large_list(nested.value_type)):
        table = pyarrow.table({"x": pyarrow.array(rows, kind), "id": np.arange(len(rows))})
        result = Map(net, "x", "y", keep=["id"])(table)
        assert result.column_names == ["id", "y"] and result.schema.field("y").type == nested
        assert same(result["y"].to_pylist(), right)
        assert same(Map(net, "x", "y")(table.slice(2, 3))["y"].to_pylist(), right[2:5])
        chunked = pyarrow.concat_tables([table.slice(0, 1), table.slice(1)])
        assert same(Map(net, "x", "x")(chunked)["x"].to_pylist(), right)
    assert Map(net, "x", "y")(table.slice(0, 0)).column_names == ["x", "id", "y"]


def test_pyarrow_rows_without_features():
    """Rows of one axis, such as words, and results of other shapes."""
    pyarrow = pytest.importorskip("pyarrow")
    model = rnnfast.load(MODELS / "tagger.onnx")
    table = pyarrow.table({"words": pyarrow.array([[1, 2, 3], [4]], pyarrow.list_(pyarrow.int64()))})
    result = Map(model, {"tokens": "words"}, "tags")(table)["tags"].to_pylist()
    right = [model(tokens=[row], lengths=[len(row)]).tags[0] for row in ([1, 2, 3], [4])]
    assert same(result, right)


# -------------------------------------------------------------------------------------------------- that it travels
def test_pickles_without_ray_and_without_the_file(tmp_path, right, net):
    """A Map carries its model; another process needs neither the file nor Ray."""
    net.save(tmp_path / "net.onnx")
    mapped = Map(tmp_path / "net.onnx")
    model = rnnfast.load(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").unlink()
    (tmp_path / "map.pickle").write_bytes(pickle.dumps((mapped, ROWS)))
    program = (
        "import pickle, sys; mapped, rows = pickle.load(open('map.pickle', 'rb'));"
        "pickle.dump((mapped(rows), sorted({'ray', 'pandas', 'pyarrow'} & set(sys.modules))), open('out', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env={"PYTHONPATH": str(ROOT)})
    results, imported = pickle.loads((tmp_path / "out").read_bytes())
    assert same(results, [model(x=row[:, None]).y[:, 0] for row in ROWS]) and imported == []


def test_a_process_loads_the_model_once(net, monkeypatch):
    """However often a Map comes, its model is there; the least recently used of many models is forgotten."""
    monkeypatch.setattr(map_module, "_loaded", type(map_module._loaded)())
    travelled = pickle.dumps(Map(net))
    model = pickle.loads(travelled).model
    assert pickle.loads(travelled).model is model
    others = [Map(nn.GRU(5, 4, rng=seed)) for seed in range(map_module.MODELS)]
    for other in others[1:]:
        assert other.model is not model
    assert pickle.loads(travelled).model is model
    assert others[0].model is not None and others[-1].model is not None
    assert len(map_module._loaded) == map_module.MODELS and pickle.loads(travelled).model is model


def test_a_layer_is_taken_as_it_is(right):
    net = nn.Sequential(nn.LSTM(5, 7, rng=0), nn.Linear(7, 3, rng=1))
    mapped = Map(net)
    net.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})
    assert same(mapped(ROWS), right) and not same(Map(net)(ROWS), right)


# -------------------------------------------------------------------------------------------------- what it refuses
@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 0}, "frames is 0, expected an int of at least 1"),
        ({"threads": True}, "threads is True"),
        ({"keep": "id"}, "keep is 'id', expected a list of columns"),
    ],
)
def test_arguments(net, options, message):
    with pytest.raises(InputError, match=message):
        Map(net, **options)


def test_no_model(tmp_path):
    with pytest.raises(InputTypeError, match="got a dict, expected a model, a layer or the path of an ONNX file"):
        Map({})
    with pytest.raises(rnnfast.errors.MissingFileError):
        Map(tmp_path / "none.onnx")


def test_columns(net):
    with pytest.raises(InputError, match=r"the batch has the columns \['a', 'b'\]: give input="):
        Map(net)({"a": ROWS, "b": ROWS})
    with pytest.raises(InputError, match=r"no column 'x' in the batch, which has \['a'\]"):
        Map(net, "x")({"a": ROWS})
    with pytest.raises(InputError, match="no column 'id'"):
        Map(net, "a", keep=["id"])({"a": ROWS})
    with pytest.raises(InputTypeError, match="the batch is a int, expected a table or sequences"):
        Map(net)(3)


@pytest.mark.parametrize("bad", [None, float("nan")])
def test_a_row_without_a_value(net, bad):
    with pytest.raises(InputError, match="the batch, row 2 is (None|nan), expected a sequence"):
        Map(net)([*ROWS[:2], bad])


def test_a_row_that_does_not_fit(net):
    """The error is the model's, and names the row."""
    with pytest.raises(InputError, match="sequence 2"):
        Map(net)([*ROWS[:2], ROWS[0][:, :4]])
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(5, np.float32), np.zeros(4, np.float32)]
    with pytest.raises(InputError, match=r"row 1 has steps of different shapes \[\(4,\), \(5,\)\]"):
        Map(net)([ROWS[0], ragged])


def test_pyarrow_nulls(net):
    pyarrow = pytest.importorskip("pyarrow")
    kind = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    good = [[1.0, 2.0, 3.0, 4.0, 5.0]]
    for bad, message in (
        (None, "column 'x', row 1 is null"),
        ([[1.0, None, 3.0, 4.0, 5.0]], "row 1 has null values"),
        ([[1.0], [1.0, 2.0]], "row 1 has null values, or steps of different lengths"),
    ):
        with pytest.raises(InputError, match=message):
            Map(net, "x")(pyarrow.table({"x": pyarrow.array([good, bad], kind)}))


def test_without_ray(net, monkeypatch):
    """What needs Ray says how to get it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for call in (lambda: Map(net).apply(None), lambda: rnnfast.ray.deployment(net)):
        with pytest.raises(rnnfast.errors.UnsupportedError, match=r"pip install 'rnnfast\[ray\]'"):
            call()
