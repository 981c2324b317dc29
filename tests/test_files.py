"""Files: what is read is a regular file, what is written stands where it was told to, and weak disks are said."""

import errno
import itertools
import os
import socket
import stat
import threading

import pytest

from evaluations.report import make_room
from guided_diffusion import files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import folder_lock
from guided_diffusion.tensor_files import load_checkpoint

WRITERS = {
    "write_bytes": lambda path: files.write_bytes(path, b"new"),
    "write_text": lambda path: files.write_text(path, "new"),
    "replacing": lambda path: _replace(path),
}


def _replace(path):
    with files.replacing(path) as file:
        file.write(b"new")


@pytest.fixture(autouse=True)
def nothing_to_say():
    files.remarks.clear()
    files._remarked.clear()
    yield
    logger.reset()
    files.remarks.clear()


# ------------------------------------------------------------------------------------------- reading


def strange(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(path.name)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "other")
        os.mkfifo(path.parent / "other")
    return path


STRANGE = ["pipe", "device", "socket", "folder", "link to a pipe"]
READERS = ["open_read", "read_bytes", "read_text", "sha256", "read_json", "load_checkpoint"]
A_FOLDER_HAS_A_DIGEST = ("sha256", "folder")


@pytest.mark.parametrize(
    "reader, kind", [pair for pair in itertools.product(READERS, STRANGE) if pair != A_FOLDER_HAS_A_DIGEST]
)
def test_only_regular_files_are_read(tmp_path, monkeypatch, kind, reader):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = strange(kind, tmp_path / "x")
    call = {"read_json": lambda p: files.read_json(p, "x"), "load_checkpoint": load_checkpoint}
    with pytest.raises((OSError, UserError)) as error:
        call.get(reader, getattr(files, reader, None))(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        (b"[" * 3000 + b"]" * 3000, "too deeply nested"),
        (b"[" * 200000, "too deeply nested"),
        (b"1" * 5000, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_a_sentence(tmp_path, content, word):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x.json is not valid JSON .*; expected a thing") as error:
        files.read_json(str(tmp_path / "x.json"), "a thing")
    assert word in str(error.value)


def test_a_json_file_that_is_far_too_long_is_not_read(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(2**40)  # of which no disk has a block
    with pytest.raises(UserError, match=r"x.json has more than \d+ bytes; expected a thing"):
        files.read_json(str(tmp_path / "x.json"), "a thing")


# ------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("chain", [1, 2])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_written_to_a_link_is_written_to_its_end(tmp_path, writer, chain, there):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    if there:
        target.write_bytes(b"old and longer")
    link = target
    for name in ("one", "two")[:chain]:
        (tmp_path / name).symlink_to(link)
        link = tmp_path / name
    WRITERS[writer](str(link))
    assert link.is_symlink() and target.read_bytes() == b"new" and link.read_bytes() == b"new"
    assert {p.name for p in tmp_path.rglob("*")} == {"far", "target", *("one", "two")[:chain]}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_the_mode_of_a_file_stays(tmp_path, writer, mode):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    WRITERS[writer](str(path))
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("writer", [*WRITERS, "append_text"])
def test_a_pipe_is_written_into_where_somebody_reads_and_refused_where_nobody_does(tmp_path, writer):
    call = WRITERS.get(writer, lambda path: files.append_text(path, "new"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe that nobody reads"):
        call(str(tmp_path / "pipe"))
    heard = []
    handle = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    call(str(tmp_path / "pipe"))
    heard.append(os.read(handle, 99))
    os.close(handle)
    assert heard == [b"new"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_slow_reader_of_a_pipe_gets_all(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    data, got = os.urandom(2**20), []

    def read():
        with open(tmp_path / "pipe", "rb") as file:
            got.append(file.read())

    handle = os.open(tmp_path / "pipe", os.O_RDWR)  # so that neither waits for the other to open it
    reader = threading.Thread(target=read)
    reader.start()
    files.write_bytes(str(tmp_path / "pipe"), data)
    os.close(handle)
    reader.join()
    assert got == [data]


# --------------------------------------------------------------------------------- weak file systems


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_is_said_once(tmp_path, monkeypatch, capsys, code):
    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    logger.configure(str(tmp_path / "out"))
    files.write_text(str(tmp_path / "out" / "x"), "new")
    logger.log("on")
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "x").read_text() == "new"
    assert said.count("cannot flush") == len(set(files._remarked)) >= 1 and "a power cut may cost" in said


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_flush_that_fails_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch, code):
    (tmp_path / "x").write_text("old")

    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="x"):
        files.write_text(str(tmp_path / "x"), "new")
    assert (tmp_path / "x").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys, code):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with folder_lock.locked(str(tmp_path)):
        logger.log("at work")
    said = capsys.readouterr().out
    assert "cannot be locked" in said and "second job" in said and "at work" in said


def test_a_lock_that_is_a_pipe_is_a_sentence(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="is no regular file"), folder_lock.locked(str(tmp_path)):
        pass


def test_no_file_needs_no_folder(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    make_room("", "json", samples=["a.npz"])
    with pytest.raises(UserError, match="^--json x.json cannot be written: . does not permit it"):
        make_room("x.json", "json")


@pytest.mark.parametrize("named", [None, "other.npz"])
def test_an_error_while_a_file_is_written_is_of_the_file_that_failed(tmp_path, named):
    target = tmp_path / "x.npz"
    with pytest.raises(OSError) as caught, files.replacing(str(target)):
        raise OSError(errno.ENOSPC, "No space left on device", named)
    assert files.told(caught.value) == f"{named or target}: No space left on device" and not list(tmp_path.iterdir())
    target.mkdir()
    with pytest.raises(OSError) as caught, files.replacing(str(target)):
        pass
    assert files.told(caught.value) == f"{target}: Is a directory"
