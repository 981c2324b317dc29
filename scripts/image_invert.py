"""Encode images into noise by BDIA and decode them again, as they were or as another class.

python datasets/digits.py --out_dir data/digits_heldout --image_size 16 --split heldout
python scripts/image_invert.py --model_path models/digits16.pt --data_dir data/digits_heldout --num_samples 16 \\
    --timestep_respacing 20 --edit_class 3

Writes `states.npz` (float32 `noisiest` and `before` [N, C, H, W], the states at the two training timesteps
`timesteps`, from which alone `guided_diffusion.inversion.decode` gives the images back; `labels` where there are
classes), `reconstructions.npz` and `edits.npz` as samples are written, and a picture of originals, reconstructions
and edits, a row each.

A network of latents is given those of the images, and originals are then what its autoencoder makes of them.

Edits are made by DDIM from `noisiest` alone: the pair fits the class that it was encoded with, and BDIA, which
keeps all of it, would leave the misfit as noise in the image.
"""

from dataclasses import dataclass

import numpy as np
import torch

from guided_diffusion import checkpoints, dist_util, files, logger, methods
from guided_diffusion.adapters import pair_of
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.generate import SampleFlags, by_index, dataset_in_order, on_device
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.image_labels import as_text, chosen, of_text
from guided_diffusion.images import save_grid, to_uint8
from guided_diffusion.inversion import EXACT, advice, by_ddim, decode, encode
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling import log_calls, log_grid
from guided_diffusion.networks import ConvFlags, UNetFlags
from guided_diffusion.process import DiffusionFlags, SpacingFlags
from guided_diffusion.solvers import DDIM
from guided_diffusion.solvers.flags import SolverFlags


@dataclass
class EditFlags(FlagGroup):
    """Editing."""

    edit_class: str = flag(
        "", "Also decode the images as this class, a name or a number; empty does not.", essential="edit_class"
    )


GROUPS = [
    CheckpointFlags,
    DataFlags,
    SampleFlags,
    SolverFlags,
    UNetFlags,
    ConvFlags,
    DiffusionFlags,
    SpacingFlags,
    *methods.of_sampling(),
    EditFlags,
]
OVERRIDES = {
    "num_samples": 16,
    "solver": "bdia",
    "gamma": EXACT,
    "use_ddim": None,
    "seed": None,
    "random_flip": None,
    "random_crop": None,
    "num_workers": None,
}
SHOWN = 16  # images in the picture


def class_of_edits(parsed):
    """The number of --edit_class; None where there is none.

    :raises UserError: for a class that the network does not know.
    """
    text, unet = parsed[EditFlags].edit_class, parsed[UNetFlags]
    if text in ("", "-1"):  # as it was written before classes had names
        return None
    if not unet.class_cond:
        raise UserError(
            f"--edit_class has no meaning for --model_path {parsed[CheckpointFlags].model_path}, which has no classes"
        )
    found = chosen(as_text([text]), unet.num_classes, of_text(unet.class_names), "edit_class")
    return found[0]


def main(parsed):
    parsed, model, process = checkpoints.load_diffusion(parsed)
    unet, edit_class, grid = parsed[UNetFlags], class_of_edits(parsed), process.grid
    if said := advice(parsed[SolverFlags], len(grid)):
        logger.warn(said)
    dataset, flags = dataset_in_order(parsed[DataFlags], unet, parsed[SampleFlags])
    if not launch.announce(parsed):
        return
    log_grid(process)
    pair = pair_of(model)

    def make_batch(indices):
        images, extra = torch.utils.data.default_collate([dataset[i] for i in indices])
        inside = pair.encode(images.to(dist_util.dev()))
        cond = on_device(extra)
        denoise, bdia = process.denoiser(model, cond), process.solver
        x, before = encode(denoise, bdia, process.schedule, grid, inside)
        made = {
            "original": pair.decode(inside),
            "noisiest": x,
            "before": before.x,
            "reconstruction": pair.decode(decode(denoise, bdia, grid, x, before)),
        }
        naive, _ = encode(denoise, DDIM(process.schedule), process.schedule, grid, inside)
        made["ddim"] = pair.decode(by_ddim(process, denoise, naive))
        if edit_class is not None:
            other = {"y": torch.full_like(cond["y"], edit_class)}
            made["edit"] = pair.decode(by_ddim(process, process.denoiser(model, other), x))
        return {name: values.cpu().numpy() for name, values in {**made, **extra}.items()}

    made = by_index(flags, make_batch)
    log_calls(process, flags.num_samples)
    if made is not None:
        refuse_not_finite(made, parsed[SolverFlags].gamma)
        save(made, grid, edit_class)
        logger.log(
            f"states at timestep {grid[-1]}: standard deviation {made['noisiest'].std():.3g}; that of noise is 1"
        )
        report(made, "reconstruction", f"BDIA with --gamma {parsed[SolverFlags].gamma}")
        report(made, "ddim", "DDIM, for comparison")


def refuse_not_finite(made, gamma):
    """Validate what was made.

    :param made: {name: array [N, ...]} of the whole run, as `main` makes it.
    :raises UserError: if some of it is not finite.
    """
    bad = {name: (~np.isfinite(values).reshape(len(values), -1).all(1)).sum() for name, values in made.items()}
    count = len(made["original"])
    if bad["ddim"]:
        raise UserError(
            f"{bad['ddim']} of {count} images are not finite numbers by plain DDIM either: --model_path predicts none"
        )
    if worst := max(bad.values()):
        raise UserError(
            f"--gamma {gamma} made states beyond all numbers of {worst} of {count} images; expected nearer to {EXACT}"
        )


def save(made, grid, edit_class):
    """Write the states, the decoded images and the picture to the output folder.

    :param made: {name: array} of the whole run, as `main` makes it.
    """
    labels = made.get("y")
    states = {name: made[name] for name in ("noisiest", "before")}
    write("states.npz", **states, timesteps=np.array(grid[:-3:-1]), labels=labels)
    rows = [pictures(made["original"]), pictures(made["reconstruction"])]
    write("reconstructions.npz", arr_0=rows[1], arr_1=labels)
    if "edit" in made:
        rows.append(pictures(made["edit"]))
        write("edits.npz", arr_0=rows[2], arr_1=np.full_like(labels, edit_class))
    path = files.join(logger.get_dir(), "inversion.png")
    shown = [row[:SHOWN] for row in rows]
    save_grid(path, np.concatenate(shown), columns=len(shown[0]))
    logger.log(f"saved {path}")


def write(name, **arrays):
    """Write the arrays that are not None as an npz of the output folder."""
    path = files.join(logger.get_dir(), name)
    files.write_npz(path, {key: array for key, array in arrays.items() if array is not None})
    logger.log(f"saved {path}")


def pictures(images):
    """uint8 [N, H, W, C] of images [N, C, H, W] in [-1, 1], rounded, so that 8-bit originals return unchanged."""
    return to_uint8(torch.from_numpy(images), rounded=True)


def report(made, name, method):
    """Log the round-trip error of the images called `name`."""
    error = made[name].astype(np.float64) - made["original"]
    largest, typical = np.abs(error).max(), np.sqrt((error**2).mean())
    logger.log(
        f"round trip by {method}: error at most {largest:.2g}, RMS {typical:.2g} in [-1, 1], "
        f"which is {127.5 * largest:.2g} and {127.5 * typical:.2g} grey levels of 255"
    )


if __name__ == "__main__":
    launch.run("image_invert", __doc__, GROUPS, launch.alone(main), OVERRIDES)
