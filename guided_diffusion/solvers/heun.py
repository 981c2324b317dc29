"""Heun's method (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models").

Algorithm 2, which without churn is algorithm 1, in the variance-preserving variables of these networks.

| paper | here |
| --- | --- |
| x | x / sqrt(alpha_bar) |
| sigma | sqrt(1 / alpha_bar - 1) |
| d_i = (x - D(x; sigma)) / sigma | `prediction.eps` |
| gamma_i, t_hat, x_hat | `_churned` |

Departures: a step from nearly pure noise is Euler's (see `is_plain`): sigma is 20,000 at the noisiest timestep of
the cosine schedule, and at most 80 in the paper. Churn adds no noise beyond the noisiest level of the schedule.
"""

import math
from typing import ClassVar

from ..flags import at_least, flag
from ..schedule import per_sample
from .step import Solver, Step, is_plain, transfer


class Heun(Solver):
    """Euler's step (which is DDIM's), corrected by the noise predicted at its end; the last step is Euler's.

    :param schedule: the NoiseSchedule.
    :param grid: the kept timesteps, whose number shares out the churn.
    :param S_churn, S_min, S_max, S_noise: of the paper, with its names; S_max 0 is no bound.
    """

    order = 2
    takes = ("grid",)
    options: ClassVar = {
        "S_churn": flag(0.0, "Noise that heun adds before its steps, over the whole run; 0 none.", legal=at_least(0)),
        "S_min": flag(0.0, "Least noise / signal at which heun adds noise.", legal=at_least(0)),
        "S_max": flag(0.0, "Largest noise / signal at which heun adds noise; 0 has no bound.", legal=at_least(0)),
        "S_noise": flag(1.0, "Standard deviation of the noise that heun adds.", legal=at_least(0)),
    }

    def __init__(self, schedule, grid=(), S_churn=0.0, S_min=0.0, S_max=0.0, S_noise=1.0):
        self.schedule = schedule
        self.gamma = min(S_churn / max(len(grid), 1), math.sqrt(2) - 1)
        self.low, self.high = S_min, S_max or math.inf
        self.S_noise = S_noise
        self.stochastic = S_churn > 0

    def _churned(self, x, t, noise):
        """(x, t) after noise was added, where the level is within bounds."""
        level = self.schedule.alpha_bar(t)
        sigma = (1 / level - 1).sqrt()
        inside = (self.low <= sigma) & (sigma <= self.high) & (level > 0)
        later = self.schedule.time(-(sigma * (1 + self.gamma)).log()).where(inside, t.double())
        reached = self.schedule.alpha_bar(later)
        added = ((1 / reached - 1) - sigma**2).clamp(min=0).where(inside, 0.0)
        kept = (reached / level).where(inside, 1.0)
        x = per_sample(kept.sqrt(), x) * x
        return x + per_sample((reached * added).sqrt() * self.S_noise, x) * noise(x), later

    def __call__(self, denoise, x, t, s, state, noise):
        if self.stochastic:
            x, t = self._churned(x, t, noise)
        prediction = denoise(x, t)
        target = self.schedule.alpha_bar(s)
        euler = transfer(prediction, target)
        plain = is_plain(prediction, s)
        if plain.all():
            return Step(euler, prediction, state)
        mean = (prediction.eps + denoise(euler, s.clamp(min=0)).eps) / 2
        eps = mean.where(~per_sample(plain, x).bool(), prediction.eps)
        return Step(transfer(prediction, target, eps), prediction, state)
