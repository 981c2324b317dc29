"""Classifier-free guidance (Ho & Salimans 2022), and its interval (Kynkaanniemi et al. 2024).

The network is asked once, of each sample with and without what `conditioning.dropped` leaves out, and its answers are
combined as `without + scale (with - without)`: scale 1 is no guidance, 0 the unconditional network. What a combination
has no use for is not asked: the second answer outside the interval, the first within it at scale 0. A learned variance
is that of the answer with classes; where that is not asked, of the other.

| paper | here |
| --- | --- |
| 1 + w of Ho & Salimans, equation 6; w of Kynkaanniemi et al., equation 3 | `guidance_scale` |
| (sigma_lo, sigma_hi], sigma = noise / signal | `guidance_interval` |
| C' < C of DiT's release, which guides three of four latent channels | `guidance_channels` |

Epsilon Scaling stands inside: both answers are divided by the same lambda, and since the combination is linear with
weights that add up to 1, this is the scaling of the combined eps; clipping stands outside and bounds the combined x0.
"""

from dataclasses import dataclass, fields, replace

import torch

from .. import conditioning
from ..errors import UserError
from ..flags import at_least, flag, number
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

    guidance_channels: int = flag(
        0, "Guide the first so many channels alone, 3 as DiT's release does; 0 guides all.", legal=at_least(0)
    )

    def __post_init__(self):
        super().__post_init__()
        self.low, self.high = _interval(self.guidance_interval)
        if self.guidance_interval and self.guidance_scale == 1:
            raise UserError("--guidance_interval does nothing without --guidance_scale")
        if self.guidance_channels and self.guidance_scale == 1:
            raise UserError("--guidance_channels does nothing without --guidance_scale")

    def wrap(self, denoise, process):
        if self.guidance_scale == 1:
            return denoise
        return FreeGuidedDenoiser(denoise, self.guidance_scale, self.guided, process, self.guidance_channels or None)

    def suspect(self, process):
        guides = self.guidance_scale != 1
        return f"a --guidance_scale nearer to 1 than {self.guidance_scale:g} moves images less" if guides else ""

    def guided(self, alpha_bar):
        """Whether the levels alpha_bar [N] are in the interval: bool [N]."""
        sigma = (1 / alpha_bar - 1).sqrt()
        return (sigma > self.low) & (sigma <= self.high)

    def check_told(self, told):
        if self.guidance_scale != 1:
            _left_out(told, self.guidance_scale)

    def advice(self, process, trained):
        if self.guidance_scale != 1 and not self.guided(process.schedule.alpha_bar(torch.tensor(process.grid))).any():
            yield (
                f"--guidance_interval {self.guidance_interval} holds the noise / signal of no step of this grid: "
                "nothing is guided"
            )
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
        low, high = (number(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 <= low < high:
        raise UserError(f"--guidance_interval is {text!r}; expected LO,HI with 0 <= LO < HI, such as 0.3,5")
    return low, high


class FreeGuidedDenoiser:
    """Guides `denoise` away from its own answer without conditions, by one call for all the answers that it needs.

    Which samples are guided is read from the device once a call, a bool for each.

    :param scale: 1 is no guidance.
    :param guided: `alpha_bar [N] -> bool [N]`, the samples that are; the others have the answer with conditions.
    :param process: the Process, whose schedule has the levels.
    :param channels: the first that are guided; None guides all. The others are those of the answer with conditions.
    """

    def __init__(self, denoise, scale, guided, process, channels=None):
        self.denoise = denoise
        self.scale = scale
        self.guided = guided
        self.process = process
        self.channels = channels

    def __call__(self, x, t, cond):
        left_out = _left_out(cond, self.scale)
        guided = self.guided(self.process.schedule.alpha_bar(t))
        inside = guided.nonzero()[:, 0]
        alone = self.scale == 0 and self.channels is None
        told = (~guided).nonzero()[:, 0] if alone else torch.arange(len(x), device=x.device)
        rows = torch.cat([told, inside])
        asked = {name: torch.cat([cond[name][told], left_out[name][inside]]) for name in cond}
        with self.process.repeating(len(rows) - len(x)):
            answer = self.denoise(x[rows], t[rows], asked)
        if alone:
            return _part(answer, rows.argsort())
        if not len(inside):
            return answer
        untold, told = _part(answer, slice(len(x), None)), _part(answer, slice(len(x)))
        x0, eps = told.x0.clone(), told.eps.clone()
        for whole, own, other in ((x0, told.x0, untold.x0), (eps, told.eps, untold.eps)):
            whole[inside, : self.channels] = torch.lerp(other, own[inside], self.scale)[:, : self.channels]
        return replace(told, x0=x0, eps=eps)


def _left_out(cond, scale):
    """`conditioning.dropped` of cond.

    :raises UserError: if that leaves all in.
    """
    without = conditioning.dropped(cond)
    if all(without[name] is cond[name] for name in cond):
        raise UserError(f"--guidance_scale {scale} needs a network that is told classes; this one is told none")
    return without


def _part(prediction, rows):
    """The Prediction of some of the samples."""
    values = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    return replace(prediction, **{name: None if value is None else value[rows] for name, value in values.items()})
