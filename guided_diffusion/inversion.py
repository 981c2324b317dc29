"""Images to noise and back: exactly by BDIA, by DDIM as well as its steps are small.

A walk towards noise asks the denoiser at the times where the walk back asks it. So BDIA's inversion is exact for any
denoiser that is a function of (x, t): clipped, epsilon-scaled, or told a shifted time.
"""

import itertools

import torch

from .denoiser import Prediction
from .sampling import sample
from .scalars import everywhere
from .solvers.bdia import Before, on_lattice
from .solvers.step import transfer


@torch.no_grad()
def encode(denoise, solver, schedule, grid, images):
    """The states of images at the two noisiest times of a grid.

    Images have no noise that a network could be asked for: the step to grid[0] is DDIM's, with the noise that
    it sees in them at grid[0].

    :param denoise: `(x, t) -> Prediction`.
    :param solver: BDIA or DDIM without noise.
    :param schedule: the NoiseSchedule.
    :param grid: increasing training timesteps, at least 2.
    :param images: [N, C, ...] in [-1, 1].
    :return: x [N, C, ...] at grid[-1], and the Before at grid[-2].
    """
    data, *times = (everywhere(t, images) for t in (-1, *grid))
    images = on_lattice(images)
    seen = Prediction.from_eps(images, schedule.alpha_bar(data), denoise(images, times[0]).eps)
    x, before = on_lattice(transfer(seen, schedule.alpha_bar(times[0]))), Before(images, data)
    for t, s in itertools.pairwise(times):
        step = solver(denoise, x, t, s, before, torch.zeros_like)
        x, before = step.x, Before(x, t)
    return x, before


@torch.no_grad()
def decode(denoise, solver, grid, x, before):
    """The images [N, C, ...] that `encode` was given, from what it returned; solver is BDIA."""
    state = Before(x, everywhere(grid[-1], x))
    *_, last = sample(denoise, solver, grid[:-1], before.x, state=state)
    return last.x
