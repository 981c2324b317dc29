"""An unrolled objective of few weights, and what it is told."""

import numpy as np
import torch
from torch import nn

from guided_diffusion.conditioning.masked import Masked
from guided_diffusion.objectives.unrolled import Unrolled, UnrollFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.script_util import diffusion_of


def seed(number):
    """Let draws of times and of noise begin anew."""
    torch.manual_seed(number)
    np.random.seed(number)


class Line(nn.Module):
    """gain x + by_mask masked, as a network of v."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.by_mask = nn.Parameter(torch.tensor(-0.2))

    def forward(self, x, t, masked, mask, reference):
        return self.gain * x + self.by_mask * masked


class Identity(nn.Module):
    """A classifier of two blocks, of 1 x 1 convolutions."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.input_blocks = nn.ModuleList([nn.Conv2d(3, 4, 1)])
        self.middle_block = nn.Conv2d(4, 4, 1)
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        for p in self.parameters():
            nn.init.normal_(p, generator=generator)

    def forward(self, x, t):
        assert (t == 0).all()
        return self.out(self.middle_block(self.input_blocks[0](x)))


def made(steps=2):
    """(an Unrolled of 12 cosine timesteps, its network)."""
    flags = UnrollFlags(unroll_steps=steps, identity_weight=0.3, perceptual_weight=0.1)
    diffusion = diffusion_of(DiffusionFlags(diffusion_steps=12, noise_schedule="cosine", prediction="v"))
    return Unrolled(diffusion, UniformSampler(diffusion), Identity(), flags), Line()


def told(count, number=0):
    """(images [count, 3, 4, 4], what the network is told of them)."""
    generator = torch.Generator().manual_seed(number)
    x = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return x, Masked(["blocks"]).of_data(x, None)
