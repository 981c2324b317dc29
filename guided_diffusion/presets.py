"""Published settings under names, with the scores that their authors report; recipes for photos; settings in a file."""

import difflib
import json
from dataclasses import dataclass

from . import files
from .errors import UserError


@dataclass(frozen=True)
class Preset:
    """Flags {name: value} of a published checkpoint or run, and what was published of it.

    :ivar network: the preset of its network, which has some of these flags; "" for a network itself.
    """

    flags: dict
    score: str = ""
    network: str = ""


def expand(name, known):
    """The flags {name: value} of a preset that a script knows.

    :param name: in PRESETS, or the path of a .json file, as `write` makes it.
    :param known: names of the script's flags.
    :raises UserError: for an unknown name, a file that is none, or one without any flag of the script.
    """
    flags = flags_of_preset(name)
    values = {k: v for k, v in flags.items() if k in known}
    for other in flags.keys() - values.keys() - {k for preset in PRESETS.values() for k in preset.flags}:
        if meant := difflib.get_close_matches(other, known, 1, 0.85):
            raise UserError(f"--preset {name} sets --{other}, which is no flag here; did you mean --{meant[0]}?")
    if not values:
        raise UserError(f"--preset {name} sets no flag of this script: {' '.join('--' + k for k in flags) or 'none'}")
    return values


def flags_of_preset(name):
    """All flags {name: value} of a preset; as `expand`."""
    if name.endswith(".json"):
        return read(name)
    if name not in PRESETS:
        raise UserError(
            f"--preset {name} is not known; --preset list prints all {len(PRESETS)}, and FILE.json reads a file"
        )
    return PRESETS[name].flags


def read(path):
    """The flags {name: value} of a preset in a file.

    :raises UserError: if it is not there, or is no JSON with "flags".
    """
    try:
        flags = files.read_json(path, "a preset")["flags"]
    except FileNotFoundError:
        raise UserError(f"--preset {path} is not there; expected a .json file, as tune_sampler.py writes it") from None
    except (OSError, UserError, KeyError, TypeError):
        flags = None
    if not isinstance(flags, dict) or not all(isinstance(value, (bool, int, float, str)) for value in flags.values()):
        raise UserError(f'--preset {path} is no preset; expected {{"flags": {{"name": value}}}} as JSON')
    return flags


def write(path, preset):
    """Write a Preset to a file, for `read`."""
    files.write_text(path, json.dumps({"flags": preset.flags, "score": preset.score}, indent=1) + "\n")


def table():
    """All presets as text, a line each: name, published score, its network, flags beyond those."""
    width = max(map(len, PRESETS))
    scores = max(len(preset.score) for preset in PRESETS.values())
    return "\n".join(
        f"{name:<{width}}  {preset.score:<{scores}}  {_flags_shown(preset)}".rstrip()
        for name, preset in PRESETS.items()
    )


def _flags_shown(preset):
    known = PRESETS[preset.network].flags if preset.network else {}
    words = [f"--{k} {v}" for k, v in preset.flags.items() if (k, v) not in known.items()]
    return " ".join([f"{preset.network}:"] * bool(preset.network) + words)


