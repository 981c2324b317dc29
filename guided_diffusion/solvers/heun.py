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

import torch

from ..errors import UserError
from ..flags import at_least, flag
from ..scalars import at_least_zero, combined, everywhere, log, ratio, shared, sqrt, where
from .step import Solver, Step, chosen, is_plain, transfer


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
        if S_max and S_min > S_max:
            raise UserError(f"--S_min {S_min:g} is above --S_max {S_max:g}; expected it below, or no --S_max")
        self.schedule = schedule
        self.gamma = min(S_churn / max(len(grid), 1), math.sqrt(2) - 1)
        self.low, self.high = S_min, S_max or math.inf
        self.S_noise = S_noise
        self.stochastic = S_churn > 0

    def _churned(self, x, t, noise):
        """(x, t) after noise was added, where the level is within bounds."""
        drawn, level, now = noise(x), self.schedule.alpha_bar(shared(t)), shared(t)
        sigma = sqrt(ratio(1, level) - 1)
        inside = (self.low <= sigma) & (sigma <= self.high) & (level > 0)
        if inside is False:
            return x, t
        later = where(inside, self.schedule.time(-log(sigma * (1 + self.gamma))), now)
        reached = self.schedule.alpha_bar(later)
        added = where(inside, at_least_zero(ratio(1, reached) - 1 - sigma**2), 0.0)
        kept = where(inside, ratio(reached, level), 1.0)
        x = combined(sqrt(kept), x, sqrt(reached * added) * self.S_noise, drawn)
        return x, later if isinstance(later, torch.Tensor) else everywhere(later, x)

    def __call__(self, denoise, x, t, s, state, noise):
        if self.stochastic:
            x, t = self._churned(x, t, noise)
        prediction = denoise(x, t)
        target, plain = self.schedule.alpha_bar(shared(s)), is_plain(prediction, s, self.schedule)
        euler = transfer(prediction, target)
        if plain is True:
            return Step(euler, prediction, state)
        eps = prediction.eps
        mean = torch.lerp(eps, denoise(euler, at_least_zero(s)).eps, 0.5)
        return Step(transfer(prediction, target, chosen(plain, eps, mean)), prediction, state)
