"""What the tensors' shapes of a published checkpoint reveal of its flags.

Depth, widths, attention, classes and outputs show in shapes; heads, the order of attention, dropout and
everything about the diffusion process do not.
"""

import re

from ..networks import CHANNEL_MULTS


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
    starts, mult, attended = _levels(state, width, levels, res_blocks)
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
    _, mult, attended = _levels(state, width, levels, depth)
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


def _levels(state, width, levels, res_blocks):
    """Of each level the index of its first block and its channel multiplier; and the rates that have attention."""
    starts = [1 + level * (res_blocks + 1) for level in range(levels)]
    mult = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in starts]
    attended = [2**level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in state]
    return starts, mult, attended


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
