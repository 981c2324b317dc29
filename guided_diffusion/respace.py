"""Sampling with fewer steps: a process over some of its training timesteps."""

from .gaussian_diffusion import GaussianDiffusion
from .spacing import space_timesteps

__all__ = ["SpacedDiffusion", "space_timesteps"]


class SpacedDiffusion(GaussianDiffusion):
    """A GaussianDiffusion that visits only some of its training timesteps.

    :param use_timesteps: the training timesteps to keep, in any order.
    :param kwargs: as GaussianDiffusion; `betas` are those of the whole training process.
    """

    def __init__(self, use_timesteps, **kwargs):
        self.use_timesteps = set(use_timesteps)
        self.original_num_steps = len(kwargs["betas"])
        super().__init__(grid=sorted(self.use_timesteps), **kwargs)
