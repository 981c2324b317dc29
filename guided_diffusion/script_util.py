"""From flags to networks and diffusion processes: the published functions, on top of flag groups."""

import math
from dataclasses import asdict, dataclass, fields

from . import gaussian_diffusion as gd
from .errors import UserError
from .flags import FRACTION, FlagGroup, at_least, flag, str2bool
from .methods.input_perturbation import SCHEDULE_TYPES, InputPerturbation
from .methods.time_shift import VARIANTS, TimeShift
from .networks import ClassifierFlags, SuperResFlags, UNetFlags
from .networks.levels import NUM_CLASSES
from .respace import SpacedDiffusion, space_timesteps
from .schedule import NoiseSchedule
from .spacing import SPACINGS, spaced


@dataclass
class DiffusionFlags(FlagGroup):
    """The diffusion process."""

    learn_sigma: bool = flag(False, "The network learns the variance too, with twice the output channels.")
    diffusion_steps: int = flag(1000, "Number of training timesteps T.", legal=at_least(1), hidden=True, noising=True)
    noise_schedule: str = flag(
        "linear", "How the noise grows over the timesteps.", choices=("linear", "cosine"), hidden=True, noising=True
    )
    timestep_respacing: str = flag(
        "", "Timesteps to keep: a count, counts per section such as 10,15,20, or ddimN; empty keeps all.", free=True
    )
    use_kl: bool = flag(
        False, "Train on the variational bound instead of the mean squared error.", free=True, idle=True
    )
    predict_xstart: bool = flag(False, "The network predicts the clean image instead of the noise.", hidden=True)
    rescale_timesteps: bool = flag(False, "The network sees timesteps scaled to 0..1000.", hidden=True, noising=True)
    rescale_learned_sigmas: bool = flag(
        False,
        "Weigh the bound by T / 1000 as published for learned variances.",
        free=True,
        idle=True,
        needs="learn_sigma",
    )
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
        lasting=True,
    )
    perturb_schedule_type: str = flag(
        "constant", "How that strength grows over the timesteps.", SCHEDULE_TYPES, lasting=True
    )
    perturb_cutoff: int = flag(
        0, "So many of the noisiest timesteps are trained without it.", legal=at_least(0), lasting=True
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.input_perturbation and (self.perturb_cutoff or self.perturb_schedule_type != "constant"):
            raise UserError("--perturb_schedule_type and --perturb_cutoff do nothing without --input_perturbation")


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
    *,
    image_channels=3,
):
    """A UNetModel of published flags."""
    flags = UNetFlags(
        image_size=image_size,
        image_channels=image_channels,
        num_channels=num_channels,
        num_res_blocks=num_res_blocks,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        num_head_channels=num_head_channels,
        attention_resolutions=attention_resolutions,
        channel_mult=channel_mult,
        dropout=dropout,
        class_cond=class_cond,
        num_classes=num_classes,
        use_checkpoint=use_checkpoint,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_fp16=use_fp16,
        use_new_attention_order=use_new_attention_order,
    )
    return flags.create(learn_sigma)


def sr_create_model(
    large_size,
    small_size,
    num_channels,
    num_res_blocks,
    learn_sigma,
    class_cond,
    use_checkpoint,
    attention_resolutions,
    num_heads,
    num_head_channels,
    num_heads_upsample,
    use_scale_shift_norm,
    dropout,
    resblock_updown,
    use_fp16,
    *,
    channel_mult="",
    use_new_attention_order=False,
    num_classes=NUM_CLASSES,
    image_channels=3,
):
    """A SuperResModel of published flags."""
    flags = UNetFlags(
        image_channels=image_channels,
        num_channels=num_channels,
        num_res_blocks=num_res_blocks,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        num_head_channels=num_head_channels,
        attention_resolutions=attention_resolutions,
        channel_mult=channel_mult,
        dropout=dropout,
        class_cond=class_cond,
        num_classes=num_classes,
        use_checkpoint=use_checkpoint,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_fp16=use_fp16,
        use_new_attention_order=use_new_attention_order,
    )
    return SuperResFlags(large_size, small_size).create(flags, learn_sigma)


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
    *,
    image_channels=3,
):
    """An EncoderUNetModel of published flags, with `num_classes` logits."""
    flags = ClassifierFlags(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        classifier_use_fp16=classifier_use_fp16,
        classifier_width=classifier_width,
        classifier_depth=classifier_depth,
        classifier_attention_resolutions=classifier_attention_resolutions,
        classifier_use_scale_shift_norm=classifier_use_scale_shift_norm,
        classifier_resblock_updown=classifier_resblock_updown,
        classifier_pool=classifier_pool,
        classifier_num_head_channels=classifier_num_head_channels,
        classifier_channel_mult=classifier_channel_mult,
    )
    return flags.create()


def _split(values, *groups):
    """One object per group of the values that it defines."""
    unknown = set(values).difference(*({f.name for f in fields(g)} for g in groups))
    if unknown:
        raise TypeError(f"unexpected argument {sorted(unknown)[0]!r}")
    return [g(**{f.name: values[f.name] for f in fields(g) if f.name in values}) for g in groups]


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
