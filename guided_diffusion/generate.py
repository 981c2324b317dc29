"""Sampling by index: which images a run makes depends on its flags and seed, never on its ranks."""

import dataclasses
import io
from dataclasses import dataclass

import blobfile as bf
import numpy as np
import torch
from tqdm.auto import tqdm

from . import dist_util, logger
from .errors import UserError
from .flags import flag, int_list
from .images import save_grid, to_uint8
from .solvers import SOLVERS


@dataclass
class SampleFlags:
    """Sampling."""

    model_path: str = flag("", "Checkpoint of the diffusion network, model*.pt or ema_*.pt.")
    num_samples: int = flag(10000, "Number of images in all.")
    batch_size: int = flag(16, "Images computed at once on a rank.")
    solver: str = flag("", "How a step is taken; empty is ddpm, or ddim with --use_ddim True.", choices=("", *SOLVERS))
    use_ddim: bool = flag(False, "The published spelling of --solver ddim.")
    eta: float = flag(0.0, "Noise of DDIM: 0 none, 1 that of DDPM with the small variance.")
    clip_denoised: bool = flag(True, "Clip the predicted clean images to the pixel range at each step.")
    seed: int = flag(0, "Seed; with its index it decides an image.")
    override: bool = flag(False, "Let given flags win over those saved beside the checkpoint.")

    def __post_init__(self):
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected 0 or more")
        if self.use_ddim and self.solver not in ("", "ddim"):
            raise UserError(f"--use_ddim True contradicts --solver {self.solver}")
        if self.eta and self.solver_name != "ddim":
            raise UserError(f"--eta {self.eta} is read by --solver ddim alone")
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta is {self.eta}; expected 0 to 1")

    @property
    def solver_name(self):
        return self.solver or ("ddim" if self.use_ddim else "ddpm")


@dataclass
class ClassFlags:
    """Classes of the images."""

    classes: str = flag("", "Classes to sample, such as 3,7, in turn over the images; empty draws them at random.")


class IndexedNoise:
    """Random numbers of the images `indices`, each from its own generator.

    A generator is decided by (seed, index) and runs on the CPU, so that an image is the same on any
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
    """The classes [K] of "3,7", or None for all.

    :raises UserError: for one outside 0..num_classes-1.
    """
    classes = int_list(text, "classes")
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise UserError(f"--classes has {wrong[0]}; expected 0 to {num_classes - 1}")
    return classes or None


def labels_of(noise, indices, classes, num_classes):
    """Labels int64 [N] of images: `classes` in turn by index, or drawn where that is None."""
    if classes is None:
        return noise.label(num_classes)
    return torch.tensor([classes[i % len(classes)] for i in indices])


def make_images(diffusion, model, flags, noise, shape, model_kwargs=None, cond_fn=None):
    """Images [N, C, H, W] in about [-1, 1] of one batch.

    :param flags: SampleFlags.
    :param noise: IndexedNoise, which draws the start and each step's noise.
    :param shape: (C, H, W).
    :param cond_fn: gradient for guidance, or None.
    """
    x = noise.normal(*shape).to(dist_util.dev())
    if flags.solver_name == "ddpm":
        solver = diffusion.ddpm(cond_fn, model_kwargs)
        cond_fn = None
    else:
        solver = diffusion.ddim(flags.eta)
    denoise = diffusion.denoiser(model, flags.clip_denoised, None, cond_fn, model_kwargs)
    for record in diffusion.sample_records(solver, denoise, x, noise):
        x = record.x
    return x


def generate(flags, make_batch):
    """All images of a run, on rank 0: (uint8 [num_samples, H, W, C], int64 labels or None); (None, None) elsewhere.

    Batches of consecutive indices are dealt to the ranks in turn.

    :param flags: SampleFlags.
    :param make_batch: `indices -> (images [N, C, H, W] in [-1, 1], labels [N] or None)`.
    """
    rank, size = dist_util.rank(), dist_util.world_size()
    starts = range(0, flags.num_samples, flags.batch_size)
    batches = [range(i, min(i + flags.batch_size, flags.num_samples)) for i in starts]
    images, labels = [], []
    with tqdm(total=flags.num_samples, unit="image", disable=not dist_util.is_main()) as bar:
        for first in range(0, len(batches), size):
            mine = batches[first + rank] if first + rank < len(batches) else ()
            made, label = make_batch(mine) if mine else (None, None)
            part = None if made is None else (to_uint8(made), None if label is None else label.cpu().numpy())
            for done in filter(None, dist_util.gather_object(part) or ()):
                images.append(done[0])
                labels.append(done[1])
                bar.update(len(done[0]))
    if not dist_util.is_main():
        return None, None
    return np.concatenate(images), None if labels[0] is None else np.concatenate(labels)


def save_samples(images, labels=None, columns=None):
    """Write `samples_NxHxWx3.npz` and a PNG grid of up to 100 of the images to the output folder.

    :param images: uint8 [N, H, W, 3], stored as arr_0.
    :param labels: int64 [N], stored as arr_1; or None.
    """
    path = bf.join(logger.get_dir(), f"samples_{'x'.join(map(str, images.shape))}.npz")
    data = io.BytesIO()
    np.savez(data, images) if labels is None else np.savez(data, images, labels)
    with bf.BlobFile(path, "wb") as f:
        f.write(data.getbuffer())
    picture = path[: -len(".npz")] + ".png"
    save_grid(picture, images[:100], columns)
    logger.log(f"saved {path}")
    logger.log(f"saved {picture}")


def preview_sampler(process, unet, images=16, steps=25):
    """`model -> uint8 [images, H, W, 3]` for the previews of training: DDIM with fixed seeds.

    :param process: DiffusionFlags.
    :param unet: UNetFlags; classes are shown in turn.
    :param steps: of DDIM, at most.
    """
    kept = str(min(steps, process.diffusion_steps))
    diffusion = dataclasses.replace(process, timestep_respacing=kept).create()
    flags = SampleFlags(num_samples=images, use_ddim=True)

    def preview(model):
        noise = IndexedNoise(flags.seed, range(images))
        kwargs = {"y": torch.arange(images, device=dist_util.dev()) % unet.num_classes} if unet.class_cond else {}
        shape = (3, unet.image_size, unet.image_size)
        return to_uint8(make_images(diffusion, model, flags, noise, shape, kwargs))

    return preview
