"""BDIA (Zhang, Lewis & Kleijn 2023, "Exact Diffusion Inversion via Bi-directional Integration Approximation").

DDIM's increment from x_t is a guess of the way to s, and of the way back to where x_t came from. BDIA takes the
first, and a share gamma of the error that the second shows (the paper's DDIM case, with P = the DDIM step
forward and Q = the one back, both from one answer about x_t):

    x_s = P(x_t) + gamma (x_u - Q(x_t)),    so    x_u = Q(x_t) + (x_s - P(x_t)) / gamma.

| paper | here |
| --- | --- |
| t_{i+1}, t_i, t_{i-1} | u, t, s: times of the state before, now and next |
| z_{i+1} | `state`: x_u and u |
| z_i + Delta(t_i -> t_{i-1}), z_i + Delta(t_i -> t_{i+1}) | P and Q: `ahead`, `back` |
| alpha_t^2 | alpha_bar |

A step is linear in the states around x_t, hence the same formula walks in both directions, with gamma towards the
data and 1 / gamma towards the noise. At gamma 1 it is the leapfrog rule. The first step, which has no state
before it, is DDIM's.

Departures: at gamma 1, P - Q is rounded to a lattice on which x_u + (P - Q) is exact, so that the walk back returns
every bit (Levesque & Verlet 1993 made the leapfrog of molecular dynamics reversible in this way). Times may
differ from sample to sample; the last target is the data itself (alpha_bar = 1).
"""

from typing import ClassVar, NamedTuple

import torch

from ..flags import FRACTION, flag
from ..scalars import add_, less, ratio, shared, where
from .step import Solver, Step, transfer


class Before(NamedTuple):
    """BDIA's memory: the state that the step before started from.

    :ivar x: [N, C, ...] the images.
    :ivar t: [N] their times.
    """

    x: torch.Tensor
    t: torch.Tensor


def on_lattice(x):
    """x rounded to multiples of 8 machine epsilons (2^-20 in float32), whose sums below 16 are exact."""
    spacing = 8 * torch.finfo(x.dtype).eps
    return (x / spacing).round() * spacing


class BDIA(Solver):
    """The rule above between any two levels; s > t encodes data into noise and needs gamma > 0.

    :param schedule: the NoiseSchedule.
    :param gamma: in [0, 1]. 0 is DDIM, 1 is inverted bit by bit; between, the states and their rounding errors
        may grow by 1 / gamma with every step towards noise.
    :ivar order: 2 at gamma 1, else 1.
    """

    options: ClassVar = {
        "gamma": flag(0.5, "How far BDIA leans on its step before: 0 is DDIM, 1 is exactly invertible.", legal=FRACTION)
    }
    fixed_ends = True

    def __init__(self, schedule, gamma=0.5):
        self.schedule = schedule
        self.gamma = gamma
        self.order = 2 if gamma == 1 else 1

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        ahead = transfer(prediction, self.schedule.alpha_bar(shared(s)))
        if state is None:
            return Step(ahead, prediction, Before(x, t))
        back = transfer(prediction, self.schedule.alpha_bar(shared(state.t)))
        weight = where(less(s, t), self.gamma, ratio(1, self.gamma))
        if self.gamma == 1:
            return Step(on_lattice(ahead.sub_(back)).add_(state.x), prediction, Before(x, t))
        return Step(add_(add_(ahead, -weight, back), weight, state.x), prediction, Before(x, t))
