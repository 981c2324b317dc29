"""Checkpoints: from a file, and what a command line says of it, to a network and its process."""

import re
from dataclasses import dataclass, replace
from functools import partial

import torch

from .. import adapters, dist_util, files, logger, process
from ..averages import young
from ..errors import UserError, told_of
from ..flags import FlagGroup, Parsed, flag, flags_of, marked
from ..methods import STACK, guided
from ..networks import NETWORKS, ClassifierFlags, ConvFlags, UNetFlags, compiled, for_inference
from .read import load_into, parts, peek, read_flags, sidecar_path, take, write  # noqa: F401 (the package's own names)
from .resolve import (  # noqa: F401 (likewise)
    described,
    initialise,
    key_for,
    noising,
    process_groups,
    recognised,
    resolve,
    resumed,
)
from .sampler import SAMPLED_BY, as_meant, check_meant, does_jump, in_words, meant_for, untrained  # noqa: F401 (likewise)

DIFFUSION, SUPER_RES, CLASSIFIER = (NETWORKS[name] for name in ("diffusion", "super_res", "classifier"))
VAE = NETWORKS["autoencoder"]

# the flag groups of a run that a classifier guides
GUIDANCE = [*(method for method in STACK if not method.by_default), ClassifierFlags]


@dataclass
class CheckpointFlags(FlagGroup):
    """The diffusion checkpoint."""

    model_path: str = flag(
        "",
        "Checkpoint of the diffusion network, model*.pt or ema_*.pt; or a network of others, a file or a folder, or "
        "the name of that on the Hugging Face hub.",
        content=True,
        essential="model_path",
    )
    network: str = flag(
        "", "Whose network --model_path is; empty tells by what lies there.", ("", adapters.OWN, *adapters.FAMILIES)
    )
    vae: str = flag(
        "",
        "Folder of the autoencoder (diffusers) of a network of latents that brings none, or its name on that hub.",
        content=True,
    )
    checkpoint_key: str = flag(
        "", "Key of the weights in a checkpoint that holds several, such as state_dict or ema.", shared=True
    )
    override: bool = flag(False, "Let given flags win over those saved beside the checkpoint.", idle=True)


def open_network(path, flag="model_path", expected=None, family="", vae="", **given):
    """Open a checkpoint of any network, such as a teacher, a critic or an encoder, and networks of others.

    :param path: local, or any address blobfile reads; a folder of diffusers, or its name on the Hugging Face hub.
    :param flag: the flag that names it, for errors.
    :param expected: a name in NETWORKS that it has to be; None takes all.
    :param family: whose network it is, a name in adapters.FAMILIES; "" tells by what lies there.
    :param vae: folder of the autoencoder of a network of latents that brings none, or its name there.
    :param given: flags that are known of it, where it has none beside it: what its shapes do not tell.
    :return: (the network on this rank's device in eval mode, its diffusion process, {flag: value} of all that describes
        both). The process is a Process without methods, for a classifier of noisy images by the flags that say how
        they were noised; None for a network without one. `adapters.pair_of(network)` has its encode and decode.
    :raises UserError: if the file is missing, damaged or of another network, or `given` contradicts it.
    """
    path, vae = adapters.on_disk(path), adapters.on_disk(vae, "vae")
    found = _others_at(path, family, vae, flag)
    if found is not None:
        return _open_found(found, path, expected, given)
    network = recognised(path, flag) if expected is None else NETWORKS[expected]
    parsed = _stated(network, given)
    parsed = resolve(parsed, path, network, flag=flag)
    model = _open(parsed, path, network, flag)
    made = next((parsed[group].create() for group in process_groups(network)), None)
    return model, made, _told(parsed, network)


def _told(parsed, network):
    """{flag: value} of what Parsed flags say of a Network; what they do not say of its variants is left out."""
    said = described(network)
    for group in network.variants:
        said -= {field.name for field in flags_of(group) if getattr(parsed[group], field.name) == field.default}
    return {name: value for name, value in parsed.values().items() if name in said}


def _stated(network, given):
    """The Parsed flags of a Network of which {flag: value} are given."""
    unknown = given.keys() - described(network)
    if unknown:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    groups = (*network.groups, *process_groups(network))
    return Parsed({group: group() for group in groups}, frozenset(given)).with_values(given)


def _open_found(found, path, expected, given):
    """What `open_network` gives of an adapters.Found."""
    if expected not in (None, "diffusion"):
        raise UserError(f"{path} is {found.what}; expected {NETWORKS[expected].what}")
    parsed = adapters.resolve(_stated(DIFFUSION, given), found, path)
    return _create(found, parsed, path), parsed[process.DiffusionFlags].create(), _told(parsed, DIFFUSION)


