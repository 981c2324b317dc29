"""The networks: their flags, and how they are built of them."""

import math
from dataclasses import asdict, dataclass

import torch

from .errors import UserError
from .flags import COUNT_OR_UNSET, FRACTION, FlagGroup, at_least, flag, int_list
from .unet import EncoderUNetModel, SuperResModel, UNetModel

NUM_CLASSES = 1000

CHANNEL_MULTS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
    16: (1, 2, 2),
}
# the published 128 -> 512 upsampler is built as the one to 256
SUPER_RES_CHANNEL_MULTS = {**CHANNEL_MULTS, 512: CHANNEL_MULTS[256]}


@dataclass
class UNetFlags(FlagGroup):
    """The diffusion network."""

    image_size: int = flag(64, "Height and width of the images in pixels.", legal=at_least(1))
    num_channels: int = flag(128, "Channels of the first level.", legal=at_least(1))
    num_res_blocks: int = flag(2, "Residual blocks per level.", legal=at_least(1))
    num_heads: int = flag(4, "Attention heads, where --num_head_channels is -1.", legal=at_least(1))
    num_heads_upsample: int = flag(-1, "Attention heads on the way up; -1 is --num_heads.", legal=COUNT_OR_UNSET)
    num_head_channels: int = flag(-1, "Channels per attention head; -1 uses --num_heads.", legal=COUNT_OR_UNSET)
    attention_resolutions: str = flag("16,8", "Image sizes at which attention stands.")
    channel_mult: str = flag(
        "", "Channel multipliers of the levels, such as 1,2,3,4; empty takes those of the image size."
    )
    dropout: float = flag(0.0, "Dropout of the residual blocks in training.", legal=FRACTION, free=True, idle=True)
    class_cond: bool = flag(False, "The network is given class labels.", classes=True)
    num_classes: int = flag(
        NUM_CLASSES, "Number of classes of a class-conditional network.", legal=at_least(1), classes=True
    )
    use_checkpoint: bool = flag(False, "Save memory in training by computing activations twice.", free=True, idle=True)
    use_scale_shift_norm: bool = flag(True, "The timestep scales and shifts the normalisation.")
    resblock_updown: bool = flag(False, "Residual blocks change the resolution, instead of convolutions.")
    use_fp16: bool = flag(False, "Compute the network in float16.", free=True)
    use_bf16: bool = flag(False, "Compute the network in bfloat16.", free=True)
    use_new_attention_order: bool = flag(False, "Order of q, k, v and heads in attention, as some checkpoints have it.")

    def __post_init__(self):
        super().__post_init__()
        if self.use_fp16 and self.use_bf16:
            raise UserError("--use_fp16 True and --use_bf16 True exclude each other; expected one of them")

    @property
    def dtype(self):
        """What the network computes in: torch.float16, torch.bfloat16 or torch.float32."""
        return torch.float16 if self.use_fp16 else torch.bfloat16 if self.use_bf16 else torch.float32

    def create(self, learn_sigma):
        """The UNetModel of these flags, its weights in float32."""
        return create_model(learn_sigma=learn_sigma, **_without(asdict(self), "use_bf16"))


@dataclass
class SuperResFlags(FlagGroup):
    """The super-resolution network's sizes."""

    large_size: int = flag(256, "Height and width of the images it makes.", legal=at_least(1))
    small_size: int = flag(64, "Height and width of the images it is given.", legal=at_least(1))

    def __post_init__(self):
        super().__post_init__()
        if self.small_size > self.large_size:
            raise UserError(
                f"--small_size {self.small_size} is above --large_size {self.large_size}; expected at most that"
            )

    def create(self, unet, learn_sigma):
        """The SuperResModel of these sizes and UNetFlags (whose image size counts for nothing)."""
        values = _without(asdict(unet), "image_size", "use_bf16")
        return sr_create_model(self.large_size, self.small_size, learn_sigma=learn_sigma, **values)


@dataclass
class ClassifierFlags(FlagGroup):
    """The noisy classifier."""

    image_size: int = flag(64, "Height and width of the images in pixels.", legal=at_least(1))
    num_classes: int = flag(NUM_CLASSES, "Number of classes.", legal=at_least(1), classes=True)
    classifier_use_fp16: bool = flag(False, "Compute the classifier in float16.", free=True)
    classifier_width: int = flag(128, "Channels of the classifier's first level.", legal=at_least(1))
    classifier_depth: int = flag(2, "Residual blocks per level of the classifier.", legal=at_least(1))
    classifier_attention_resolutions: str = flag("32,16,8", "Image sizes at which the classifier has attention.")
    classifier_use_scale_shift_norm: bool = flag(True, "The timestep scales and shifts the classifier's normalisation.")
    classifier_resblock_updown: bool = flag(True, "Residual blocks of the classifier change the resolution.")
    classifier_pool: str = flag(
        "attention",
        "How the classifier turns features into logits.",
        choices=("adaptive", "attention", "spatial", "spatial_v2"),
    )
    classifier_num_head_channels: int = flag(64, "Channels per attention head of the classifier.", legal=COUNT_OR_UNSET)
    classifier_channel_mult: str = flag(
        "", "Channel multipliers of the classifier; empty takes those of the image size."
    )

    @property
    def dtype(self):
        """What the classifier computes in: torch.float16 or torch.float32."""
        return torch.float16 if self.classifier_use_fp16 else torch.float32

    def create(self):
        """The EncoderUNetModel of these flags, its weights in float32."""
        return create_classifier(**asdict(self))


