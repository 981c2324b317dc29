"""ADM's U-Net as a UNet2DModel of diffusers, and back: the same numbers under other names.

| ADM | diffusers |
| --- | --- |
| input_blocks, middle_block, output_blocks | down_blocks, mid_block, up_blocks |
| in_layers, emb_layers, out_layers, skip_connection | norm1 and conv1, time_emb_proj, norm2 and conv2, conv_shortcut |
| qkv, in either order | to_q, to_k, to_v |
| time_embed, label_emb, out | time_embedding, class_embedding, conv_norm_out and conv_out |

diffusers has one width of heads for all attention, begins at the width that it embeds times in, and tells a network
timesteps as they are: what needs another is refused by the flag's name.
"""

import re

import torch

from ..errors import UserError
from ..networks import UNetFlags
from ..networks.levels import attention_rates, channel_multipliers, mult_text
from ..nn import GROUPS

BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def config_of(unet, learn_sigma):
    """The config of the UNet2DModel that UNetFlags describe.

    :raises UserError: naming the flag that diffusers has nothing for.
    """
    mult = channel_multipliers(unet.channel_mult, unet.image_size)
    widths = [int(m * unet.num_channels) for m in mult]
    attended = _attended(unet, len(widths))
    if widths[0] != unet.num_channels:
        raise UserError(
            f"--channel_mult {mult_text(mult)} begins at {widths[0]} channels, and diffusers at --num_channels "
            f"{unet.num_channels}; expected 1 as the first"
        )
    resampled = "resnet" if unet.resblock_updown else "conv"
    plain = {"conv": ("DownBlock2D", "UpBlock2D"), "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}
    down = ["AttnDownBlock2D" if here else plain[resampled][0] for here in attended]
    up = ["AttnUpBlock2D" if here else plain[resampled][1] for here in reversed(attended)]
    return {
        "sample_size": unet.image_size,
        "in_channels": unet.image_channels,
        "out_channels": unet.image_channels * (2 if learn_sigma else 1),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": up,
        "block_out_channels": widths,
        "layers_per_block": unet.num_res_blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "downsample_type": resampled,
        "upsample_type": resampled,
        "dropout": unet.dropout,
        "act_fn": "silu",
        "attention_head_dim": _head_width(unet, widths, attended),
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if unet.use_scale_shift_norm else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": unet.num_classes if unet.class_cond else None,
    }


def scheduler_of(process):
    """The config of the DDPMScheduler that DiffusionFlags describe.

    :raises UserError: naming the flag that diffusers has nothing for.
    """
    steps = process.diffusion_steps
    if process.rescale_timesteps and steps != 1000:
        raise UserError(
            f"--rescale_timesteps True tells a network times scaled by 1000 / {steps}, which diffusers does not; "
            "expected False"
        )
    if process.noise_schedule not in BETA_SCHEDULES:
        known = " or ".join(BETA_SCHEDULES)
        raise UserError(f"--noise_schedule {process.noise_schedule} has no name in diffusers; expected {known}")
    variance = "fixed_small" if process.sigma_small else "fixed_large"
    config = {
        "num_train_timesteps": steps,
        "beta_schedule": BETA_SCHEDULES[process.noise_schedule],
        "rescale_betas_zero_snr": process.rescale_zero_terminal_snr,
        "prediction_type": PREDICTIONS[process.prediction],
        "variance_type": "learned_range" if process.learn_sigma else variance,
        "clip_sample": True,
    }
    return config | ({"beta_start": 0.1 / steps, "beta_end": 20 / steps} if process.noise_schedule == "linear" else {})


def flags_of(config):
    """{flag: value} of ADM's network from the config of a UNet2DModel.

    :raises UserError: naming the entry that ADM has no counterpart of.
    """
    widths, size = config["block_out_channels"], config["sample_size"]
    attended = [size // 2**i for i, kind in enumerate(config["down_block_types"]) if kind.startswith("Attn")]
    learned = config["out_channels"] == 2 * config["in_channels"]
    classes = config.get("num_class_embeds")
    values = {
        "image_size": size,
        "image_channels": config["in_channels"],
        "num_channels": widths[0],
        "num_res_blocks": config["layers_per_block"],
        "num_head_channels": config["attention_head_dim"],
        "attention_resolutions": ",".join(map(str, attended)),
        "channel_mult": mult_text([width / widths[0] for width in widths]),
        "dropout": float(config.get("dropout", 0.0)),
        "class_cond": classes is not None,
        "use_scale_shift_norm": config["resnet_time_scale_shift"] == "scale_shift",
        "resblock_updown": config.get("downsample_type") == "resnet",
        "use_new_attention_order": True,
        **({} if classes is None else {"num_classes": classes}),
    }
    for name, expected in config_of(UNetFlags(**values), learned).items():
        found = config.get(name, expected)
        if name == "attn_norm_num_groups" and found is None and not values["use_scale_shift_norm"]:
            continue  # the same groups
        if found != expected:
            raise UserError(f"{name} is {found!r} in the config of the network, where ADM has {expected!r}")
    return {**values, "learn_sigma": learned}


def in_diffusers(state, unet):
    """The state dict of a UNet2DModel from that of a UNetModel of UNetFlags."""
    made = {}
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        name = _renamed(module, unet)
        if not module.endswith(".qkv"):
            made[f"{name}.{part}"] = value.squeeze(-1) if value.ndim == 3 else value
            continue
        for letter, rows in zip("qkv", _split(value, unet, name)):
            made[f"{name}.to_{letter}.{part}"] = rows.squeeze(-1) if value.ndim == 3 else rows
    return made


def in_adm(state, unet, expected):
    """The state dict of a UNetModel of UNetFlags from that of a UNet2DModel.

    :param expected: {key: tensor} of the UNetModel, whose shapes count.
    """
    made = {}
    for key, like in expected.items():
        module, _, part = key.rpartition(".")
        name = _renamed(module, unet)
        if module.endswith(".qkv"):
            value = _joined([state[f"{name}.to_{letter}.{part}"] for letter in "qkv"], unet, name)
        else:
            value = state[f"{name}.{part}"]
        made[key] = value.reshape(like.shape)
    return made


def _attended(unet, levels):
    """Whether each level has attention."""
    rates = attention_rates(unet.attention_resolutions, unet.image_size, "attention_resolutions")
    return [2**level in rates for level in range(levels)]


def _head_width(unet, widths, attended):
    """Channels of a head, which have to be the same everywhere."""
    if unet.num_head_channels != -1:
        return unet.num_head_channels
    up = unet.num_heads if unet.num_heads_upsample == -1 else unet.num_heads_upsample
    here = [width for width, attends in zip(widths, attended) if attends]
    found = {width // unet.num_heads for width in [*here, widths[-1]]} | {width // up for width in here}
    if len(found) > 1:
        shown = " and ".join(map(str, sorted(found)))
        raise UserError(
            f"--num_heads {unet.num_heads} gives heads of {shown} channels, and diffusers has one attention_head_dim; "
            "expected --num_head_channels, or attention of one width"
        )
    return found.pop()


def _heads(unet, name, channels):
    if unet.num_head_channels != -1:
        return channels // unet.num_head_channels
    up = name.startswith("up_blocks") and unet.num_heads_upsample != -1
    return unet.num_heads_upsample if up else unet.num_heads


def _split(qkv, unet, name):
    """Queries, keys and values [C, ...] of qkv [3 C, ...]."""
    if unet.use_new_attention_order:
        return qkv.chunk(3)
    heads = _heads(unet, name, len(qkv) // 3)
    return [part.flatten(0, 1) for part in qkv.unflatten(0, (heads, 3, -1)).unbind(1)]


def _joined(parts, unet, name):
    """The inverse of `_split`."""
    if unet.use_new_attention_order:
        return torch.cat(parts)
    heads = _heads(unet, name, len(parts[0]))
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


def _renamed(module, unet):
    """The name in diffusers of a module of ADM; of qkv that of its attention."""
    if module in ENDS:
        return ENDS[module]
    part, block, rest = re.fullmatch(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(.+)", module).groups()
    if part == "middle_block":
        place = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")[int(block)]
        return f"{place}{_within(rest)}"
    each, (inner, rest) = unet.num_res_blocks + 1, rest.split(".", 1)
    if part == "input_blocks":
        level, i = divmod(int(block) - 1, each)
        place = f"down_blocks.{level}"
        if i == each - 1:
            return f"{place}.downsamplers.0{_within(rest)}"
    else:
        level, i = divmod(int(block), each)
        place = f"up_blocks.{level}"
    if inner == "0":
        return f"{place}.resnets.{i}{_within(rest)}"
    resampling = not re.match(r"(norm|qkv|proj_out)$", rest)
    return f"{place}.upsamplers.0{_within(rest)}" if resampling else f"{place}.attentions.{i}{_within(rest)}"


def _within(rest):
    """What stands behind the name of a block."""
    if rest == "qkv":
        return ""
    return "." + {**RES_BLOCK, **ATTENTION, "op": "conv", "conv": "conv"}[rest]
