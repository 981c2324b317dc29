"""Bits per dimension of images under a diffusion network, by the variational bound.

With --rng published the images come as published scripts take them: mirrored at random, in whole batches, and the data
begins anew where --num_samples is more than there are.

mpirun -n 2 python scripts/image_nll.py --model_path models/digits16.pt --data_dir data/digits_heldout \\
    --num_samples 360 --batch_size 60 --timestep_respacing 100
"""

import dataclasses
import math

import numpy as np
import torch

from guided_diffusion import checkpoints, dist_util, files, logger
from guided_diffusion.adapters import refuse_likelihood
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.generate import RngFlags, SampleFlags, by_index, dataset_in_order, noise_of, on_device
from guided_diffusion.image_datasets import DataFlags, load_data, published_order
from guided_diffusion.jobs import launch
from guided_diffusion.methods import Clipping
from guided_diffusion.networks import ConvFlags, UNetFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.script_util import diffusion_of

GROUPS = [CheckpointFlags, DataFlags, SampleFlags, RngFlags, Clipping, UNetFlags, ConvFlags, DiffusionFlags]
OVERRIDES = {"num_samples": 1000, "batch_size": 1, "random_flip": None, "random_crop": None, "num_workers": None}


def main(parsed):
    noise_at = noise_of(parsed)
    parsed, model, _ = checkpoints.load_diffusion(parsed)
    refuse_likelihood(model, parsed[DiffusionFlags].learn_sigma)
    diffusion = diffusion_of(parsed[DiffusionFlags])
    batch_at, flags = (published_data if parsed[RngFlags].published else data_in_order)(parsed)
    if not launch.announce(parsed):
        return

    def make_batch(indices):
        images, extra = batch_at(indices)
        terms = diffusion.calc_bpd_loop(
            model,
            images.to(dist_util.dev()),
            clip_denoised=parsed[Clipping].clip_denoised,
            model_kwargs=on_device(extra),
            draw=noise_at(indices),
        )
        return {name: values.cpu().numpy() for name, values in terms.items()}

    terms = by_index(flags, make_batch)
    if terms is not None:
        report(terms)


def data_in_order(parsed):
    """(`indices -> (images, extra)`, SampleFlags with no more images than there are)."""
    dataset, flags = dataset_in_order(parsed[DataFlags], parsed[UNetFlags], parsed[SampleFlags])
    return lambda indices: torch.utils.data.default_collate([dataset[i] for i in indices]), flags


def published_data(parsed):
    """The same by torch's global stream, SampleFlags with whole batches.

    :raises UserError: for a flag that published scripts do not have and that would change what is read.
    """
    values, flags = parsed.values(), parsed[SampleFlags]
    usual_values = {"class_source": "auto", "skip_bad": False, "image_channels": 3, "exif": False, "background": ""}
    for name, usual in usual_values.items():
        if values[name] != usual:
            raise UserError(f"--{name} {values[name]} has no counterpart in --rng published; expected {usual}")
    batches = load_data(
        data_dir=values["data_dir"],
        batch_size=flags.batch_size,
        image_size=values["image_size"],
        class_cond=values["class_cond"],
        deterministic=True,
    )
    known = _classes_by_name(parsed) if values["class_cond"] and values["class_names"] else None

    def batch_at(indices):
        images, extra = next(batches)
        return images, extra if known is None else {"y": known[extra["y"]]}

    whole = flags.batch_size * math.ceil(flags.num_samples / flags.batch_size)
    return batch_at, dataclasses.replace(flags, num_samples=whole)


def _classes_by_name(parsed):
    """int64 [K], by the numbers of the published reading the network's own, which knows names.

    :raises UserError: for a class that it does not know, and where the published reading tells other classes.
    """
    dataset, _ = dataset_in_order(parsed[DataFlags], parsed[UNetFlags], SampleFlags(num_samples=1))
    images, published = published_order(dataset.data_dir, dataset.image_size, True)
    own = dict(zip(dataset.images, dataset.labels)) if isinstance(images, list) else None
    numbers = [int(own[path]) for path in images] if own else dataset.labels.tolist()
    pairs = dict(zip(map(int, published), numbers))
    if any(pairs[int(label)] != number for label, number in zip(published, numbers)):
        raise UserError(
            f"--rng published tells the classes of {dataset.data_dir} by the names of files up to their first _, which "
            "are others than --model_path knows; expected files that are called so, or no --rng published"
        )
    table = torch.zeros(max(pairs) + 1, dtype=torch.long)
    table[list(pairs)] = torch.tensor(list(pairs.values()))
    return table


def report(terms):
    """Log bits per dimension with their standard error, and save the mean of each term at each step, noisiest first.

    :raises UserError: at the end, if those of some images are not finite, which are left out.
    """
    count = len(terms["total_bpd"])
    finite = np.isfinite(terms["total_bpd"])
    terms = {name: values[finite] for name, values in terms.items()}
    total = terms["total_bpd"]
    if len(total) == 0:
        raise UserError(f"the bound of all {count} images is not finite: --model_path predicts no finite numbers")
    error = f" +- {total.std(ddof=1) / np.sqrt(len(total)):.4f}" if len(total) > 1 else ""
    logger.log(
        f"{len(total)} images: {total.mean():.4f}{error} bits/dim "
        f"(prior {terms['prior_bpd'].mean():.4f}, bound {terms['vb'].sum(axis=1).mean():.4f})"
    )
    for name in ("vb", "mse", "xstart_mse"):
        path = files.join(logger.get_dir(), f"{name}_terms.npz")
        files.write_npz(path, {"arr_0": terms[name].mean(axis=0)})
        logger.log(f"saved {path}")
    if len(total) < count:
        raise UserError(f"the bound of {count - len(total)} of {count} images is not finite; they are left out above")


if __name__ == "__main__":
    launch.run("image_nll", __doc__, GROUPS, launch.alone(main), OVERRIDES)
