"""Images to noise and back: exactly by BDIA, by DDIM as well as its steps are small.

A walk towards noise asks the denoiser at the times where the walk back asks it. So BDIA's inversion is exact for any
denoiser that is a function of (x, t): clipped, epsilon-scaled, or told a shifted time.
"""

import torch

from .sampling import sample
from .schedule import per_sample
from .solvers.bdia import Before


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
    times = [images.new_full((len(images),), t, dtype=torch.long) for t in (-1, *grid)]
    level = schedule.alpha_bar(times[1])
    seen = denoise(images, times[1]).eps
    x = per_sample(level.sqrt(), images) * images + per_sample((1 - level).sqrt(), images) * seen
    before = Before(images, times[0])
    for t, s in zip(times[1:], times[2:]):
        step = solver(denoise, x, t, s, before, torch.zeros_like)
        x, before = step.x, Before(x, t)
    return x, before


@torch.no_grad()
def decode(denoise, solver, grid, x, before):
    """The images [N, C, ...] that `encode` was given, from what it returned; solver is BDIA."""
    state = Before(x, torch.full_like(before.t, grid[-1]))
    *_, last = sample(denoise, solver, grid[:-1], before.x, state=state)
    return last.x
