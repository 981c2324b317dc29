"""Sampling by index: which images a run makes depends on its flags and seed, never on its ranks.

With --rng published they come from one global stream instead, as those of published scripts do.
"""

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from . import dist_util, logger, methods
from .adapters import pair_of
from .conditioning.conditioning import Conditioning
from .errors import UserError
from .flags import IMAGES, WIDTH, FlagGroup, at_least, flag
from .image_labels import mapping, of_text
from .image_stream import report
from .images import to_uint8
from .jobs import progress
from .networks import for_inference
from .process import SpacingFlags
from .solvers import SOLVERS, facts
from .solvers.flags import SolverFlags


@dataclass
class SampleFlags(FlagGroup):
    """Sampling."""

    num_samples: int = flag(
        10000, "Number of images in all.", legal=at_least(1, IMAGES), idle=True, essential="num_samples"
    )
    batch_size: int = flag(16, "Images computed at once on a rank.", legal=at_least(1, WIDTH), essential="batch_size")
    seed: int = flag(0, "Seed; with its index it decides an image.", legal=at_least(0))

    @property
    def batches(self):
        """Indices of the images of each batch: list of ranges."""
        return batches_of(self.num_samples, self.batch_size)


def batches_of(count, batch_size):
    """Indices 0 to count - 1 in consecutive batches: list of ranges."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


@dataclass
class RngFlags(FlagGroup):
    """The random numbers."""

    rng: str = flag(
        "images",
        "Where they come from: each image's own generator, or one global stream drawn in the published order.",
        choices=("images", "published"),
    )

    @property
    def published(self):
        """Whether they come from torch's global stream."""
        return self.rng == "published"


def noise_of(parsed):
    """`indices -> noise` of a run, by its SampleFlags and RngFlags.

    With --rng published this seeds torch's global generator. It is the first thing that a script does, since published
    scripts draw weights from there too before they load others.

    :param parsed: the Parsed flags of a script.
    :raises UserError: for what has no published order of draws: several ranks, and solvers of later papers.
    """
    flags = parsed[SampleFlags]
    if not parsed[RngFlags].published:
        return lambda indices: IndexedNoise(flags.seed, indices)
    if dist_util.world_size() > 1:
        raise UserError(f"--rng published is one stream, which {dist_util.world_size()} ranks cannot share; expected 1")
    solver = parsed[SolverFlags].name if SolverFlags in parsed.groups else ""
    if solver and not facts(solver).published:
        known = " or ".join(name for name in SOLVERS if facts(name).published)
        raise UserError(f"--rng published has no order of draws for --solver {solver}; expected {known}")
    torch.manual_seed(flags.seed)
    return lambda indices: GlobalNoise(flags.batch_size, len(indices))


class GlobalNoise:
    """Random numbers of the next `count` images of torch's global stream, on this rank's device.

    Published scripts draw for whole batches and leave what the last has too many; so does this.

    :param batch_size: drawn at once.
    :param count: returned of these.
    """

    def __init__(self, batch_size, count):
        self.batch_size = batch_size
        self.count = count
        self._drawn = False

    def label(self, num_classes):
        """A class [count] for each image, uniform over num_classes."""
        return torch.randint(num_classes, (self.batch_size,), device=dist_util.dev())[: self.count]

    def normal(self, *shape):
        """Standard normal float32 [count, *shape]."""
        return torch.randn(self.batch_size, *shape, device=dist_util.dev())[: self.count]

    def __call__(self, x):
        self._drawn = True
        return self.normal(*x.shape[1:]).to(x)

    @contextlib.contextmanager
    def of_steps(self, x, draws):
        """Itself, as `IndexedNoise.of_steps`."""
        yield self

    def stepped(self, x):
        """Draw what published scripts draw in each step, where the solver had no use for it."""
        if not self._drawn:
            self(x)
        self._drawn = False


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
        return self._fill(torch.empty(len(self.generators), *shape))

    def _fill(self, drawn):
        for image, generator in zip(drawn, self.generators):
            image.normal_(generator=generator)
        return drawn

    def __call__(self, x):
        return self.normal(*x.shape[1:]).to(x)

    @contextlib.contextmanager
    def of_steps(self, x, draws):
        """The same noise, like x, for so many draws in turn: a thread makes the next while the network computes.

        Meanwhile nothing else may be drawn.
        """
        if not draws:
            yield self
            return
        with ThreadPoolExecutor(1) as thread:
            yield _DrawnAhead(thread, lambda: self._fill(torch.empty(x.shape, pin_memory=x.is_cuda)), draws, self)

    def stepped(self, x):
        """Nothing: an image's numbers are its own, and what a step does not use is not drawn."""


class _DrawnAhead:
    """Noise of which the next is drawn in a thread, `draws` times; `then` draws what is asked for after these."""

    def __init__(self, thread, draw, draws, then):
        self.thread, self.draw, self.left, self.then = thread, draw, draws, then
        self.next = thread.submit(draw)

    def __call__(self, x):
        if not self.left:
            return self.then(x)
        drawn = self.next.result()
        self.left -= 1
        if self.left:
            self.next = self.thread.submit(self.draw)
        return drawn.to(x, non_blocking=True)


