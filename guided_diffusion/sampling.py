"""The sampling loop. It exists once, and keeps nothing but the current state."""

from typing import NamedTuple

import torch


class Record(NamedTuple):
    """One finished step.

    :ivar i: index of the kept step, S-1 (noisiest) down to 0.
    :ivar t: [N] the training timesteps the step started from.
    :ivar s: [N] where it went; -1 is the data.
    :ivar x: [N, C, ...] the images after the step.
    :ivar x0: [N, C, ...] the clean images that the step predicted.
    """

    i: int
    t: torch.Tensor
    s: torch.Tensor
    x: torch.Tensor
    x0: torch.Tensor


def no_coupling(i, x, t, s):
    """The coupling that leaves the clock alone."""
    return t, s


def sample(denoise, solver, grid, x, noise=torch.randn_like, coupling=no_coupling, state=None):
    """Walk from the noisiest time of the grid to the data; yields a Record after each step.

    :param denoise: `(x, t) -> Prediction`.
    :param solver: `(denoise, x, t, s, state, noise) -> Step`.
    :param grid: increasing training timesteps, S of them; the loop visits them from high to low and
        ends at -1.
    :param x: [N, C, ...] the start, at level grid[-1].
    :param noise: draws noise like x.
    :param coupling: may move (t, s) of a step.
    :param state: the solver's memory of steps before these.
    """
    times = [-1, *[int(t) for t in grid]]
    for i in reversed(range(len(grid))):
        t = x.new_full((x.shape[0],), times[i + 1], dtype=torch.long)
        s = torch.full_like(t, times[i])
        t, s = coupling(i, x, t, s)
        x, prediction, state = solver(denoise, x, t, s, state, noise)
        yield Record(i, t, s, x, prediction.x0)
