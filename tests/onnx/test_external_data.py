"""External data are read from the model's folder only: no path, link, race, pipe or number leads anywhere else."""

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rnnfast
from rnnfast.errors import InputError, ModelError
from tests.graphs import model_of

W = np.arange(6, dtype=np.float32)
SECRET = -np.ones(6, np.float32)
ZEROS = np.zeros((2, 3), np.float32)


def external(path, location, **entries):
    """A model x + w in the folder of `path`, w in the file `location`."""
    tensor = numpy_helper.from_array(W.reshape(2, 3), "w")
    onnx.external_data_helper.set_external_data(tensor, location, **entries)
    tensor.ClearField("raw_data")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = model_of(nodes, [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, None)])
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    return path


def reads(path, expected=W):
    np.testing.assert_array_equal(rnnfast.load(path)(x=ZEROS).y, expected.reshape(2, 3))
    return True


def refused(path, match="external data"):
    with pytest.raises(ModelError, match=match):
        rnnfast.load(path)
    return True


@pytest.fixture
def folder(tmp_path):
    """A folder for models, beside a file that none of them may read."""
    (tmp_path / "secret").write_bytes(SECRET.tobytes())
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def descriptors():
    return len(os.listdir("/proc/self/fd"))


# ------------------------------------------------------------------------------------------------ what is read
@pytest.mark.parametrize(
    "location", ["w.bin", "./w.bin", "sub/w.bin", "sub//a b/w.bin", "sub/./é…/w.bin", "..w", "a.."]
)
def test_data_in_the_folder_and_below(folder, monkeypatch, location):
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(b"1234" + W.tobytes() + b"rest")
    path = external(folder / "m.onnx", location, offset=4, length=24)
    assert reads(path)
    monkeypatch.chdir(folder)
    assert reads("m.onnx")
    monkeypatch.chdir("/")
    assert reads(os.path.relpath(path))
    assert reads(os.fsencode(path).decode())


def test_sparse_files_and_far_offsets(folder):
    with open(folder / "w.bin", "wb") as file:
        file.seek(2**40)
        file.write(W.tobytes())
    assert reads(external(folder / "m.onnx", "w.bin", offset=2**40))
    assert reads(external(folder / "m.onnx", "w.bin", offset=2**40 - 24), np.zeros(6))


def test_linked_folders(folder, tmp_path):
    (folder / "w.bin").write_bytes(W.tobytes())
    external(folder / "m.onnx", "w.bin")
    (tmp_path / "link").symlink_to("model")
    assert reads(tmp_path / "link" / "m.onnx")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "deep").symlink_to(folder)
    assert reads(tmp_path / "elsewhere" / "deep" / ".." / "model" / "m.onnx")  # the kernel's "..", not the text's


@pytest.mark.parametrize("links", [1, 2, 3])
def test_files_that_a_package_manager_linked(folder, tmp_path, links):
    """uv links each file of a package to its cache, so that the model and its data have as many links."""
    (folder / "w.bin").write_bytes(W.tobytes())
    external(folder / "m.onnx", "w.bin")
    for i in range(1, links):
        (tmp_path / f"cache{i}").mkdir()
        for name in ("m.onnx", "w.bin"):
            os.link(folder / name, tmp_path / f"cache{i}" / name)
    assert reads(folder / "m.onnx")


def hub(tmp_path, location="model.onnx_data"):
    """The cache of a hub: a snapshot whose files are links to blobs."""
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "0f3", tmp_path / "models--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    external(blobs / "c6ed", location)
    (blobs / "b879").write_bytes(W.tobytes())
    (snapshot / "model.onnx").symlink_to(os.path.join("..", "..", "blobs", "c6ed"))
    data = snapshot / location
    data.parent.mkdir(exist_ok=True)
    data.symlink_to(os.path.relpath(blobs / "b879", data.parent))
    return snapshot, blobs


@pytest.mark.parametrize("location", ["model.onnx_data", "sub/model.onnx_data"])
def test_the_cache_of_a_hub(tmp_path, location):
    snapshot, _ = hub(tmp_path, location)
    assert reads(snapshot / "model.onnx")
    shutil.move(tmp_path / "models--a", tmp_path / "moved")
    assert reads(tmp_path / "moved" / "snapshots" / "0f3" / "model.onnx")


