"""BDIA (Zhang, Lewis & Kleijn 2023, "Exact Diffusion Inversion via Bi-directional Integration Approximation").

DDIM's increment from x_t is a guess of the way to s, and of the way back to where x_t came from. BDIA takes the
first, and a share gamma of the error that the second shows (the paper's DDIM case, with P = the DDIM step
forward and Q = the one back, both from one answer about x_t):

    x_s = P(x_t) + gamma (x_u - Q(x_t)),    so    x_u = Q(x_t) + (x_s - P(x_t)) / gamma.

| here | paper |
| --- | --- |
| u, t, s: times of the state before, now and next | t_{i+1}, t_i, t_{i-1} |
| `before`: x_u and u | z_{i+1} |
| alpha_bar | alpha_t^2 |

A step is linear in the states around x_t, hence the same formula walks in both directions, with gamma towards the
data and 1 / gamma towards the noise. At gamma 1 it is the leapfrog rule. The first step, which has no state
before it, is DDIM's.

Departures: P - gamma Q is one sum with coefficients in float64, which rounds less; times may differ from sample
to sample; the last target is the data itself (alpha_bar = 1).
"""

from typing import NamedTuple

import torch

from ..schedule import per_sample
from .step import Step


class Before(NamedTuple):
    """BDIA's memory: the state that the step before started from.

    :ivar x: [N, C, ...] the images.
    :ivar t: [N] their times.
    """

    x: torch.Tensor
    t: torch.Tensor


class BDIA:
    """The rule above between any two levels; s > t encodes data into noise and needs gamma > 0.

    :param schedule: the NoiseSchedule.
    :param gamma: in [0, 1]. 0 is DDIM, 1 can be inverted without loss; between, a rounding error grows by
        1 / gamma with every step towards noise.
    :ivar order: 2 at gamma 1, else 1.
    """

    def __init__(self, schedule, gamma=1.0):
        self.schedule = schedule
        self.gamma = gamma
        self.order = 2 if gamma == 1 else 1

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target = self.schedule.alpha_bar(s)
        signal, spread = target.sqrt(), (1 - target).sqrt()
        rest = 0
        if state is not None:
            origin = self.schedule.alpha_bar(state.t)
            weight = torch.full_like(target, self.gamma).pow(torch.where(s < t, 1, -1))
            signal, spread = signal - weight * origin.sqrt(), spread - weight * (1 - origin).sqrt()
            rest = per_sample(weight, x) * state.x
        moved = per_sample(signal, x) * prediction.x0 + per_sample(spread, x) * prediction.eps
        return Step(moved + rest, prediction, Before(x, t))