def _create(found, parsed, path):
    """The network of an adapters.Found, on this rank's device in eval mode."""
    key = parsed.values().get("checkpoint_key", "")
    whole = files.is_folder(path) or adapters.is_held(path)
    if key and whole:
        raise UserError(f"--checkpoint_key {key} is of a file, and {path} is a folder; leave it out")
    network = found.create(parsed, None if whole else take(path, key=key))
    network.convert_to(parsed[UNetFlags].dtype)
    return network.to(dist_util.dev()).eval()


def load_network(parsed, conv=None):
    """The network of --model_path.

    A script with the flags of another network, such as the sizes of a super-resolution network, expects that.

    :param conv: see `networks.for_inference`.
    :return: (the resolved Parsed flags, the network on this rank's device in eval mode, fast for inference).
    """
    parsed = resolved(parsed)
    path, found = parsed[CheckpointFlags].model_path, of_others(parsed)
    if found is not None:
        model = _create(found, parsed, path)
        _compute_by(parsed)
        return parsed, compiled(model)
    return parsed, _fast(parsed, _open(parsed, path, _network(parsed)), conv)


def load_process(parsed, *methods):
    """The Process of resolved flags; the log says what its methods have to say of the checkpoint and of the flags.

    :param methods: Method objects in place of those that the command line made.
    :raises UserError: for flags that exclude each other.
    """
    path = parsed[CheckpointFlags].model_path
    made, trained = process.of_flags(parsed, *methods), read_flags(path)
    check_meant(made, trained, path)
    for method in STACK:
        for remark in method.remarks(trained):
            logger.log(f"{path}: {remark}")
    if dist_util.is_main():
        _advise(path, trained)
    start, last = made.grid[-1], made.schedule.num_timesteps - 1
    if made.schedule.ends_in_noise and start != last:
        logger.warn(
            f"sampling begins at timestep {start}, and with --rescale_zero_terminal_snr True pure noise is at {last} "
            "alone (Lin et al. 2024, section 3.3); expected --spacing uniform and a number of steps"
        )
    for method in made.methods:
        for advice in method.advice(made, trained):
            logger.warn(advice)
    return made


def load_diffusion(parsed):
    """(the resolved Parsed flags, the network, the Process) of --model_path; see `load_network`, `load_guided`."""
    parsed, network = load_network(parsed)
    parsed, made = load_guided(parsed)
    return parsed, network, made


def with_networks(parsed):
    """The Parsed flags with the networks that they name, each in its group, by flags that are marked to open one."""
    groups = dict(parsed.groups)
    for kind, group in groups.items():
        for name, network in marked([kind], "opens").items():
            if path := getattr(group, name):
                groups[kind] = replace(group, **{network: open_network(path, name, expected=network)[0]})
    return replace(parsed, groups=groups)


def load_guided(parsed):
    """(the resolved Parsed flags, the Process) with the classifier that guides, where there are flags of one, and the
    other networks that flags name.

    :param parsed: those that `load_network` returned; see `load_classifier`, `load_process`.
    """
    parsed, path = with_networks(parsed), parsed.values().get("classifier_path")
    if path is None:
        return parsed, load_process(parsed)
    parsed, classifier = load_classifier(parsed, path)
    return parsed, load_process(parsed, *guided(parsed, classifier))


def resolved(parsed, log=True):
    """The Parsed flags of a run that uses --model_path, with what the checkpoint says; see `resolve`."""
    source = parsed[CheckpointFlags]
    places = {"model_path": adapters.on_disk(source.model_path), "vae": adapters.on_disk(source.vae, "vae")}
    parsed = parsed.with_values(places)
    source, found = parsed[CheckpointFlags], of_others(parsed)
    if found is None:
        _refuse_untold(parsed, source.model_path)
        told = resolve(parsed, source.model_path, _network(parsed), override=source.override, log=log)
        told = as_meant(told, source.model_path, log)
    elif _network(parsed) is DIFFUSION:
        told = adapters.resolve(parsed, found, source.model_path, log)
    else:
        raise UserError(f"--model_path {source.model_path} is {found.what}; expected {_network(parsed).what}")
    told.refuse_unread()
    return told


