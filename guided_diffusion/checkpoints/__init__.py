"""Checkpoint files: plain state dicts, the flags that lie beside them, and the networks they stand for."""

import dataclasses
import io
import json
import re

import torch

from .. import dist_util, files, logger
from ..errors import UserError
from ..flags import FlagGroup, flag, flags_of, marked
from ..networks import NETWORKS, ClassifierFlags, SuperResFlags, UNetFlags
from ..networks.levels import attention_rates, channel_multipliers
from ..script_util import SAMPLING_METHODS, DiffusionFlags
from ..solver_flags import SolverFlags

# Tensors whose shapes depend on the classes: those of the class embedding, and of a classifier's last layers.
HEAD = re.compile(r"(label_emb|out)\.")


@dataclasses.dataclass
class CheckpointFlags(FlagGroup):
    """The diffusion checkpoint."""

    model_path: str = flag("", "Checkpoint of the diffusion network, model*.pt or ema_*.pt.", content=True)
    override: bool = flag(False, "Let given flags win over those saved beside the checkpoint.", idle=True)


def sidecar_path(path):
    """Where the flags of a checkpoint lie: its name with .json for .pt."""
    return re.sub(r"\.pt$", "", path) + ".json"


def write(path, state, flags=None):
    """Write a state dict, and beside it the flags {name: value} as JSON.

    :param path: local, or any address blobfile writes.
    """
    folder, name = files.split(path)
    for part, data in parts(name, state, flags):
        files.write_bytes(files.join(folder, part), data)


def parts(name, state, flags=None):
    """(file name, content as bytes) of the flags {name: value} as JSON, and then of the state dict they lie beside."""
    if flags is not None:
        yield sidecar_path(name), (json.dumps(flags, indent=1, sort_keys=True) + "\n").encode()
    data = io.BytesIO()
    torch.save(state, data)
    yield name, data.getbuffer()


