"""Images to noise and back: exactly by BDIA, by DDIM as well as its steps are small.

A walk towards noise asks the denoiser at the times where the walk back asks it. So BDIA's inversion is exact for any
denoiser that is a function of (x, t): clipped, epsilon-scaled, or told a shifted time.
"""

import itertools

import torch

from .denoiser import Prediction
from .errors import UserError
from .sampling import sample
from .scalars import everywhere
from .solvers.bdia import Before, on_lattice
from .solvers.ddim import DDIM
from .solvers.step import transfer

EXACT = 1.0  # the gamma of BDIA that loses nothing


def advice(solver, steps):
    """What is to be said of an inversion by SolverFlags in so many steps; "" for nothing.

    :raises UserError: for what has no exact way back.
    """
    if solver.name != "bdia":
        raise UserError(
            f"--solver {solver.name} cannot be inverted exactly; expected bdia, "
            "as ddpm and --eta draw noise that an image does not tell, and other solvers lose their way back"
        )
    if solver.gamma == 0:
        raise UserError("--gamma 0 is DDIM, which has no exact way back; expected above 0")
    if steps < 2:
        raise UserError("--timestep_respacing keeps 1 timestep; expected at least 2, the pair that BDIA decodes from")
    if solver.gamma == EXACT:
        return ""
    return (
        f"--gamma {solver.gamma} can enlarge states and rounding errors by 1 / gamma at each step towards noise, "
        f"{solver.gamma ** (1 - steps):.2g} times in all; 1 is exact"
    )


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


def by_ddim(process, denoise, x):
    """The images [N, C, ...] that DDIM makes of states x at the noisiest timestep of a Process."""
    *_, last = process.sample_records(DDIM(process.schedule), denoise, x)
    return last.x
