"""Files by path or address: local ones directly, any other through blobfile.

Only regular files are read: opening a pipe would wait for ever, and a device may have no end. What is written replaces
a file under its own name, behind links too; a pipe or a device is written into.

blobfile is imported only for an address such as gs://bucket/name, because the import alone opens a
socket (urllib3 tries IPv6).
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import re
import secrets
import stat
import tempfile
import zipfile
import zlib

import numpy as np

from .errors import UserError

# Bytes of a JSON file, of which none that is read here has a hundredth.
JSON_LIMIT = 2**26

# What numpy, zipfile and zlib raise on a file that is damaged or no npz.
NPZ_DAMAGE = (
    *(ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError, MemoryError, OverflowError),  # foreign compression, passwords, huge shapes
)

# What is to be said of the files and file systems that were met, each sentence once, until the logger takes it out.
remarks = []
_remarked = set()

# ends the name under which a file is written first
TEMPORARY = r"\.[0-9a-f]{16}\.unfinished"
_KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}


def remark(sentence):
    """Have a sentence said once."""
    if sentence not in _remarked:
        _remarked.add(sentence)
        remarks.append(sentence)


def is_remote(path):
    """Whether `path` is an address that blobfile has to handle."""
    return "://" in str(path)


def _remote(call, path, *rest):
    """blobfile's function `call`; its errors become OSErrors that name the path."""
    import blobfile

    try:
        return getattr(blobfile, call)(path, *rest)
    except OSError:
        raise
    except blobfile.Error as error:
        raise OSError(f"{path}: {error}") from error


def join(folder, *names):
    """The path of something in a folder."""
    return _remote("join", folder, *names) if is_remote(folder) else os.path.join(folder, *names)


def split(path):
    """(folder, name) of a path."""
    if is_remote(path):
        folder, _, name = str(path).rpartition("/")
        return folder, name
    return os.path.split(path)


def target(path):
    """Where a local path leads that is a link; any other path as it is."""
    return os.path.realpath(path) if not is_remote(path) and os.path.islink(path) else path


def exists(path):
    """Whether there is a file or folder."""
    return _remote("exists", path) if is_remote(path) else os.path.exists(path)


def is_same(path, other):
    """Whether two paths are of one local file or folder that is there."""
    return (
        not (is_remote(path) or is_remote(other))
        and all(map(os.path.exists, (path, other)))
        and (os.path.samefile(path, other))
    )


def is_folder(path):
    """Whether there is a folder."""
    return _remote("isdir", path) if is_remote(path) else os.path.isdir(path)


def entries(folder):
    """(name, whether it is a folder) of all that lies in a folder; links are followed."""
    if is_remote(folder):
        yield from ((entry.name, entry.is_dir) for entry in _remote("scandir", folder))
    else:
        with os.scandir(folder) as found:
            yield from ((entry.name, entry.is_dir()) for entry in found)


def remove(path):
    """Delete a file."""
    _remote("remove", path) if is_remote(path) else os.remove(path)


def size(path):
    """The length of a file in bytes.

    :raises OSError: if it cannot be told; FileNotFoundError if there is no file.
    """
    return _remote("stat", path).size if is_remote(path) else os.path.getsize(path)


def stamp(path):
    """(length in bytes, time of the last change) of a file.

    :raises OSError: if it cannot be told; FileNotFoundError if there is no file.
    """
    if is_remote(path):
        found = _remote("stat", path)
        return found.size, found.mtime
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def make_folder(path):
    """Make a folder and those above it; one that is there stays."""
    if is_remote(path):
        _remote("makedirs", path)
    else:
        os.makedirs(path, exist_ok=True)


def open_read(path):
    """A binary file object, which can seek.

    :raises OSError: if it cannot be read; FileNotFoundError if it is not there.
    """
    if is_remote(path):
        return io.BytesIO(_remote("read_bytes", path))
    # a pipe without a writer would be waited for
    return open(path, "rb", opener=lambda name, flags: _regular(name, os.open(name, flags | _NO_WAIT)))


_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def _regular(path, handle):
    """The handle, if it is of a regular file; else it is closed."""
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kind = next((name for test, name in _KINDS.items() if test(mode)), "no file")
    raise OSError(errno.ENOTSUP, f"it is {kind}, expected a regular file", path)


