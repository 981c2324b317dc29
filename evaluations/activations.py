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
    """

    count: int
    features: torch.Tensor | None
    moments: Moments | None
    spatial: Moments | None


def activations_of(images, extract, batch_size, keep=True):
    """The Activations of an ImageSet on rank 0, None on other ranks, which call this together.

    A batch holds the same images on any number of ranks, and rank 0 adds up the moments in the images' order, so
    the numbers do not depend on the number of ranks.

    :param extract: `uint8 [n, H, W, C] -> Features`, as an Extractor does.
    :param keep: keep the features; else memory does not depend on the number of images.
    :raises UserError: if a feature is not finite.
    """
    size = dist_util.world_size()
    mine = images.batches(batch_size, dist_util.rank(), size)
    features, moments, spatial = None, None, None
    with progress.shown(images.count, 0, "image", images.flag) as add:
        for _ in range(0, images.count, batch_size * size):
            start, pixels = next(mine, (None, None))
            part = None if start is None else (start, *map(_as_array, extract(pixels)))
            for start, seen, seen_spatial in filter(None, dist_util.gather_object(part) or ()):
                if not np.isfinite(seen).all():
                    raise UserError(f"--{images.flag} {images.path}: features of image {start} and on are not finite")
                if moments is None:
                    features = torch.empty(images.count, seen.shape[1]) if keep else None
                    moments = _sum_like(seen)
                    spatial = None if seen_spatial is None else _sum_like(seen_spatial)
                if keep:
                    features[start : start + len(seen)] = torch.from_numpy(seen)
                moments.add(torch.from_numpy(seen))
                if spatial is not None:
                    spatial.add(torch.from_numpy(seen_spatial))
                add(len(seen))
    if not dist_util.is_main():
        return None
    return Activations(images.count, features, _moments(moments), _moments(spatial))


def _as_array(features):
    return None if features is None else features.float().cpu().numpy()


def _sum_like(features):
    return MomentSum(features.shape[1], float64_device())


def float64_device():
    """The device of this process, or the CPU where that is Metal, which has no float64."""
    device = dist_util.dev()
    return torch.device("cpu") if device.type == "mps" else device


def _moments(total):
    if total is None or total.count < 2:
        return None
    found = total.moments()
    return Moments(found.mean.cpu(), found.covariance.cpu(), found.count)
