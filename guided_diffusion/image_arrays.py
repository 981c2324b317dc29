"""Images in one array on disk, .npz or .npy: memory-mapped where the bytes lie as they are, so that nothing waits."""

import os
import struct
import zipfile

import numpy as np

from . import files
from .errors import UserError
from .images import MODES

CLASSES = "classes"  # the member with the names of the classes, by their numbers
BLOCK = 2**24  # bytes of a read
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of its name and of what is extra


def read_npz(path, source="data_dir", channels=None):
    """The images and labels of an .npz file; arguments and errors as of `read_arrays`.

    :return: (arr_0 uint8 [N, H, W, C], arr_1 or None).
    """
    return read_arrays(path, source, channels)[:2]


def read_arrays(path, source="data_dir", channels=None):
    """The images, labels and class names of an .npz or .npy file, known by its content.

    Images that were stored as they are, as numpy.savez does, are memory-mapped: they cost no memory of their own.

    :param source: the flag that names it.
    :param channels: C; None takes 1, 3 and 4.
    :return: (arr_0 uint8 [N, H, W, C], arr_1 or None, names of the classes or None); of an .npy file the array alone.
        The names are `classes`, or those that lie beside samples.
    :raises UserError: if it cannot be read or holds something else.
    """
    try:
        arrays, found = _npy(path) if _starts_as_npy(path) else _npz(path)
    except (OSError, *files.NPZ_DAMAGE) as error:
        # what numpy says of foreign bytes is advice to unpickle them
        reason = "it is no archive of plain arrays" if isinstance(error, ValueError) else files.told(error)
        raise UserError(f"--{source} {path} cannot be read as an array ({reason})") from error
    if "arr_0" not in arrays:
        raise UserError(f"--{source} {path} holds {found}, expected the images under arr_0")
    images = arrays["arr_0"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in MODES or images.size == 0:
        raise UserError(
            f"--{source} {path}: arr_0 is {images.dtype} {list(images.shape)}, "
            f"expected at least one image as uint8 [N, H, W, {channels or 'C'}]"
        )
    if channels not in (None, images.shape[3]):
        raise UserError(
            f"--{source} {path}: arr_0 is uint8 {list(images.shape)}, expected at least one image as uint8 "
            f"[N, H, W, {channels}], as --image_channels says"
        )
    names = arrays.get(CLASSES)
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise UserError(
            f"--{source} {path}: {CLASSES} is {names.dtype} {list(names.shape)}, expected the names of the classes"
        )
    names = _names_beside(path) if names is None else names.tolist()
    if twice := sorted({name for name in names or () if names.count(name) > 1}):
        raise UserError(f"--{source} {path} names the class {twice[0]} twice, expected a name of its own for each")
    return images, arrays.get("arr_1"), names


def _names_beside(path):
    """The names of the classes in the .json that a sampling script writes beside an .npz; None without one."""
    beside = f"{os.path.splitext(path)[0]}.json"
    if not files.exists(beside):
        return None
    try:
        content = files.read_json(beside, "the names of the classes of samples")
    except UserError:
        if f'"{CLASSES}"'.encode() in files.read_bytes(beside):
            raise
        return None  # a file of others
    names = content.get(CLASSES) if isinstance(content, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def checksums(path):
    """What tells the arrays of an .npz or .npy file from others: text, read off the archive's own checksums."""
    if _starts_as_npy(path):
        return files.sha256(path)
    with files.open_read(path) as file, zipfile.ZipFile(file) as archive:
        return " ".join(sorted(f"{member.filename} {member.CRC:08x}" for member in archive.infolist()))


def _starts_as_npy(path):
    with files.open_read(path) as file:
        return file.read(6) == b"\x93NUMPY"


def _npy(path):
    mapped = np.load(files.open_read(path)) if files.is_remote(path) else np.load(path, mmap_mode="c")
    return {"arr_0": mapped}, "one array"


def _npz(path):
    """({name: array} of those that are known, all names in words)."""
    with files.open_read(path) as file, np.load(file, allow_pickle=False) as npz:
        mapped = _mapped(path, npz.zip)
        wanted = [key for key in ("arr_0", "arr_1", CLASSES) if key in npz.files]
        return {key: npz[key] if key != "arr_0" or mapped is None else mapped for key in wanted}, (
            ", ".join(npz.files) or "nothing"
        )


def _mapped(path, archive):
    """arr_0 of a local archive as a memory map that can be written to without changing the file, or None.

    :raises zipfile.BadZipFile: if its bytes are not those that its checksum is of.
    """
    if files.is_remote(path) or "arr_0.npy" not in archive.namelist():
        return None
    member = archive.getinfo("arr_0.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        return None
    with archive.open(member) as content:
        while content.read(BLOCK):
            pass
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        start = member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        length = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject or length == 0 or file.tell() + length > start + member.file_size:
            return None  # which numpy says something of
        return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")