def told(error):
    """An error in one sentence; an OSError by the file's name, without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error)


def read_bytes(path):
    """The content of a file; errors as `open_read`."""
    with open_read(path) as file:
        return file.read()


def read_text(path):
    """The content of a UTF-8 file.

    :raises UnicodeDecodeError: if it is none.
    """
    return read_bytes(path).decode()


def read_json(path, expected):
    """The content of a JSON file.

    :param expected: what it is meant to hold, for errors.
    :raises UserError: if it is not JSON, or far too long for what is kept as JSON here.
    :raises OSError: if it cannot be read; FileNotFoundError if it is not there.
    """
    with open_read(path) as file:
        data = file.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise UserError(f"{path} has more than {JSON_LIMIT} bytes; expected {expected}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not valid JSON ({reason}); expected {expected}") from error


def write_bytes(path, data):
    """Replace the content of a file; as `replacing`, which raises too."""
    if is_remote(path):
        _remote("write_bytes", path, bytes(data))
        return
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path):
    """Yield a binary file to write; after the block it is the file at `path`, which never shows a part of it.

    That holds even after a power cut. A remote file is collected in a local temporary one first.

    :raises OSError: naming the path; the unfinished file is gone then.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            unfinished = os.path.join(folder, "unfinished")
            with open(unfinished, "wb") as file:
                yield file
            _remote("copy", unfinished, path, True)
        return
    target = os.path.realpath(path)
    if not _is_replaced(path, target):
        with _written_into(path) as file:
            yield file
        return
    unfinished = unfinished_name(target)
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            _on_disk(file.fileno(), target)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(unfinished, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(unfinished, target)
        _sync_folder(os.path.dirname(target) or ".")
    except BaseException as error:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        if isinstance(error, OSError) and error.filename in (None, unfinished):
            error.filename, error.filename2 = path, None  # a full disk is told by write, which knows no name
        raise


def unfinished_name(path):
    """Where the file at a path is written first; see `remove_unfinished`."""
    # process ids of machines that share a folder may agree
    return f"{path}.{secrets.token_hex(8)}.unfinished"


def _is_replaced(path, target):
    """Whether another file may take the place of what stands at `target`: of a regular file, or of nothing."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return False
    try:
        return stat.S_ISREG(os.stat(target).st_mode) or os.path.isdir(target)
    except OSError:
        return True


@contextlib.contextmanager
def _written_into(path, mode="wb"):
    """A file object of a pipe or a device; a pipe that nobody reads is an OSError, not a wait."""

    def opener(name, flags):
        handle = os.open(name, flags & ~(os.O_CREAT | os.O_TRUNC) | _NO_WAIT)
        os.set_blocking(handle, True)
        return handle

    try:
        with open(path, mode, opener=opener) as file:
            yield file
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a pipe that nobody reads, or a socket; expected a file", path) from error
        raise


def _on_disk(handle, path):
    """Have the content of an open file or folder on disk, where its file system can do that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        remark(f"the file system of {path} cannot flush ({error.strerror}): a power cut may cost what was just written")


def _sync_folder(folder):
    """Have the names in a folder on disk."""
    if os.name == "posix":
        try:
            handle = os.open(folder, os.O_RDONLY)
        except PermissionError:  # one may be allowed to write to a folder and not to list it
            remark(f"{folder} cannot be read, so it cannot be flushed: a power cut may cost what was just written")
            return
        try:
            _on_disk(handle, folder)
        finally:
            os.close(handle)


def remove_unfinished(folder, before, names=".+"):
    """Delete what earlier jobs left unfinished in a folder when they were killed: temporary files of this program.

    Folders in it are swept too, but for those of other jobs, which have a lock.

    :param before: time in seconds of their last change; whoever calls it makes sure that nobody still writes those.
    :param names: a regular expression of what they were to be.
    """
    if is_remote(folder) or not os.path.isdir(folder):
        return
    inner = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    for swept in [folder, *(path for path in inner if not glob.glob(".lock*", root_dir=path, include_hidden=True))]:
        for entry in list(os.scandir(swept)):
            if re.fullmatch(rf"(?:{names}){TEMPORARY}|\.writable-\d+-\d+", entry.name, re.ASCII):
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < before:
                        os.remove(entry.path)


def write_text(path, text):
    """Replace the content of a file by UTF-8 text, as `write_bytes`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def append_text(path, text):
    """Add UTF-8 text at the end of a file."""
    if is_remote(path):
        # an object store cannot append
        write_text(path, (read_text(path) if exists(path) else "") + text)
        return
    try:
        whole = _is_replaced(path, os.path.realpath(path))
        with open(path, "ab") if whole else _written_into(path, "ab") as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        error.filename = error.filename or path
        raise


def set_aside(path, reason):
    """Give a damaged local file the name `path.damaged`, or one that is free, and have that said."""
    number, kept = 1, f"{path}.damaged"
    while exists(kept):
        number += 1
        kept = f"{path}.damaged{number}"
    os.replace(path, kept)
    remark(f"{path} is damaged ({reason}): it is kept as {kept}, and begins anew")


def write_npz(path, arrays):
    """Write {name: array} as an npz."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_bytes(path, data.getbuffer())


def stream_npz(path, members):
    """Write the npz that `numpy.savez` would write, byte for byte, without having any array whole.

    :param members: {name: (dtype, shape, parts)}, where `parts` yields the array in pieces along its first axis.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, (dtype, shape, parts) in members.items():
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(part.tobytes())


def sha256(path):
    """The SHA-256 of a file's content, in hexadecimal; of a folder that of all files in it, by name and content.

    What begins with a dot in a folder, as caches of downloads do, is left out.
    """
    digest = hashlib.sha256()
    if is_folder(path):
        for name, _ in sorted(entries(path)):
            if not name.startswith("."):
                digest.update(f"{name} {sha256(join(path, name))}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    with open_read(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
