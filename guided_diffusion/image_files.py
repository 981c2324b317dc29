"""Images in files: which there are in a folder or a zip, and their pixels."""

import contextlib
import io
import os
import re
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import files
from .errors import UserError
from .image_arrays import read_npz  # noqa: F401 (a name of this module, by which other modules know it)
from .images import MODES

EXTENSIONS = ("jpg", "jpeg", "png", "gif", "bmp", "webp")
MACOS = "__MACOSX"  # what macOS adds to a zip
EXPECTED = "expected an existing folder of images, or a .zip or .npz file"
ORIENTATION = 0x0112  # in EXIF
# {trait: what to say of so many files that have it}
TRAITS = {
    "turned": "have an EXIF orientation, which is ignored: --exif True turns them upright",
    "transparent": "are transparent in places, where their hidden colour shows: --background white gives them another",
    "animated": "are animated, of which the first frame is read",
    "deep": "have 16 bits, of which the upper 8 are read",
    "dark": "with 16 bits use less than 13 of them, so they come out dark: scale them up first",
    "tiny": "are smaller than the images of the network, and are enlarged",
}


class Member(str):
    """The path of a file in a zip: data.zip/name.

    :ivar archive: the path of the zip.
    :ivar name: within it; a backslash, which some programs write there, separates as a slash does.
    """

    def __new__(cls, archive, name):
        made = super().__new__(cls, f"{archive}/{_slashed(name)}")
        made.archive, made.name = archive, name
        return made

    def __getnewargs__(self):
        return self.archive, self.name


@dataclass
class Found:
    """What lies in a folder or a zip.

    :ivar paths: of the images, sorted.
    :ivar passed: {extension: how many files that are not read have it}.
    """

    paths: list
    passed: Counter


def kind_of(path, flag="data_dir"):
    """What lies at a path, by its content: "folder", "zip" (of images) or "array" (an .npz or .npy file).

    :param flag: that names it.
    :raises UserError: if there is nothing, or something else.
    """
    if files.is_folder(path):
        return "folder"
    if not files.exists(path):
        raise UserError(f"--{flag} {path} is not there; {EXPECTED}")
    if not files.is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"--{flag} {path} is no regular file; {EXPECTED}")
    try:
        return _kind_of_file(path) or _refuse(path, flag)
    except OSError as error:
        raise UserError(f"--{flag} {path} cannot be read ({error.strerror or error})") from error


def is_zip(path):
    """Whether a zip of images lies at a path; by its name where nothing is there."""
    if not files.exists(path):
        return path.lower().endswith(".zip")
    return not files.is_folder(path) and _kind_of_file(path) == "zip"


def _kind_of_file(path):
    """What `kind_of` says of a file: by its content, or by its name where that is damaged; None for anything else."""
    with files.open_read(path) as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        return "array"
    if start[:2] == b"PK":
        with contextlib.suppress(OSError, zipfile.BadZipFile):
            names = [name for name in _zip(path).namelist() if not is_hidden(_slashed(name))]
            return "array" if names and all(name.endswith(".npy") for name in names) else "zip"
    return next((kind for ending, kind in ((".npz", "array"), (".zip", "zip")) if path.lower().endswith(ending)), None)


def _refuse(path, flag):
    what = "a single picture" if _is_image(path) else "none of these"
    raise UserError(f"--{flag} {path} is {what}; {EXPECTED}")


def list_image_files(data_dir, flag="data_dir"):
    """Sorted paths of the images in a folder and its sub-folders, in any place blobfile reads, or in a .zip file.

    An image is known by its extension, in either case: one of EXTENSIONS. In a zip its path is data.zip/name. Names
    that begin with a dot, and __MACOSX, are no data, nor is what lies in such folders.

    :param flag: that names the place.
    :raises UserError: if the place is missing or holds none.
    """
    return find_images(data_dir, flag).paths


def find_images(data_dir, flag="data_dir"):
    """The Found of a folder or a zip; arguments and errors as of `list_image_files`."""
    kind = kind_of(data_dir, flag)
    if kind == "array":
        raise UserError(f"--{flag} {data_dir} is a file of arrays, expected a folder or a .zip of images here")
    passed, paths = Counter(), []
    for path in _zipped(data_dir, flag) if kind == "zip" else _walk(data_dir):
        if _is_image(path):
            paths.append(path)
        else:
            passed[os.path.splitext(path)[1].lower() or "without extension"] += 1
    if not paths:
        there = f", where there is {_counted(passed)}" if passed else ""
        looked = f"looked there and in its sub-folders for {', '.join(EXTENSIONS)}"
        raise UserError(f"--{flag} {data_dir} holds no image; {looked}{there}")
    return Found(sorted(paths), passed)


def is_picture(path):
    """Whether Pillow knows a file for an image by its content, whatever it is called."""
    from PIL import Image

    try:
        with _open(path) as file, Image.open(file):
            return True
    except Exception:  # as of `open_picture`
        return False


