"""Bits per dimension of images under a diffusion network, by the variational bound.

mpirun -n 2 python scripts/image_nll.py --model_path models/digits16.pt --data_dir data/digits_heldout \\
    --num_samples 360 --batch_size 60 --timestep_respacing 100
"""

import numpy as np
import torch

from guided_diffusion import checkpoints, dist_util, files, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.generate import IndexedNoise, SampleFlags, by_index, dataset_in_order, on_device
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.jobs import launch
from guided_diffusion.methods import Clipping
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.script_util import diffusion_of

GROUPS = [CheckpointFlags, DataFlags, SampleFlags, Clipping, UNetFlags, DiffusionFlags]
OVERRIDES = {"num_samples": 1000, "batch_size": 1, "random_flip": None, "random_crop": None, "num_workers": None}


def main(parsed):
    parsed, model, _ = checkpoints.load_diffusion(parsed)
    diffusion = diffusion_of(parsed[DiffusionFlags])
    dataset, flags = dataset_in_order(parsed[DataFlags], parsed[UNetFlags], parsed[SampleFlags])
    if not launch.announce(parsed):
        return

    def make_batch(indices):
        images, extra = torch.utils.data.default_collate([dataset[i] for i in indices])
        terms = diffusion.calc_bpd_loop(
            model,
            images.to(dist_util.dev()),
            clip_denoised=parsed[Clipping].clip_denoised,
            model_kwargs=on_device(extra),
            draw=IndexedNoise(flags.seed, indices),
        )
        return {name: values.cpu().numpy() for name, values in terms.items()}

    terms = by_index(flags, make_batch)
    if terms is not None:
        report(terms)


def report(terms):
    """Log bits per dimension with their standard error, and save the mean of each term at each step, noisiest first."""
    total = terms["total_bpd"]
    error = total.std(ddof=1) / np.sqrt(len(total)) if len(total) > 1 else float("nan")
    logger.log(
        f"{len(total)} images: {total.mean():.4f} +- {error:.4f} bits/dim "
        f"(prior {terms['prior_bpd'].mean():.4f}, bound {terms['vb'].sum(axis=1).mean():.4f})"
    )
    for name in ("vb", "mse", "xstart_mse"):
        path = files.join(logger.get_dir(), f"{name}_terms.npz")
        files.write_npz(path, {"arr_0": terms[name].mean(axis=0)})
        logger.log(f"saved {path}")


if __name__ == "__main__":
    launch.run("image_nll", __doc__, GROUPS, main, OVERRIDES)
