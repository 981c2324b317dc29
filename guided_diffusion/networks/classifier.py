"""The noisy classifier of ADM."""

from dataclasses import dataclass

import torch

from ..errors import UserError
from ..flags import COUNT_OR_UNSET, IMAGES, THREADS, WIDTH, FlagGroup, at_least, flag
from ..unet import EncoderUNetModel
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


@dataclass
class ClassifierFlags(FlagGroup):
    """The noisy classifier."""

    image_size: int = image_size_flag()
    image_channels: int = image_channels_flag()
    num_classes: int = flag(NUM_CLASSES, "Number of classes.", legal=at_least(1, IMAGES), classes=True, shared=True)
    class_names: str = class_names_flag()
    classifier_use_fp16: bool = flag(False, "Compute the classifier in float16.", free=True)
    classifier_width: int = flag(128, "Channels of the classifier's first level.", legal=at_least(1, WIDTH))
    classifier_depth: int = flag(2, "Residual blocks per level of the classifier.", legal=at_least(1, THREADS))
    classifier_attention_resolutions: str = flag("32,16,8", "Image sizes at which the classifier has attention.")
    classifier_use_scale_shift_norm: bool = flag(True, "The timestep scales and shifts the classifier's normalisation.")
    classifier_resblock_updown: bool = flag(True, "Residual blocks of the classifier change the resolution.")
    classifier_pool: str = flag(
        "attention",
        "How the classifier turns features into logits.",
        choices=("adaptive", "attention", "spatial", "spatial_v2"),
    )
    classifier_num_head_channels: int = flag(
        64, "Channels per attention head of the classifier.", legal=COUNT_OR_UNSET, hidden=True
    )
    classifier_channel_mult: str = flag(
        "", "Channel multipliers of the classifier; empty takes those of the image size."
    )

    def __post_init__(self):
        super().__post_init__()
        expect_names(self.class_names, self.num_classes)

    @property
    def dtype(self):
        """What the classifier computes in: torch.float16 or torch.float32."""
        return torch.float16 if self.classifier_use_fp16 else torch.float32

    def create(self, cls=EncoderUNetModel):
        """The EncoderUNetModel of these flags, with `num_classes` logits, its weights in float32."""
        size, resolutions = self.image_size, self.classifier_attention_resolutions
        mult = channel_multipliers(self.classifier_channel_mult, size, name="classifier_channel_mult")
        check_divisible(size, len(mult))
        try:
            return cls(
                image_size=size,
                in_channels=self.image_channels,
                model_channels=self.classifier_width,
                out_channels=self.num_classes,
                num_res_blocks=self.classifier_depth,
                attention_resolutions=attention_rates(resolutions, size, "classifier_attention_resolutions"),
                channel_mult=mult,
                use_fp16=self.classifier_use_fp16,
                num_head_channels=self.classifier_num_head_channels,
                use_scale_shift_norm=self.classifier_use_scale_shift_norm,
                resblock_updown=self.classifier_resblock_updown,
                pool=self.classifier_pool,
            )
        except UserError as error:
            # the layers name the diffusion network's flags
            message = str(error).replace("--num_channels", "--classifier_width")
            raise UserError(message.replace("--num_head_channels", "--classifier_num_head_channels")) from error


def create(parsed):
    """The EncoderUNetModel of Parsed flags."""
    return parsed[ClassifierFlags].create()


def flags_of_shapes(state, image_size=None):
    """Flags {name: value} of an EncoderUNetModel that its state dict reveals; arguments and errors as of the UNet's.

    How many levels there are follows from convolutions that down-sample, else from where widths and attention
    change; what fits several ways is read as a published network, else as one of few levels.
    """
    if blocks(state, "output_blocks"):
        raise ValueError("a network with a way up")
    width, count = state["time_embed.0.weight"].shape[1], blocks(state, "input_blocks")
    convs = [i for i in range(count) if f"input_blocks.{i}.0.op.weight" in state]
    depth = convs[0] - 1 if convs else _depth(state, width, count, image_size)
    levels = count // (depth + 1)
    _, mult, attended = levels_of(state, width, levels, depth)
    found = {
        "image_channels": channels_of(state),
        "classifier_width": width,
        "classifier_depth": depth,
        "classifier_channel_mult": mult_text(mult),
        "classifier_use_scale_shift_norm": scale_shift(state),
        **_pool_and_classes(state),
    }
    if levels > 1:
        found["classifier_resblock_updown"] = not convs
    return {**found, **sizes(mult, attended, image_size, "classifier_attention_resolutions")}


def _depth(state, width, count, image_size):
    """Residual blocks per level of `count` blocks of an encoder whose down-sampling looks like any residual block."""
    widths = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in range(1, count)]
    attended = [f"input_blocks.{i}.1.qkv.weight" in state for i in range(1, count)]
    mults = {}
    for depth in (d for d in range(1, count) if count % (d + 1) == 0):
        levels = [slice(i, i + depth + 1) for i in range(0, count, depth + 1)]
        # one width a level; attention after all of its blocks or none, and never after the one that down-samples
        fits = all(len(set(widths[k])) == 1 and len(set(attended[k][:depth])) == 1 for k in levels)
        if fits and not any(any(attended[k][depth:]) for k in levels):
            mults[depth] = tuple(widths[k.start] for k in levels)
    published = [CHANNEL_MULTS[image_size]] if image_size in CHANNEL_MULTS else list(CHANNEL_MULTS.values())
    return next((depth for depth, mult in mults.items() if mult in published), max(mults))


def _pool_and_classes(state):
    if "out.2.positional_embedding" in state:
        return {"classifier_pool": "attention", "num_classes": state["out.2.c_proj.weight"].shape[0]}
    if "out.3.weight" in state:
        pool = "adaptive" if state["out.0.weight"].ndim == 1 else "spatial_v2"
        return {"classifier_pool": pool, "num_classes": state["out.3.weight"].shape[0]}
    return {"classifier_pool": "spatial", "num_classes": state["out.2.weight"].shape[0]}


def last_layer(classifier):
    """The last module with weights of an EncoderUNetModel: what it is given are the features of images."""
    return [m for m in classifier.out.modules() if next(m.parameters(recurse=False), None) is not None][-1]
