"""The variational autoencoder that DiffuseVAE begins with (Kingma & Welling 2014, "Auto-Encoding Variational Bayes",
arXiv:1312.6114, equation 10; Pandey et al. 2022, "DiffuseVAE", arXiv:2201.00308, section 3.1).

    loss = sum over pixels |x - dec(z)|^2 + beta KL(q(z | x) || N(0, I)),    z drawn from q(z | x) = N(mean, variance)
    KL = 1/2 sum over z (mean^2 + variance - 1 - log variance)

| paper | here |
| --- | --- |
| x, an image in [0, 1] | (x + 1) / 2 |
| beta | --kl_weight |

Departures: convolutions in place of the release's residual blocks (networks/vae.py), AdamW by --lr in place of Adam.
It computes in float32 alone: its loss is a sum over pixels, which float16 may not hold.
"""

from dataclasses import dataclass

import torch

from ..flags import FlagGroup, at_least, flag
from .objective import Loss, Objective


@dataclass
class VaeObjectiveFlags(FlagGroup):
    """The autoencoder's loss."""

    kl_weight: float = flag(1.0, "Weight of the divergence from the prior.", legal=at_least(0), lasting=True)


class VaeObjective(Objective):
    """The negative lower bound of a VAE, up to constants.

    :param kl_weight: beta.
    """

    flags = (VaeObjectiveFlags,)
    num_timesteps = 1

    def __init__(self, kl_weight=1.0):
        self.kl_weight = kl_weight

    @classmethod
    def create(cls, parsed, diffusion=None):
        return cls(parsed[VaeObjectiveFlags].kl_weight)

    def __call__(self, model, x, cond):
        image, mean, log_variance = model(x)
        squares = ((image - x) / 2).square().flatten(1).sum(dim=1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        value = squares + self.kl_weight * divergence
        terms = {"loss": value, "squares": squares, "divergence": divergence}
        return Loss(value, {k: v.detach() for k, v in terms.items()}, torch.zeros(len(x), dtype=torch.long))