_CIFAR10 = {
    "image_size": 32,
    "num_channels": 128,
    "num_head_channels": 32,
    "num_res_blocks": 3,
    "attention_resolutions": "16,8",
    "resblock_updown": True,
    "use_new_attention_order": True,
    "learn_sigma": True,
    "dropout": 0.3,
    "diffusion_steps": 1000,
    "noise_schedule": "cosine",
    "use_scale_shift_norm": True,
}
_LSUN64 = {
    "image_size": 64,
    "use_fp16": True,
    "num_channels": 192,
    "num_head_channels": 64,
    "num_res_blocks": 3,
    "attention_resolutions": "32,16,8",
    "resblock_updown": True,
    "use_new_attention_order": True,
    "learn_sigma": True,
    "dropout": 0.1,
    "diffusion_steps": 1000,
    "noise_schedule": "cosine",
    "use_scale_shift_norm": True,
    "rescale_learned_sigmas": True,
}
_LINEAR = {
    "attention_resolutions": "32,16,8",
    "diffusion_steps": 1000,
    "learn_sigma": True,
    "noise_schedule": "linear",
    "num_channels": 256,
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_fp16": True,
    "use_scale_shift_norm": True,
}
_IMAGENET128 = {**_LINEAR, "image_size": 128, "class_cond": True, "num_heads": 4, "classifier_scale": 0.5}
_IMAGENET256 = {**_LINEAR, "image_size": 256, "class_cond": True, "num_head_channels": 64}
_UPSAMPLER = {**_LINEAR, "num_channels": 192, "class_cond": True}
_CLASSIFIER = {
    "classifier_attention_resolutions": "32,16,8",
    "classifier_depth": 2,
    "classifier_width": 128,
    "classifier_pool": "attention",
    "classifier_resblock_updown": True,
    "classifier_use_scale_shift_norm": True,
}
_MODELS = {
    "cifar10": _CIFAR10,
    "imagenet32": {**_CIFAR10},
    "lsun_tower64": _LSUN64,
    "celeba64": {**_LSUN64},
    "imagenet64": {**_LSUN64, "class_cond": True},
    "ffhq128": {**_LSUN64, "image_size": 128, "num_channels": 256},
    "imagenet128": _IMAGENET128,
    "imagenet256": _IMAGENET256,
    "imagenet256_uncond": {**_IMAGENET256, "class_cond": False},
    "imagenet512": {**_IMAGENET256, "image_size": 512},
    "lsun256": {**_IMAGENET256, "class_cond": False, "dropout": 0.1},
    "upsample_64_256": {**_UPSAMPLER, "large_size": 256, "small_size": 64, "num_heads": 4},
    "upsample_128_512": {
        **_UPSAMPLER,
        "large_size": 512,
        "small_size": 128,
        "attention_resolutions": "32,16",
        "num_head_channels": 64,
    },
    "classifier64": {**_CLASSIFIER, "image_size": 64, "classifier_depth": 4},
    "classifier128": {**_CLASSIFIER, "image_size": 128},
    "classifier256": {**_CLASSIFIER, "image_size": 256},
}

# steps: for each model the FID of ADM, and with epsilon scaling its scaler and FID (Ning et al. 2024)
_EPSILON_SCALING = {
    100: {
        "cifar10": (3.37, "1.017", 2.17),
        "lsun_tower64": (3.59, "1.006", 2.91),
        "ffhq128": (14.52, "1.005", 6.77),
        "imagenet64": (2.71, "1.006", 2.39),
        "imagenet128": (3.55, "1.004", 3.37),
    },
    50: {
        "cifar10": (4.43, "1.017", 2.49),
        "lsun_tower64": (7.28, "1.007", 3.68),
        "ffhq128": (26.15, "1.007", 9.50),
        "imagenet64": (3.75, "1.006", 3.07),
        "imagenet128": (5.15, "1.004", 4.33),
    },
    20: {
        "cifar10": (10.36, "1.017", 5.15),
        "lsun_tower64": (23.92, "1.011", 8.22),
        "ffhq128": (59.35, "1.008", 26.14),
        "imagenet64": (10.96, "1.006", 7.52),
        "imagenet128": (12.48, "1.005", 9.95),
    },
}
_LINEAR_SCALING_20 = {
    "cifar10": ("0.0025,1.0", 4.31),
    "lsun_tower64": ("0.0008,1.0034", 7.60),
    "ffhq128": ("0.0004,1.0042", 24.83),
    "imagenet64": ("0.0002,1.0041", 7.37),
    "imagenet128": ("0.00022,1.00291", 9.86),
}

# Time Shift of TS-DPM on its DDIM network of CIFAR-10 (Li et al. 2024), which is no ADM: flags of the sampler alone.
# DEIS there searched the whole window to each side, on a quadratic grid; DPM-Solver, at 5 steps with a window of 30
# and a cutoff of 300, is no solver here.
_TIME_SHIFT = {
    "ts_ddim_10": ({"use_ddim": True, "window": 40, "cutoff": 200}, "FID 12.21"),
    "ts_ddim_20": ({"use_ddim": True, "window": 40, "cutoff": 300}, "FID 8.03"),
    "ts_ddim_50": ({"use_ddim": True, "window": 8, "cutoff": 300}, "FID 5.56"),
    "ts_ddim_100": ({"use_ddim": True, "window": 2, "cutoff": 200}, "FID 4.56"),
    "ts_pndm_f_100": ({"solver": "pndm_f", "window": 5, "cutoff": 550}, "FID 3.86"),
    "ts_deis_5": (
        {"solver": "deis", "window": 20, "cutoff": 900, "time_shift_variant": "net"}
        | {"timestep_respacing": "5", "spacing": "quad"},
        "",
    ),
}

