"""The small images that a super-resolution run enlarges."""

from dataclasses import dataclass

import numpy as np
import torch

from . import files
from .errors import UserError
from .flags import FlagGroup, flag
from .image_arrays import read_arrays
from .image_files import find_images, is_picture, is_zip, open_picture
from .image_labels import names_of_files, numbered, renumbered


@dataclass
class BaseFlags(FlagGroup):
    """The small images."""

    base_samples: str = flag(
        "",
        "Images to enlarge: an image, a folder or zip of them, an npz (arr_0 uint8 [N, H, W, C], arr_1 their labels), "
        "or the output folder of a sampling script.",
        content=True,
        essential="base_samples",
    )


def located(path):
    """The path of the images that --base_samples means: of the npz, where it is the output folder of a sampling script.

    :raises UserError: for such a folder without one npz.
    """
    if not path or not files.is_folder(path) or not files.exists(files.join(path, "flags.json")):
        return path
    found = sorted(name for name, folder in files.entries(path) if name.endswith(".npz") and not folder)
    if len(found) != 1:
        raise UserError(
            f"--base_samples {path} is the folder of a run and holds {', '.join(found) or 'no npz'}; expected one npz, "
            "or its path"
        )
    return files.join(path, found[0])


def _pictures(path):
    """The files of images of a folder or a zip, or an image alone; [] for anything else."""
    if files.is_folder(path) or (files.exists(path) and is_zip(path)):
        return find_images(path, "base_samples").paths
    return [path] if files.exists(path) and is_picture(path) else []


def _pixels(path, size, channels):
    """The uint8 [size, size] or [size, size, channels] of a file.

    :raises UserError: if its image is of another size.
    """
    try:
        picture, _ = open_picture(path, channels)
    except UserError as error:
        raise UserError(f"--base_samples: {error}") from error
    if picture.size != (size, size):
        width, height = picture.size
        raise UserError(f"--base_samples {path} is an image of {height}x{width}; --small_size is {size}")
    return np.asarray(picture)


def open_base(path, size, num_classes, channels=3, names=()):
    """The small images, float32 [N, C, size, size] in [-1, 1], and their labels int64 [N] if `num_classes`, else None.

    :param names: of the network's classes; labels of which the names are known mean these.
    :raises UserError: for images of another size, and for labels that are missing or beyond `num_classes`.
    """
    if not path:
        raise UserError("--base_samples is not given; expected small images: a file, a folder, a zip or an npz")
    if pictures := _pictures(path):
        images = np.stack([_pixels(picture, size, channels) for picture in pictures])
        images = images.reshape(len(images), size, size, channels)
        named, labels = None, None
        if num_classes:
            root = path if len(pictures) > 1 or files.is_folder(path) else files.split(path)[0]
            _, found = names_of_files(root, list(map(str, pictures)))
            _, labels = numbered(found, list(names), count=num_classes, where=f"--base_samples {path}")
    else:
        images, labels, named = read_arrays(path, "base_samples", channels)
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"--base_samples {path} has images of {images.shape[1]}x{images.shape[2]}; --small_size is {size}"
        )
    if num_classes and labels is None:
        raise UserError(f"--base_samples {path} has no arr_1; a class-conditional network needs the labels there")
    labels = renumbered(labels, len(images), named, list(names), f"--base_samples {path}")
    if num_classes and not ((labels >= 0) & (labels < num_classes)).all():
        raise UserError(
            f"--base_samples {path} has labels outside 0..{num_classes - 1}, which --num_classes {num_classes} allows"
        )
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(labels).long() if num_classes else None
