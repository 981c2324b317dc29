"""The network that fills holes of images: ADM's, which also sees the image around the hole, the hole, and a reference.

It is the network of REFace (see objectives/unrolled.py) in pixels. Its input is [x_t, masked image, mask], 2 C + 1
channels, and begins as if it saw x_t alone: the weights of the new channels start at zero. The reference, an image and
where it is shown, goes through a small encoder, whose answer is added to the embedding of the time.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..errors import UserError
from ..flags import FlagGroup, flag
from ..nn import SiLU
from ..unet import UNetModel
from .fast import enrolled
from .levels import IMAGE_CHANNELS
from .unet import UNetFlags, flags_of_shapes

# sides of what the encoder of references pools to
POOLED = 4


@dataclass
class InpaintFlags(FlagGroup):
    """The inpainting network."""

    reference_cond: bool = flag(True, "The network is shown a reference that says what the hole is filled with.")


@enrolled
class InpaintModel(UNetModel):
    """A UNet that fills holes.

    The arguments are UNetModel's, and there are no classes.

    :param in_channels: C of one image.
    :param reference: whether it is shown a reference.
    """

    def __init__(self, image_size, in_channels, *args, reference=True, **kwargs):
        super().__init__(image_size, 2 * in_channels + 1, *args, **kwargs)
        nn.init.zeros_(self.input_blocks[0][0].weight[:, in_channels:])
        self.encoder = _encoder(in_channels + 1, self.model_channels, self.emb_channels) if reference else None

    @property
    def shape(self):
        """(C, H, W) of the images it fills."""
        return (self.in_channels // 2, *[self.image_size] * self.dims)

    @property
    def takes(self):
        """Names of what it is told beside x and the timesteps."""
        return ("masked", "mask") if self.encoder is None else ("masked", "mask", "reference")

    def forward(self, x, timesteps, masked=None, mask=None, reference=None):
        """As UNetModel.forward.

        :param masked: [N, C, H, W], the image with 0 in the hole.
        :param mask: [N, 1, H, W], 1 in the hole and 0 around it.
        :param reference: [N, C + 1, H, W], an image and, in the last channel, 1 where it is shown; what is shown
            nowhere is no reference, which adds no embedding.
        :raises UserError: without one of them that it `takes`.
        """
        told = {"masked": masked, "mask": mask, "reference": reference}
        for name in self.takes:
            if told[name] is None:
                raise UserError(f"An inpainting network needs {name}, as conditioning/masked.py makes it")
        emb = self._embed(timesteps)
        if self.encoder is not None:
            shown = reference[:, -1].flatten(1).amax(dim=1) > 0
            emb = emb + self.encoder(reference) * shown[:, None]
        return self._predict(torch.cat([x, masked, mask], dim=1), emb)


def _encoder(channels, width, outputs):
    """From [N, channels, H, W] to [N, outputs]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        SiLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        SiLU(),
        nn.AdaptiveAvgPool2d(POOLED),
        nn.Flatten(),
        nn.Linear(2 * width * POOLED**2, outputs),
    )


def create(parsed):
    """The InpaintModel of Parsed flags, which have --learn_sigma too.

    :raises UserError: for one with classes.
    """
    unet = parsed[UNetFlags]
    if unet.class_cond:
        raise UserError("--class_cond True has no meaning for an inpainting network, which the reference tells instead")
    kind = partial(InpaintModel, reference=parsed[InpaintFlags].reference_cond)
    return unet.build(kind, unet.image_size, parsed.values()["learn_sigma"])


def reveal(state, image_size=None):
    """Flags {name: value} of an InpaintModel that its state dict reveals; arguments and errors as of the UNet's."""
    first = state["input_blocks.0.0.weight"]
    channels = (first.shape[1] - 1) // 2
    if first.shape[1] != 2 * channels + 1 or channels not in IMAGE_CHANNELS:
        raise ValueError(f"{first.shape[1]} input channels")
    plain = {**state, "input_blocks.0.0.weight": first[:, :channels]}
    return {**flags_of_shapes(plain, image_size), "reference_cond": "encoder.0.weight" in state}
