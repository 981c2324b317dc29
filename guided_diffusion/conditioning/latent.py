"""The random vectors of a network with latents: one for each training timestep of an image that is sampled.

So a step's vector is decided by the image and the time, whatever the solver asks and in whatever batch.
"""

import torch

from ..errors import UserError
from ..networks import UNetFlags
from .conditioning import Conditioning


class Latents(Conditioning):
    """`z`, [N, T, latent_dim] in sampling, of which a step takes one. In training the objective draws it.

    :param num_timesteps: T.
    :param latent_dim: length of a vector.
    """

    network = UNetFlags

    def __init__(self, num_timesteps, latent_dim):
        self.shape = num_timesteps, latent_dim

    @classmethod
    def of_training(cls, parsed):
        values = parsed.values()
        return cls(values["diffusion_steps"], values["latent_dim"]) if values.get("latent_dim") else None

    of_sampling = of_training

    def shown(self, count, x, labels):
        return {"z": torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))}

    def of_indices(self, noise, indices):
        if noise is None:
            raise UserError("A network with --latent_dim draws a vector for images that it samples; these are given")
        return {"z": noise.normal(*self.shape)}
