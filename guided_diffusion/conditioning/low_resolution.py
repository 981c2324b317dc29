"""The small image that a super-resolution network enlarges."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..flags import FlagGroup, flag
from ..image_files import read_npz
from ..networks import SuperResFlags, UNetFlags
from .conditioning import Conditioning


@dataclass
class BaseFlags(FlagGroup):
    """The small images."""

    base_samples: str = flag(
        "", "npz of the images to enlarge: arr_0 uint8 [N, H, W, C], arr_1 their labels.", content=True
    )


class LowResolution(Conditioning):
    """`low_res`, and in sampling the class `y` of that image too.

    :param small_size: its height and width.
    :param base: float32 [M, C, small_size, small_size] in [-1, 1], the images that sampling enlarges in turn, or None.
    :param labels: int64 [M] of these, or None.
    """

    sampling = (BaseFlags,)
    network = SuperResFlags
    shows_images = True

    def __init__(self, small_size, base=None, labels=None):
        self.small_size = small_size
        self.base = base
        self.labels = labels

    @classmethod
    def of_training(cls, parsed):
        return cls(parsed[SuperResFlags].small_size) if SuperResFlags in parsed.groups else None

    @classmethod
    def of_sampling(cls, parsed):
        if SuperResFlags not in parsed.groups:
            return None
        size, unet = parsed[SuperResFlags].small_size, parsed[UNetFlags]
        num_classes = unet.num_classes if unet.class_cond else 0
        return cls(size, *open_base(parsed[BaseFlags].base_samples, size, num_classes, unet.image_channels))

    def of_data(self, x, labels):
        return {"low_res": F.interpolate(x, self.small_size, mode="area")}

    def shown(self, count, x, labels):
        return self.of_data(x, labels)

    def of_indices(self, noise, indices):
        chosen = torch.tensor(indices) % len(self.base)
        told = {"low_res": self.base[chosen]}
        return told if self.labels is None else {**told, "y": self.labels[chosen]}


def open_base(path, size, num_classes, channels=3):
    """The small images, float32 [N, C, size, size] in [-1, 1], and their labels int64 [N] if `num_classes`, else None.

    :raises UserError: for images of another size, and for labels that are missing or beyond `num_classes`.
    """
    if not path:
        raise UserError("--base_samples is not given; expected an npz of small images")
    images, labels = read_npz(path, "base_samples", channels)
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"--base_samples {path} has images of {images.shape[1]}x{images.shape[2]}; --small_size is {size}"
        )
    if num_classes and labels is None:
        raise UserError(f"--base_samples {path} has no arr_1; a class-conditional network needs the labels there")
    if num_classes and not ((labels >= 0) & (labels < num_classes)).all():
        raise UserError(
            f"--base_samples {path} has labels outside 0..{num_classes - 1}, which --num_classes {num_classes} allows"
        )
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(labels).long() if num_classes else None
