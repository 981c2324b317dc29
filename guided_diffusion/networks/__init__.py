"""The networks: a network is one file, with its flags and how they are read from a checkpoint, and one line here."""

from collections.abc import Callable
from dataclasses import dataclass, field

from . import classifier, inpaint, unet, vae
from .classifier import ClassifierFlags
from .fast import (  # noqa: F401 (the package's own names)
    DIRECT,
    ConvFlags,
    compiled,
    compute_by,
    computing_by,
    described,
    for_inference,
    for_training,
    slow_halves,
)
from .inpaint import InpaintFlags
from .latent import LatentFlags
from .levels import CHANNEL_MULTS
from .unet import SUPER_RES_CHANNEL_MULTS, SuperResFlags, UNetFlags
from .vae import DraftFlags, VaeFlags


@dataclass(frozen=True)
class Network:
    """A kind of network: its flags, how they build it, and how a checkpoint tells them.

    :ivar what: in words.
    :ivar mark: a flag that the flags beside such a checkpoint have.
    :ivar groups: its flag groups; the first knows the `dtype` that it computes in.
    :ivar variants: those of them that say nothing at their defaults, of which published networks know nothing.
    :ivar create: `Parsed -> network`, its weights in float32; `network.shape` is (C, H, W) of the images it takes.
    :ivar reveal: `(state dict, image size or None) -> {flag: value}`, with the size as image_size where it is known;
        raises a LookupError, ValueError or ZeroDivisionError for the tensors of another network.
    :ivar process: which flags of the diffusion process describe it too: "all", those marked "noising", or "none".
    :ivar size_flag: the flag of its image size.
    :ivar mult_flag: the flag of its channel multipliers, "" if it has none.
    :ivar defaults: {image size: channel multipliers} where that flag is empty.
    """

    what: str
    mark: str
    groups: tuple
    create: Callable
    reveal: Callable
    process: str = "all"
    size_flag: str = "image_size"
    mult_flag: str = ""
    defaults: dict = field(default_factory=dict)
    variants: tuple = ()


# A checkpoint is the first of them whose mark its flags have.
NETWORKS = {
    "super_res": Network(
        "a super-resolution network",
        "large_size",
        (UNetFlags, SuperResFlags),
        unet.create_super_res,
        unet.super_res_flags_of_shapes,
        size_flag="large_size",
        mult_flag="channel_mult",
        defaults=SUPER_RES_CHANNEL_MULTS,
    ),
    "inpaint": Network(
        "an inpainting network",
        "reference_cond",
        (UNetFlags, InpaintFlags),
        inpaint.create,
        inpaint.reveal,
        mult_flag="channel_mult",
        defaults=CHANNEL_MULTS,
    ),
    "classifier": Network(
        "a classifier",
        "classifier_width",
        (ClassifierFlags,),
        classifier.create,
        classifier.flags_of_shapes,
        process="noising",
        mult_flag="classifier_channel_mult",
        defaults=CHANNEL_MULTS,
    ),
    "autoencoder": Network(
        "an autoencoder",
        "vae_latent_dim",
        (VaeFlags,),
        vae.create,
        vae.flags_of_shapes,
        process="none",
    ),
    "diffusion": Network(
        "a diffusion network",
        "num_channels",
        (UNetFlags, LatentFlags, DraftFlags),
        unet.create,
        unet.diffusion_flags_of_shapes,
        mult_flag="channel_mult",
        defaults=CHANNEL_MULTS,
        variants=(LatentFlags, DraftFlags),
    ),
}
