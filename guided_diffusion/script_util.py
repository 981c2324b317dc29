"""From flags to networks and diffusion processes: the published functions, on top of flag groups."""

from dataclasses import asdict, fields

from . import gaussian_diffusion as gd
from .flags import str2bool
from .methods import of_values
from .networks import ClassifierFlags, SuperResFlags, UNetFlags
from .networks.levels import NUM_CLASSES
from .process import DiffusionFlags, SpacingFlags
from .respace import SpacedDiffusion
from .schedule import NoiseSchedule


def diffusion_defaults():
    """Defaults of the diffusion flags, for training with images."""
    return _without(asdict(DiffusionFlags()), "prediction", "rescale_zero_terminal_snr")


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
    return model.create(diffusion.learn_sigma), diffusion_of(diffusion)


def create_classifier_and_diffusion(**values):
    """(EncoderUNetModel, SpacedDiffusion) of flags as `classifier_and_diffusion_defaults` names them."""
    classifier, diffusion = _split(values, ClassifierFlags, DiffusionFlags)
    return classifier.create(), diffusion_of(diffusion)


def sr_create_model_and_diffusion(**values):
    """(SuperResModel, SpacedDiffusion) of flags as `sr_model_and_diffusion_defaults` names them."""
    sizes, model, diffusion = _split(values, SuperResFlags, UNetFlags, DiffusionFlags)
    return sizes.create(model, diffusion.learn_sigma), diffusion_of(diffusion)


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


def _without(values, *names):
    return {k: v for k, v in values.items() if k not in names}


def _split(values, *groups):
    """One object per group of the values that it defines."""
    unknown = set(values).difference(*({f.name for f in fields(g)} for g in groups))
    if unknown:
        raise TypeError(f"unexpected argument {sorted(unknown)[0]!r}")
    return [g(**{f.name: values[f.name] for f in fields(g) if f.name in values}) for g in groups]


def diffusion_of(flags, methods=(), grid=None):
    """The SpacedDiffusion of DiffusionFlags.

    :param methods: Method objects, of those that need no classifier.
    :param grid: the kept training timesteps; default those of --timestep_respacing.
    """
    if flags.use_kl:
        loss = gd.LossType.RESCALED_KL
    else:
        loss = gd.LossType.RESCALED_MSE if flags.rescale_learned_sigmas else gd.LossType.MSE
    return SpacedDiffusion(
        SpacingFlags().grid(NoiseSchedule(flags.betas), flags.timestep_respacing) if grid is None else grid,
        betas=flags.betas,
        model_mean_type=flags.mean_type,
        model_var_type=flags.var_type,
        loss_type=loss,
        rescale_timesteps=flags.rescale_timesteps,
        methods=methods,
    )


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
    prediction="eps",
    rescale_zero_terminal_snr=False,
    spacing="published",
    **methods,
):
    """A SpacedDiffusion of published flags; an empty `timestep_respacing` keeps all steps.

    :param spacing: "published", or a name in spacing.SPACINGS, with a number of steps as `timestep_respacing`.
    :param methods: flags of methods that need no classifier, such as `eps_scaler` (a number, or text as --eps_scaler
        takes it) or `do_time_shift`.
    """
    flags = DiffusionFlags(
        learn_sigma=learn_sigma,
        diffusion_steps=steps,
        noise_schedule=noise_schedule,
        rescale_zero_terminal_snr=rescale_zero_terminal_snr,
        timestep_respacing=timestep_respacing,
        use_kl=use_kl,
        prediction=prediction,
        predict_xstart=predict_xstart,
        rescale_timesteps=rescale_timesteps,
        rescale_learned_sigmas=rescale_learned_sigmas,
        sigma_small=sigma_small and not learn_sigma,
    )
    grid = SpacingFlags(spacing).grid(NoiseSchedule(flags.betas), timestep_respacing)
    return diffusion_of(flags, of_values(methods), grid)


def add_dict_to_argparser(parser, default_dict):
    """Add one `--key` per entry, typed as its default; None is text, a bool is True or False."""
    for key, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{key}", default=default, type=kind)


def args_to_dict(args, keys):
    """{key: its value} of parsed arguments."""
    return {key: getattr(args, key) for key in keys}