def test_data_of_a_linked_model_in_either_folder(tmp_path):
    snapshot, blobs = hub(tmp_path)
    (snapshot / "model.onnx_data").unlink()
    (snapshot / "model.onnx_data").write_bytes(W.tobytes())
    assert reads(snapshot / "model.onnx")
    (blobs / "sub").mkdir()
    shutil.move(blobs / "b879", blobs / "sub" / "b879")
    (snapshot / "model.onnx_data").unlink()
    (snapshot / "model.onnx_data").symlink_to(blobs / "sub" / "b879")
    assert reads(snapshot / "model.onnx")


def test_a_link_that_stays_in_the_folder(folder):
    (folder / "real").mkdir()
    (folder / "real" / "w.bin").write_bytes(W.tobytes())
    (folder / "link.bin").symlink_to("real/w.bin")
    (folder / "linked").symlink_to("real")
    for location in ("link.bin", "linked/w.bin"):
        assert reads(external(folder / "m.onnx", location))


# ------------------------------------------------------------------------------------------------ what is not
@pytest.mark.parametrize(
    "location",
    ["../secret", "sub/../../secret", "..", "sub/..", "..\\secret", "a/..\\..\\secret", "", ".", "./", "sub", "a\0b",
     "secret\0", "/dev/zero", "/etc/passwd", "none.bin", "w.bin/", "w.bin/x", "x" * 300, "a/" * 3000 + "w", "\\secret"],
)  # fmt: skip
def test_paths_that_lead_nowhere(folder, location):
    (folder / "sub").mkdir()
    before = descriptors()
    if location == "w.bin/":  # the same file, as far as the system is asked
        (folder / "w.bin").write_bytes(W.tobytes())
        assert reads(external(folder / "m.onnx", location))
    else:
        assert refused(external(folder / "m.onnx", location))
    assert refused(external(folder / "m.onnx", str(folder.parent / "secret")))
    assert descriptors() == before


@pytest.mark.parametrize("target", ["../secret", "absolute", "../model/../secret", "chain", "/dev/zero", "missing"])
@pytest.mark.parametrize("place", ["last", "first", "middle"])
def test_symbolic_links_out_of_the_folder(folder, target, place):
    secret = folder.parent / "secret"
    (folder.parent / "chain").symlink_to("secret")
    file = {"absolute": secret, "chain": folder.parent / "chain"}.get(target, target)
    if place == "last":
        (folder / "w").symlink_to(file)
        location = "w"
    else:
        (folder / "a").mkdir()
        link = folder / "linked" if place == "first" else folder / "a" / "linked"
        link.symlink_to(folder.parent if target == "absolute" else os.path.relpath(folder.parent, link.parent))
        location = os.path.relpath(link, folder) + "/" + ("chain" if target == "chain" else "secret")
    assert refused(external(folder / "m.onnx", location))


def test_a_hub_whose_data_lie_elsewhere(tmp_path):
    snapshot, blobs = hub(tmp_path)
    (tmp_path / "secret").write_bytes(SECRET.tobytes())
    for target in (tmp_path / "secret", "../../../secret", blobs / "link", blobs / ".." / ".." / "secret"):
        if target == blobs / "link":
            target.symlink_to(tmp_path / "secret")
        (snapshot / "model.onnx_data").unlink()
        (snapshot / "model.onnx_data").symlink_to(target)
        assert refused(snapshot / "model.onnx")


@pytest.mark.parametrize("more", [1, 2, 5])
@pytest.mark.parametrize("location", ["w", "sub/w"])
def test_hard_links_to_foreign_files(folder, location, more):
    (folder / "sub").mkdir()
    os.link(folder.parent / "secret", folder / location)
    for i in range(1, more):
        os.link(folder.parent / "secret", folder.parent / f"again{i}")
    assert refused(external(folder / "m.onnx", location), "hard links")


def test_a_linked_model_with_foreign_data(folder):
    (folder / "w").hardlink_to(folder.parent / "secret")
    (folder.parent / "secret2").hardlink_to(folder.parent / "secret")
    external(folder / "m.onnx", "w")
    (folder / "copy.onnx").hardlink_to(folder / "m.onnx")
    assert refused(folder / "m.onnx", "3 hard links, expected 1, or 2")


