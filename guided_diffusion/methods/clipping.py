"""What keeps predicted images in the pixel range [-1, 1]: clamping, or dynamic thresholding.

Clamping stands inside classifier guidance, as published, and outside classifier-free guidance; dynamic thresholding
(Saharia et al. 2022, "Imagen", section 2.3) takes its place outermost, since guidance is what it is meant to bound.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from ..flags import Legal, flag
from ..scalars import per_sample
from .method import Method


@dataclass
class Clipping(Method):
    """The range of predictions."""

    clip_denoised: bool = flag(True, "Clip the predicted clean images to the pixel range at each step.")

    def wrap(self, denoise, process):
        if not self.clip_denoised or process.method(Thresholding).dynamic:
            return denoise
        return ClippedDenoiser(denoise)

    def suspect(self, process):
        bounds = self.clip_denoised or process.method(Thresholding).dynamic
        return "" if bounds else "--clip_denoised True bounds what is predicted"


@dataclass
class Thresholding(Method):
    """The thresholding of predictions."""

    thresholding: str = flag(
        "static",
        "How --clip_denoised keeps predicted images in the pixel range: clamped, or each scaled by its own percentile.",
        choices=("static", "dynamic"),
    )
    threshold_percentile: float = flag(
        99.5,
        "Percentile of an image's absolute values that dynamic thresholding scales to 1.",
        legal=Legal("above 0, up to 100", lambda value: 0 < value <= 100),
    )

    @property
    def dynamic(self):
        """Whether it takes the place of clamping."""
        return self.thresholding == "dynamic"

    def refuse_unread(self, given):
        if "threshold_percentile" in given and not self.dynamic:
            raise UserError(
                f"--threshold_percentile {self.threshold_percentile} is read by --thresholding dynamic alone"
            )

    def check(self, process, solver):
        if self.dynamic and not process.method(Clipping).clip_denoised:
            raise UserError("--thresholding dynamic contradicts --clip_denoised False, which leaves predictions alone")

    def wrap(self, denoise, process):
        if not self.dynamic:
            return denoise
        return ClippedDenoiser(denoise, lambda x0: dynamic_threshold(x0, self.threshold_percentile), clip=False)


class ClippedDenoiser:
    """Changes x0 by `denoised_fn` (any function of x0), then clamps it to [-1, 1]; eps follows.

    :param clip: False leaves the range alone.
    """

    def __init__(self, denoise, denoised_fn=None, clip=True):
        self.denoise = denoise
        self.clip = clip
        self.denoised_fn = denoised_fn

    def __call__(self, x, t, cond):
        return self.apply(self.denoise(x, t, cond))

    def apply(self, prediction):
        """The clipped prediction; the very same object where there is nothing to do."""
        if self.denoised_fn is not None:
            x0 = self.denoised_fn(prediction.x0)
            x0 = x0.clamp(-1, 1) if self.clip else x0
            return prediction if x0 is prediction.x0 else prediction.with_x0(x0)
        if not self.clip:
            return prediction
        if "x0" in prediction.given:
            return prediction.with_x0(prediction.x0.clamp(-1, 1))
        return prediction.with_x0(prediction.derived("x0").clamp_(-1, 1))


def dynamic_threshold(x0, percentile=99.5):
    """x0 [N, C, ...] drawn into [-1, 1], image by image, by the `percentile` of its absolute values if above 1.

    A `denoised_fn`. Saharia et al. 2022 ("Imagen"), section 2.3; Lu et al. 2022 ("DPM-Solver++"), appendix on
    thresholding, with 99.5.
    """
    limits = per_sample(quantile(x0.flatten(1).abs().float(), percentile / 100).clamp(min=1), x0)
    return x0.clamp(-limits, limits).div_(limits)


def quantile(rows, share):
    """The `share` quantile [N] of each of the rows [N, D], linear between two values, by one partial sort for all.

    torch.quantile sorts them whole, and no more than 16 million entries at once.
    """
    rank = float(np.float32(share) * np.float32(rows.shape[1] - 1))
    below = math.floor(rank)
    # the largest first; the last two of them are those on either side of the rank
    largest = rows.topk(rows.shape[1] - below, dim=1).values
    return torch.lerp(largest.select(1, -1), largest.select(1, max(largest.shape[1] - 2, 0)), rank - below)
