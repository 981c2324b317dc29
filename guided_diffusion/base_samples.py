"""The file of small images that a super-resolution run enlarges."""

from dataclasses import dataclass

import torch

from .errors import UserError
from .flags import FlagGroup, flag
from .image_arrays import read_arrays
from .image_labels import renumbered


@dataclass
class BaseFlags(FlagGroup):
    """The small images."""

    base_samples: str = flag(
        "",
        "npz of the images to enlarge: arr_0 uint8 [N, H, W, C], arr_1 their labels.",
        content=True,
        essential="base_samples",
    )


def open_base(path, size, num_classes, channels=3, names=()):
    """The small images, float32 [N, C, size, size] in [-1, 1], and their labels int64 [N] if `num_classes`, else None.

    :param names: of the network's classes; labels of which the names are known mean these.
    :raises UserError: for images of another size, and for labels that are missing or beyond `num_classes`.
    """
    if not path:
        raise UserError("--base_samples is not given; expected an npz of small images")
    images, labels, named = read_arrays(path, "base_samples", channels)
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"--base_samples {path} has images of {images.shape[1]}x{images.shape[2]}; --small_size is {size}"
        )
    if num_classes and labels is None:
        raise UserError(f"--base_samples {path} has no arr_1; a class-conditional network needs the labels there")
    labels = renumbered(labels, named, list(names), f"--base_samples {path}")
    if num_classes and not ((labels >= 0) & (labels < num_classes)).all():
        raise UserError(
            f"--base_samples {path} has labels outside 0..{num_classes - 1}, which --num_classes {num_classes} allows"
        )
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(labels).long() if num_classes else None