@pytest.mark.parametrize("kind", ["fifo", "linked fifo", "folder", "linked folder", "socket", "device"])
def test_what_is_no_regular_file(folder, kind, monkeypatch):
    import socket

    monkeypatch.chdir(folder)
    real = "real" if kind.startswith("linked") else "w"
    if kind.endswith("fifo"):
        os.mkfifo(real)
    elif kind.endswith("folder"):
        os.mkdir(real)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("w")
    else:
        try:
            os.mknod("w", 0o600 | 0o020000, os.makedev(1, 5))
        except (PermissionError, OSError):
            pytest.skip("devices cannot be made here")
    if real != "w":
        os.symlink(real, "w")
    assert refused(external(folder / "m.onnx", "w"))
    if kind != "device":
        os.unlink("m.onnx")
        os.symlink("w", "m.onnx")
        with pytest.raises(ModelError, match="cannot be read"):
            rnnfast.load("m.onnx")


@pytest.mark.parametrize(
    "entries",
    [{"length": 20}, {"length": 28}, {"length": -24}, {"offset": 1, "length": 24}, {"offset": 2**62, "length": 24},
     {"offset": -1}, {"offset": -(2**63)}, {"offset": 2**64, "length": 24}, {"offset": 10**19}, {"length": 0}],
)  # fmt: skip
def test_sizes(folder, entries):
    (folder / "w.bin").write_bytes(W.tobytes())
    assert refused(external(folder / "m.onnx", "w.bin", **entries), "external data 'w.bin'")


@pytest.mark.parametrize("value", ["", " 0", "0x0", "1e0", "0_0", "\u0663", "1" * 5000, "None", "0.0", "+0"])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_numbers_that_are_none(folder, key, value):
    (folder / "w.bin").write_bytes(W.tobytes())
    path = external(folder / "m.onnx", "w.bin")
    model = onnx.load(path, load_external_data=False)
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    assert refused(path, f"{key} is no integer")


@pytest.mark.parametrize("key, value", [("location", "other"), ("offset", "4"), ("length", "8")])
def test_entries_that_are_given_twice(folder, key, value):
    for name in ("w.bin", "other"):
        (folder / name).write_bytes(W.tobytes() + b"more")
    path = external(folder / "m.onnx", "w.bin", offset=0, length=24)
    model = onnx.load(path, load_external_data=False)
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    assert refused(path, f"two values of '{key}'")


def test_more_data_than_the_file_has(folder):
    with open(folder / "w.bin", "wb") as file:
        file.truncate(2**20)
    path = external(folder / "m.onnx", "w.bin")
    model = onnx.load(path, load_external_data=False)
    for dims in ([2**40, 2**20], [2**62, 2], [2**31, 2**31], [3, 2**30]):
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(rnnfast.Error):
            rnnfast.load(path)


def test_models_given_as_bytes_have_no_folder(folder, monkeypatch):
    (folder / "w.bin").write_bytes(W.tobytes())
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError, match="no folder"):
        rnnfast.load(external(folder / "m.onnx", "w.bin").read_bytes())


def test_external_data_can_be_forbidden(folder):
    (folder / "w.bin").write_bytes(W.tobytes())
    path = external(folder / "m.onnx", "w.bin")
    for make in (rnnfast.load, rnnfast.InferenceSession):
        assert make(path, external_data=True)
        with pytest.raises(ModelError, match="external_data is False"):
            make(path, external_data=False)
        for value in (None, 0, "no"):
            with pytest.raises(InputError, match="external_data"):
                make(path, external_data=value)
    plain = folder / "plain.onnx"
    onnx.save(onnx.load(path), plain)
    assert rnnfast.load(plain, external_data=False)(x=ZEROS).y.tolist() == W.reshape(2, 3).tolist()


