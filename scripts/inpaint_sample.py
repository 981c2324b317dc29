"""Fill holes of images as references say.

python scripts/inpaint_sample.py --model_path runs/unrolled/ema_0.9999_000500.pt --data_dir data/digits_heldout \\
    --reference_dir data/digits_heldout --masks center --num_samples 100 --use_ddim True --timestep_respacing 20

Image i is the i-th of --data_dir, filled as the i-th of --reference_dir says, both in turn; without --reference_dir as
the one half the data further on says, so that pairs are swapped. Around the hole images stay as they are.
"""

from dataclasses import dataclass, replace

import image_sample
import torch

from guided_diffusion import checkpoints, conditioning, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.conditioning.masked import Masked, MaskFlags, filled
from guided_diffusion.errors import UserError, told_of
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.generate import batch_maker, noise_of
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.image_stream import report
from guided_diffusion.jobs import launch, sampling
from guided_diffusion.networks import InpaintFlags, UNetFlags


@dataclass
class FillFlags(FlagGroup):
    """What fills the holes."""

    reference_dir: str = flag(
        "",
        "Images that say what fills the holes, as --data_dir takes them; empty pairs those of --data_dir.",
        content=True,
        essential="model_path",
    )


GROUPS = [DataFlags, FillFlags, MaskFlags, InpaintFlags, *conditioning.sampling_groups(InpaintFlags)]
GROUPS += [group for group in image_sample.GROUPS if group not in conditioning.sampling_groups(UNetFlags)]
OVERRIDES = {"random_flip": None, "random_crop": None, "num_workers": None, "class_source": None}


def main(parsed):
    noise = noise_of(parsed)
    parsed, network, process = checkpoints.load_diffusion(parsed)
    families, path = parsed[MaskFlags].families(), parsed[CheckpointFlags].model_path
    trained = checkpoints.read_flags(path).get("masks")
    if trained and (foreign := [name for name in families if name not in MaskFlags(trained).families()]):
        logger.warn(f"{path} was trained with --masks {trained}, and has never filled a {foreign[0]}")
    shows, folder = parsed[InpaintFlags].reference_cond, parsed[FillFlags].reference_dir
    if folder and not shows:
        raise UserError(f"--reference_dir {folder} is shown to nobody: {path} was trained with --reference_cond False")
    told = Masked(families, shows, pictures=pictures_of(parsed))
    told = conditioning.Together([told, conditioning.of_sampling(parsed)])
    make_batch = batch_maker(process, network, told, noise, finished=filled)
    sampling.run(parsed, process, network, make_batch)


def pictures_of(parsed):
    """`indices -> (targets, references)`, float32 [N, C, H, W] in [-1, 1] each."""
    targets, folder = dataset(parsed), parsed[FillFlags].reference_dir
    references, ahead = (dataset(parsed, folder), 0) if folder else (targets, len(targets) // 2)
    if ahead == 0 and not folder and parsed[InpaintFlags].reference_cond:
        logger.warn(f"--data_dir {parsed[DataFlags].data_dir} has one image, which is its own reference")

    def pictures(indices):
        pairs = [(targets[i % len(targets)][0], references[(i + ahead) % len(references)][0]) for i in indices]
        return tuple(torch.stack(images) for images in zip(*pairs))

    return pictures


def dataset(parsed, folder=None):
    """The images of --data_dir, or of another folder, neither mirrored nor cropped at random."""
    unet = parsed[UNetFlags]
    data = replace(parsed[DataFlags], random_flip=False, random_crop=False)
    data = replace(data, data_dir=folder) if folder else data
    with told_of("reference_dir" if folder else "data_dir", "data_dir"):
        found = data.dataset(unet.image_size, False, None, image_channels=unet.image_channels)
    report(found)
    return found


if __name__ == "__main__":
    launch.run("inpaint_sample", __doc__, GROUPS, main, OVERRIDES)
