"""States of sequences as files: what comes back, who gets it, and what is refused."""

import os
import threading

import numpy as np
import pytest

pytest.importorskip("orjson")

import rnnfast
from rnnfast.errors import InputError, ModelError
from rnnfast.server.datatypes import ELEMENTS, dtype_of
from rnnfast.server.state_files import StateFiles, fingerprint, make_folder
from tests.paths import ROOT
from tests.server.tensors import values_of

DENOISER = ROOT / "models" / "denoiser.onnx"


def states_of(*ids, seed=0):
    rng = np.random.default_rng(seed)
    return {
        id: (
            {"h": rng.standard_normal((2, 1, 3), np.float32), "c": rng.standard_normal((1, 5))},
            {"sr": np.array(16000 + i)},
        )
        for i, id in enumerate(ids)
    }


def same(a, b):
    """Whether two mappings of arrays are the same, in names, types, shapes and bits."""

    def bits(value):
        return value.dtype, value.shape, value.tolist() if value.dtype.kind == "O" else value.tobytes()

    if a is None or b is None:
        return a is b
    return {name: bits(value) for name, value in a.items()} == {name: bits(value) for name, value in b.items()}


def refuse(line):
    raise AssertionError(line)


def test_states_come_back_once(tmp_path):
    make_folder(str(tmp_path / "new" / "states"))
    files = StateFiles(str(tmp_path / "new" / "states"), "m", "3", "f")
    written = states_of(1, 2**64 - 1, "a", "1", "é\n") | {"none": (None, {})}
    path = files.write(written)
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.stat(tmp_path / "new" / "states").st_mode & 0o777 == 0o700
    read = StateFiles(str(tmp_path / "new" / "states"), "m", "3", "f").take(refuse)
    assert list(read) == list(written)
    for id, (state, fixed) in written.items():
        assert same(read[id][0], state) and same(read[id][1], fixed)
        assert state is None or all(value.flags.writeable for value in read[id][0].values())
    assert files.take(refuse) == {} and os.listdir(tmp_path / "new" / "states") == []


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_states_of_every_datatype(tmp_path, datatype):
    x = values_of(datatype)
    files = StateFiles(str(tmp_path), "m", "1", "f")
    files.write({"a": ({"x": x, "none": np.zeros((0, 2), dtype_of(datatype, ""))}, {})})
    state, _ = files.take(refuse)["a"]
    assert same(state, {"x": x, "none": np.zeros((0, 2), x.dtype)})


def test_each_file_is_taken_by_one_process(tmp_path):
    files = StateFiles(str(tmp_path), "m", "1", "f")
    for i in range(200):
        files.write(states_of(i, seed=i))
    taken = []

    def take():
        other = StateFiles(str(tmp_path), "m", "1", "f")
        taken.append(other.take(refuse))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for states in taken for id in states) == list(range(200))


def test_files_of_others_are_left_to_them(tmp_path):
    places = [("m", "1"), ("m", "2"), ("m-1", "1"), ("m/1", "1"), ("é" * 200, "1"), (".", "1"), ("m 1", "1")]
    for name, version in places:
        StateFiles(str(tmp_path), name, version, "f").write(states_of(name + version))
    (tmp_path / "m-1-notes.txt").write_text("mine")
    for name, version in places:
        assert list(StateFiles(str(tmp_path), name, version, "f").take(refuse)) == [name + version]
    assert os.listdir(tmp_path) == ["m-1-notes.txt"]


def test_the_file_of_another_model_of_the_name_is_set_aside(tmp_path):
    path = StateFiles(str(tmp_path), "m", "1", "old").write(states_of("a"))
    lines = []
    assert StateFiles(str(tmp_path), "m", "1", "new").take(lines.append) == {}
    assert len(lines) == 1 and path in lines[0] and "its fingerprint is 'old', expected 'new'" in lines[0]
    assert os.listdir(tmp_path) == [os.path.basename(path) + ".refused"]
    assert StateFiles(str(tmp_path), "m", "1", "old").take(refuse) == {}


def test_a_damaged_file_is_set_aside_and_others_are_taken(tmp_path):
    files = StateFiles(str(tmp_path), "m", "1", "f")
    with open(files.write(states_of("a")), "rb") as file:
        whole = file.read()
    files.take(refuse)
    damaged = [b"", whole[:10], whole[:-1], whole + b"\0", b"x" + whole[1:]]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    for i, data in enumerate(damaged):
        (tmp_path / f"m-1-{i:016x}.states").write_bytes(data)
    (tmp_path / f"m-1-{len(damaged):016x}.states").mkdir()
    files.write(states_of("b"))
    lines = []
    assert list(files.take(lines.append)) == ["b"]
    assert len(lines) == len(damaged) + 1 and all("is not taken up" in line for line in lines)
    assert len(os.listdir(tmp_path)) == len(damaged) + 1


def test_a_folder_that_cannot_be_made_or_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="file: .*states of sequences cannot be kept there"):
        make_folder(str(tmp_path / "file"))
    make_folder(str(tmp_path / "states"))
    files = StateFiles(str(tmp_path / "states"), "m", "1", "f")
    os.rmdir(tmp_path / "states")
    with pytest.raises(InputError, match="cannot be written"):
        files.write(states_of("a"))


def test_the_fingerprint_is_that_of_file_and_weights(tmp_path):
    import onnx

    path = str(DENOISER)
    same_model = fingerprint(rnnfast.load(path), path)
    assert same_model == fingerprint(rnnfast.load(path), path)
    assert same_model != fingerprint(rnnfast.load(path, weights="fp16"), path)
    digests = {same_model}
    for change in 0, 1:  # of weights that lie in another file than the model
        proto = onnx.load(path)
        weights = next(t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.raw_data)
        weights.raw_data = bytes([weights.raw_data[0] ^ change]) + weights.raw_data[1:]
        folder = tmp_path / str(change)
        folder.mkdir()
        other = str(folder / "m.onnx")
        onnx.save(proto, other, save_as_external_data=True, location="weights", size_threshold=0)
        digests.add(fingerprint(rnnfast.load(other), other))
    assert (tmp_path / "0" / "m.onnx").read_bytes() == (tmp_path / "1" / "m.onnx").read_bytes()
    assert len(digests) == 3