# ------------------------------------------------------------------------------------------------ exchanges
@pytest.mark.parametrize("location", ["w", "sub/w", "a/b/w"])
@pytest.mark.parametrize("call", ["open", "fstat", "stat", "lstat", "readlink"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_file_that_is_exchanged_while_it_is_opened(folder, monkeypatch, location, call, when, kind):
    """At each call of the system in turn the data's path becomes a link to the secret, which is never read."""
    secret, target = folder.parent / "secret", folder / location
    target.parent.mkdir(parents=True, exist_ok=True)
    path = external(folder / "m.onnx", location)
    real, number = getattr(os, call), 0
    while True:
        target.unlink(missing_ok=True)
        target.write_bytes(W.tobytes())
        number += 1
        calls = 0

        def exchange():
            nonlocal calls
            calls += 1
            if calls == number:
                target.unlink()
                (os.symlink if kind == "symbolic" else os.link)(secret, target)

        def exchanged(*args, **more):
            if when == "before":
                exchange()
            try:
                return real(*args, **more)
            finally:
                if when == "after":
                    exchange()

        monkeypatch.setattr(os, call, exchanged)
        try:
            y = rnnfast.load(path)(x=ZEROS).y
            assert not np.array_equal(y.ravel(), SECRET)
        except ModelError:
            pass
        finally:
            monkeypatch.setattr(os, call, real)
        if calls < number:
            return


@pytest.mark.parametrize("number", range(1, 8))
def test_a_folder_that_is_exchanged(folder, monkeypatch, number):
    """The folder of the model, or one on the way, becomes a link to a folder with foreign data of the same name."""
    other = folder.parent / "other"
    (other / "sub").mkdir(parents=True)
    (other / "sub" / "w").write_bytes(SECRET.tobytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "w").write_bytes(W.tobytes())
    path = external(folder / "m.onnx", "sub/w")
    real, calls = os.open, 0
    swapped = folder if number % 2 else folder / "sub"

    def exchanged(*args, **more):
        nonlocal calls
        calls += 1
        if calls == number:
            swapped.rename(folder.parent / "moved")
            swapped.symlink_to(other if swapped == folder else other / "sub")
        return real(*args, **more)

    monkeypatch.setattr(os, "open", exchanged)
    try:
        assert not np.array_equal(rnnfast.load(path)(x=ZEROS).y.ravel(), SECRET)
    except ModelError:
        pass


def test_a_hub_whose_model_is_exchanged(tmp_path, monkeypatch):
    """A link of the model that leads elsewhere when the data's folder is looked for opens no other folder."""
    snapshot, blobs = hub(tmp_path)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "c6ed").write_bytes(b"other")
    (tmp_path / "private" / "b879").write_bytes(SECRET.tobytes())
    real = os.path.realpath

    def exchanged(path, **more):
        for name in ("model.onnx", "model.onnx_data"):
            (snapshot / name).unlink(missing_ok=True)
        (snapshot / "model.onnx").symlink_to(tmp_path / "private" / "c6ed")
        (snapshot / "model.onnx_data").symlink_to(tmp_path / "private" / "b879")
        return real(path, **more)

    monkeypatch.setattr(os.path, "realpath", exchanged)
    assert refused(snapshot / "model.onnx", "exchanged")


def test_a_race_of_processes(folder):
    """Another process exchanges the file all the time; one load after another reads it, or nothing."""
    (folder / "w").write_bytes(W.tobytes())
    path = external(folder / "m.onnx", "w")
    program = """if True:
        import os
        while True:
            os.symlink("../secret", "new"); os.replace("new", "w")
            os.link("../secret", "new"); os.replace("new", "w")
            open("new", "wb").write(open("../w", "rb").read()); os.replace("new", "w")
    """
    shutil.copy(folder / "w", folder.parent / "w")
    other = subprocess.Popen([sys.executable, "-c", program], cwd=folder)
    try:
        for _ in range(1000):
            try:
                assert not np.array_equal(rnnfast.load(path)(x=ZEROS).y.ravel(), SECRET)
            except ModelError:
                pass
    finally:
        other.kill()
        other.wait()


def test_platforms_without_descriptors_of_folders(folder, monkeypatch):
    (folder / "w.bin").write_bytes(W.tobytes())
    path = external(folder / "m.onnx", "w.bin")
    monkeypatch.setattr("rnnfast.onnx.model_folder.SAFE", False)
    with pytest.raises(rnnfast.errors.UnsupportedError, match="external data 'w.bin'.*platform"):
        rnnfast.load(path)
    onnx.save(onnx.load(path), folder / "plain.onnx")
    assert reads(folder / "plain.onnx")


def test_no_descriptor_is_left_open(folder):
    (folder / "w.bin").write_bytes(W.tobytes())
    before = descriptors()
    assert reads(external(folder / "m.onnx", "w.bin")) and refused(external(folder / "n.onnx", "none"))
    assert refused(folder / "none.onnx", "cannot be read") and refused(folder, "cannot be read")
    assert descriptors() == before
