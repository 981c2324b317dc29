"""Files by path or address: local ones directly, any other through blobfile.

blobfile is imported only for an address such as gs://bucket/name, because the import alone opens a
socket (urllib3 tries IPv6).
"""

import contextlib
import hashlib
import io
import os
import re
import secrets
import tempfile
import zipfile

import numpy as np


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


def exists(path):
    """Whether there is a file or folder."""
    return _remote("exists", path) if is_remote(path) else os.path.exists(path)


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
    if not is_remote(path):
        return open(path, "rb")
    return io.BytesIO(_remote("read_bytes", path))


def read_bytes(path):
    """The content of a file; errors as `open_read`."""
    with open_read(path) as file:
        return file.read()


def read_text(path):
    """The content of a UTF-8 file."""
    return read_bytes(path).decode()


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
    # process ids of machines that share a folder may agree
    unfinished = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(os.path.dirname(path) or ".")
    except BaseException as error:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path  # a full disk is told by write, which knows no name
        raise


def _sync_folder(folder):
    """Have the names in a folder on disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folder):
    """Delete what `write_bytes` left unfinished in a folder when its process was killed."""
    if not is_remote(folder):
        for name in os.listdir(folder):
            if re.fullmatch(r".+\.[0-9a-f]+\.tmp", name):
                os.remove(os.path.join(folder, name))


def write_text(path, text):
    """Replace the content of a file by UTF-8 text, as `write_bytes`."""
    write_bytes(path, text.encode())


def append_text(path, text):
    """Add UTF-8 text at the end of a file."""
    if is_remote(path):
        # an object store cannot append
        write_text(path, (read_text(path) if exists(path) else "") + text)
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        error.filename = error.filename or path
        raise


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
    """The SHA-256 of a file's content, in hexadecimal; of a folder that of all files in it, by name and content."""
    digest = hashlib.sha256()
    if is_folder(path):
        for name, _ in sorted(entries(path)):
            digest.update(f"{name} {sha256(join(path, name))}\n".encode())
        return digest.hexdigest()
    with open_read(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
