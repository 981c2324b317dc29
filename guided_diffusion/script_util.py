"""From flags to networks and diffusion processes: the published functions, on top of flag groups.

Clients read signatures and defaults by `inspect` and by key: both are the published ones. What is added here comes
after them, by name and optional, and `inspect` shows it so: flags of the network and the process that are newer, and
the flags of methods, which `add_dict_to_argparser` adds to a command line and `args_to_dict` takes from it. Classes of
networks and processes are those that stand in this module, where clients replace them.
"""

import argparse
import inspect

from . import gaussian_diffusion as gd
from .flags import flags_of, str2bool
from .methods import of_class_api, of_values, spellings, switched_on
from .networks import ClassifierFlags, SuperResFlags, UNetFlags
from .networks.levels import NUM_CLASSES
from .process import DiffusionFlags, SpacingFlags
from .respace import SpacedDiffusion
from .schedule import NoiseSchedule
from .unet import EncoderUNetModel, SuperResModel, UNetModel

# a dict of defaults with this key, and keys with it, are about a diffusion process, so methods may move it
_OF_DIFFUSION = "diffusion_steps"


def diffusion_defaults():
    """Defaults of the diffusion flags, for training with images."""
    return _defaults(create_model_and_diffusion, DiffusionFlags)


def model_and_diffusion_defaults():
    """Defaults of the network's and the diffusion's flags."""
    return _defaults(create_model_and_diffusion, UNetFlags, DiffusionFlags)


def classifier_defaults():
    """Defaults of the classifier's flags."""
    return _defaults(create_classifier_and_diffusion, ClassifierFlags)


def classifier_and_diffusion_defaults():
    """Defaults of the classifier's and the diffusion's flags."""
    return _defaults(create_classifier_and_diffusion, ClassifierFlags, DiffusionFlags)


def sr_model_and_diffusion_defaults():
    """Defaults of the super-resolution network's and the diffusion's flags."""
    return _defaults(sr_create_model_and_diffusion, UNetFlags, DiffusionFlags, SuperResFlags)


def _defaults(create, *groups):
    """{flag: default} of the flags of some groups that a published function has in its published place."""
    published = inspect.getfullargspec(create).args
    return {f.name: f.default for group in groups for f in flags_of(group) if f.name in published}


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
    *,
    num_classes=None,
    class_names="",
    image_channels=3,
    use_bf16=False,
):
    """A UNetModel of published flags.

    :param num_classes: of a class-conditional network; None is this module's NUM_CLASSES.
    :param class_names: of these, with commas; they change nothing of the network.
    """
    values = _with_classes(locals())
    values.pop("learn_sigma")
    return UNetFlags(**values).create(learn_sigma, UNetModel)


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
    num_classes=None,
    class_names="",
    image_channels=3,
    use_bf16=False,
):
    """A SuperResModel of published flags; see `create_model`."""
    values = _with_classes(locals())
    for name in ("large_size", "small_size", "learn_sigma"):
        values.pop(name)
    return SuperResFlags(large_size, small_size).create(UNetFlags(**values), learn_sigma, SuperResModel)


def create_classifier(
    image_size,
    classifier_use_fp16,
    classifier_width,
    classifier_depth,
    classifier_attention_resolutions,
    classifier_use_scale_shift_norm,
    classifier_resblock_updown,
    classifier_pool,
    *,
    num_classes=1000,
    classifier_num_head_channels=64,
    classifier_channel_mult="",
    class_names="",
    image_channels=3,
):
    """An EncoderUNetModel of published flags, with `num_classes` logits."""
    return ClassifierFlags(**locals()).create(EncoderUNetModel)


def _with_classes(values):
    return {**values, "num_classes": NUM_CLASSES if values["num_classes"] is None else values["num_classes"]}


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
        clip_variance=flags.clip_variance,
    )


def _takes(handed):
    """For a function that ends in `**further`: lets `inspect` see what that takes, optional and by name.

    :param handed: inspect.Parameters, of which the function's own names are left out.
    """

    def shown(create):
        own = inspect.signature(create)
        published = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        further = {p.name: p for p in handed if p.name not in own.parameters}
        create.__signature__ = own.replace(parameters=[*published, *further.values()])
        return create

    return shown


def _by_name(*functions):
    """The parameters of functions that are given by name alone, but the number of steps, which has two names."""
    found = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return [p for p in found if p.kind is p.KEYWORD_ONLY and p.name != "steps"]


def _of_methods():
    fields = [field for method in of_class_api() for field in flags_of(method)]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
        for field in fields
        for name in spellings(field)
    ]