def read_flags(path):
    """The flags beside a checkpoint, {} if there are none."""
    if not files.exists(sidecar_path(path)):
        return {}
    try:
        values = json.loads(files.read_text(sidecar_path(path)))
    except ValueError as error:
        raise UserError(
            f"{sidecar_path(path)} is not valid JSON ({error}); expected the flags of its checkpoint"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{sidecar_path(path)} holds a {type(values).__name__}; expected an object of flags")
    return values


def load_into(model, path, flag="model_path", free_head=False):
    """Load the weights at `path` into a network.

    :param free_head: whether tensors whose shape depends on the classes may differ; they stay as they are then.
    :return: the names of those that did.
    :raises UserError: at most ten lines, if keys or shapes differ.
    """
    state = _read(path, flag)
    expected = model.state_dict()
    left = [k for k in sorted({*state, *expected}) if free_head and HEAD.match(k) and not _alike(k, state, expected)]
    state = {k: v for k, v in state.items() if k not in left} | {k: expected[k] for k in left if k in expected}
    missing = [k for k in expected if k not in state]
    surplus = [k for k in state if k not in expected]
    other = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or surplus or other:
        lines = [f"--{flag} {path} is a checkpoint of another network than the flags describe:"]
        for what, keys in (("it lacks", missing), ("it has beyond that", surplus)):
            if keys:
                lines.append(f"  {what} {len(keys)} tensors, such as {keys[0]}")
        for key in other[:3]:
            lines.append(f"  {key} is {tuple(state[key].shape)}, the flags make it {tuple(expected[key].shape)}")
        raise UserError("\n".join(lines))
    model.load_state_dict(state)
    return left


def _alike(key, state, expected):
    return key in state and key in expected and state[key].shape == expected[key].shape


def _read(path, flag):
    try:
        return dist_util.load_state_dict(path)
    except UserError as error:
        raise UserError(f"--{flag}: {error}") from error


# -- from a checkpoint and a command line to a network ---------------------------------------------


DIFFUSION, SUPER_RES, CLASSIFIER = (NETWORKS[name] for name in ("diffusion", "super_res", "classifier"))


def _described(network):
    """Names of the flags that describe a Network, its process included."""
    groups = network.groups + (DiffusionFlags,) * (network.process == "all")
    names = {field.name for group in groups for field in flags_of(group)} - {"image_size"} | {network.size_flag}
    return names | _noising() if network.process == "noising" else names


def _noising():
    return set(marked([DiffusionFlags], "noising"))


def _unseen(network):
    """Names of the flags that describe a Network, and that its shapes never show."""
    return marked(network.groups + (DiffusionFlags,) * (network.process == "all"), "hidden")


def load_diffusion(parsed):
    """The network and process of --model_path, for image_sample and its like.

    :return: (the resolved Parsed flags, the UNetModel on this rank's device in eval mode, the SpacedDiffusion).
    """
    source = parsed[CheckpointFlags]
    parsed = resolve(parsed, source.model_path, DIFFUSION, override=source.override)
    unet, process = parsed[UNetFlags], parsed[DiffusionFlags]
    return parsed, _ready(unet.create(process.learn_sigma), source.model_path, unet.dtype), _process(parsed)


def process_alone(parsed):
    """The SpacedDiffusion that `load_diffusion` makes, without the network and without a word in the log.

    :raises UserError: for flags that `load_diffusion` refuses.
    """
    source = parsed[CheckpointFlags]
    return _create(resolve(parsed, source.model_path, DIFFUSION, override=source.override, log=False))


def load_super_res(parsed):
    """The network and process of --model_path of a super-resolution run; returns as `load_diffusion`."""
    source = parsed[CheckpointFlags]
    parsed = resolve(parsed, source.model_path, SUPER_RES, override=source.override)
    unet, process = parsed[UNetFlags], parsed[DiffusionFlags]
    model = parsed[SuperResFlags].create(unet, process.learn_sigma)
    return parsed, _ready(model, source.model_path, unet.dtype), _process(parsed)


def load_classifier(parsed, path, flag="classifier_path"):
    """The noisy classifier that --`flag` names.

    Where there is a diffusion network too, its resolved flags decide what the classifier has to fit.

    :return: (the resolved Parsed flags, the EncoderUNetModel on this rank's device in eval mode).
    """
    fixed, override = set(), False
    if UNetFlags in parsed.groups:
        override = parsed[CheckpointFlags].override
        fixed = {"image_size", "image_channels", *_noising()}
        if parsed[UNetFlags].class_cond:
            fixed.add("num_classes")
    parsed = resolve(parsed, path, CLASSIFIER, override=override, flag=flag, fixed=fixed)
    classifier = parsed[ClassifierFlags]
    return parsed, _ready(classifier.create(), path, classifier.dtype, flag)


def _ready(model, path, dtype, flag="model_path"):
    load_into(model, path, flag)
    model.to(dist_util.dev())
    if dtype is not torch.float32:
        model.convert_to(dtype)
    return model.eval()


def _process(parsed):
    path = parsed[CheckpointFlags].model_path
    gamma = read_flags(path).get("input_perturbation")
    if gamma:
        logger.log(f"{path}: trained with --input_perturbation {gamma}")
    if dist_util.is_main():
        _advise(path)
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


def _advise(path):
    """Warn of a moving average that is still mostly its start, and of raw weights beside an average."""
    folder, name = files.split(path)
    average = re.fullmatch(r"ema_(0?\.\d+)_(\d+)\.pt", name)
    if average:
        rate, step = float(average[1]), int(average[2])
        if rate**step > 0.125 and not read_flags(path).get("init_from"):
            logger.warn(
                f"{name} still holds {100 * rate**step:.0f} % of the untrained weights after {step} steps: "
                "expect noise; train longer, or with a lower --ema_rate"
            )
    raw = re.fullmatch(r"model(\d+)\.pt", name)
    if raw and any(re.fullmatch(rf"ema_.*_{raw[1]}\.pt", other) for other, _ in files.entries(folder or ".")):
        logger.warn(f"{name} holds the raw weights; the ema_*_{raw[1]}.pt beside it usually samples better")


def resolve(
    parsed,
    path,
    kind,
    *,
    override=False,
    flag="model_path",
    fixed=frozenset(),
    free=frozenset(),
    lasting=frozenset(),
    log=True,
):
    """The Parsed flags of a run that uses a checkpoint: what was given, else what the checkpoint says.

    The flags beside the checkpoint speak for it; without those, its shapes do.

    :param parsed: the command line.
    :param path: of the checkpoint.
    :param kind: the Network it has to be.
    :param override: let given flags win over those beside the checkpoint.
    :param flag: that names the checkpoint.
    :param fixed: flags that count as given though the command line left them out.
    :param free: flags that may contradict the checkpoint, beside those that are marked so.
    :param lasting: flags that the checkpoint decides too, though they do not describe its network; free as well.
    :param log: whether to say where the flags are from, and warn of what is assumed.
    :raises UserError: at most ten lines, for a given flag that contradicts the checkpoint.
    """
    if not path:
        raise UserError(f"--{flag} is not given; expected the path of a checkpoint (.pt)")
    values, names = parsed.values(), _described(kind) | lasting
    given = {k: values[k] for k in (parsed.given | fixed) & names if k in values}
    beside = read_flags(path)
    _check_kind(beside, kind, path, flag)
    known = {k: v for k, v in beside.items() if k in names}
    _check_types(known, values, path)
    source = sidecar_path(path) if known else "its tensors"
    if not known:
        known = _revealed(path, kind, given, flag)
    conflicts = _conflicts(given, known, kind, parsed.marked("free") | free | lasting)
    if conflicts and not (override and source == sidecar_path(path)):
        hint = "; --override True insists" if source == sidecar_path(path) and "override" in values else ""
        shown = conflicts[:7] + ([f"  and {len(conflicts) - 7} more"] if len(conflicts) > 7 else [])
        raise UserError(
            "\n".join([f"--{flag} {path} is another network than the flags say (by {source}{hint}):", *shown])
        )
    if log:
        logger.log(f"{path}: flags by {source}")
    assumed = [] if beside else [k for k in _unseen(kind) if k in values and k not in given]
    if log and assumed:
        shown = " ".join(f"--{k} {values[k]}" for k in assumed)
        logger.warn(f"tensors do not show everything; assumed {shown}: give what its authors state")
    return parsed.with_values({**known, **given})


def resumed(parsed, path, kind):
    """The Parsed flags of a training run that goes on from `path`, or as they are where that is empty.

    Lasting flags go on too, unless the command line gives others.
    """
    lasting = parsed.marked("lasting")
    return resolve(parsed, path, kind, flag="resume_checkpoint", lasting=lasting) if path else parsed


def initialise(parsed, path, kind):
    """The Parsed flags of a training run that takes its first weights from `path`, or as they are where that is empty.

    It may have other classes than the checkpoint.
    """
    return resolve(parsed, path, kind, flag="init_from", free=parsed.marked("classes")) if path else parsed


def _check_kind(beside, kind, path, flag):
    """Refuse a checkpoint whose flags are those of another kind of network."""
    found = next((network for network in NETWORKS.values() if network.mark in beside), kind)
    if found is not kind:
        raise UserError(f"--{flag} {path} is {found.what}, by {sidecar_path(path)}; expected {kind.what}")


def _check_types(known, values, path):
    for name, value in known.items():
        wanted = type(values.get(name, value))
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise UserError(f"{sidecar_path(path)} has {value!r} for {name}; expected a value such as {values[name]!r}")


def _revealed(path, kind, given, flag):
    state, size = _read(path, flag), given.get(kind.size_flag)
    if all(key.startswith("module.") for key in state):
        raise UserError(f"--{flag} {path} was saved from a DDP wrapper: its tensors' names begin with module.")
    try:
        known = kind.reveal(state, size)
        if size in kind.defaults and not given.get(kind.mult_flag):
            # the multipliers of another published size tell that size
            mult = channel_multipliers(known[kind.mult_flag], size)
            if mult != kind.defaults[size] and "image_size" in (other := kind.reveal(state)):
                known = other
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise UserError(f"--{flag} {path} is not {kind.what}: its tensors have other names") from None
    if "image_size" not in known:
        raise UserError(f"--{flag} {path} does not tell its image size: give --{kind.size_flag}")
    known[kind.size_flag] = known.pop("image_size")
    return {k: v for k, v in known.items() if k in _described(kind)}


def _conflicts(given, known, kind, free):
    """One line for each given flag that contradicts the known ones."""
    return [
        f"  --{k} is {given[k]!r}, the checkpoint has {known[k]!r}"
        for k in sorted(given)
        if k in known and k not in free and not _same(k, given, known, kind)
    ]


def _same(name, given, known, kind):
    either = {**given, **known}
    size = either.get(kind.size_flag)
    if size and name == kind.mult_flag:
        one, other = (channel_multipliers(flags[name], size, kind.defaults) for flags in (given, known))
        return one == other
    if size and name.endswith("attention_resolutions"):
        levels = len(channel_multipliers(either.get(kind.mult_flag, ""), size, kind.defaults))
        one, other = (set(attention_rates(flags[name], size, name)) for flags in (given, known))
        # a size that no level has adds no attention
        return (one ^ other).isdisjoint(2**level for level in range(levels))
    return given[name] == known[name]
