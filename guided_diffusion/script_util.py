"""From flags to networks and diffusion processes: the published functions, on top of flag groups."""

import math
from dataclasses import asdict, dataclass, fields

import torch

from . import gaussian_diffusion as gd
from .errors import UserError
from .flags import COUNT_OR_UNSET, FRACTION, FlagGroup, at_least, flag, int_list, str2bool
from .methods.input_perturbation import SCHEDULE_TYPES, InputPerturbation
from .methods.time_shift import VARIANTS, TimeShift
from .respace import SpacedDiffusion, space_timesteps
from .schedule import NoiseSchedule
from .spacing import SPACINGS, spaced
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
class DiffusionFlags(FlagGroup):
    """The diffusion process."""

    learn_sigma: bool = flag(False, "The network learns the variance too, with twice the output channels.")
    diffusion_steps: int = flag(1000, "Number of training timesteps T.", legal=at_least(1))
    noise_schedule: str = flag("linear", "How the noise grows over the timesteps.", choices=("linear", "cosine"))
    timestep_respacing: str = flag(
        "", "Timesteps to keep: a count, counts per section such as 10,15,20, or ddimN; empty keeps all."
    )
    use_kl: bool = flag(False, "Train on the variational bound instead of the mean squared error.")
    predict_xstart: bool = flag(False, "The network predicts the clean image instead of the noise.")
    rescale_timesteps: bool = flag(False, "The network sees timesteps scaled to 0..1000.")
    rescale_learned_sigmas: bool = flag(False, "Weigh the bound by T / 1000 as published for learned variances.")
    sigma_small: bool = flag(False, "The fixed variance is the posterior's, not beta; for networks that learn none.")

    def __post_init__(self):
        super().__post_init__()
        if self.sigma_small and self.learn_sigma:
            raise UserError("--sigma_small True chooses a fixed variance, which --learn_sigma True does not use")

    def create(self, *methods):
        """The SpacedDiffusion of these flags and of method groups such as TimeShiftFlags."""
        values = _without(asdict(self), "diffusion_steps")
        for method in methods:
            values.update(asdict(method))
        if values.get("do_time_shift") and values["cutoff"] >= self.diffusion_steps - 1:
            raise UserError(
                f"--cutoff {values['cutoff']} leaves no step to shift; expected below {self.diffusion_steps - 1}"
            )
        if values.get("perturb_cutoff", 0) >= self.diffusion_steps:
            raise UserError(
                f"--perturb_cutoff {values['perturb_cutoff']} leaves no timestep to perturb; "
                f"expected below {self.diffusion_steps}"
            )
        return create_gaussian_diffusion(steps=self.diffusion_steps, **values)


@dataclass
class TimeShiftFlags(FlagGroup):
    """Time Shift (Li et al. 2024)."""

    do_time_shift: bool = flag(False, "Move the times of sampling steps to where the images' variance fits.")
    window: int = flag(2, "Width of the search in training timesteps, from 2 on.", legal=at_least(0))
    cutoff: int = flag(300, "Only steps at training timesteps above it are moved.", legal=at_least(0))
    time_shift_variant: str = flag(
        "adm",
        "What moves: as in the TS-DPM-ADM release, as in the paper, the network's time alone, or the target.",
        VARIANTS,
    )
    time_shift_data_variance: float = flag(
        0.0, "Pixel variance of clean images, 0 to 1, that the search takes off; 0 as published.", legal=FRACTION
    )
    time_shift_constant: int = flag(0, "Shift by so many timesteps instead of a search; 0 searches.")

    def __post_init__(self):
        super().__post_init__()
        if self.do_time_shift and self.window < 2 and not self.time_shift_constant:
            raise UserError(f"--window {self.window} leaves nothing to search; expected at least 2")
        if self.time_shift_data_variance and self.time_shift_variant == "adm":
            others = ", ".join(variant for variant in VARIANTS if variant != "adm")
            raise UserError(
                f"--time_shift_data_variance has no meaning for --time_shift_variant adm; expected {others}"
            )
        if self.time_shift_constant:
            for name in ("window", "time_shift_data_variance"):
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(
                        f"--{name} {getattr(self, name)} does nothing with --time_shift_constant, which "
                        f"searches nothing; expected the default {getattr(type(self), name)}"
                    )
        if not self.do_time_shift:
            for field in fields(self):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} does nothing without --do_time_shift True")


