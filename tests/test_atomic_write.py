"""Files are written completely or not at all: through links, with their mode and owner, never in place of a device."""

import os
import pathlib
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest

from rnnfast import nn
from rnnfast.atomic_write import write_files, write_whole
from rnnfast.errors import InputError, InputTypeError
from tests.paths import ROOT


def leftovers(folder):
    return [str(path) for path in pathlib.Path(folder).rglob(".rnnfast-*")]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
def test_the_target_of_a_link_is_written(tmp_path, monkeypatch, depth, exists, absolute):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "net"
    if exists:
        target.write_bytes(b"old")
    to = target if absolute else pathlib.Path("real", "net")
    for i in range(depth):
        (tmp_path / f"link{i}").symlink_to(to)
        to = tmp_path / f"link{i}" if absolute else pathlib.Path(f"link{i}")
    write_whole(to, b"new")
    assert (tmp_path / f"link{depth - 1}").is_symlink() and not target.is_symlink()
    assert target.read_bytes() == b"new" and not leftovers(tmp_path)


def test_a_link_to_a_folder_on_the_way(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    write_whole(tmp_path / "folder" / "net", b"new")
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "real" / "net").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o755, 0o2750])
def test_the_mode_is_kept(tmp_path, mode):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_whole(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"new"


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    write_whole(tmp_path / "net", b"")
    (tmp_path / "other").touch()
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_is_kept(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    os.chmod(path, 0o4755)  # a change of the owner clears this bit
    write_whole(path, b"new")
    new = path.stat()
    assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode)) == (12345, 23456, 0o4755)


def test_an_owner_that_cannot_be_kept(tmp_path, monkeypatch):
    path = tmp_path / "net"
    path.write_bytes(b"old")

    def refuse(*args):
        raise PermissionError("no")

    monkeypatch.setattr(os, "fchown", refuse)
    status = os.stat(path)
    other = os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))
    monkeypatch.setattr(os, "stat", lambda name, **more: other)
    with pytest.raises(InputError, match="owner .* cannot be kept"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["net"]


def test_a_read_only_file(tmp_path, monkeypatch):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda name, mode: False)  # for root every file is writable
    with pytest.raises(InputError, match="read-only"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["net"]


def test_other_hard_links_keep_the_old_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_whole(tmp_path / "a", b"new")
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"new", b"old"]


@pytest.mark.parametrize(
    "device", ["/dev/null", "/dev/zero", "/dev/full", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]
)
@pytest.mark.parametrize("linked", [False, True])
def test_devices_are_refused(tmp_path, device, linked):
    if not os.path.exists(device):
        pytest.skip(f"there is no {device}")
    before = os.stat("/dev/null")
    path = device
    if linked and stat.S_ISCHR(os.stat(device).st_mode):
        (tmp_path / "link").symlink_to(device)
        path = tmp_path / "link"
    with pytest.raises(InputError, match="not a regular file"):
        write_whole(path, b"new")
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)


def test_pipes_sockets_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder link").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing/net")
    names = sorted(os.listdir(tmp_path))
    for name in (*names, "new/", "missing/net", "", "a\0b", "x" * 300):
        with pytest.raises(InputError, match="cannot be written"):
            write_whole(os.path.join(tmp_path, name) if name else name, b"new")
    assert sorted(os.listdir(tmp_path)) == names and stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)


def test_sockets_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(InputError, match="not a regular file"):
            write_whole("socket", b"new")
    assert stat.S_ISSOCK(os.stat("socket").st_mode)


@pytest.mark.parametrize("path", [5, None, 1.5, ("a",), object()])
def test_what_is_no_path(path):
    with pytest.raises(InputTypeError, match="is no path"):
        write_whole(path, b"new")


def test_bytes_and_path_objects_are_paths(tmp_path):
    write_whole(os.fsencode(tmp_path / "a"), b"1")
    write_whole(tmp_path / "b", b"2")
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes() == b"12"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_nothing_is_changed_where_one_of_several_fails(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises((InputError, KeyboardInterrupt, MemoryError)):
        write_files({tmp_path / "a": lambda file: file.write(b"new"), tmp_path / "b": fail})
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_layers_and_checkpoints_go_through_links(tmp_path):
    pytest.importorskip("safetensors")
    from rnnfast import train

    for name in ("net.onnx", "net.safetensors"):
        (tmp_path / f"real {name}").write_bytes(b"old")
        (tmp_path / f"real {name}").chmod(0o600)
        (tmp_path / name).symlink_to(f"real {name}")
    net = nn.Linear(2, 1, rng=0)
    net.save(tmp_path / "net.onnx")
    x = np.ones((4, 2), np.float32)
    options = {"loss": train.MSE(), "optimizer": train.SGD(), "verbose": False}
    net.fit(x, x[:, :1], checkpoint=tmp_path / "net.safetensors", **options)
    for name in ("net.onnx", "net.safetensors"):
        real = tmp_path / f"real {name}"
        assert (tmp_path / name).is_symlink() and real.stat().st_size > 4
        assert stat.S_IMODE(real.stat().st_mode) == 0o600
    for path in ("/dev/null", tmp_path):
        with pytest.raises(InputError):
            net.save(path)
        with pytest.raises(InputError):
            net.fit(x, x[:, :1], checkpoint=path, **options)


def test_no_new_file_in_dev():
    with pytest.raises(InputError, match="not a regular file"):
        write_whole("/dev/rnnfast-net", b"new")
    assert not os.path.exists("/dev/rnnfast-net")


def test_stdout_that_is_a_file_is_not_replaced(tmp_path):
    program = (
        "import rnnfast.atomic_write as a\ntry: a.write_whole('/dev/stdout', b'new')\n"
        "except a.InputError as e: print('refused', flush=True)"
    )
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True, cwd=ROOT)
    assert (tmp_path / "out").read_text() == "refused\n"
