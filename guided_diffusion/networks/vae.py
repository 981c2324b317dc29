"""The variational autoencoder of DiffuseVAE, and the diffusion network that refines its images."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..flags import WIDTH, FlagGroup, at_least, flag, may_be_known
from ..nn import SiLU
from ..unet import SuperResModel
from .fast import enrolled
from .levels import (
    IMAGE_CHANNELS,
    blocks,
    channel_multipliers,
    check_divisible,
    image_channels_flag,
    image_size_flag,
    mult_text,
    widths_of,
)


@dataclass
class VaeFlags(FlagGroup):
    """The autoencoder."""

    image_size: int = image_size_flag()
    image_channels: int = image_channels_flag()
    vae_latent_dim: int = flag(64, "Length of the autoencoder's latent.", legal=at_least(1, WIDTH))
    vae_channels: int = flag(32, "Channels that the autoencoder's multipliers multiply.", legal=at_least(1, WIDTH))
    vae_channel_mult: str = flag("1,2", "Channel multipliers of the autoencoder's levels, each with half the side.")

    dtype = torch.float32

    def create(self):
        """The VAE of these flags."""
        mult = channel_multipliers(self.vae_channel_mult, self.image_size, {}, name="vae_channel_mult")
        check_divisible(self.image_size, len(mult) + 1)
        widths = widths_of(mult, self.vae_channels, "vae_channels")
        return VAE(self.image_size, self.image_channels, widths, self.vae_latent_dim)


@dataclass
class DraftFlags(FlagGroup):
    """Drafts of an autoencoder."""

    vae_path: str = flag(
        "",
        "Checkpoint of vae_train.py, whose image the network is told to refine (DiffuseVAE); empty for none.",
        content=True,
        free=True,
        opens="autoencoder",
    )
    vae_form: str = flag(
        "1",
        "How (DiffuseVAE): 1 gives the image beside x_t, 2 diffuses around it as well.",
        choices=("1", "2"),
    )
    # the VAE of --vae_path, once it is opened
    autoencoder: Any = field(default=None, repr=False, compare=False)

    def refuse_unread(self, given):
        if "vae_form" in given and not self.vae_path and not may_be_known("vae_path", given):
            raise UserError(f"--vae_form {self.vae_form} does nothing without --vae_path")


class VAE(nn.Module):
    """Convolutions that halve the side a level to a diagonal normal q(z | x), and back to an image.

    :param widths: channels of the levels.
    """

    def __init__(self, image_size, image_channels, widths, latent_dim):
        super().__init__()
        self.shape = (image_channels, image_size, image_size)
        self.latent_dim = latent_dim
        inner, last = (widths[-1], *[image_size >> len(widths)] * 2), widths[-1] * (image_size >> len(widths)) ** 2
        down = zip([image_channels, *widths], widths)
        up = zip(widths[::-1], [*widths[-2::-1], widths[0]])
        self.encoder = nn.ModuleList(_level(nn.Conv2d(a, b, 3, 2, 1), nn.Conv2d(b, b, 3, 1, 1)) for a, b in down)
        self.to_latent = nn.Linear(last, 2 * latent_dim)
        self.of_latent = nn.Sequential(nn.Linear(latent_dim, last), nn.Unflatten(1, inner))
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), *_level(nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(b, b, 3, 1, 1)))
            for a, b in up
        )
        self.out = nn.Conv2d(widths[0], image_channels, 3, 1, 1)

    def encode(self, x):
        """(mean, log variance) [N, latent_dim] of q(z | x), of images x [N, C, H, W] in [-1, 1]."""
        for level in self.encoder:
            x = level(x)
        return self.to_latent(x.flatten(1)).chunk(2, dim=1)

    def decode(self, z):
        """Images [N, C, H, W] in [-1, 1] of latents z [N, latent_dim]."""
        h = self.of_latent(z)
        for level in self.decoder:
            h = level(h)
        return 2 * self.out(h).sigmoid() - 1

    def forward(self, x):
        """(images of latents drawn from q(z | x), its mean, its log variance)."""
        mean, log_variance = self.encode(x)
        return self.decode(drawn(mean, log_variance)), mean, log_variance


def drawn(mean, log_variance):
    """z [N, D] of a diagonal normal."""
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def _level(*convolutions):
    return nn.Sequential(*(part for layer in convolutions for part in (layer, SiLU())))


def create(parsed):
    """The VAE of Parsed flags."""
    return parsed[VaeFlags].create()


def flags_of_shapes(state, image_size=None):
    """Flags {name: value} of a VAE that its state dict reveals; arguments and errors as of the UNet's.

    Of `vae_channels` and its multipliers it tells the products, so the first level's multiplier is taken for 1.
    """
    widths = [state[f"encoder.{i}.0.weight"].shape[0] for i in range(blocks(state, "encoder"))]
    channels, latent = state["encoder.0.0.weight"].shape[1], state["to_latent.weight"].shape[0] // 2
    if channels not in IMAGE_CHANNELS:
        raise ValueError(f"images of {channels} channels")
    side = round((state["to_latent.weight"].shape[1] / widths[-1]) ** 0.5) << len(widths)
    found = {"image_channels": channels, "image_size": side, "vae_latent_dim": latent, "vae_channels": widths[0]}
    return {**found, "vae_channel_mult": mult_text(width / widths[0] for width in widths)}


@enrolled
class DraftUNet(SuperResModel):
    """A UNet that sees, beside the noisy image, the image of an autoencoder that it is to refine.

    The arguments are UNetModel's.

    :param form: of DiffuseVAE, see conditioning/vae.py.
    """

    def __init__(self, *args, form="1", **config):
        super().__init__(*args, **config)
        self.form = form

    @property
    def takes(self):
        """As UNetModel's, and `draft`."""
        return ("draft", *[name for name in super().takes if name != "low_res"])

    def forward(self, x, timesteps, draft=None, **told):
        """As UNetModel.forward.

        :param x: [N, C, H, W]; in form 2 without the draft, which it diffuses around.
        :param draft: [N, C, H, W] in [-1, 1].
        :raises UserError: without `draft` too.
        """
        if draft is None:
            raise UserError(
                "A network with --vae_path needs draft, the autoencoder's images; expected a script that draws them, "
                "such as scripts/image_sample.py"
            )
        return super().forward(x + draft if self.form == "2" else x, timesteps, low_res=draft, **told)