@dataclass
class EpsilonScalingFlags(FlagGroup):
    """Epsilon Scaling (Ning et al. 2024)."""

    eps_scaler: str = flag(
        "1.0", "Divide the predicted noise by B, or at kept step i by K i + B when written K,B; 1.0 is off."
    )

    def __post_init__(self):
        super().__post_init__()
        parse_eps_scaler(self.eps_scaler)


@dataclass
class SpacingFlags(FlagGroup):
    """The sampling grid."""

    spacing: str = flag(
        "published",
        "How the steps that --timestep_respacing counts are spread; published also reads its other forms.",
        choices=("published", *SPACINGS),
    )


# the groups that sampling scripts take, and DiffusionFlags.create applies
SAMPLING_METHODS = (SpacingFlags, TimeShiftFlags, EpsilonScalingFlags)


@dataclass
class InputPerturbationFlags(FlagGroup):
    """Input Perturbation (Ning et al. 2023)."""

    input_perturbation: float = flag(
        0.0,
        "Strength of a second noise that training adds to the first, without predicting it; 0 is off.",
        aliases=("input_pertub",),
        legal=at_least(0),
    )
    perturb_schedule_type: str = flag("constant", "How that strength grows over the timesteps.", SCHEDULE_TYPES)
    perturb_cutoff: int = flag(0, "So many of the noisiest timesteps are trained without it.", legal=at_least(0))

    def __post_init__(self):
        super().__post_init__()
        if not self.input_perturbation and (self.perturb_cutoff or self.perturb_schedule_type != "constant"):
            raise UserError("--perturb_schedule_type and --perturb_cutoff do nothing without --input_perturbation")


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
    dropout: float = flag(0.0, "Dropout of the residual blocks in training.", legal=FRACTION)
    class_cond: bool = flag(False, "The network is given class labels.")
    num_classes: int = flag(NUM_CLASSES, "Number of classes of a class-conditional network.", legal=at_least(1))
    use_checkpoint: bool = flag(False, "Save memory in training by computing activations twice.")
    use_scale_shift_norm: bool = flag(True, "The timestep scales and shifts the normalisation.")
    resblock_updown: bool = flag(False, "Residual blocks change the resolution, instead of convolutions.")
    use_fp16: bool = flag(False, "Compute the network in float16.")
    use_bf16: bool = flag(False, "Compute the network in bfloat16.")
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
    num_classes: int = flag(NUM_CLASSES, "Number of classes.", legal=at_least(1))
    classifier_use_fp16: bool = flag(False, "Compute the classifier in float16.")
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


# -- the published surface -------------------------------------------------------------------------


def diffusion_defaults():
    """Defaults of the diffusion flags, for training with images."""
    return asdict(DiffusionFlags())


def model_and_diffusion_defaults():
    """Defaults of the network's and the diffusion's flags."""
    return {**asdict(UNetFlags()), **diffusion_defaults()}


def classifier_defaults():
    """Defaults of the classifier's flags."""
    return asdict(ClassifierFlags())


def classifier_and_diffusion_defaults():
    """Defaults of the classifier's and the diffusion's flags."""
    return {**classifier_defaults(), **diffusion_defaults()}


def sr_model_and_diffusion_defaults():
    """Defaults of the super-resolution network's and the diffusion's flags."""
    unet = _without(asdict(UNetFlags()), "image_size")
    return {**asdict(SuperResFlags()), **unet, **diffusion_defaults()}


def create_model_and_diffusion(**values):
    """(UNetModel, SpacedDiffusion) of flags as `model_and_diffusion_defaults` names them."""
    model, diffusion = _split(values, UNetFlags, DiffusionFlags)
    return model.create(diffusion.learn_sigma), diffusion.create()


def create_classifier_and_diffusion(**values):
    """(EncoderUNetModel, SpacedDiffusion) of flags as `classifier_and_diffusion_defaults` names them."""
    classifier, diffusion = _split(values, ClassifierFlags, DiffusionFlags)
    return classifier.create(), diffusion.create()


