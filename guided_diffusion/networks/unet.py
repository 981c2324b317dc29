"""The diffusion network of ADM, and the one that enlarges images."""

import re
from dataclasses import dataclass
from functools import partial

import torch

from ..errors import UserError
from ..flags import COUNT_OR_UNSET, FRACTION, IMAGES, SIDE, THREADS, WIDTH, FlagGroup, at_least, flag
from ..unet import SuperResModel, UNetModel
from .latent import LatentUNet
from .levels import (
    CHANNEL_MULTS,
    NUM_CLASSES,
    attention_rates,
    blocks,
    channel_multipliers,
    channels_of,
    check_divisible,
    class_names_flag,
    expect_names,
    image_channels_flag,
    image_size_flag,
    levels_of,
    mult_text,
    scale_shift,
    sizes,
)
from .vae import DraftUNet

# the published 128 -> 512 upsampler is built as the one to 256
SUPER_RES_CHANNEL_MULTS = {**CHANNEL_MULTS, 512: CHANNEL_MULTS[256]}


@dataclass
class UNetFlags(FlagGroup):
    """The diffusion network."""

    image_size: int = image_size_flag()
    image_channels: int = image_channels_flag()
    num_channels: int = flag(128, "Channels of the first level.", legal=at_least(1, WIDTH))
    num_res_blocks: int = flag(2, "Residual blocks per level.", legal=at_least(1, THREADS))
    num_heads: int = flag(4, "Attention heads, where --num_head_channels is -1.", legal=at_least(1, WIDTH), hidden=True)
    num_heads_upsample: int = flag(-1, "Attention heads on the way up; -1 is --num_heads.", legal=COUNT_OR_UNSET)
    num_head_channels: int = flag(
        -1, "Channels per attention head; -1 uses --num_heads.", legal=COUNT_OR_UNSET, hidden=True
    )
    attention_resolutions: str = flag("16,8", "Image sizes at which attention stands.")
    channel_mult: str = flag(
        "", "Channel multipliers of the levels, such as 1,2,3,4; empty takes those of the image size."
    )
    dropout: float = flag(0.0, "Dropout of the residual blocks in training.", legal=FRACTION, free=True, idle=True)
    class_cond: bool = flag(False, "The network is given class labels.", classes=True, essential="data_dir")
    num_classes: int = flag(
        NUM_CLASSES,
        "Number of classes of a class-conditional network.",
        legal=at_least(1, IMAGES),
        classes=True,
        shared=True,
    )
    class_names: str = class_names_flag()
    use_checkpoint: bool = flag(False, "Save memory in training by computing activations twice.", free=True, idle=True)
    use_scale_shift_norm: bool = flag(True, "The timestep scales and shifts the normalisation.")
    resblock_updown: bool = flag(False, "Residual blocks change the resolution, instead of convolutions.")
    use_fp16: bool = flag(False, "Compute the network in float16.", free=True)
    use_bf16: bool = flag(False, "Compute the network in bfloat16.", free=True)
    use_new_attention_order: bool = flag(
        False, "Order of q, k, v and heads in attention, as some checkpoints have it.", hidden=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.use_fp16 and self.use_bf16:
            raise UserError("--use_fp16 True and --use_bf16 True exclude each other; expected one of them")
        expect_names(self.class_names, self.num_classes)

    @property
    def dtype(self):
        """What the network computes in: torch.float16, torch.bfloat16 or torch.float32."""
        return torch.float16 if self.use_fp16 else torch.bfloat16 if self.use_bf16 else torch.float32

    def create(self, learn_sigma, cls=UNetModel):
        """The UNetModel of these flags, its weights in float32."""
        return self.build(cls, self.image_size, learn_sigma)

    def build(self, cls, image_size, learn_sigma, defaults=CHANNEL_MULTS, size_flag="image_size"):
        """The network of a class that takes UNetModel's arguments, for images of a size.

        :param defaults: {image size: channel multipliers} where the flag is empty.
        :param size_flag: the flag of that size, for errors.
        """
        mult = channel_multipliers(self.channel_mult, image_size, defaults, size_flag=size_flag)
        check_divisible(image_size, len(mult), size_flag)
        return cls(
            image_size=image_size,
            in_channels=self.image_channels,
            model_channels=self.num_channels,
            out_channels=self.image_channels * (2 if learn_sigma else 1),
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=attention_rates(self.attention_resolutions, image_size, "attention_resolutions"),
            dropout=self.dropout,
            channel_mult=mult,
            num_classes=self.num_classes if self.class_cond else None,
            use_checkpoint=self.use_checkpoint,
            use_fp16=self.use_fp16,
            num_heads=self.num_heads,
            num_head_channels=self.num_head_channels,
            num_heads_upsample=self.num_heads_upsample,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            use_new_attention_order=self.use_new_attention_order,
        )


@dataclass
class SuperResFlags(FlagGroup):
    """The super-resolution network's sizes."""

    large_size: int = flag(
        256, "Height and width of the images it makes.", legal=at_least(1, SIDE), essential="large_size"
    )
    small_size: int = flag(
        64, "Height and width of the images it is given.", legal=at_least(1, SIDE), hidden=True, essential="small_size"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.small_size > self.large_size:
            raise UserError(
                f"--small_size {self.small_size} is above --large_size {self.large_size}; expected at most that"
            )

    def create(self, unet, learn_sigma, cls=SuperResModel):
        """The SuperResModel of these sizes and UNetFlags (whose image size counts for nothing)."""
        return unet.build(cls, self.large_size, learn_sigma, SUPER_RES_CHANNEL_MULTS, "large_size")


def create(parsed):
    """The UNetModel of Parsed flags, which have --learn_sigma too, and may have --latent_dim or --vae_path.

    :raises UserError: where they have both.
    """
    values, cls = parsed.values(), UNetModel
    latent_dim, vae_path = values.get("latent_dim"), values.get("vae_path")
    if latent_dim and vae_path:
        raise UserError("--latent_dim and --vae_path make networks of different papers; expected one of them")
    if latent_dim:
        cls = partial(LatentUNet, latent_dim=latent_dim)
    if vae_path:
        cls = partial(DraftUNet, form=values["vae_form"])
    return parsed[UNetFlags].create(values["learn_sigma"], cls)


def create_super_res(parsed):
    """The SuperResModel of Parsed flags, which have --learn_sigma too."""
    return parsed[SuperResFlags].create(parsed[UNetFlags], parsed.values()["learn_sigma"])


def flags_of_shapes(state, image_size=None, inputs=1):
    """Flags {name: value} of a UNetModel that its state dict reveals.

    Depth, widths, attention, classes and outputs show in shapes; heads, the order of attention, dropout and
    everything else about the diffusion process do not.

    :param state: {key: tensor}.
    :param image_size: of the network; without it that of the channel multipliers, where those are published.
    :param inputs: images that it is given side by side.
    :return: image_channels, num_channels, num_res_blocks, channel_mult, attention_resolutions, learn_sigma, class_cond,
        num_classes, use_scale_shift_norm, resblock_updown, and image_size where it is known.
    :raises LookupError: if it is no such network; so do ValueError and ZeroDivisionError.
    """
    channels = channels_of(state, inputs)
    if state["out.2.weight"].shape[0] not in (channels, 2 * channels):
        raise ValueError("predictions of another number of channels")
    width = state["time_embed.0.weight"].shape[1]
    outputs = blocks(state, "output_blocks")
    upsampling = [re.match(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers)\.", key) for key in state]
    res_blocks = min((int(match[1]) for match in upsampling if match), default=outputs - 1)
    levels = outputs // (res_blocks + 1)
    starts, mult, attended = levels_of(state, width, levels, res_blocks)
    found = {
        "image_channels": channels,
        "num_channels": width,
        "num_res_blocks": res_blocks,
        "channel_mult": mult_text(mult),
        "learn_sigma": state["out.2.weight"].shape[0] == 2 * channels,
        "class_cond": "label_emb.weight" in state,
        "use_scale_shift_norm": scale_shift(state),
    }
    if levels > 1:
        found["resblock_updown"] = f"input_blocks.{starts[1] - 1}.0.op.weight" not in state
    if found["class_cond"]:
        found["num_classes"] = state["label_emb.weight"].shape[0]
    return {**found, **sizes(mult, attended, image_size, "attention_resolutions")}


def diffusion_flags_of_shapes(state, image_size=None):
    """`flags_of_shapes` of a UNetModel, or of a LatentUNet with latent_dim."""
    found = flags_of_shapes(state, image_size)
    if "latent_embed.0.weight" in state:
        found["latent_dim"] = state["latent_embed.0.weight"].shape[1]
    return found


# a SuperResModel is given the small image beside the noisy one
super_res_flags_of_shapes = partial(flags_of_shapes, inputs=2)
