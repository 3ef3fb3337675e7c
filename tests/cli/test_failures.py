"""Whatever is wrong with files, inputs, outputs and the terminal is one line and exit status 2."""

import io
import os
import pathlib
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("click")
pytest.importorskip("rich")

from tests.cli.test_cli import refused, rnnfast, saved
from tests.paths import ROOT


@pytest.fixture
def identity(tmp_path, monkeypatch):
    """The path of a model y = x, in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y]), ir_version=8), "id.onnx")
    return tmp_path / "id.onnx"


def run_on(given, *words):
    return refused(rnnfast("run", "id.onnx", "-i", given, "-o", "out"), *words) and not os.path.exists("out")


# ------------------------------------------------------------------------------------------------ .wav
def wav(bits=16, size=16, data=bytes(64), length=None, channels=1, kind=1, riff=None):
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data) if riff is None else riff)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", size, kind, channels, 16000, 16000, bits // 8, bits & 0xFFFF)
        + b"data"
        + struct.pack("<I", len(data) if length is None else length)
        + data
    )


WRONG_WAV = {
    "empty": b"",
    "RIFF": b"RIFF",
    "no data": wav()[:30],
    "half a header": wav()[:41],
    **{f"{bits} bits": wav(bits=bits) for bits in (0, 33, 40, 48, 64, 128, 65535)},
    **{f"format of {size} bytes": wav(size=size) for size in (0, 2, 15, 2**31 - 1, 2**32 - 1)},
    **{f"length {length}": wav(length=length) for length in (66, 67, 128, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)},
    "odd length": wav(data=bytes(63)),
    **{f"{channels} channels": wav(channels=channels) for channels in (0, 2, 65535)},
    "float": wav(bits=32, kind=3),
    "mu-law": wav(bits=8, kind=7),
    "riff too short": wav(riff=4),
    "another file": b"OggS" + bytes(100),
}


@pytest.mark.parametrize("name", WRONG_WAV)
def test_wrong_wav(identity, name):
    pathlib.Path("x.wav").write_bytes(WRONG_WAV[name])
    if name == "odd length":  # half a sample at the end is none
        assert rnnfast("run", "id.onnx", "-i", "x=x.wav", "-o", "out").exit_code == 0
        assert np.load("out/y.npy").shape == (31,)
    else:
        assert run_on("x=x.wav", "x.wav")


# ------------------------------------------------------------------------------------------------ .npy
def npy(header, data=bytes(64), version=1, length=None):
    size = len(header) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + header + data


def described(descr="'<f4'", shape="(16,)", order="False"):
    return f"{{'descr':{descr},'fortran_order':{order},'shape':{shape}}}\n".encode()


WRONG_NPY = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "text": b"no array at all, but long enough",
    "unclosed": npy(b"{'descr':'<f4','fortran_order':False,'shape':(16,"),
    "unclosed text": npy(b"{'descr':'<f4"),
    "nested": npy(b"(" * 5000),
    "nested lists": npy(b"[" * 4000 + b"]" * 4000),
    "not ASCII": npy("{'descr':'<f4','fortran_order':False,'shape':(é,)}".encode()),
    "null": npy(b"\0" * 40),
    "call": npy(b"{'descr':__import__('os').getcwd(),'fortran_order':False,'shape':(16,)}"),
    "70 axes": npy(described(shape="(" + "1," * 70 + ")")),
    "negative": npy(described(shape="(-1,)")),
    "huge": npy(described(shape="(99999999999999999999999,)")),
    "overflow": npy(described(shape=f"({2**32},{2**32})")),
    "more than there is": npy(described(shape="(17,)")),
    "terabytes": npy(described(shape="(1000000000000,)")),
    "objects": npy(described("'|O'")),
    "no dtype": npy(described("'nonsense'")),
    "shape is no tuple": npy(described(shape="16")),
    "shape of floats": npy(described(shape="(1.5,)")),
    "order": npy(described(order="3")),
    "header longer than the file": npy(described(), length=60000),
    "header of 4 GiB": npy(described(), version=2, length=2**32 - 1),
    "version 9": npy(described(), version=9),
    "archive": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("name", WRONG_NPY)
def test_wrong_npy(identity, name):
    pathlib.Path("x.npy").write_bytes(WRONG_NPY[name])
    assert run_on("x=x.npy", "x.npy")
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("x.npy", WRONG_NPY[name])
    assert run_on("x.npz", "x.npz")


def test_npy_of_every_version(identity):
    for version in (1, 2, 3):
        header = described().strip()
        pathlib.Path("x.npy").write_bytes(npy(header + b" " * (-len(header) - 12 + 3) + b"\n", version=version))
        assert rnnfast("run", "id.onnx", "-i", "x=x.npy", "-o", "out").exit_code == 0
        assert np.load("out/y.npy").shape == (16,)


# ------------------------------------------------------------------------------------------------ .npz
def npz(patch=None, names=("x.npy",), data=npy(described(shape="(1,)"), bytes(4))):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    data = bytearray(buffer.getvalue())
    if patch is not None:
        local, central, value = patch
        i, j = data.find(b"PK\x03\x04"), data.find(b"PK\x01\x02")
        data[i + local : i + local + 2] = data[j + central : j + central + 2] = struct.pack("<H", value)
    return bytes(data)


WRONG_NPZ = {
    "encrypted": npz((6, 8, 1)),
    "strongly encrypted": npz((6, 8, 0x41)),
    "patched data": npz((6, 8, 0x20)),
    "compression 9": npz((8, 10, 9)),
    "compression 99": npz((8, 10, 99)),
    "LZMA": npz((8, 10, 14)),
    "bzip2": npz((8, 10, 12)),
    "newer version": npz((4, 6, 99)),
    "wrong checksum": npz((14, 16, 1)),
    "size that lies": npz((22, 24, 40)),
    "name that lies": npz()[:-30] + npz()[-30:].replace(b"x.npy", b"z.npy"),
    "cut": npz()[:-10],
    "empty": npz(names=()),
    "unknown names": npz(names=("a.npy", "b\x1b[2J.npy")),
    "two of a name": npz(names=("x.npy", "x")),
    "a member that is no array": npz(names=("x.npy", "readme.txt"), data=b"some text that is no array"),
    "no archive": b"PK\x03\x04 no archive",
}


@pytest.mark.parametrize("name", WRONG_NPZ)
def test_wrong_npz(identity, name):
    pathlib.Path("x.npz").write_bytes(WRONG_NPZ[name])
    assert run_on("x.npz") and "\x1b" not in rnnfast("run", "id.onnx", "-i", "x.npz", "-o", "out").stderr


def test_archives_that_hold_more_than_the_limit(identity):
    """Bombs are refused by what they declare, before anything is read: in an instant and without memory."""
    with zipfile.ZipFile("one.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w") as file:
            file.write(npy(described(shape="(80000000,)"), b""))
            for _ in range(20):
                file.write(bytes(1 << 24))
    with zipfile.ZipFile("many.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(20):
            archive.writestr(f"{i}.npy", npy(described(shape="(4194304,)"), bytes(1 << 24)))
    data = bytearray(npz())
    j = data.find(b"PK\x01\x02")
    data[j + 24 : j + 28] = struct.pack("<I", 2**32 - 2)  # the size in the directory
    pathlib.Path("lies.npz").write_bytes(data)
    for name in ("one.npz", "many.npz", "lies.npz"):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        assert run_on(name, "bytes")
        assert time.perf_counter() - start < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("name", ["x.npy", "x.wav", "x.npz"])
def test_files_larger_than_the_limit(identity, name):
    start = npy(described(shape=f"({2**34},)"), b"") if name == "x.npy" else wav(length=2**32 - 100)
    with open(name, "wb") as file:
        file.write(start)
        file.truncate(2**36 + 100)  # takes no room on the disk
    assert run_on(name if name == "x.npz" else f"x={name}", name, "at most")


# ------------------------------------------------------------------------------------------------ what is no file
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".wav", ".onnx"])
@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "folder", "missing", "device", "loop"])
def test_what_is_no_regular_file(identity, suffix, kind):
    name = f"in{suffix}"
    if "fifo" in kind:
        os.mkfifo(name if kind == "fifo" else "pipe")
    if "link" in kind:
        os.symlink("pipe", name)
    if kind == "folder":
        os.mkdir(name)
    if kind in ("device", "loop"):
        os.symlink("/dev/zero" if kind == "device" else name, name)
    if suffix == ".onnx":
        for command in ("info", "check", "bench", "profile"):
            assert refused(rnnfast(command, name), name)
        assert refused(rnnfast("run", name, "-o", "out"), name)
    else:
        assert run_on(name if suffix == ".npz" else f"x={name}", name)


def test_unreadable_files(identity, monkeypatch):
    real = os.open

    def refuse(path, *args, **more):
        if os.fspath(path).endswith("x.npy"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    np.save("x.npy", np.zeros(3, np.float32))
    monkeypatch.setattr(os, "open", refuse)
    assert run_on("x=x.npy", "x.npy", "Permission denied")


# ------------------------------------------------------------------------------------------------ outputs
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to a device", "socket"])
def test_outputs_that_cannot_be_replaced(identity, kind):
    import socket

    os.mkdir("out")
    if kind == "fifo":
        os.mkfifo("out/y.npy")
    elif kind == "folder":
        os.mkdir("out/y.npy")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("out/y.npy")
    else:
        os.symlink("/dev/null" if kind == "device" else "/dev/stdout", "out/y.npy")
    before = os.lstat("out/y.npy")
    if kind == "link to a device" and not os.path.exists("/dev/stdout"):
        pytest.skip("there is no /dev/stdout")
    if kind != "link to a device":
        assert refused(rnnfast("run", "id.onnx", "-i", "x=1.5", "-o", "out"), "y.npy")
    assert os.lstat("out/y.npy").st_ino == before.st_ino and os.listdir("out") == ["y.npy"]


def test_outputs_go_through_links(identity):
    os.makedirs("out")
    pathlib.Path("real").write_bytes(b"old")
    os.chmod("real", 0o600)
    os.symlink("../real", "out/y.npy")
    assert rnnfast("run", "id.onnx", "-i", "x=1.5", "-o", "out").exit_code == 0
    assert os.path.islink("out/y.npy") and np.load("real") == 1.5 and os.stat("real").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("folder", ["file", "file/sub", "\udcff/" + "x" * 300, "loop", "/dev/null/out", "/proc/out"])
def test_folders_that_cannot_be_made(identity, folder):
    pathlib.Path("file").touch()
    os.symlink("loop", "loop")
    result = rnnfast("run", "id.onnx", "-i", "x=1.5", "-o", folder)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr


# ------------------------------------------------------------------------------------------------ names and ranks
@pytest.mark.parametrize("place", ["run=3/x.npy", "a=b=c/x.npy", "x=x/x.npy", "=/x.npy", "run=3/x.npz", "x=/x.npz"])
def test_paths_with_equals_signs(identity, place):
    os.makedirs(os.path.dirname(place))
    value = np.arange(3, dtype=np.float32)
    np.save(place, value) if place.endswith("y") else np.savez(place, x=value)
    result = rnnfast("run", "id.onnx", "-i", place if place.endswith("z") else f"x={place}", "-o", "a=b")
    if place == "x=/x.npz":  # the name of an input comes first
        assert refused(result, "a .npz file gives inputs by its own names")
        result = rnnfast("run", "id.onnx", "-i", f"./{place}", "-o", "a=b")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load("a=b/y.npy"), value)


def test_inputs_whose_names_have_equals_signs(tmp_path):
    file = saved("agraph (float x, float z) => (float y) { y = Add(x, z) }", tmp_path)
    model = onnx.load(file)
    for old, new in (("x", "a"), ("z", "a=b")):
        next(v for v in model.graph.input if v.name == old).name = new
        model.graph.node[0].input[0 if old == "x" else 1] = new
    onnx.save(model, file)
    assert rnnfast("run", file, "-i", "a=1", "-i", "a=b=2", "-o", tmp_path / "out").exit_code == 0
    assert np.load(tmp_path / "out" / "y.npy") == 3


@pytest.mark.parametrize("command", ["info", "check", "bench", "profile"])
@pytest.mark.parametrize("rank", [65, 70, 1000])
def test_many_axes(tmp_path, command, rank):
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1] * rank) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y]), ir_version=8), tmp_path / "m.onnx")
    result = rnnfast(command, tmp_path / "m.onnx")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output


@pytest.mark.parametrize("command", ["info", "check", "bench", "profile"])
@pytest.mark.parametrize("body", ["SequenceConstruct(x, x)", "SplitToSequence<axis = 0>(x, one)", "SequenceEmpty()"])
def test_sequence_outputs(tmp_path, command, body):
    file = saved(f"agraph (float[3] x) => (seq(float[n]) y) {{ y = {body} }}", tmp_path, one=np.array(1))
    result = rnnfast(command, file, *(("--runs", "1") if command == "profile" else ()))
    assert result.exit_code == 0 and "Traceback" not in result.output, result.output


def test_the_producer(tmp_path):
    file = saved("agraph (float x) => (float y) { y = Relu(x) }", tmp_path)
    model = onnx.load(file)
    model.producer_name, model.producer_version = "acme", "1.2"
    onnx.save(model, file)
    assert "made by acme 1.2" in rnnfast("info", file).stdout
    assert '"producer": "acme 1.2"' in rnnfast("info", file, "--json").stdout


# ------------------------------------------------------------------------------------------------ terminals
HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "a\rb",
    "a\nb: forged",
    "\u202eabc",
    "\u2066a\u2069",
    "\u200b",
    "\x7f",
    "\x08\x08",
    "\x00",
    "\u2028",
]


def hostile_model(name, path):
    """A model that has the name in every place."""
    node = helper.make_node("Gemm", [name + "x", name + "w"], [name + "y"], name=name)
    model = helper.make_model(
        helper.make_graph(
            [node],
            name,
            [helper.make_tensor_value_info(name + "x", TensorProto.FLOAT, [name, 2])],
            [helper.make_tensor_value_info(name + "y", TensorProto.FLOAT, [name + "n", 2])],
            [onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), name + "w")],
            doc_string=name,
        ),
        ir_version=8,
        producer_name=name,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(name, 1)],
    )
    onnx.save(model, path)
    return model


def printable(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_steer_a_terminal(tmp_path, name):
    import rnnfast as package

    model = hostile_model(name, tmp_path / "m.onnx")
    for command in ("info", "check", "bench", "profile"):
        more = {"profile": ("--runs", "1"), "bench": ("--rounds", "1")}.get(command, ())
        for form in ((), ("--json",)):
            result = rnnfast(command, tmp_path / "m.onnx", *more, *form)
            assert result.exit_code == 0 and printable(result.output), result.output
    result = rnnfast("run", tmp_path / "m.onnx", "-i", f"{name}x=1", "-o", tmp_path / "out")
    assert result.exit_code == 2 and printable(result.output)
    loaded = package.load(tmp_path / "m.onnx")
    assert printable(str(loaded.summary())) and str(loaded.summary()).count("\n") == 4 and repr(loaded).isprintable()
    with pytest.raises(package.Error) as caught:
        loaded({name: 1})
    assert str(caught.value).isprintable()
    model.graph.node[0].op_type = "Foo" + name
    onnx.save(model, tmp_path / "m.onnx")
    for form in ((), ("--json",)):
        result = rnnfast("info", tmp_path / "m.onnx", *form)
        assert result.exit_code == 1 and printable(result.output) and "Foo" in result.stdout
    result = rnnfast("check", tmp_path / "m.onnx")
    assert result.exit_code == 2 and printable(result.output)
    with pytest.raises(package.Error, match="Foo") as caught:
        package.load(tmp_path / "m.onnx")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["[red]a[/red]", "[/]", ":smile:", "[link=http://x]a[/link]", "é…日本", "a\\b", "%s{}"]
)
def test_names_are_printed_as_they_are(tmp_path, name):
    hostile_model(name, tmp_path / "m.onnx")
    for command in ("info", "check", "bench", "profile"):
        result = rnnfast(command, tmp_path / "m.onnx", *(("--runs", "1") if command == "profile" else ()))
        assert result.exit_code == 0 and name in result.stdout


def test_a_file_whose_name_is_hostile(identity):
    for name in ("\x1b[2J.onnx", "[red].onnx", "\udcff.onnx", "a\nb.onnx"):
        os.rename("id.onnx", name) if not os.path.exists(name) else None
        for args in (("info", name), ("run", name, "-i", "x=1", "-o", "out"), ("run", name, "-o", "out"),
                     ("check", name, "-i", "x=1"), ("bench", name, "-i", "x=1", "--rounds", "1")):  # fmt: skip
            result = rnnfast(*args)
            assert result.exit_code in (0, 2) and printable(result.output) and "Traceback" not in result.output
        os.rename(name, "id.onnx")


def program(*args, stdout=subprocess.PIPE, env=None, **more):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-m", "rnnfast", *map(str, args)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace", env=env, **more)


@pytest.mark.parametrize("args", [("info", "id.onnx"), ("info", "id.onnx", "--json"), ("--help",), ("run", "--help")])
def test_what_cannot_be_written_to_stdout(identity, args):
    with open("/dev/full", "w") as full:
        done = program(*args, stdout=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("rnnfast: OSError"), done
    read, write = os.pipe()
    os.close(read)
    done = program(*args, stdout=write)
    os.close(write)
    if "--help" in args:  # click's own: quiet
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Broken pipe" in done.stderr
    closed = f'exec "{sys.executable}" -m rnnfast {" ".join(args)} >&-'
    done = subprocess.run(
        ["sh", "-c", closed], stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_closed_stderr(identity):
    command = f'exec "{sys.executable}" -m rnnfast info none.onnx 2>&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2


def test_a_terminal_whose_encoding_lacks_a_character(tmp_path):
    hostile_model("é日", tmp_path / "m.onnx")
    done = program("info", tmp_path / "m.onnx", env={"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0 and "\\xe9\\u65e5" in done.stdout and done.stderr == ""


def test_failures_of_any_kind(identity, monkeypatch):
    for error in (MemoryError("no room"), RecursionError("deep"), OSError(5, "I/O"), ZeroDivisionError("x"),
                  UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), AssertionError()):  # fmt: skip

        def fail(*args, error=error, **more):
            raise error

        monkeypatch.setattr(sys.modules["rnnfast.cli.run"], "load", fail)
        assert refused(rnnfast("run", "id.onnx", "-o", "out"), type(error).__name__)
