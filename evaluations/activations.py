"""The activations of a set of images, which all ranks compute and rank 0 gathers."""

from typing import NamedTuple

import numpy as np
import torch

from guided_diffusion import dist_util
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import progress

from .fid import Moments, MomentSum


class Activations(NamedTuple):
    """What scores are computed from.

    :ivar count: number of images, 0 where there are only stored statistics.
    :ivar features: float32 [count, D] on the CPU, in the order of the images; None where they were not to be kept.
    :ivar moments: of the features; None where there are fewer than 2 images.
    :ivar spatial: Moments of the spatial features, or None.
    :ivar spatial_features: float32 [count, 2023], as `features`.
    :ivar labels: int [count] of the classes of the images, None where they are not known.
    """

    count: int
    features: torch.Tensor | None
    moments: Moments | None
    spatial: Moments | None
    spatial_features: torch.Tensor | None = None
    labels: np.ndarray | None = None


def activations_of(images, extract, batch_size, keep=True, keep_spatial=False):
    """The Activations of an ImageSet on rank 0, None on other ranks, which call this together.

    A batch holds the same images on any number of ranks, and rank 0 adds up the moments in the images' order, so
    the numbers do not depend on the number of ranks.

    :param extract: `uint8 [n, H, W, C] -> Features`, as an Extractor does.
    :param keep: keep the features; else memory does not depend on the number of images.
    :param keep_spatial: keep the spatial features.
    :raises UserError: if a feature is not finite.
    """
    size = dist_util.world_size()
    mine = images.batches(batch_size, dist_util.rank(), size)
    sets = (_Gathered(images.count, keep), _Gathered(images.count, keep_spatial))
    with progress.shown(images.count, 0, "image", images.flag) as add:
        for _ in range(0, images.count, batch_size * size):
            start, pixels = next(mine, (None, None))
            part = None if start is None else (start, *map(_as_array, extract(pixels)))
            for start, *seen in filter(None, dist_util.gather_object(part) or ()):
                if not all(np.isfinite(each).all() for each in seen if each is not None):
                    raise UserError(f"--{images.flag} {images.path}: features of image {start} and on are not finite")
                for gathered, each in zip(sets, seen):
                    gathered.add(start, each)
                add(len(seen[0]))
    if not dist_util.is_main():
        return None
    pool, spatial = sets
    return Activations(images.count, pool.kept, pool.moments(), spatial.moments(), spatial.kept, images.labels)


class _Gathered:
    """Features in parts: their sums, and themselves where they are to be kept.

    :param count: of all images.
    :param keep: keep the features.
    """

    def __init__(self, count, keep):
        self.count, self.keep, self.kept, self.total = count, keep, None, None

    def add(self, start, features):
        """Count features [n, D] of image `start` and on, which may be None."""
        if features is None:
            return
        features = torch.from_numpy(features)
        if self.total is None:
            self.total = MomentSum(features.shape[1], float64_device())
            self.kept = torch.empty(self.count, features.shape[1]) if self.keep else None
        self.total.add(features)
        if self.keep:
            self.kept[start : start + len(features)] = features

    def moments(self):
        """The Moments on the CPU, None of fewer than 2 images."""
        if self.total is None or self.total.count < 2:
            return None
        found = self.total.moments()
        return Moments(found.mean.cpu(), found.covariance.cpu(), found.count)


def _as_array(features):
    return None if features is None else features.float().cpu().numpy()


def float64_device():
    """The device of this process, or the CPU where that is Metal, which has no float64."""
    device = dist_util.dev()
    return torch.device("cpu") if device.type == "mps" else device
