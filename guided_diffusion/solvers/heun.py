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

from ..schedule import per_sample
from .step import Solver, Step, is_plain, transfer


class Heun(Solver):
    """Euler's step (which is DDIM's), corrected by the noise predicted at its end; the last step is Euler's.

    :param schedule: the NoiseSchedule.
    """

    order = 2

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target = self.schedule.alpha_bar(s)
        euler = transfer(prediction, target)
        plain = is_plain(prediction, s)
        if plain.all():
            return Step(euler, prediction, state)
        mean = (prediction.eps + denoise(euler, s.clamp(min=0)).eps) / 2
        eps = mean.where(~per_sample(plain, x).bool(), prediction.eps)
        return Step(transfer(prediction, target, eps), prediction, state)
