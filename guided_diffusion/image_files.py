"""Images in files: which there are in a folder or a zip, and their pixels."""

import zipfile
from functools import lru_cache

import numpy as np
from PIL import Image

from . import files
from .errors import UserError
from .images import MODES

ZIP = ".zip"
EXTENSIONS = ("jpg", "jpeg", "png", "gif", "bmp", "webp")


def list_image_files(data_dir, flag="data_dir"):
    """Sorted paths of the images in a folder and its sub-folders, in any place blobfile reads, or in a .zip file.

    An image is known by its extension, in either case: one of EXTENSIONS. In a zip its path is data.zip/name.

    :param flag: that names the place.
    :raises UserError: if the place is missing or holds none.
    """
    zipped = data_dir.endswith(ZIP)
    if not (files.exists(data_dir) if zipped else files.is_folder(data_dir)):
        raise UserError(
            f"--{flag} {data_dir} is not there; expected an existing folder of images, or a .zip or .npz file"
        )
    paths = sorted(_zipped_images(data_dir, flag) if zipped else _walk_images(data_dir))
    if not paths:
        raise UserError(
            f"--{flag} {data_dir} holds no image; looked there and in its sub-folders for {', '.join(EXTENSIONS)}"
        )
    return paths


def _zipped_images(path, flag):
    try:
        names = _zip(path).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--{flag} {path} is not a readable .zip file ({error})") from error
    return [f"{path}/{name}" for name in names if _is_image(name)]


def _is_image(name):
    return name.lower().endswith(tuple("." + e for e in EXTENSIONS))


def _walk_images(folder):
    # blobfile's walk passes linked folders by, and data sets are often made of links.
    for name, is_folder in files.entries(folder):
        path = files.join(folder, name)
        if is_folder:
            yield from _walk_images(path)
        elif _is_image(name):
            yield path


def open_picture(path, channels=3):
    """A file, which may lie in a zip as data.zip/name, as a Pillow image.

    16-bit grey keeps its top byte. Transparency is dropped, but for 4 channels, which have it: 255 where the file has
    none. For 1 channel colours become grey by their luma (ITU-R 601).

    :param channels: 1, 3 or 4; the image is L, RGB or RGBA.
    :return: (the image, whether the file is grey).
    :raises UserError: if it cannot be read.
    """
    try:
        with _open(path) as file, Image.open(file) as image:
            grey = image.mode[0] in "1LIF"
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert(MODES[channels]), grey
    except Exception as error:  # Pillow's decoders raise almost any type on a damaged file.
        raise UserError(f"{path} cannot be read as an image ({error})") from error


def _open(path):
    archive, within, name = path.partition(ZIP + "/")
    return _zip(archive + ZIP).open(name) if within else files.open_read(path)


@lru_cache(maxsize=4)
def _zip(path):
    return zipfile.ZipFile(files.open_read(path) if files.is_remote(path) else path)  # it closes what it opened itself


def read_npz(path, source="data_dir", channels=None):
    """The images and labels of an .npz file.

    :param source: the flag that names it.
    :param channels: C; None takes 1, 3 and 4.
    :return: (arr_0 uint8 [N, H, W, C], arr_1 or None).
    :raises UserError: if it cannot be read or holds something else.
    """
    try:
        with files.open_read(path) as file, np.load(file, allow_pickle=False) as npz:
            arrays = {key: npz[key] for key in ("arr_0", "arr_1") if key in npz.files}
            found = ", ".join(npz.files) or "nothing"
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        # what numpy says of foreign bytes is advice to unpickle them
        reason = "it is no archive of plain arrays" if isinstance(error, ValueError) else error
        raise UserError(f"--{source} {path} is not a readable .npz file ({reason})") from error
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
    return images, arrays.get("arr_1")