def sr_create_model_and_diffusion(**values):
    """(SuperResModel, SpacedDiffusion) of flags as `sr_model_and_diffusion_defaults` names them."""
    sizes, model, diffusion = _split(values, SuperResFlags, UNetFlags, DiffusionFlags)
    return sizes.create(model, diffusion.learn_sigma), diffusion.create()


def _split(values, *groups):
    """One object per group of the values that it defines."""
    unknown = set(values).difference(*({f.name for f in fields(g)} for g in groups))
    if unknown:
        raise TypeError(f"unexpected argument {sorted(unknown)[0]!r}")
    return [g(**{f.name: values[f.name] for f in fields(g) if f.name in values}) for g in groups]


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


def create_gaussian_diffusion(
    *,
    steps=1000,
    learn_sigma=False,
    sigma_small=False,
    noise_schedule="linear",
    use_kl=False,
    predict_xstart=False,
    rescale_timesteps=False,
    rescale_learned_sigmas=False,
    timestep_respacing="",
    spacing="published",
    do_time_shift=False,
    window=2,
    cutoff=300,
    time_shift_variant="adm",
    time_shift_data_variance=0.0,
    time_shift_constant=0,
    eps_scaler=1.0,
    input_perturbation=0.0,
    perturb_schedule_type="constant",
    perturb_cutoff=0,
):
    """A SpacedDiffusion of published flags; an empty `timestep_respacing` keeps all steps.

    :param spacing: "published", or a name in spacing.SPACINGS, with a number of steps as `timestep_respacing`.
    :param eps_scaler: a number, or text as --eps_scaler takes it.
    """
    betas = gd.get_named_beta_schedule(noise_schedule, steps)
    if spacing == "published":
        grid = space_timesteps(steps, timestep_respacing or [steps])
    else:
        grid = spaced(spacing, NoiseSchedule(betas), timestep_respacing)
    if use_kl:
        loss = gd.LossType.RESCALED_KL
    else:
        loss = gd.LossType.RESCALED_MSE if rescale_learned_sigmas else gd.LossType.MSE
    if learn_sigma:
        variance = gd.ModelVarType.LEARNED_RANGE
    else:
        variance = gd.ModelVarType.FIXED_SMALL if sigma_small else gd.ModelVarType.FIXED_LARGE
    diffusion = SpacedDiffusion(
        grid,
        betas=betas,
        model_mean_type=gd.ModelMeanType.START_X if predict_xstart else gd.ModelMeanType.EPSILON,
        model_var_type=variance,
        loss_type=loss,
        rescale_timesteps=rescale_timesteps,
        corrupt=InputPerturbation(input_perturbation, steps, perturb_schedule_type, perturb_cutoff),
        eps_scaler=parse_eps_scaler(eps_scaler),
    )
    if do_time_shift:
        diffusion.time_shift = TimeShift(
            diffusion.schedule,
            diffusion.timestep_map,
            window,
            cutoff,
            time_shift_variant,
            time_shift_data_variance,
            time_shift_constant,
        )
    return diffusion


def parse_eps_scaler(value):
    """(k, b) of a number B or of the text "B" or "K,B".

    :raises UserError: if it is neither, or if lambda would not be positive at the first step.
    """
    try:
        *k, b = (float(part) for part in str(value).split(","))
        k = k[0] if k else 0.0
    except ValueError:
        raise UserError(f"--eps_scaler is {value!r}; expected B such as 1.005, or K,B such as 0.0004,1.0042") from None
    if str(value).count(",") > 1 or not (0 < b < math.inf and 0 <= k < math.inf):
        raise UserError(f"--eps_scaler is {value!r}; expected B above 0, or K,B with K from 0")
    return k, b


def add_dict_to_argparser(parser, default_dict):
    """Add one `--key` per entry, typed as its default; None is text, a bool is True or False."""
    for key, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{key}", default=default, type=kind)


def args_to_dict(args, keys):
    """{key: its value} of parsed arguments."""
    return {key: getattr(args, key) for key in keys}