def _without(values, *names):
    return {k: v for k, v in values.items() if k not in names}


def channel_multipliers(channel_mult, image_size, defaults=CHANNEL_MULTS, name="channel_mult", size_flag="image_size"):
    """Multipliers of the levels: those of the text "1,2,3,4", or of the image size where it is empty.

    :param name, size_flag: of the flags, for the error.
    """
    if channel_mult:
        try:
            mult = tuple(float(m) if "." in m else int(m) for m in channel_mult.split(","))
        except ValueError:
            mult = (0,)
        if not all(0 < m < math.inf for m in mult):
            raise UserError(f"--{name} is {channel_mult!r}; expected positive numbers such as 1,2,3,4")
        return mult
    if image_size in defaults:
        return defaults[image_size]
    sizes = ", ".join(map(str, sorted(defaults)))
    raise UserError(
        f"--{size_flag} {image_size} has no default channel multipliers (sizes that have: {sizes}); "
        f"give --{name}, one number per level"
    )


def attention_rates(resolutions, image_size, name):
    """Down-sampling rates of the image sizes "32,16,8" at which attention stands.

    As published, a size that the network has no level for adds no attention.

    :param name: of the flag, for the error.
    """
    sizes = int_list(resolutions, name)
    if any(size < 1 for size in sizes):
        raise UserError(f"--{name} is {resolutions!r}; expected image sizes of 1 and up")
    return tuple(image_size // size for size in sizes)


def check_divisible(image_size, levels, name="image_size"):
    """Refuse an image size that `levels` levels cannot halve evenly; the error names the nearest that they can."""
    step = 2 ** (levels - 1)
    if image_size % step:
        below = image_size // step * step
        nearest = f"{below} and {below + step}" if below else f"{step}"
        raise UserError(
            f"--{name} {image_size} cannot be halved {levels - 1} times by a network of {levels} levels; "
            f"nearest: {nearest}"
        )


def create_model(
    image_size,
    num_channels,
    num_res_blocks,
    channel_mult="",
    learn_sigma=False,
    class_cond=False,
    use_checkpoint=False,
    attention_resolutions="16",
    num_heads=1,
    num_head_channels=-1,
    num_heads_upsample=-1,
    use_scale_shift_norm=False,
    dropout=0,
    resblock_updown=False,
    use_fp16=False,
    use_new_attention_order=False,
    num_classes=NUM_CLASSES,
):
    """A UNetModel of published flags, with 3 image channels."""
    return _unet(UNetModel, **locals())


def sr_create_model(large_size, small_size, **values):
    """A SuperResModel of published flags (those of `create_model` but `image_size`), with 3 image channels."""
    SuperResFlags(large_size, small_size)
    return _unet(
        SuperResModel, image_size=large_size, defaults=SUPER_RES_CHANNEL_MULTS, size_flag="large_size", **values
    )


def _unet(
    cls,
    *,
    image_size,
    num_channels,
    attention_resolutions,
    channel_mult="",
    learn_sigma=False,
    class_cond=False,
    num_classes=NUM_CLASSES,
    defaults=CHANNEL_MULTS,
    size_flag="image_size",
    **rest,
):
    mult = channel_multipliers(channel_mult, image_size, defaults, size_flag=size_flag)
    check_divisible(image_size, len(mult), size_flag)
    return cls(
        image_size=image_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        attention_resolutions=attention_rates(attention_resolutions, image_size, "attention_resolutions"),
        channel_mult=mult,
        num_classes=num_classes if class_cond else None,
        **rest,
    )


def create_classifier(
    image_size,
    classifier_use_fp16,
    classifier_width,
    classifier_depth,
    classifier_attention_resolutions,
    classifier_use_scale_shift_norm,
    classifier_resblock_updown,
    classifier_pool,
    num_classes=NUM_CLASSES,
    classifier_num_head_channels=64,
    classifier_channel_mult="",
):
    """An EncoderUNetModel of published flags, with 3 image channels and `num_classes` logits."""
    mult = channel_multipliers(classifier_channel_mult, image_size, name="classifier_channel_mult")
    check_divisible(image_size, len(mult))
    rates = attention_rates(classifier_attention_resolutions, image_size, "classifier_attention_resolutions")
    try:
        return EncoderUNetModel(
            image_size=image_size,
            in_channels=3,
            model_channels=classifier_width,
            out_channels=num_classes,
            num_res_blocks=classifier_depth,
            attention_resolutions=rates,
            channel_mult=mult,
            use_fp16=classifier_use_fp16,
            num_head_channels=classifier_num_head_channels,
            use_scale_shift_norm=classifier_use_scale_shift_norm,
            resblock_updown=classifier_resblock_updown,
            pool=classifier_pool,
        )
    except UserError as error:
        # the layers name the diffusion network's flags
        message = str(error).replace("--num_channels", "--classifier_width")
        raise UserError(message.replace("--num_head_channels", "--classifier_num_head_channels")) from error