def images_below(folder):
    """Paths of the images in a folder and its sub-folders, as readers take them; none where there are none."""
    return filter(_is_image, _walk(folder))


def said_of_passed(passed):
    """The sentence on files that are not read; "" if there are none."""
    if not passed:
        return ""
    return f"{_counted(passed)}: not read, since these are: {', '.join(EXTENSIONS)}"


def _counted(passed):
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(passed.items()))


def _zipped(path, flag):
    """Paths of the files in a zip."""
    try:
        names = _zip(path).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--{flag} {path} is not a readable .zip file ({error})") from error
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"--{flag} {path} has two files called {twice}; expected names that differ")
    return [Member(path, name) for name in names if _slashed(name)[-1:] != "/" and not is_hidden(_slashed(name))]


def _slashed(name):
    return name.replace("\\", "/")


def _walk(folder, above=()):
    """Paths of the files in a folder and its sub-folders.

    :param above: where it lies.
    """
    # blobfile's walk passes linked folders by, and data sets are often made of links.
    real = folder if files.is_remote(folder) else os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that it lies in
    for name, is_folder in files.entries(folder):
        path = files.join(folder, name)
        if is_hidden(name):
            continue
        if is_folder:
            yield from _walk(path, (*above, real))
        else:
            yield path


def _is_image(name):
    return name.lower().endswith(tuple("." + e for e in EXTENSIONS))


def is_hidden(name):
    """Whether a name, or path in a zip, is no data: a part of it begins with a dot, or macOS added it."""
    return any(part.startswith(".") or part == MACOS for part in name.split("/"))


def open_picture(path, channels=3, exif=False, background=""):
    """A file, which may be a Member of a zip, as a Pillow image.

    16-bit grey keeps its top byte. For 4 channels transparency is kept, 255 where the file has none; for others it is
    dropped, or blended with the background. For 1 channel colours become grey by their luma (ITU-R 601).

    :param channels: 1, 3 or 4; the image is L, RGB or RGBA.
    :param exif: turn the image upright, as its EXIF orientation says.
    :param background: the colour behind transparent places, as Pillow knows colours: white, #rrggbb.
    :return: (the image, whether the file is grey).
    :raises UserError: if it cannot be read.
    """
    from PIL import Image, ImageColor, ImageOps

    try:
        with _open(path) as file, Image.open(file) as image:
            grey = image.mode[0] in "1LIF"
            if exif and image.getexif().get(ORIENTATION, 1) != 1:  # others may have tags that Pillow cannot write
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if background and channels != 4 and image.has_transparency_data:
                behind = Image.new("RGBA", image.size, ImageColor.getrgb(background))
                image = Image.alpha_composite(behind, image.convert("RGBA"))
            image.load()  # without which a file may not be closed
            return image if image.mode == MODES[channels] else image.convert(MODES[channels]), grey
    except Exception as error:  # Pillow's decoders raise almost any type on a damaged file.
        raise UserError(_unreadable(path, error)) from error


def _unreadable(path, error):
    reason = re.sub(r" ?<_io\.BytesIO object at \w+>", "", files.told(error))  # which is where its bytes were
    return f"{path} cannot be read as an image ({reason})"


def traits_of(path, image_size, channels=3):
    """What of a file is lost or changed where it is read without further flags: words of TRAITS.

    :raises UserError: if it cannot be read.
    """
    from PIL import Image

    try:
        with _open(path) as file, Image.open(file) as image:
            grey, deep = image.mode.startswith("I"), "16" in str([tile[3] for tile in image.tile])
            seen = channels != 4 and image.has_transparency_data
            found = {
                "turned": image.getexif().get(ORIENTATION, 1) != 1,
                "transparent": seen and image.convert("RGBA").getchannel("A").getextrema()[0] < 255,
                "animated": getattr(image, "is_animated", False),
                "deep": grey or deep,
                "dark": (grey and image.getextrema()[1] < 2**13)
                or (deep and not grey and max(most for _, most in image.getextrema()[:3]) < 2**5),
                "tiny": min(image.size) < image_size,
            }
    except Exception as error:  # as above
        raise UserError(_unreadable(path, error)) from error
    return {name for name, holds in found.items() if holds}


def _open(path):
    # at once: a decoder asks for many small pieces
    data = _zip(path.archive).read(path.name) if isinstance(path, Member) else files.read_bytes(path)
    return io.BytesIO(data)


def size_in_bytes(path):
    """The length of a file, which may be a Member of a zip; 0 where it is not there, which reading it says."""
    if isinstance(path, Member):
        return _zip(path.archive).getinfo(path.name).file_size
    with contextlib.suppress(FileNotFoundError):
        return files.size(path)
    return 0


@lru_cache(maxsize=4)
def _zip(path):
    return zipfile.ZipFile(files.open_read(path) if files.is_remote(path) else path)  # it closes what it opened itself