# Epsilon Scaling of EDM-ES on EDM's networks of CIFAR-10: classes, solver: steps: FID of EDM, scaler, FID with it
# (Ning et al. 2024; from the pictures of tables in its release)
_EDM = {
    ("uncond", "heun"): {18: (1.97, "1.0005", 1.95), 11: (2.33, "0.9985", 2.24), 7: (7.16, "1.006", 6.54)},
    ("uncond", "ddim"): {35: (3.81, "1.0034", 2.80), 21: (6.29, "1.0043", 4.32), 13: (12.28, "1.0048", 8.39)},
    ("cond", "heun"): {18: (1.82, "1.0006", 1.80), 11: (2.17, "0.9983", 2.08), 7: (6.69, "1.007", 6.16)},
    ("cond", "ddim"): {35: (3.74, "1.0035", 2.59), 21: (5.91, "1.0045", 3.74), 13: (10.66, "1.0051", 6.59)},
}
# DiT-XL/2 of ImageNet at two sizes (Peebles & Xie 2023, tables 2 and 3)
_DIT = {"timestep_respacing": "250", "guidance_scale": 1.5, "guidance_channels": 3}

# Recipes for one's own images, which nobody published: the same command goes on with a run that was stopped.
_PHOTOS = {
    "learn_sigma": True,
    "noise_schedule": "cosine",
    "rescale_learned_sigmas": True,
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "dropout": 0.1,
    "exif": True,
    "batch_size": 32,
    "lr": 2e-4,
    "lr_warmup_steps": 500,
    "grad_clip": 1.0,
    "ema_rate": "0.9995",
    "ema_warmup": True,
    "sample_interval": 1000,
    "save_interval": 5000,
    "keep_checkpoints": 3,
    "resume_checkpoint": "auto",
}
_SIZES = {
    32: {"attention_resolutions": "16,8", "iterations": 50_000},
    64: {"attention_resolutions": "16,8", "iterations": 100_000},
    128: {"attention_resolutions": "16,8", "iterations": 200_000, "use_checkpoint": True},
}
_WIDTHS = {
    "small": {"num_channels": 64, "num_head_channels": 32},
    "base": {"num_channels": 128, "num_head_channels": 64},
}


def _all():
    yield from ((name, Preset(flags)) for name, flags in _MODELS.items())
    for steps, rows in _EPSILON_SCALING.items():
        for model, (plain, scaler, scaled) in rows.items():
            base = {**_MODELS[model], "timestep_respacing": str(steps)}
            yield f"{model}_adm_{steps}", Preset(base, f"FID {plain:.2f}", model)
            yield f"{model}_adm_es_{steps}", Preset({**base, "eps_scaler": scaler}, f"FID {scaled:.2f}", model)
    for model, (scaler, score) in _LINEAR_SCALING_20.items():
        base = {**_MODELS[model], "timestep_respacing": "20", "eps_scaler": scaler}
        yield f"{model}_adm_es_linear_20", Preset(base, f"FID {score:.2f}", model)
    ddim5 = {**_CIFAR10, "timestep_respacing": "ddim5", "use_ddim": True}
    yield "cifar10_adm_ddim5", Preset(ddim5, "FID 28.98", "cifar10")
    shifted = {**ddim5, "do_time_shift": True, "window": 80, "cutoff": 300}
    yield "cifar10_adm_ts_ddim5", Preset(shifted, "FID 26.94", "cifar10")
    for name, (flags, score) in _TIME_SHIFT.items():
        grid = {"timestep_respacing": "ddim" + name.rpartition("_")[2]}
        yield name, Preset({**grid, "do_time_shift": True, "time_shift_variant": "target", **flags}, score)
    for (classes, solver), rows in _EDM.items():
        for steps, (plain, scaler, scaled) in rows.items():
            base, name = (
                {"solver": solver, "timestep_respacing": str(steps)},
                f"{solver.replace('ddim', 'euler')}_{steps}",
            )
            yield f"edm_cifar10_{classes}_{name}", Preset(base, f"FID {plain:.2f}")
            yield f"edm_cifar10_{classes}_es_{name}", Preset({**base, "eps_scaler": scaler}, f"FID {scaled:.2f}")
    yield "dit_xl_2_256", Preset(_DIT, "FID 2.27")
    yield "dit_xl_2_512", Preset(_DIT, "FID 3.04")
    perturbed = {
        **_CIFAR10,
        "use_fp16": True,
        "rescale_learned_sigmas": True,
        "input_perturbation": 0.15,
        "schedule_sampler": "loss-second-moment",
        "lr": 1e-4,
        "batch_size": 64,
    }
    yield "cifar10_adm_ip_training", Preset(perturbed, "FID 2.70 at 100 steps", "cifar10")
    for size, flags in _SIZES.items():
        for name, width in _WIDTHS.items():
            yield f"photos{size}_{name}", Preset({"image_size": size, **width, **flags, **_PHOTOS})


PRESETS = dict(_all())
