"""Heun's method (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models").

Algorithm 1, which is algorithm 2 without churn, in the variance-preserving variables of these networks.

| paper | here |
| --- | --- |
| x | x / sqrt(alpha_bar) |
| sigma | sqrt(1 / alpha_bar - 1) |
| d_i = (x - D(x; sigma)) / sigma | `prediction.eps` |

Departure: a step from nearly pure noise is Euler's (see `is_plain`): sigma is 20,000 at the noisiest timestep of
the cosine schedule, and at most 80 in the paper.
"""

import torch

from ..scalars import at_least_zero, shared
from .step import Solver, Step, chosen, is_plain, transfer


class Heun(Solver):
    """Euler's step (which is DDIM's), corrected by the noise predicted at its end; the last step is Euler's.

    :param schedule: the NoiseSchedule.
    """

    order = 2

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target, plain = self.schedule.alpha_bar(shared(s)), is_plain(prediction, s, self.schedule)
        euler = transfer(prediction, target)
        if plain is True:
            return Step(euler, prediction, state)
        eps = prediction.eps
        mean = torch.lerp(eps, denoise(euler, at_least_zero(s)).eps, 0.5)
        return Step(transfer(prediction, target, chosen(plain, eps, mean)), prediction, state)