def _refuse_untold(parsed, path):
    """Validate that a diffusion network is told beside x and t, by the flags of a script, what it was trained with."""
    trained = read_flags(path) if _network(parsed) is DIFFUSION else {}
    for group in DIFFUSION.variants:
        without = all(trained.get(field.name, field.default) == field.default for field in flags_of(group))
        for field in flags_of(group):
            own = trained.get(field.name, field.default)
            if field.name not in parsed.values() and own != field.default:
                raise UserError(
                    f"--model_path {path} was trained with --{field.name} {own}, which this script cannot tell it; "
                    "expected a script that has the flag, such as scripts/image_sample.py"
                )
            value = parsed.values().get(field.name)
            if trained and without and field.name in parsed.given and value != field.default:
                raise UserError(f"--{field.name} is {value}, and --model_path {path} was trained without; leave it out")


def of_others(parsed):
    """The adapters.Found of --model_path, None for a network of this project."""
    source = parsed[CheckpointFlags]
    return _others_at(source.model_path, source.network, source.vae, key=source.checkpoint_key)


def family_of(parsed):
    """The adapters.Family of what lies at --model_path, None for a network of this project."""
    source = parsed[CheckpointFlags]
    path, name = source.model_path, _family_name(source.model_path, source.network)
    return adapters.family_at(path, partial(peek, key=source.checkpoint_key), name)


def _others_at(path, family="", vae="", flag="model_path", key=""):
    """The adapters.Found at a path, None for a network of this project, as flags beside it show."""
    with told_of(flag, "model_path"):
        return adapters.find(path, partial(peek, flag=flag, key=key), _family_name(path, family), vae)


def _family_name(path, given):
    """The name of a family that was given, or that of this project where flags lie beside a file."""
    own = path and not given and files.exists(sidecar_path(path))
    return adapters.OWN if own else given


def _network(parsed):
    """The first Network with a whole diffusion process whose flags a script has."""
    whole = (network for network in NETWORKS.values() if network.process == "all")
    return next((network for network in whole if parsed.groups.keys() >= {*network.groups}), DIFFUSION)


def load_classifier(parsed, path, flag="classifier_path"):
    """The noisy classifier that --`flag` names.

    Where there is a diffusion network too, its resolved flags decide what the classifier has to fit.

    :return: (the resolved Parsed flags, the EncoderUNetModel on this rank's device in eval mode, fast for inference).
    """
    fixed, override = set(), False
    if UNetFlags in parsed.groups:
        found = of_others(parsed)
        if found is not None and (found.latent or found.betas):
            raise UserError(
                f"--{flag} {path} cannot guide {found.what}: a classifier here knows pixels, noised as "
                "--noise_schedule names it"
            )
        override = parsed[CheckpointFlags].override
        fixed = {"image_size", "image_channels", *noising()}
        if parsed[UNetFlags].class_cond:
            fixed.add("num_classes")
            if parsed[UNetFlags].class_names:
                fixed.add("class_names")
    parsed = resolve(parsed, path, CLASSIFIER, override=override, flag=flag, fixed=fixed)
    return parsed, _fast(parsed, _open(parsed, path, CLASSIFIER, flag))


def _open(parsed, path, network, flag="model_path"):
    """The network of resolved flags with the weights at `path`, on this rank's device in eval mode."""
    model, dtype = network.create(parsed), parsed[network.groups[0]].dtype
    load_into(model, path, flag, key=key_for(flag, parsed.values()))
    model.to(dist_util.dev())
    if dtype is not torch.float32:
        model.convert_to(dtype)
    return model.eval()


def _fast(parsed, model, conv=None):
    """The network as the scripts run it."""
    _compute_by(parsed)
    return for_inference(compiled(model), conv)


def _compute_by(parsed):
    parsed.groups.get(ConvFlags, ConvFlags()).apply()


def _advise(path, trained):
    """Warn of a moving average that is still mostly its start, and of raw weights beside an average.

    :param trained: {flag: value} of its training; {} where they are not known.
    """
    folder, name = files.split(path)
    said = _young(name, trained)
    if said and not trained.get("init_from"):
        logger.warn(
            f"{name} {said}, untrained ones: expect noise as far as that is much; train longer, with a lower "
            "--ema_rate, or with --ema_warmup True"
        )
    raw = re.fullmatch(r"model(\d+)\.pt", name)
    if raw:
        averages = (n for n, _ in files.entries(folder or ".") if re.fullmatch(rf"ema_.*_{raw[1]}\.pt", n))
        if any(trained.get("init_from") or not _young(average, trained) for average in averages):
            logger.warn(f"{name} holds the raw weights; the ema_*_{raw[1]}.pt beside it usually samples better")


def _young(name, trained):
    """What is to be said of the moving average in a file of this name, if it is one, that has hardly begun to move."""
    average = re.fullmatch(r"ema_(0?\.\d+|0|1)_(\d+)\.pt", name)
    return young(float(average[1]), int(average[2]), bool(trained.get("ema_warmup"))) if average else ""
