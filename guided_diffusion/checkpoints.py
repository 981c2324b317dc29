"""Checkpoint files: plain state dicts, the flags that lie beside them, and what tensor shapes reveal."""

import io
import json
import re

import blobfile as bf
import torch

from . import dist_util, logger
from .errors import UserError
from .script_util import CHANNEL_MULTS, channel_multipliers

# Flags of the network and the process that a user may set for one run, against what was trained.
FREE_FLAGS = {
    "use_fp16",
    "classifier_use_fp16",
    "use_checkpoint",
    "dropout",
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
}


def sidecar_path(path):
    """Where the flags of a checkpoint lie: its name with .json for .pt."""
    return re.sub(r"\.pt$", "", path) + ".json"


def write(path, state, flags=None):
    """Write a state dict, and beside it the flags {name: value} as JSON.

    :param path: any path blobfile writes.
    """
    data = io.BytesIO()
    torch.save(state, data)
    with bf.BlobFile(path, "wb") as f:
        f.write(data.getbuffer())
    if flags is not None:
        with bf.BlobFile(sidecar_path(path), "w") as f:
            f.write(json.dumps(flags, indent=1, sort_keys=True) + "\n")


def read_flags(path):
    """The flags beside a checkpoint, {} if there are none."""
    if not bf.exists(sidecar_path(path)):
        return {}
    try:
        with bf.BlobFile(sidecar_path(path), "r") as f:
            values = json.load(f)
    except ValueError as error:
        raise UserError(f"{sidecar_path(path)} is not valid JSON ({error}); expected the flags of its checkpoint") from error
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
    width = state["input_blocks.0.0.weight"].shape[0]
    outputs = _blocks(state, "output_blocks")
    ups = [i for i in range(outputs) if _has(state, rf"output_blocks\.{i}\.[12]\.(conv|in_layers)\.")]
    res_blocks = (ups[0] if ups else outputs - 1)
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
        "resblock_updown": levels > 1 and f"input_blocks.{starts[1] - 1}.0.op.weight" not in state,
    }
    if found["class_cond"]:
        found["num_classes"] = state["label_emb.weight"].shape[0]
    return {**found, **_sizes(mult, attended, image_size, "attention_resolutions")}


def classifier_flags_of_shapes(state, image_size=None):
    """Flags {name: value} of an EncoderUNetModel that its state dict reveals, as `flags_of_shapes`.

    How many levels there are follows from convolutions that down-sample, else from the multipliers of the
    image size, else from where the width changes.
    """
    width = state["input_blocks.0.0.weight"].shape[0]
    blocks = _blocks(state, "input_blocks")
    convs = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in state]
    if convs:
        depth = convs[0] - 1
    else:
        depth = _depth(state, blocks, image_size)
    levels = blocks // (depth + 1)
    starts = [1 + level * (depth + 1) for level in range(levels)]
    mult = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in starts]
    attended = [2**level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in state]
    found = {
        "classifier_width": width,
        "classifier_depth": depth,
        "classifier_channel_mult": _mult_text(mult),
        "classifier_use_scale_shift_norm": _scale_shift(state),
        "classifier_resblock_updown": levels > 1 and not convs,
        **_pool_and_classes(state),
    }
    return {**found, **_sizes(mult, attended, image_size, "classifier_attention_resolutions")}


def _depth(state, blocks, image_size):
    """Residual blocks per level of an encoder whose down-sampling looks like any residual block."""
    if image_size in CHANNEL_MULTS and blocks % len(CHANNEL_MULTS[image_size]) == 0:
        return blocks // len(CHANNEL_MULTS[image_size]) - 1
    widths = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in range(1, blocks)]
    change = next((i for i, w in enumerate(widths) if w != widths[0]), len(widths) + 1)
    return change - 1


def _pool_and_classes(state):
    if "out.2.positional_embedding" in state:
        return {"classifier_pool": "attention", "num_classes": state["out.2.c_proj.weight"].shape[0]}
    if "out.3.weight" in state:
        return {"classifier_pool": "adaptive", "num_classes": state["out.3.weight"].shape[0]}
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


# -- from a checkpoint and a command line to flags -------------------------------------------------


def resolve(parsed, path, group, reveal, size_flag="image_size", override=False, flag="model_path"):
    """The Parsed flags of a run that uses a checkpoint: what was given, else what the checkpoint says.

    Flags that lie beside the checkpoint decide; without those, its shapes do.

    :param parsed: the command line.
    :param path: of the checkpoint.
    :param group: names of the flags that describe it.
    :param reveal: `flags_of_shapes` or `classifier_flags_of_shapes`.
    :param size_flag: the flag that states the network's image size.
    :param override: let given flags win over those beside the checkpoint.
    :raises UserError: at most ten lines, for a given flag that contradicts the checkpoint.
    """
    values = parsed.values()
    beside = {k: v for k, v in read_flags(path).items() if k in group}
    given = {k: values[k] for k in parsed.given if k in group}
    if beside:
        source, known = sidecar_path(path), beside
    else:
        state = dist_util.load_state_dict(path)
        size = given.get(size_flag)
        try:
            known = reveal(state, size)
        except (KeyError, IndexError, ZeroDivisionError):
            raise UserError(f"--{flag} {path} is not a checkpoint of such a network: its tensors have other names") from None
        if "image_size" in known:
            known[size_flag] = known.pop("image_size")
        elif size_flag != "image_size" or size is None:
            raise UserError(f"--{flag} {path} does not tell its image size: give --{size_flag}")
        source = "its tensors"
        known = {k: v for k, v in known.items() if k in group}
    wrong = [] if override and beside else [
        f"  --{k} is {given[k]!r}, the checkpoint has {known[k]!r}"
        for k in sorted(given)
        if k in known and k not in FREE_FLAGS and not _same(k, given[k], known[k], values, known, size_flag)
    ]
    if wrong:
        hint = " (--override True insists)" if beside else ""
        shown = wrong[:7] + ([f"  and {len(wrong) - 7} more"] if len(wrong) > 7 else [])
        raise UserError("\n".join([f"--{flag} {path} contradicts the command line, by {source}{hint}:", *shown]))
    logger.log(f"{path}: {len(known)} flags from {source}")
    return parsed.with_values({**known, **given})


def _same(name, given, known, values, all_known, size_flag):
    if "attention_resolutions" in name:
        return sorted(given.split(",")) == sorted(known.split(","))
    if "channel_mult" in name:
        size = all_known.get(size_flag)
        return channel_multipliers(given, size) == channel_multipliers(known, size)
    return given == known