@_takes(_of_methods())
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
    clip_variance=False,
    **methods,
):
    """A SpacedDiffusion of published flags; an empty `timestep_respacing` keeps all steps.

    :param spacing: "published", or a name in spacing.SPACINGS, with a number of steps as `timestep_respacing`.
    :param clip_variance: hold learned variances in their interval.
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
        clip_variance=clip_variance,
    )
    grid = SpacingFlags(spacing).grid(NoiseSchedule(flags.betas), timestep_respacing)
    return diffusion_of(flags, of_values(methods), grid)


@_takes(_by_name(create_model, create_gaussian_diffusion))
def create_model_and_diffusion(
    image_size,
    class_cond,
    learn_sigma,
    num_channels,
    num_res_blocks,
    channel_mult,
    num_heads,
    num_head_channels,
    num_heads_upsample,
    attention_resolutions,
    dropout,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    use_checkpoint,
    use_scale_shift_norm,
    resblock_updown,
    use_fp16,
    use_new_attention_order,
    **further,
):
    """(UNetModel, SpacedDiffusion) of published flags; see `create_model` and `create_gaussian_diffusion`."""
    return _network_and_diffusion("create_model", **locals())


@_takes(_by_name(create_classifier, create_gaussian_diffusion))
def create_classifier_and_diffusion(
    image_size,
    classifier_use_fp16,
    classifier_width,
    classifier_depth,
    classifier_attention_resolutions,
    classifier_use_scale_shift_norm,
    classifier_resblock_updown,
    classifier_pool,
    learn_sigma,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    **further,
):
    """(EncoderUNetModel, SpacedDiffusion) of published flags; see `create_classifier`."""
    return _network_and_diffusion("create_classifier", **locals())


@_takes(_by_name(sr_create_model, create_gaussian_diffusion))
def sr_create_model_and_diffusion(
    large_size,
    small_size,
    class_cond,
    learn_sigma,
    num_channels,
    num_res_blocks,
    num_heads,
    num_head_channels,
    num_heads_upsample,
    attention_resolutions,
    dropout,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    use_checkpoint,
    use_scale_shift_norm,
    resblock_updown,
    use_fp16,
    **further,
):
    """(SuperResModel, SpacedDiffusion) of published flags; see `sr_create_model`."""
    return _network_and_diffusion("sr_create_model", **locals())


# what each takes, whatever a client puts in its place
_TAKEN = {
    create.__name__: set(inspect.signature(create).parameters)
    for create in (create_model, create_classifier, sr_create_model)
}


def _network_and_diffusion(name, *, learn_sigma, diffusion_steps, further, **values):
    """The network that this module's function of a name makes of the values it takes, and the process of the others."""
    create, values = globals()[name], {**values, **further}
    taken = _TAKEN[name] | set(inspect.signature(create).parameters)
    if "learn_sigma" in taken:
        values["learn_sigma"] = learn_sigma
    others = {k: v for k, v in values.items() if k not in taken}
    diffusion = create_gaussian_diffusion(steps=diffusion_steps, **{**others, "learn_sigma": learn_sigma})
    return create(**{k: v for k, v in values.items() if k in taken}), diffusion


def add_dict_to_argparser(parser, default_dict):
    """Add one `--key` per entry, typed as its default; None is text, a bool is True or False.

    Where the entries are about a diffusion process the flags of methods come beside them, but for those that the
    parser has already; one that the script adds later takes their place.
    """
    for key, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{key}", default=default, type=kind)
    if _OF_DIFFUSION in default_dict:
        for container in (parser, *parser._action_groups):
            container.conflict_handler = "resolve"
        section = parser.add_argument_group("methods") if isinstance(parser, argparse.ArgumentParser) else parser
        for field in (field for method in of_class_api() for field in flags_of(method)):
            _add_method_flag(section, field, parser._option_string_actions)


class _MethodFlag(argparse.Action):
    """Keeps in the namespace, as the list `of_methods`, which flags of methods a command line gave."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.of_methods = [*getattr(namespace, "of_methods", ()), self.dest]


def _add_method_flag(section, field, taken):
    options = [f"--{name}" for name in spellings(field) if f"--{name}" not in taken]
    if options and field.name not in {action.dest for action in taken.values()}:
        kind = str2bool if isinstance(field.default, bool) else type(field.default)
        shown = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
        section.add_argument(
            *options, dest=field.name, default=field.default, type=kind, action=_MethodFlag, help=shown
        )


def args_to_dict(args, keys):
    """{key: its value} of parsed arguments; where the keys are a diffusion's, with what they say of methods.

    Flags of methods that are at their default, and those of a method that is off, are left out.
    """
    values = {key: getattr(args, key) for key in keys}
    if _OF_DIFFUSION not in values:
        return values
    said = {p.name: getattr(args, p.name) for p in _of_methods() if hasattr(args, p.name)}
    return switched_on(said, getattr(args, "of_methods", ())) | values
