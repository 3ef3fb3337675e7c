"""Tensors as the bytes and the JSON of the Open Inference Protocol."""

import numpy as np
import pytest

pytest.importorskip("orjson")
import orjson

from rnnfast.errors import InputError
from rnnfast.server.datatypes import ELEMENTS, datatype_of, from_bytes, from_json, to_bytes, to_json
from tests.server.tensors import values_of

NUMBERS = [name for name in ELEMENTS if name not in ("BYTES", "BOOL")]


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_comes_back_from_bytes_and_from_json(datatype):
    x = values_of(datatype)
    assert datatype_of(x.dtype, "x") == datatype
    for back in (
        from_bytes(to_bytes(x), datatype, [2, 3], "x"),
        from_bytes(memoryview(b"." + to_bytes(x))[1:], datatype, [2, 3], "x"),
        from_json(orjson.loads(orjson.dumps(to_json(x), option=orjson.OPT_SERIALIZE_NUMPY)), datatype, [2, 3], "x"),
        from_json(orjson.loads(orjson.dumps(to_json(x[::-1])[::1], option=orjson.OPT_SERIALIZE_NUMPY)),
                  datatype, [2, 3], "x")[::-1],
        from_json(x.astype(np.float32).tolist() if x.dtype.kind == "V" else x.tolist(), datatype, [2, 3], "x"),
    ):  # fmt: skip
        assert back.dtype == x.dtype and back.shape == x.shape
        assert back.tolist() == x.tolist() and (x.dtype.kind == "O" or back.tobytes() == x.tobytes())


@pytest.mark.parametrize("datatype", ELEMENTS)
@pytest.mark.parametrize("change", (-1, 1))
def test_bytes_that_are_too_few_or_too_many_are_refused_by_the_name_of_the_tensor(datatype, change):
    data = to_bytes(values_of(datatype, 1))
    data = data[:change] if change < 0 else data + b"\0"
    with pytest.raises(InputError, match="input 'x'.* bytes"):
        from_bytes(data, datatype, [2, 3], "input 'x'")


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        (b"", "FLOAT", [0], "datatype 'FLOAT', expected one of BOOL"),
        (b"", None, [0], "datatype None"),
        (b"", ["FP32"], [0], "datatype"),
        (b"", "FP32", None, "shape None, expected a list of sizes"),
        (b"", "FP32", [-1], "expected a list of sizes"),
        (b"", "FP32", [True], "expected a list of sizes"),
        (b"", "FP32", [2**62, 2**62], "0 bytes, expected"),
        (b"", "BYTES", [2**62], "not those of"),
        (b"", "FP64", [2**59, 2, 0], "whose sizes but 0 have a product above"),
        (b"", "BYTES", [0, 2**40, 2**40], "whose sizes but 0 have a product above"),
        (b"", "FP32", [1] * 33, "33 axes"),
        (b"\2", "BOOL", [1], "neither 0 nor 1"),
        (b"\1\0\0\0\xff", "BYTES", [1], "not UTF-8"),
        (b"\xff\xff\xff\xffab", "BYTES", [1], "element 0 has 4294967295 bytes, but 2 are left"),
    ],
)
def test_bytes_that_lie_are_refused(data, datatype, shape, message):
    with pytest.raises(InputError, match=message):
        from_bytes(data, datatype, shape, "input 'x'")


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_empty_tensors_have_the_largest_shapes_that_are_not_refused(datatype):
    for shape in [2**59, 0], [0], [3, 0, 2]:
        assert from_bytes(b"", datatype, shape, "x").shape == from_json([], datatype, shape, "x").shape == tuple(shape)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        (None, "FP32", [1], "data of type NoneType"),
        ([1.5], "INT64", [1], "holds 1.5, expected INT64"),
        ([1], "BOOL", [1], "holds 1, expected BOOL"),
        ([True], "FP32", [1], "holds True, expected FP32"),
        (["1"], "FP32", [1], "holds '1', expected FP32"),
        ([300], "UINT8", [1], "a value that UINT8 does not"),
        ([-1], "UINT64", [1], "a value that UINT64 does not"),
        ([1e39], "FP32", [1], "beyond the range of FP32"),
        ([1e5], "FP16", [1], "beyond the range of FP16"),
        ([10**400], "FP64", [1], "a value that FP64 does not"),
        ([1, 2], "FP32", [3], "2 elements, expected 3"),
        ([[1, 2], [3]], "FP32", [2, 2], "nested lists that do not have the shape"),
        ([[1, 2, 3]], "FP32", [3], "elements|holds|nested"),
        ([1], "BYTES", [1], "no string"),
    ],
)
def test_json_that_does_not_fit_is_refused(data, datatype, shape, message):
    with pytest.raises(InputError, match=message):
        from_json(data, datatype, shape, "input 'x'")
