"""The image of a variational autoencoder, which a diffusion network refines (Pandey et al. 2022, "DiffuseVAE:
Efficient, Controllable and High-Fidelity Generation from Low-Dimensional Latents", arXiv:2201.00308).

A VAE, trained by scripts/vae_train.py (objectives/vae.py) and then frozen, draws xh from its latent z; the diffusion
network draws the image given xh. In training z is drawn from q(z | x), in sampling from N(0, I).

- Form 1 (section 3.2): q(x_t | x_0) = N(al x_0, sg^2 I) as always, and the network is told xh beside x_t.
- Form 2: q(x_t | x_0, xh) = N(al x_0 + xh, sg^2 I), so that x_T = xh + noise. Then x_0 = (x_t - xh - sg eps) / al, the
  posterior's mean is c1 x_0 + c2 x_t + (1 - c2) xh, and DDIM's step is al' x_0 + sg' eps + xh: in u_t = x_t - xh they
  are the posterior and the step of form 1. So form 2 is the ordinary process of u_t, of which the network is shown
  u_t + xh: solvers, grids and methods act on u_t, whose variance is what Time Shift searches, and the last state is the
  image.

| paper | here |
| --- | --- |
| x-hat_0, xh above | `draft` |
| alpha_t bar; al, sg | alpha_bar; sqrt(alpha_bar), sqrt(1 - alpha_bar) |
| formulation 1 and 2 | --vae_form |

Departures: in form 2 too the network is told xh beside u_t + xh. No density is fitted to the latents of the data after
training (the paper's ex-PDE): z is drawn from the prior. Classes, where there are any, are told beside an image that
does not know them.
"""

import torch

from ..errors import UserError
from ..networks import DraftFlags, UNetFlags
from ..networks.vae import drawn
from .conditioning import Conditioning


class Drafts(Conditioning):
    """`draft`, the image [N, C, H, W] of a VAE.

    :param vae: a frozen VAE, on this rank's device.
    :param shape: (C, H, W) of the images of the diffusion network.
    :raises UserError: for a VAE of other images.
    """

    training = sampling = (DraftFlags,)
    network = UNetFlags

    def __init__(self, vae, shape):
        if vae.shape != shape:
            made, expected = ("x".join(map(str, sizes)) for sizes in (vae.shape, shape))
            raise UserError(f"--vae_path makes images of {made}; the diffusion network makes {expected}")
        self.vae = vae.requires_grad_(False)

    @classmethod
    def of_training(cls, parsed):
        if DraftFlags not in parsed.groups or parsed[DraftFlags].autoencoder is None:
            return None
        values = parsed.values()
        size = values["large_size"] if "large_size" in values else values["image_size"]
        return cls(parsed[DraftFlags].autoencoder, (values["image_channels"], size, size))

    of_sampling = of_training

    def of_data(self, x, labels):
        with torch.no_grad():
            return {"draft": self.vae.decode(drawn(*self.vae.encode(x)))}

    def shown(self, count, x, labels):
        return self._of(torch.randn(count, self.vae.latent_dim, generator=torch.Generator().manual_seed(0)))

    def of_indices(self, noise, indices):
        if noise is None:
            raise UserError("A network with --vae_path has a draft of images that it samples alone; these are given")
        return self._of(noise.normal(self.vae.latent_dim))

    def _of(self, z):
        with torch.no_grad():
            return {"draft": self.vae.decode(z.to(next(self.vae.parameters()))).cpu()}
