"""Checkpoint files: plain state dicts, the flags that lie beside them, and what tensor shapes reveal."""

import dataclasses
import io
import json
import re

import torch

from . import dist_util, files, logger
from .errors import UserError
from .flags import FlagGroup, flag
from .script_util import (
    CHANNEL_MULTS,
    SAMPLING_METHODS,
    SUPER_RES_CHANNEL_MULTS,
    ClassifierFlags,
    DiffusionFlags,
    SuperResFlags,
    UNetFlags,
    attention_rates,
    channel_multipliers,
)

# Flags of the network and the process that a user may set for one run, against what was trained.
FREE_FLAGS = {
    "use_fp16",
    "use_bf16",
    "classifier_use_fp16",
    "use_checkpoint",
    "dropout",
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
}


@dataclasses.dataclass
class CheckpointFlags(FlagGroup):
    """The diffusion checkpoint."""

    model_path: str = flag("", "Checkpoint of the diffusion network, model*.pt or ema_*.pt.")
    override: bool = flag(False, "Let given flags win over those saved beside the checkpoint.")


def sidecar_path(path):
    """Where the flags of a checkpoint lie: its name with .json for .pt."""
    return re.sub(r"\.pt$", "", path) + ".json"


def write(path, state, flags=None):
    """Write a state dict, and beside it the flags {name: value} as JSON.

    :param path: local, or any address blobfile writes.
    """
    data = io.BytesIO()
    torch.save(state, data)
    files.write_bytes(path, data.getbuffer())
    if flags is not None:
        files.write_text(sidecar_path(path), json.dumps(flags, indent=1, sort_keys=True) + "\n")


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


def load_into(model, path, flag="model_path"):
    """Load the weights at `path` into a network.

    :raises UserError: at most ten lines, if keys or shapes differ.
    """
    state = dist_util.load_state_dict(path)
    expected = model.state_dict()
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


# -- what the shapes reveal ------------------------------------------------------------------------


def flags_of_shapes(state, image_size=None):
    """Flags {name: value} of a UNetModel or SuperResModel that its state dict reveals.

    :param state: {key: tensor}.
    :param image_size: of the network; without it that of the channel multipliers, where those are published.
    :return: num_channels, num_res_blocks, channel_mult, attention_resolutions, learn_sigma, class_cond,
        num_classes, use_scale_shift_norm, resblock_updown, and image_size where it is known.
    :raises KeyError: if it is no such network.
    """
    width = state["time_embed.0.weight"].shape[1]
    outputs = _blocks(state, "output_blocks")
    ups = [i for i in range(outputs) if _has(state, rf"output_blocks\.{i}\.[12]\.(conv|in_layers)\.")]
    res_blocks = ups[0] if ups else outputs - 1
    levels = outputs // (res_blocks + 1)
    starts = [1 + level * (res_blocks + 1) for level in range(levels)]
    mult = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in starts]
    attended = [2**level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in state]
    found = {
        "num_channels": width,
        "num_res_blocks": res_blocks,
        "channel_mult": _mult_text(mult),
        "learn_sigma": state["out.2.weight"].shape[0] == 6,
        "class_cond": "label_emb.weight" in state,
        "use_scale_shift_norm": _scale_shift(state),
    }
    if levels > 1:
        found["resblock_updown"] = f"input_blocks.{starts[1] - 1}.0.op.weight" not in state
    if found["class_cond"]:
        found["num_classes"] = state["label_emb.weight"].shape[0]
    return {**found, **_sizes(mult, attended, image_size, "attention_resolutions")}


def classifier_flags_of_shapes(state, image_size=None):
    """Flags {name: value} of an EncoderUNetModel that its state dict reveals, as `flags_of_shapes`.

    How many levels there are follows from convolutions that down-sample, else from where widths and attention
    change; what fits several ways is read as a published network, else as one of few levels.
    """
    width = state["time_embed.0.weight"].shape[1]
    blocks = _blocks(state, "input_blocks")
    convs = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in state]
    if convs:
        depth = convs[0] - 1
    else:
        depth = _depth(state, width, blocks, image_size)
    levels = blocks // (depth + 1)
    starts = [1 + level * (depth + 1) for level in range(levels)]
    mult = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in starts]
    attended = [2**level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in state]
    found = {
        "classifier_width": width,
        "classifier_depth": depth,
        "classifier_channel_mult": _mult_text(mult),
        "classifier_use_scale_shift_norm": _scale_shift(state),
        **_pool_and_classes(state),
    }
    if levels > 1:
        found["classifier_resblock_updown"] = not convs
    return {**found, **_sizes(mult, attended, image_size, "classifier_attention_resolutions")}


