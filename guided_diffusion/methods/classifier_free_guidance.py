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
from ..scalars import bounded, bounds, ratio
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
        """Whether the levels alpha_bar [N] are in the interval: a bool where that is known of all, else bool [N]."""
        least, most = (ratio(1, min(max(level, 0.0), 1.0)) - 1 for level in reversed(bounds(alpha_bar)))
        if self.low**2 < least and most <= self.high**2:
            return True
        if most <= self.low**2 or least > self.high**2:
            return False
        sigma = (1 / alpha_bar - 1).sqrt()
        return (sigma > self.low) & (sigma <= self.high)

    def check_told(self, told, needs):
        if self.guidance_scale == 1:
            return
        without = _left_out(told, self.guidance_scale)
        if missed := [name for name in needs if name in told and without[name] is not told[name]]:
            what = "a class" if missed == ["y"] else missed[0]
            raise UserError(
                f"--guidance_scale {self.guidance_scale} asks the network without {what}, where it has no answer; "
                "expected 1, or a network that knows of none"
            )

    def advice(self, process, trained):
        levels = process.schedule.alpha_bar(torch.tensor(process.grid))
        if self.guidance_scale != 1 and not torch.as_tensor(self.guided(levels)).any():
            yield (
                f"--guidance_interval {self.guidance_interval} holds the noise / signal of no step of this grid: "
                "nothing is guided"
            )
        names = [kind.left_out_by for kind in conditioning.CONDITIONINGS if kind.left_out_by]
        if self.guidance_scale != 1 and trained and not any(trained.get(name) for name in names):
            name = next((name for name in reversed(names) if name in trained), names[0])
            yield (
                f"--guidance_scale {self.guidance_scale} asks the network without what it is told, and it was trained "
                f"without --{name}: it has never seen such a question"
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

    Where the samples' times differ so that some may be guided and others not, a GPU is asked for both answers of all,
    since reading which are would wait for it.

    :param scale: 1 is no guidance.
    :param guided: `alpha_bar [N] -> bool or bool [N]`, the samples that are; others have the answer with conditions.
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
        if self.channels and self.channels > x.shape[1]:
            raise UserError(f"--guidance_channels is {self.channels}; expected at most the {x.shape[1]} that x has")
        left_out = _left_out(cond, self.scale)
        guided = self.guided(self.process.schedule.alpha_bar(t))
        if guided is False:
            return self.denoise(x, t, cond)
        alone = self.scale == 0 and self.channels is None
        if guided is True and alone:
            return self.denoise(x, t, left_out)
        if guided is not True and guided.device.type == "cpu":
            return self._of_some(x, t, cond, left_out, guided)
        asked = {name: torch.cat([cond[name], left_out[name]]) for name in cond}
        twice = bounded(torch.cat([t, t]), *bounds(t))
        with self.process.repeating(len(x)):
            answer = self.denoise(torch.cat([x, x]), twice, asked)
        told, untold = (_part(answer, torch.narrow, 0, start, len(x)) for start in (0, len(x)))
        mixed = untold if alone else _mixed(untold, told, self.scale, self.channels)
        return mixed.where(guided, told)

    def _of_some(self, x, t, cond, left_out, guided):
        """The answer where some samples are guided and some are not, of which no answer is asked that has no use."""
        inside = guided.nonzero()[:, 0]
        if self.scale == 0 and self.channels is None:
            asked = {name: values.index_copy(0, inside, left_out[name][inside]) for name, values in cond.items()}
            return self.denoise(x, t, asked)
        asked = {name: torch.cat([values, left_out[name][inside]]) for name, values in cond.items()}
        with self.process.repeating(len(inside)):
            answer = self.denoise(torch.cat([x, x[inside]]), torch.cat([t, t[inside]]), asked)
        if not len(inside):
            return answer
        told = _part(answer, torch.narrow, 0, 0, len(x))
        untold = _part(answer, torch.narrow, 0, len(x), len(inside))
        mixed = _mixed(untold, _part(told, torch.index_select, 0, inside), self.scale, self.channels)
        parts = {name: getattr(told, name).clone() for name in ("x0", "eps") if name in mixed.given}
        for name, values in parts.items():
            values[inside] = getattr(mixed, name)
        return replace(told, **({"x0": None, "eps": None} | parts))


def _mixed(untold, told, scale, channels):
    """without + scale (with - without), of whichever of x0 and eps the answers have, in the first `channels`."""
    mixed = {name: torch.lerp(getattr(untold, name), getattr(told, name), scale) for name in told.given}
    if channels is not None:
        for name, values in mixed.items():
            parts = values.narrow(1, 0, channels), getattr(told, name).narrow(1, channels, values.shape[1] - channels)
            mixed[name] = torch.cat(parts, dim=1)
    return replace(told, **({"x0": None, "eps": None} | mixed))


def _left_out(cond, scale):
    """`conditioning.dropped` of cond.

    :raises UserError: if that leaves all in.
    """
    without = conditioning.dropped(cond)
    if all(without[name] is cond[name] for name in cond):
        told = f"{', '.join(cond)} alone" if cond else "nothing"
        raise UserError(
            f"--guidance_scale {scale} needs a network that is told a class or a reference; this one is told {told}"
        )
    return without


def _part(prediction, pick, *rows):
    """The Prediction of some of the samples, of which `pick(tensor, *rows)` gives tensors."""
    derived = {"x0", "eps"} - {*prediction.given}
    values = {f.name: None if f.name in derived else getattr(prediction, f.name) for f in fields(prediction)}
    values = {name: None if value is None else pick(value, *rows) for name, value in values.items()}
    bounded(values["alpha_bar"], *bounds(prediction.alpha_bar))
    return replace(prediction, **values)
