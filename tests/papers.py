"""A paper for each seam of sampling, for corruption, and for conditioning with its network: as its file would be."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from guided_diffusion.conditioning.conditioning import Conditioning
from guided_diffusion.flags import FRACTION, FlagGroup, at_least, flag
from guided_diffusion.methods.method import Method
from guided_diffusion.networks import NETWORKS, UNetFlags
from guided_diffusion.schedule import per_sample
from guided_diffusion.solvers.step import Solver, Step, transfer
from guided_diffusion.unet import UNetModel


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

    by_brightness: bool = flag(False, "Tell the network whether an image is bright.", free=True)


class Brightness(Conditioning):
    """`bright`, 1 for a bright image, 0 for a dark one and -1 for no word of it."""

    training = sampling = (BrightnessFlags,)
    network = UNetFlags

    @classmethod
    def of_training(cls, parsed):
        return cls() if parsed[BrightnessFlags].by_brightness else None

    of_sampling = of_training

    def of_data(self, x, labels):
        return {"bright": (x.flatten(1).mean(dim=1) > 0).long()}

    def shown(self, count, x, labels):
        return {"bright": torch.arange(count) % 2}

    def of_indices(self, noise, indices):
        return {"bright": torch.tensor([i % 2 for i in indices])}

    @staticmethod
    def dropped(cond):
        return {"bright": torch.full_like(cond["bright"], -1)} if "bright" in cond else {}


class BrightUNet(UNetModel):
    """A UNetModel that is told `bright` too, which adds an embedding to its input."""

    def __init__(self, **config):
        super().__init__(**config)
        self.bright = torch.nn.Embedding(3, config["in_channels"])

    @property
    def takes(self):
        return (*super().takes, "bright")

    def forward(self, x, timesteps, y=None, bright=None):
        told = torch.full_like(timesteps, -1, dtype=torch.long) if bright is None else bright
        return super().forward(x + self.bright(told + 1)[..., None, None].to(x), timesteps, y)


def create_bright(parsed):
    """The BrightUNet of Parsed flags: what stands in the table of networks."""
    unet = parsed[UNetFlags]
    return unet.build(BrightUNet, unet.image_size, parsed.values()["learn_sigma"])


BRIGHT = dataclasses.replace(NETWORKS["diffusion"], create=create_bright)
