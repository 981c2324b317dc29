"""Classifier-free guidance (Ho & Salimans 2022), and its interval (Kynkaanniemi et al. 2024).

The network is asked once with 2N samples, with and without what `conditioning.dropped` leaves out, and its answers are
combined as `without + scale (with - without)`: scale 1 is no guidance, 0 the unconditional network.

| paper | here |
| --- | --- |
| 1 + w of Ho & Salimans, equation 6; w of Kynkaanniemi et al., equation 3 | `guidance_scale` |
| (sigma_lo, sigma_hi], sigma = noise / signal | `guidance_interval` |

Epsilon Scaling stands inside: both answers are divided by the same lambda, and since the combination is linear with
weights that add up to 1, this is the scaling of the combined eps; clipping stands outside and bounds the combined x0.
"""

from dataclasses import dataclass, replace

import torch

from .. import conditioning
from ..denoiser import Prediction
from ..errors import UserError
from ..flags import at_least, flag
from ..schedule import per_sample
from .method import Method


@dataclass
class ClassifierFreeGuidance(Method):
    """Classifier-free guidance (Ho & Salimans 2022)."""

    guidance_scale: float = flag(
        1.0,
        "How far predictions go from the network without classes to that with them, and beyond; 1 is off.",
        legal=at_least(0),
    )
    guidance_interval: str = flag(
        "", "LO,HI: guide only where noise / signal is above LO and at most HI; empty guides everywhere."
    )

    def __post_init__(self):
        super().__post_init__()
        self.low, self.high = _interval(self.guidance_interval)

    def refuse_unread(self, given):
        if self.guidance_interval and self.guidance_scale == 1:
            raise UserError("--guidance_interval does nothing without --guidance_scale")

    def wrap(self, denoise, process):
        if self.guidance_scale == 1:
            return denoise
        return FreeGuidedDenoiser(denoise, self.guidance_scale, self.low, self.high)

    def advice(self, process, trained):
        if self.guidance_scale != 1 and trained and not trained.get("class_dropout"):
            yield (
                f"--guidance_scale {self.guidance_scale} asks the network without classes, and it was trained without "
                "--class_dropout: it has never seen such a question"
            )


def _interval(text):
    """(low, high) of "LO,HI", the bounds of sigma; without bounds for ""."""
    if not text:
        return 0.0, float("inf")
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 <= low < high:
        raise UserError(f"--guidance_interval is {text!r}; expected LO,HI with 0 <= LO < HI, such as 0.3,5")
    return low, high


class FreeGuidedDenoiser:
    """Guides `denoise` away from its own answer without conditions, by one call of 2N samples.

    :param scale: 1 is no guidance.
    :param low, high: guided where low < sigma <= high, with sigma = sqrt(1 / alpha_bar - 1).
    """

    def __init__(self, denoise, scale, low=0.0, high=float("inf")):
        self.denoise = denoise
        self.scale = scale
        self.low = low
        self.high = high

    def __call__(self, x, t, cond):
        without = conditioning.dropped(cond)
        if all(without[name] is cond[name] for name in cond):
            raise UserError(
                f"--guidance_scale {self.scale} needs a network that is told classes; this one is told none"
            )
        both = {name: torch.cat([cond[name], without[name]]) for name in cond}
        answer = self.denoise(torch.cat([x, x]), torch.cat([t, t]), both)
        n = x.shape[0]
        told, untold = (_part(answer, rows) for rows in (slice(None, n), slice(n, None)))
        sigma = (1 / told.alpha_bar - 1).sqrt()
        scale = torch.where((sigma > self.low) & (sigma <= self.high), self.scale, 1.0)
        scale = per_sample(scale, x)
        return replace(told, x0=torch.lerp(untold.x0, told.x0, scale), eps=torch.lerp(untold.eps, told.eps, scale))


def _part(prediction, rows):
    """The Prediction of some of the samples."""
    fields = (prediction.x_t, prediction.alpha_bar, prediction.x0, prediction.eps, prediction.variance)
    return Prediction(*(None if field is None else field[rows] for field in fields))
