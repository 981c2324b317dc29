"""Convert a diffusion network: ADM's for diffusers and back, and files of weights for safetensors.

python scripts/convert.py --model_path models/digits16.pt --to diffusers --out_dir runs/digits16
python scripts/convert.py --model_path runs/digits16/diffusers --to adm --out_dir runs/digits16_back
python scripts/convert.py --model_path models/digits16.pt --to safetensors --out_dir runs/digits16_safetensors

Writes `diffusers/` (model_index.json, unet/, scheduler/, and adm.json with the flags that diffusers has no place for),
`model.pt` with its flags beside it, or `model.safetensors` with them. There and back is exact. What the other side has
no place for is refused by name. (A class-conditional network is a UNet2DModel, and no pipeline of diffusers tells that
classes.)
"""

import json
from dataclasses import dataclass

import torch

from guided_diffusion import adapters, checkpoints, dist_util, files, logger
from guided_diffusion.adapters import adm_in_diffusers
from guided_diffusion.adapters.family import extra
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag, flags_of
from guided_diffusion.jobs import launch
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags

FLAGS = "adm.json"  # in a folder of diffusers


@dataclass
class ConvertFlags(FlagGroup):
    """The conversion."""

    to: str = flag(
        "",
        "What to write: a folder of diffusers, a .pt of this project, or a .safetensors.",
        choices=("", "diffusers", "adm", "safetensors"),
        essential="to",
    )


GROUPS = [CheckpointFlags, UNetFlags, DiffusionFlags, ConvertFlags]
OVERRIDES = {"vae": None}


def main(parsed):
    path, to = parsed[CheckpointFlags].model_path, parsed[ConvertFlags].to
    if not path or not to:
        raise UserError(
            "--model_path and --to are not both given; expected a network, and diffusers, adm or safetensors"
        )
    path = adapters.on_disk(path)
    parsed, folder = parsed.with_values({"model_path": path}), files.is_folder(path)
    family = checkpoints.family_of(parsed)
    if family is not None and not folder and to != "safetensors":
        raise UserError(f"--model_path {path} is {family.what}, no network of ADM, which alone --to {to} takes")
    if folder and to != "adm":
        raise UserError(f"--to {to} has no meaning for --model_path {path}, a folder of diffusers; expected --to adm")
    if to == "diffusers":
        state, flags = adm_of_file(parsed)
    else:
        state, flags = adm_of_folder(parsed) if folder else weights_of_file(parsed)
    written = files.join(logger.get_dir(), {"adm": "model.pt", "safetensors": "model.safetensors"}.get(to, "diffusers"))
    if files.is_same(written, path):
        raise UserError(f"--out_dir {logger.get_dir()} would replace --model_path {path}; expected another folder")
    if dist_util.is_main():
        logger.log(f"saved {WRITERS[to](state, flags)}")


def weights_of_file(parsed):
    """(state dict, {flag: value} beside it) of a file of weights, of whatever network."""
    source = parsed[CheckpointFlags]
    if parsed.given & {field.name for group in (UNetFlags, DiffusionFlags) for field in flags_of(group)}:
        checkpoints.resolved(parsed)  # which refuses what contradicts it
    return checkpoints.take(source.model_path, key=source.checkpoint_key), checkpoints.read_flags(source.model_path)


def adm_of_file(parsed):
    """(state dict, {flag: value}) of a checkpoint of ADM's diffusion network, with all flags that describe it."""
    resolved = checkpoints.resolved(parsed)
    values = resolved.values()
    if "num_channels" not in values:
        raise UserError(f"--model_path {values['model_path']} is no network of ADM, which alone --to diffusers takes")
    state, beside = weights_of_file(parsed)
    if meant := beside.get(checkpoints.SAMPLED_BY):
        words = checkpoints.in_words(meant)
        logger.warn(f"diffusers has no place for the sampler that {values['model_path']} was trained for: {words}")
    own = checkpoints.described(checkpoints.DIFFUSION)
    return state, {**beside, **{name: value for name, value in values.items() if name in own}}


def adm_of_folder(parsed):
    """(state dict, {flag: value}) of ADM's network from a folder of diffusers.

    :raises UserError: for what ADM cannot express.
    """
    path = parsed[CheckpointFlags].model_path
    resolved, network = checkpoints.load_network(parsed)
    theirs, process = network.model, resolved[DiffusionFlags]
    if type(theirs).__name__ != "UNet2DModel" or process.table is not None or len(list(network.children())) > 1:
        raise UserError(
            f"--model_path {path} is no UNet2DModel of pixels with the linear or squaredcos_cap_v2 betas that "
            "--noise_schedule has; ADM expresses no other"
        )
    kept = files.join(path, FLAGS)
    if files.exists(kept):
        flags = files.read_json(kept, "the flags of a network, as --to diffusers writes them")
    else:
        flags = {name: value for name, value in resolved.values().items() if hasattr(process, name)}
        flags |= adm_in_diffusers.flags_of(dict(theirs.config))
    unet = unet_of(flags)
    with torch.device("meta"):
        expected = unet.create(flags["learn_sigma"]).state_dict()
    return adm_in_diffusers.in_adm(theirs.state_dict(), unet, expected), flags


def unet_of(flags):
    """The UNetFlags in {flag: value}."""
    return UNetFlags(**{name: flags[name] for name in UNetFlags.__dataclass_fields__ if name in flags})


def write_diffusers(state, flags):
    """Write the folder of a pipeline; returns its path."""
    unet = unet_of(flags)
    process = DiffusionFlags(**{k: flags[k] for k in DiffusionFlags.__dataclass_fields__ if k in flags})
    config, scheduled = adm_in_diffusers.config_of(unet, process.learn_sigma), adm_in_diffusers.scheduler_of(process)
    diffusers = extra("diffusers", "--to diffusers")
    model = diffusers.UNet2DModel(**config)
    model.load_state_dict(adm_in_diffusers.in_diffusers(state, unet))
    folder = files.join(logger.get_dir(), "diffusers")
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(**scheduled)).save_pretrained(folder)
    files.write_text(files.join(folder, FLAGS), json.dumps(flags, indent=1, sort_keys=True) + "\n")
    return folder


def write_adm(state, flags):
    """Write model.pt, with flags beside it where there are any; returns its path."""
    path = files.join(logger.get_dir(), "model.pt")
    checkpoints.write(path, state, flags or None)
    return path


def write_safetensors(state, flags):
    """Write model.safetensors, with flags beside it where there are any; returns its path."""
    save = extra("safetensors.torch", "--to safetensors").save
    path = files.join(logger.get_dir(), "model.safetensors")
    files.write_bytes(path, save({name: value.contiguous() for name, value in state.items()}))
    if flags:
        files.write_text(checkpoints.sidecar_path(path), json.dumps(flags, indent=1, sort_keys=True) + "\n")
    return path


WRITERS = {"diffusers": write_diffusers, "adm": write_adm, "safetensors": write_safetensors}


if __name__ == "__main__":
    launch.run("convert", __doc__, GROUPS, launch.alone(main), OVERRIDES)
