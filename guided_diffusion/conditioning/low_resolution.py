"""The small image that a super-resolution network enlarges."""

import torch
import torch.nn.functional as F

from ..networks import SuperResFlags
from .conditioning import Conditioning


class LowResolution(Conditioning):
    """`low_res`. In sampling, whoever has read the small images makes it.

    :param small_size: its height and width.
    :param base: float32 [M, C, small_size, small_size] in [-1, 1], the images that sampling enlarges in turn, or None.
    """

    network = SuperResFlags
    shows_images = True

    def __init__(self, small_size, base=None):
        self.small_size = small_size
        self.base = base

    @classmethod
    def of_training(cls, parsed):
        return cls(parsed[SuperResFlags].small_size) if SuperResFlags in parsed.groups else None

    def of_data(self, x, labels):
        return {"low_res": shrunk(x, self.small_size)}

    def shown(self, count, x, labels):
        return self.of_data(x, labels)

    def of_indices(self, noise, indices):
        return {"low_res": self.base[torch.tensor(indices) % len(self.base)]}


def shrunk(x, size):
    """Images x [N, C, H, W] as means over areas, [N, C, size, size]."""
    return F.interpolate(x, size, mode="area")
