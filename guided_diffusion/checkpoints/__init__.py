"""Checkpoints: from a file, and what a command line says of it, to a network and its process."""

import re
from dataclasses import dataclass

import torch

from .. import dist_util, files, logger
from ..flags import FlagGroup, Parsed, flag
from ..networks import NETWORKS, UNetFlags
from ..script_util import SAMPLING_METHODS, DiffusionFlags
from ..solver_flags import SolverFlags
from .read import load_into, parts, read_flags, sidecar_path, write  # noqa: F401 (the package's own names)
from .resolve import described, initialise, noising, recognised, resolve, resumed  # noqa: F401 (likewise)

DIFFUSION, SUPER_RES, CLASSIFIER = (NETWORKS[name] for name in ("diffusion", "super_res", "classifier"))


@dataclass
class CheckpointFlags(FlagGroup):
    """The diffusion checkpoint."""

    model_path: str = flag("", "Checkpoint of the diffusion network, model*.pt or ema_*.pt.", content=True)
    override: bool = flag(False, "Let given flags win over those saved beside the checkpoint.", idle=True)


def open_network(path, flag="model_path", expected=None, **given):
    """Open a checkpoint of any network, such as a teacher, a critic or an encoder.

    :param path: local, or any address blobfile reads.
    :param flag: the flag that names it, for errors.
    :param expected: a name in NETWORKS that it has to be; None takes all.
    :param given: flags that are known of it, where it has none beside it: what its shapes do not tell.
    :return: (the network on this rank's device in eval mode, its diffusion process, {flag: value} of all that describes
        both). The process is what DiffusionFlags create, for a classifier of noisy images by the flags that say how
        they were noised; None for a network without one.
    :raises UserError: if the file is missing, damaged or of another network, or `given` contradicts it.
    """
    network = recognised(path, flag) if expected is None else NETWORKS[expected]
    groups = network.groups if network.process == "none" else (*network.groups, DiffusionFlags)
    unknown = given.keys() - described(network)
    if unknown:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    parsed = Parsed({group: group() for group in groups}, frozenset(given)).with_values(given)
    parsed = resolve(parsed, path, network, flag=flag)
    model = _open(parsed, path, network, flag)
    process = parsed[DiffusionFlags].create() if DiffusionFlags in groups else None
    return model, process, {k: v for k, v in parsed.values().items() if k in described(network)}


def load_diffusion(parsed):
    """The network and process of --model_path, for image_sample and its like.

    :return: (the resolved Parsed flags, the UNetModel on this rank's device in eval mode, the SpacedDiffusion).
    """
    return _load(parsed, DIFFUSION)


def load_super_res(parsed):
    """The network and process of --model_path of a super-resolution run; returns as `load_diffusion`."""
    return _load(parsed, SUPER_RES)


def process_alone(parsed):
    """The SpacedDiffusion that `load_diffusion` makes, without the network and without a word in the log.

    :raises UserError: for flags that `load_diffusion` refuses.
    """
    source = parsed[CheckpointFlags]
    return _create(resolve(parsed, source.model_path, DIFFUSION, override=source.override, log=False))


def load_classifier(parsed, path, flag="classifier_path"):
    """The noisy classifier that --`flag` names.

    Where there is a diffusion network too, its resolved flags decide what the classifier has to fit.

    :return: (the resolved Parsed flags, the EncoderUNetModel on this rank's device in eval mode).
    """
    fixed, override = set(), False
    if UNetFlags in parsed.groups:
        override = parsed[CheckpointFlags].override
        fixed = {"image_size", "image_channels", *noising()}
        if parsed[UNetFlags].class_cond:
            fixed.add("num_classes")
    parsed = resolve(parsed, path, CLASSIFIER, override=override, flag=flag, fixed=fixed)
    return parsed, _open(parsed, path, CLASSIFIER, flag)


def _load(parsed, network):
    source = parsed[CheckpointFlags]
    parsed = resolve(parsed, source.model_path, network, override=source.override)
    return parsed, _open(parsed, source.model_path, network), _process(parsed)


def _open(parsed, path, network, flag="model_path"):
    """The network of resolved flags with the weights at `path`, on this rank's device in eval mode."""
    model, dtype = network.create(parsed), parsed[network.groups[0]].dtype
    load_into(model, path, flag)
    model.to(dist_util.dev())
    if dtype is not torch.float32:
        model.convert_to(dtype)
    return model.eval()


def _process(parsed):
    path = parsed[CheckpointFlags].model_path
    trained = read_flags(path)
    gamma = trained.get("input_perturbation")
    if gamma:
        logger.log(f"{path}: trained with --input_perturbation {gamma}")
    if dist_util.is_main():
        _advise(path, trained)
    diffusion = _create(parsed)
    if diffusion.time_shift is not None:
        _advise_time_shift(diffusion.time_shift, diffusion.schedule.num_timesteps)
    return diffusion


def _create(parsed):
    """The SpacedDiffusion of resolved flags, checked with the solver's."""
    diffusion = parsed[DiffusionFlags].create(*(parsed[group] for group in SAMPLING_METHODS if group in parsed.groups))
    if SolverFlags in parsed.groups:
        parsed[SolverFlags].refuse_unread(parsed.given)
        parsed[SolverFlags].check(diffusion, parsed.values()["clip_denoised"])
    return diffusion


def _advise_time_shift(shift, total):
    """Warn of a cutoff that lets no step of the grid move, and of a window with more than all timesteps."""
    if shift.cutoff >= shift.highest_cutoff:
        reason = f"moves some below {shift.highest_cutoff}" if shift.highest_cutoff else "needs more steps"
        logger.warn(
            f"--cutoff {shift.cutoff} lets no step of this grid move: --time_shift_variant {shift.variant} {reason}"
        )
    if 2 * shift.half > total and not shift.constant:
        logger.warn(f"--window {2 * shift.half} is wider than the {total} timesteps there are")


def _advise(path, trained):
    """Warn of a moving average that is still mostly its start, and of raw weights beside an average.

    :param trained: {flag: value} of its training; {} where they are not known.
    """
    folder, name = files.split(path)
    average = re.fullmatch(r"ema_(0?\.\d+)_(\d+)\.pt", name)
    if average:
        rate, step = float(average[1]), int(average[2])
        if rate**step > 0.125 and not trained.get("init_from"):
            logger.warn(
                f"{name} still holds {100 * rate**step:.0f} % of the untrained weights after {step} steps: "
                "expect noise; train longer, or with a lower --ema_rate"
            )
    raw = re.fullmatch(r"model(\d+)\.pt", name)
    if raw and any(re.fullmatch(rf"ema_.*_{raw[1]}\.pt", other) for other, _ in files.entries(folder or ".")):
        logger.warn(f"{name} holds the raw weights; the ema_*_{raw[1]}.pt beside it usually samples better")
