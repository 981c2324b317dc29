"""A paper for each seam of sampling, and for corruption and conditioning: what a paper's file would hold."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from guided_diffusion.conditioning.conditioning import Conditioning
from guided_diffusion.flags import FRACTION, FlagGroup, at_least, flag
from guided_diffusion.methods.method import Method
from guided_diffusion.networks import UNetFlags
from guided_diffusion.schedule import per_sample
from guided_diffusion.solvers.step import Solver, Step, transfer


class Lazy(Solver):
    """DDIM that takes a share of each step's change, and the whole of the last."""

    options: ClassVar = {"share": flag(1.0, "Share of a step that the lazy solver takes.", legal=FRACTION)}

    def __init__(self, schedule, share=1.0):
        self.schedule, self.share = schedule, share

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        share = per_sample(torch.where(s < 0, 1.0, self.share), x)
        return Step(x + share * (transfer(prediction, self.schedule.alpha_bar(s)) - x), prediction)


@dataclass
class Dimmed(Method):
    """Dims predicted images: a denoiser."""

    dimming: float = flag(0.0, "Share of the brightness that predictions lose.", legal=FRACTION)

    def wrap(self, denoise, process):
        if not self.dimming:
            return denoise

        def dimmed(x, t, cond):
            prediction = denoise(x, t, cond)
            return prediction.with_x0((1 - self.dimming) * prediction.x0)

        return dimmed


@dataclass
class Late(Method):
    """Tells solver and network a later time: a coupling."""

    late: int = flag(0, "So many timesteps are added to where a step starts.", legal=at_least(0))

    def couple(self, process):
        last = process.schedule.num_timesteps - 1
        return (lambda i, x, t, s: ((t + self.late).clamp(max=last), s)) if self.late else super().couple(process)


@dataclass
class Pulled(Method):
    """Pulls states towards zero: a correction."""

    pull: float = flag(0.0, "Share of a state that is taken off after each step.", legal=FRACTION)

    def correct(self, process):
        return (lambda x, prediction, t, s: (1 - self.pull) * x) if self.pull else super().correct(process)


@dataclass
class Slowed(Method):
    """Trains on the noise of a later time than the network is told: a corruption."""

    slowed: int = flag(
        0, "So many timesteps the noise is ahead of what the network is told.", legal=at_least(0), lasting=True
    )

    def corrupt(self, process):
        last = process.schedule.num_timesteps - 1
        return (
            (lambda noise, t: (noise, (t + self.slowed).clamp(max=last))) if self.slowed else super().corrupt(process)
        )


@dataclass
class BrightnessFlags(FlagGroup):
    """Brightness."""

    by_brightness: bool = flag(False, "Tell the network whether an image is bright, as its class.")


class Brightness(Conditioning):
    """Whether an image is bright, in the place of its class."""

    training = sampling = (BrightnessFlags,)
    network = UNetFlags

    @classmethod
    def of_training(cls, parsed):
        return cls() if parsed[BrightnessFlags].by_brightness else None

    of_sampling = of_training

    def of_data(self, x, labels):
        return {"y": (x.flatten(1).mean(dim=1) > 0).long()}

    def shown(self, count, x, labels):
        return {"y": torch.arange(count) % 2}

    def of_indices(self, noise, indices):
        return {"y": torch.tensor([i % 2 for i in indices])}

    @staticmethod
    def dropped(cond):
        return {"y": torch.full_like(cond["y"], -1)}
