"""The sampling loop. It exists once, and keeps nothing but the current state."""

from typing import NamedTuple

import torch

from .scalars import everywhere
from .seams import Correction, Coupling


class Record(NamedTuple):
    """One finished step.

    :ivar i: index of the kept step, S-1 (noisiest) down to 0.
    :ivar t: [N] the training timesteps the step started from.
    :ivar s: [N] where it went; -1 is the data.
    :ivar x: [N, C, ...] the images after the step, corrected.
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


def no_correction(x, prediction, t, s):
    """The correction that leaves the new state alone."""
    return x


def sample(
    denoise,
    solver,
    grid,
    x,
    noise=torch.randn_like,
    coupling: Coupling = no_coupling,
    correction: Correction = no_correction,
    state=None,
):
    """Walk from the noisiest time of the grid to the data; yields a Record after each step.

    Differentiable: whether gradients are kept is the caller's choice.

    :param denoise: `(x, t) -> Prediction`.
    :param solver: `(denoise, x, t, s, state, noise) -> Step`.
    :param grid: [S] increasing training timesteps, or [S, N] with times of its own for each sample; the loop visits
        them from high to low and ends at -1.
    :param x: [N, C, ...] the start, at level grid[-1].
    :param noise: draws noise like x.
    :param coupling: `(i, x, t, s) -> (t, s)`, may move the times of a step.
    :param correction: `(x, prediction, t, s) -> x`, may pull back the state after a step.
    :param state: the solver's memory of steps before these.
    """
    times = grid.tolist() if hasattr(grid, "tolist") else [*grid]
    if all(isinstance(time, int) for time in times):
        nodes = [everywhere(time, x) for time in (-1, *times)]
    else:
        own = torch.as_tensor(grid, dtype=torch.long, device=x.device)
        nodes = [everywhere(-1, x), *own.expand(-1, len(x)).unbind()]
    for i in reversed(range(len(grid))):
        t, s = coupling(i, x, nodes[i + 1], nodes[i])
        x, prediction, state = solver(denoise, x, t, s, state, noise)
        x = correction(x, prediction, t, s)
        record = Record(i, t, s, x, prediction.x0)
        del prediction  # or what it holds would stay through the next step
        yield record


def chain(arrows, identity):
    """One arrow that applies several in turn, each to what the one before gave; `identity` where there are none.

    :param arrows: functions of which the last results are the last arguments of the next: couplings
        `(i, x, t, s) -> (t, s)` or corruptions `(noise, t) -> (noise, t)`.
    """
    arrows = [arrow for arrow in arrows if arrow is not identity]
    if not arrows:
        return identity
    if len(arrows) == 1:
        return arrows[0]

    def chained(*arguments):
        for arrow in arrows:
            moved = arrow(*arguments)
            arguments = (*arguments[: -len(moved)], *moved)
        return moved

    return chained


def chain_at(place, arrows, identity):
    """One arrow that applies several in turn, each to what the one before gave; `identity` where there are none.

    :param place: of the argument that their result replaces: 0 for corrections `(x, prediction, t, s) -> x`, 1 for
        clocks `(x, t) -> t`, whose identity is None.
    """
    arrows = [arrow for arrow in arrows if arrow is not identity]
    if len(arrows) < 2:
        return next(iter(arrows), identity)

    def chained(*arguments):
        arguments = [*arguments]
        for arrow in arrows:
            arguments[place] = arrow(*arguments)
        return arguments[place]

    return chained
