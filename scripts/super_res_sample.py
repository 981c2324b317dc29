"""Enlarge images with a super-resolution network.

mpirun -n 2 python scripts/super_res_sample.py --model_path runs/super_res_train/ema_0.9999_005000.pt \\
    --base_samples runs/image_sample/samples_100x16x16x3.npz --num_samples 100 --timestep_respacing 50
"""

from dataclasses import dataclass

import torch

from guided_diffusion import checkpoints, dist_util, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.generate import (
    IndexedNoise,
    SampleFlags,
    as_arrays,
    make_images,
)
from guided_diffusion.image_files import read_npz
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling_job import ShardFlags, generate_images
from guided_diffusion.networks import SuperResFlags, UNetFlags
from guided_diffusion.script_util import SAMPLING_METHODS, DiffusionFlags
from guided_diffusion.solver_flags import SolverFlags


@dataclass
class BaseFlags(FlagGroup):
    """The small images."""

    base_samples: str = flag(
        "", "npz of the images to enlarge: arr_0 uint8 [N, H, W, C], arr_1 their labels.", content=True
    )


GROUPS = [
    CheckpointFlags,
    BaseFlags,
    SampleFlags,
    ShardFlags,
    SolverFlags,
    SuperResFlags,
    UNetFlags,
    DiffusionFlags,
    *SAMPLING_METHODS,
]
OVERRIDES = {"image_size": None}


def open_base(path, size, num_classes, channels=3):
    """The small images, float32 [N, C, size, size] in [-1, 1], and their labels int64 [N] if `num_classes`."""
    if not path:
        raise UserError("--base_samples is not given; expected an npz of small images")
    images, labels = read_npz(path, "base_samples", channels)
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"--base_samples {path} has images of {images.shape[1]}x{images.shape[2]}; --small_size is {size}"
        )
    if num_classes and labels is None:
        raise UserError(f"--base_samples {path} has no arr_1; a class-conditional network needs the labels there")
    if num_classes and not ((labels >= 0) & (labels < num_classes)).all():
        raise UserError(
            f"--base_samples {path} has labels outside 0..{num_classes - 1}, which --num_classes {num_classes} allows"
        )
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(labels).long() if num_classes else None


def main(parsed):
    parsed, model, diffusion = checkpoints.load_super_res(parsed)
    flags, sizes, unet = parsed[SampleFlags], parsed[SuperResFlags], parsed[UNetFlags]
    num_classes = unet.num_classes if unet.class_cond else None
    base, labels = open_base(parsed[BaseFlags].base_samples, sizes.small_size, num_classes, unet.image_channels)
    if flags.num_samples > len(base):
        logger.log(f"--base_samples holds {len(base)} images: they are taken in turn")

    def make_batch(indices):
        chosen = torch.tensor(indices) % len(base)
        kwargs = {"low_res": base[chosen].to(dist_util.dev())}
        if labels is not None:
            kwargs["y"] = labels[chosen].to(dist_util.dev())
        noise = IndexedNoise(flags.seed, indices)
        images = make_images(diffusion, model, parsed[SolverFlags], noise, model.shape, flags.clip_denoised, kwargs)
        return as_arrays(images, kwargs.get("y"))

    generate_images(parsed, diffusion, make_batch)


if __name__ == "__main__":
    launch.run("super_res_sample", __doc__, GROUPS, main, OVERRIDES)
