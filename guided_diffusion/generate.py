"""Sampling by index: which images a run makes depends on its flags and seed, never on its ranks."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from . import dist_util, logger
from .errors import UserError
from .flags import FlagGroup, at_least, flag, int_list
from .image_datasets import describe
from .images import to_uint8
from .jobs import progress
from .solver_flags import SolverFlags


@dataclass
class SampleFlags(FlagGroup):
    """Sampling."""

    num_samples: int = flag(10000, "Number of images in all.", legal=at_least(1), idle=True)
    batch_size: int = flag(16, "Images computed at once on a rank.", legal=at_least(1))
    clip_denoised: bool = flag(True, "Clip the predicted clean images to the pixel range at each step.")
    seed: int = flag(0, "Seed; with its index it decides an image.", legal=at_least(0))


@dataclass
class ClassFlags(FlagGroup):
    """Classes of the images."""

    classes: str = flag("", "Classes to sample, such as 3,7, in turn over the images; empty draws them at random.")
    per_class: int = flag(
        0,
        "Images of each of --classes, or of every class, in place of --num_samples; 0 is off.",
        legal=at_least(0),
        idle=True,
    )


class IndexedNoise:
    """Random numbers of the images `indices`, each from its own generator.

    A generator is decided by (seed, index) and runs on the CPU, so that an image's draws are the same on any
    device, rank and batch. Calling it with x [N, C, ...] gives standard normal noise like x.
    """

    def __init__(self, seed, indices):
        self.generators = [_generator(seed, index) for index in indices]

    def label(self, num_classes):
        """A class [N] for each image, uniform over num_classes."""
        return torch.stack([torch.randint(num_classes, (), generator=g) for g in self.generators])

    def normal(self, *shape):
        """Standard normal float32 [N, *shape] on the CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def __call__(self, x):
        return self.normal(*x.shape[1:]).to(x)


def _generator(seed, index):
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def chosen_classes(text, num_classes):
    """The classes [K] of "3,7"; empty for all.

    :raises UserError: for one outside 0..num_classes-1.
    """
    classes = int_list(text, "classes")
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise UserError(f"--classes has {wrong[0]}; expected 0 to {num_classes - 1}")
    return classes


def with_classes_counted(parsed, num_classes):
    """The Parsed flags of a run with --per_class spelt out as --classes and --num_samples."""
    flags, count = parsed[ClassFlags], parsed[ClassFlags].per_class
    if not count:
        return parsed
    classes = chosen_classes(flags.classes, num_classes) or range(num_classes)
    total, told = count * len(classes), parsed[SampleFlags].num_samples
    if "num_samples" in parsed.given and told != total:
        raise UserError(
            f"--num_samples {told} contradicts --per_class {count}, which makes {total}; leave one of them out"
        )
    return parsed.with_values({"num_samples": total, "classes": ",".join(map(str, classes))})


def labels_of(noise, indices, classes, num_classes):
    """Labels int64 [N] of images: `classes` in turn by index, or drawn where there are none."""
    if not classes:
        return noise.label(num_classes)
    return torch.tensor([classes[i % len(classes)] for i in indices])


def make_images(diffusion, model, solver_flags, noise, shape, clip_denoised=True, model_kwargs=None, cond_fn=None):
    """Images [N, C, H, W] in about [-1, 1] of one batch.

    :param solver_flags: SolverFlags.
    :param noise: IndexedNoise, which draws the start and each step's noise.
    :param shape: (C, H, W).
    :param cond_fn: gradient for guidance, or None.
    """
    x = noise.normal(*shape).to(dist_util.dev())
    solver, denoise = solver_flags.create(diffusion, model, clip_denoised, model_kwargs, cond_fn)
    for record in diffusion.sample_records(solver, denoise, x, noise):
        x = record.x
    return x


def dataset_in_order(data, unet, flags):
    """(dataset, flags): images for a script that takes them by index, and SampleFlags with no more than there are.

    :param data: DataFlags; the images are not mirrored.
    :param unet: UNetFlags, which say their size and channels, and whether they have classes.
    """
    still, size = dataclasses.replace(data, random_flip=False), unet.image_size
    dataset = still.dataset(size, unet.class_cond, unet.num_classes, image_channels=unet.image_channels)
    logger.log(describe(dataset))
    if flags.num_samples > len(dataset):
        logger.warn(f"--num_samples {flags.num_samples} is more than there are: taking all {len(dataset)} images")
        flags = dataclasses.replace(flags, num_samples=len(dataset))
    return dataset, flags


def generate(flags, make_batch):
    """Everything that a run makes, on rank 0: {name: array [num_samples, ...]}; None on other ranks.

    Batches of consecutive indices are dealt to the ranks in turn, so that a batch holds the same
    images on any number of ranks.

    :param flags: SampleFlags.
    :param make_batch: `indices -> {name: numpy array [len(indices), ...]}`.
    """
    rank, size = dist_util.rank(), dist_util.world_size()
    starts = range(0, flags.num_samples, flags.batch_size)
    batches = [range(i, min(i + flags.batch_size, flags.num_samples)) for i in starts]
    parts = []
    with progress.shown(flags.num_samples, 0, "image") as add:
        for first in range(0, len(batches), size):
            mine = batches[first : first + size][rank : rank + 1]
            made = dist_util.gather_object(make_batch(mine[0]) if mine else None)
            parts += [part for part in made or () if part]
            add(min(flags.num_samples - first * flags.batch_size, size * flags.batch_size))
    if not dist_util.is_main():
        return None
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_arrays(images, labels=None):
    """A batch as it is saved: arr_0 uint8 [N, H, W, C] and, with labels [N], arr_1 int64."""
    arrays = {"arr_0": to_uint8(images)}
    return arrays if labels is None else {**arrays, "arr_1": labels.cpu().numpy()}


def preview_sampler(process, shape, model_kwargs, steps=25):
    """`model, first=0 -> uint8 [N, H, W, C]` for the previews of training: images first, first + 1, ... by DDIM.

    :param process: DiffusionFlags.
    :param shape: (N, C, H, W).
    :param model_kwargs: what the network is given besides, tensors [N, ...].
    :param steps: of DDIM, at most.
    """
    kept = str(min(steps, process.diffusion_steps))
    diffusion = dataclasses.replace(process, timestep_respacing=kept).create()
    solver = SolverFlags(use_ddim=True)

    def preview(model, first=0):
        noise = IndexedNoise(0, range(first, first + shape[0]))
        kwargs = {k: v.to(dist_util.dev()) for k, v in model_kwargs.items()}
        return to_uint8(make_images(diffusion, model, solver, noise, shape[1:], model_kwargs=kwargs))

    return preview
