"""A diffusion network that is told a random vector too, and so can draw its predictions: the generator of a GAN."""

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UserError
from ..flags import WIDTH, FlagGroup, at_least, flag
from ..nn import SiLU, linear
from ..unet import UNetModel
from .fast import enrolled


def latent_dim_flag():
    """The flag of the length of the random vector."""
    return flag(
        0,
        "Length of the random vector z that the network is told, as --objective adversarial trains; 0 is none.",
        legal=at_least(0, WIDTH),
        shared=True,
    )


@dataclass
class LatentFlags(FlagGroup):
    """The latent of a generator."""

    latent_dim: int = latent_dim_flag()


@enrolled
class LatentUNet(UNetModel):
    """A UNetModel that is told `z`, whose embedding adds to that of the time: it scales and shifts normalisations.

    :param latent_dim: the length of z.
    """

    def __init__(self, *args, latent_dim, **config):
        super().__init__(*args, **config)
        self.latent_embed = nn.Sequential(
            linear(latent_dim, self.emb_channels), SiLU(), linear(self.emb_channels, self.emb_channels)
        )

    @property
    def takes(self):
        """As UNetModel's, and `z`."""
        return (*super().takes, "z")

    def forward(self, x, timesteps, y=None, z=None):
        """As UNetModel.forward.

        :param z: [N, latent_dim], normalised to mean square 1 (Karras et al. 2019, section 2).
        :raises UserError: without `z` too.
        """
        if z is None:
            raise UserError("A network with --latent_dim needs z, which --objective adversarial gives in training")
        self._check_labels(x, y)
        normalised = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        return self._predict(x, self._embed(timesteps, y) + self.latent_embed(normalised))