def _depth(state, width, blocks, image_size):
    """Residual blocks per level of an encoder whose down-sampling looks like any residual block."""
    widths = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in range(1, blocks)]
    attended = [f"input_blocks.{i}.1.qkv.weight" in state for i in range(1, blocks)]
    mults = {}
    for depth in (d for d in range(1, blocks) if blocks % (d + 1) == 0):
        levels = [slice(i, i + depth + 1) for i in range(0, blocks, depth + 1)]
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
    if "out.2.weight" in state:
        return {"classifier_pool": "spatial", "num_classes": state["out.2.weight"].shape[0]}
    return {}


def _blocks(state, name):
    return 1 + max((int(m[1]) for m in (re.match(rf"{name}\.(\d+)\.", k) for k in state) if m), default=-1)


def _has(state, pattern):
    return any(re.match(pattern, key) for key in state)


def _scale_shift(state):
    out_channels = state["input_blocks.1.0.out_layers.3.weight"].shape[0]
    return state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * out_channels


def _mult_text(mult):
    return ",".join(f"{m:g}" for m in mult)


def _sizes(mult, attended, image_size, attention_flag):
    if image_size is None:
        image_size = next((s for s, m in CHANNEL_MULTS.items() if list(m) == list(mult)), None)
    if image_size is None:
        return {}
    return {"image_size": image_size, attention_flag: ",".join(str(image_size // rate) for rate in attended)}


# -- from a checkpoint and a command line to a network ---------------------------------------------


def load_diffusion(parsed):
    """The network and process of --model_path, for image_sample and its like.

    :return: (the resolved Parsed flags, the UNetModel on this rank's device in eval mode, the SpacedDiffusion).
    """
    source = parsed[CheckpointFlags]
    parsed = resolve(
        parsed, source.model_path, _names(UNetFlags, DiffusionFlags), flags_of_shapes, override=source.override
    )
    unet, process = parsed[UNetFlags], parsed[DiffusionFlags]
    return parsed, _ready(unet.create(process.learn_sigma), source.model_path, unet.dtype), _process(parsed)


def load_super_res(parsed):
    """The network and process of --model_path of a super-resolution run; returns as `load_diffusion`."""
    source = parsed[CheckpointFlags]
    names = _names(UNetFlags, SuperResFlags, DiffusionFlags) - {"image_size"}
    parsed = resolve(
        parsed,
        source.model_path,
        names,
        flags_of_shapes,
        size_flag="large_size",
        defaults=SUPER_RES_CHANNEL_MULTS,
        override=source.override,
    )
    unet, process = parsed[UNetFlags], parsed[DiffusionFlags]
    model = parsed[SuperResFlags].create(unet, process.learn_sigma)
    return parsed, _ready(model, source.model_path, unet.dtype), _process(parsed)


def _process(parsed):
    path = parsed[CheckpointFlags].model_path
    gamma = read_flags(path).get("input_perturbation")
    if gamma:
        logger.log(f"{path}: trained with --input_perturbation {gamma}")
    _advise(path)
    return parsed[DiffusionFlags].create(*(parsed[group] for group in SAMPLING_METHODS if group in parsed.groups))


def _advise(path):
    """Warn of a moving average that is still mostly its start, and of raw weights beside an average."""
    folder, name = files.split(path)
    average = re.fullmatch(r"ema_(0?\.\d+)_(\d+)\.pt", name)
    if average:
        rate, step = float(average[1]), int(average[2])
        if rate**step > 0.125:
            logger.warn(
                f"{name} still holds {100 * rate**step:.0f} % of the untrained weights after {step} steps: "
                "expect noise; train longer, or with a lower --ema_rate"
            )
    raw = re.fullmatch(r"model(\d+)\.pt", name)
    if raw and any(re.fullmatch(rf"ema_.*_{raw[1]}\.pt", other) for other, _ in files.entries(folder or ".")):
        logger.warn(f"{name} holds the raw weights; the ema_*_{raw[1]}.pt beside it usually samples better")


def load_classifier(parsed, path):
    """The noisy classifier of --classifier_path.

    Where there is a diffusion network too, its resolved flags decide what the classifier has to fit.

    :return: (the resolved Parsed flags, the EncoderUNetModel on this rank's device in eval mode).
    """
    fixed = set()
    if UNetFlags in parsed.groups:
        fixed = {"image_size", "diffusion_steps", "noise_schedule", "rescale_timesteps"}
        if parsed[UNetFlags].class_cond:
            fixed.add("num_classes")
    parsed = resolve(
        parsed,
        path,
        _names(ClassifierFlags) | fixed,
        classifier_flags_of_shapes,
        override=CheckpointFlags in parsed.groups and parsed[CheckpointFlags].override,
        flag="classifier_path",
        fixed=fixed,
    )
    classifier = parsed[ClassifierFlags]
    return parsed, _ready(classifier.create(), path, classifier.dtype, "classifier_path")


def _names(*groups):
    return {field.name for group in groups for field in dataclasses.fields(group)}


def _ready(model, path, dtype, flag="model_path"):
    load_into(model, path, flag)
    model.to(dist_util.dev())
    if dtype is not torch.float32:
        model.convert_to(dtype)
    return model.eval()


def resolve(
    parsed,
    path,
    names,
    reveal,
    *,
    size_flag="image_size",
    defaults=CHANNEL_MULTS,
    override=False,
    flag="model_path",
    fixed=frozenset(),
):
    """The Parsed flags of a run that uses a checkpoint: what was given, else what the checkpoint says.

    The flags beside the checkpoint speak for it; without those, its shapes do.

    :param parsed: the command line.
    :param path: of the checkpoint.
    :param names: of the flags that describe it.
    :param reveal: `flags_of_shapes` or `classifier_flags_of_shapes`.
    :param size_flag: the flag that states the network's image size.
    :param defaults: {image size: channel multipliers}.
    :param override: let given flags win over those beside the checkpoint.
    :param fixed: flags that count as given though the command line left them out.
    :raises UserError: at most ten lines, for a given flag that contradicts the checkpoint.
    """
    if not path:
        raise UserError(f"--{flag} is not given; expected the path of a checkpoint (.pt)")
    values = parsed.values()
    given = {k: values[k] for k in (parsed.given | fixed) & names}
    beside = read_flags(path)
    known = {k: v for k, v in beside.items() if k in names}
    source = sidecar_path(path) if known else "its tensors"
    widths = ["num_channels", "classifier_width"]
    wanted, other = reversed(widths) if reveal is classifier_flags_of_shapes else widths
    if other in beside and wanted not in beside:
        raise UserError(
            f"--{flag} {path} is of the other kind of network: {sidecar_path(path)} has {other}, not {wanted}"
        )
    if not known:
        known = _revealed(path, reveal, size_flag, given, flag, names, defaults)
    conflicts = _conflicts(given, known, size_flag, defaults)
    if conflicts and not (override and source == sidecar_path(path)):
        hint = "; --override True insists" if source == sidecar_path(path) else ""
        shown = conflicts[:7] + ([f"  and {len(conflicts) - 7} more"] if len(conflicts) > 7 else [])
        raise UserError(
            "\n".join([f"--{flag} {path} is another network than the flags say (by {source}{hint}):", *shown])
        )
    logger.log(f"{path}: flags by {source}")
    return parsed.with_values({**known, **given})


def _revealed(path, reveal, size_flag, given, flag, names, defaults):
    state, size = dist_util.load_state_dict(path), given.get(size_flag)
    try:
        known = reveal(state, size)
        if size in defaults and not any(given[k] for k in given if k.endswith("channel_mult")):
            (mult,) = (known[k] for k in known if k.endswith("channel_mult"))
            # the multipliers of another published size tell that size
            if channel_multipliers(mult, size) != defaults[size] and "image_size" in (other := reveal(state)):
                known = other
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise UserError(
            f"--{flag} {path} is not a checkpoint of such a network: its tensors have other names"
        ) from None
    if "image_size" not in known:
        raise UserError(f"--{flag} {path} does not tell its image size: give --{size_flag}")
    known[size_flag] = known.pop("image_size")
    return {k: v for k, v in known.items() if k in names}


def _conflicts(given, known, size_flag, defaults):
    """One line for each given flag that contradicts the known ones."""
    return [
        f"  --{k} is {given[k]!r}, the checkpoint has {known[k]!r}"
        for k in sorted(given)
        if k in known and k not in FREE_FLAGS and not _same(k, given, known, size_flag, defaults)
    ]


def _same(name, given, known, size_flag, defaults):
    either = {**given, **known}
    size = either.get(size_flag)
    if size and name.endswith("channel_mult"):
        return channel_multipliers(given[name], size, defaults) == channel_multipliers(known[name], size, defaults)
    if size and name.endswith("attention_resolutions"):
        mult = next((either[k] for k in either if k.endswith("channel_mult")), "")
        # a size that no level has adds no attention
        levels = {2**level for level in range(len(channel_multipliers(mult, size, defaults)))}
        return levels.isdisjoint(
            set(attention_rates(given[name], size, name)) ^ set(attention_rates(known[name], size, name))
        )
    return given[name] == known[name]