def _generator(seed, index):
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def on_device(told):
    """{name: tensor} on this rank's device."""
    return {name: value.to(dist_util.dev()) for name, value in told.items()}


def images(process, network, noise, cond):
    """Images [N, C, H, W] in about [-1, 1] of one batch, by the process's solver.

    :param process: a Process with a solver.
    :param network: on this rank's device; its `shape` is (C, H, W).
    :param noise: IndexedNoise or GlobalNoise, which draws the start and each step's noise.
    :param cond: {name: tensor [N, ...]} of what the network is told.
    """
    return watched_images(process, network, noise, cond)[0]


def watched_images(process, network, noise, cond, watch=None):
    """(`images`, int64 [N]): the second says after which step, from 1, an image has not been finite; 0 if it is.

    :param watch: called with each Record; None for nobody.
    """
    x = noise.normal(*network.shape).to(dist_util.dev())
    bad_from = torch.zeros(len(x), dtype=torch.long, device=x.device)
    denoise, solver, steps = process.denoiser(network, cond), process.solver, len(process.grid)
    # the last step goes to the data and draws nothing
    with noise.of_steps(x, steps - 1 if solver.stochastic else 0) as draw:
        for record in progress.steps(process.sample_records(solver, denoise, x, draw), steps):
            x = record.x
            noise.stepped(x)
            finite = x.flatten(1).sum(1).isfinite()
            bad_from = torch.where(finite, 0, bad_from.where(bad_from > 0, steps - record.i))
            if watch is not None:
                watch(record)
    return pair_of(network).decode(x), bad_from


def batch_maker(process, network, conditioning: Conditioning, noise_at, finished=lambda x, cond: x):
    """`indices -> {"arr_0": images uint8 [n, H, W, C], "arr_1": labels}`, the labels where there are any.

    Where images are not finite, "bad_from" is that of `watched_images`.

    :param conditioning: a Conditioning of sampling.
    :param noise_at: `indices -> noise`, as of `noise_of`.
    :param finished: `(x [n, C, H, W], cond) -> images`, what is made of the samples in the end.
    """

    def make_batch(indices):
        noise = noise_at(indices)
        cond = on_device(conditioning.of_indices(noise, indices))
        x, bad_from = watched_images(process, network, noise, cond)
        arrays = as_arrays(finished(x, cond), cond.get("y"))
        return arrays | {"bad_from": bad_from.cpu().numpy()} if bad_from.any() else arrays

    return make_batch


def dataset_in_order(data, unet, flags):
    """(dataset, flags): images for a script that takes them by index, and SampleFlags with no more than there are.

    :param data: DataFlags; the images are not mirrored.
    :param unet: UNetFlags, which say their size and channels, and whether they have classes.
    """
    still, size = dataclasses.replace(data, random_flip=False), unet.image_size
    known = {"known": of_text(unet.class_names), "numbers": True}
    dataset = still.dataset(size, unet.class_cond, unet.num_classes, image_channels=unet.image_channels, **known)
    report(dataset)
    if not unet.class_names and any(name != str(number) for number, name in enumerate(dataset.class_names or ())):
        logger.warn(
            f"--model_path does not name its classes, which are taken to be {mapping(dataset.class_names, True)}; "
            "--class_names says what they are"
        )
    if flags.num_samples > len(dataset):
        logger.warn(f"--num_samples {flags.num_samples} is more than there are: taking all {len(dataset)} images")
        flags = dataclasses.replace(flags, num_samples=len(dataset))
    return dataset, flags


def by_index(flags, make_batch):
    """Everything that a run makes, on rank 0: {name: array [num_samples, ...]}; None on other ranks.

    Batches of consecutive indices are dealt to the ranks in turn, so that a batch holds the same
    images on any number of ranks.

    :param flags: SampleFlags.
    :param make_batch: `indices -> {name: numpy array [len(indices), ...]}`.
    """
    rank, size = dist_util.rank(), dist_util.world_size()
    batches, parts = flags.batches, []
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


def preview_sampler(flags, count, cond, steps=25, sampler=(), values=None):
    """`network, first=0 -> uint8 [N, H, W, C]` for the previews of training: images first, first + 1, ... by DDIM.

    :param flags: DiffusionFlags.
    :param count: N.
    :param cond: {name: tensor [N, ...]} of what the network is told.
    :param steps: of DDIM, at most.
    :param sampler: {flag: value} of another sampler, as an Objective names it.
    :param values: {flag: value} of the network, which methods may share; None has their defaults.
    """
    chosen = {"solver": "ddim", "spacing": "published", "timestep_respacing": str(min(steps, flags.diffusion_steps))}
    chosen |= dict(sampler)
    process = dataclasses.replace(flags, timestep_respacing=chosen["timestep_respacing"]).create(
        methods.at_defaults(values or {}), SolverFlags(solver=chosen["solver"]), SpacingFlags(spacing=chosen["spacing"])
    )

    def preview(network, first=0):
        noise = IndexedNoise(0, range(first, first + count))
        x, bad_from = watched_images(process, for_inference(network), noise, on_device(cond))
        if bad := int((bad_from > 0).sum()):
            logger.warn(f"{bad} of {len(x)} samples in training are not finite numbers, and are drawn black")
        return to_uint8(x)

    return preview
