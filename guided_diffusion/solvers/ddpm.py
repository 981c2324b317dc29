"""Ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models"): algorithm 2, equations 6 and 7.

The learned variance is that of Nichol & Dhariwal 2021 ("Improved Denoising Diffusion Probabilistic Models"),
equation 15, and fewer steps are theirs too: beta and its posterior are those between two kept levels.

| paper | here |
| --- | --- |
| mu tilde (x_t, x_0) | `posterior(...)`: x0_coef x0 + xt_coef x_t |
| beta tilde_t, beta_t | `posterior(...).variance`, `.beta` |
| v of the learned variance, in [0, 1] | `fraction` |
| sigma_t z | `spread * noise(x)` |

Departures from the paper, as published code has them: the mean is that of the predicted (and clipped) x0, not of
eps; where the log of the last step's variance, which is zero, is needed, a floor stands in for it.
"""

import torch

from ..denoiser import ModelVarType
from ..schedule import per_sample, posterior
from .step import Solver, Step


def floor_of(schedule, grid):
    """The posterior variance of the step before the last of a grid; a grid of one step has none, and gets 1e-20."""
    if len(grid) < 2:
        return 1e-20
    before, now = schedule.alpha_bar(torch.tensor([grid[0], grid[1]]))
    return float(posterior(now, before).variance)


class DDPM(Solver):
    """Draws x_s from the reverse step N(mean, variance) between any two levels.

    :param schedule: the NoiseSchedule.
    :param var_type: which variance the step has (ModelVarType).
    :param variance_floor: the posterior variance that stands in for the zero of the last step, where a log is
        needed: published code takes that of the step before the last; by default of a grid of all timesteps.
    """

    takes = ("var_type", "variance_floor")
    stochastic = True
    published = True
    reads_variance = True
    guided_by_mean = True

    def __init__(self, schedule, var_type=ModelVarType.FIXED_LARGE, variance_floor=None):
        self.schedule = schedule
        self.var_type = var_type
        self.floor = floor_of(schedule, range(schedule.num_timesteps)) if variance_floor is None else variance_floor

    def moments(self, prediction, s):
        """Mean, variance and log variance of x_s, each [N, C, ...]."""
        x = prediction.x_t
        q = posterior(prediction.alpha_bar, self.schedule.alpha_bar(s))
        mean = per_sample(q.x0_coef, x) * prediction.x0 + per_sample(q.xt_coef, x) * x
        variance, log_variance = self._variance(prediction, q, last=s < 0)
        return mean, variance.expand_as(x), log_variance.expand_as(x)

    def _variance(self, prediction, q, last):
        x = prediction.x_t
        if self.var_type is ModelVarType.LEARNED:
            return prediction.variance.exp(), prediction.variance
        smallest = torch.where(last, self.floor, q.variance)
        if self.var_type is ModelVarType.FIXED_SMALL:
            return per_sample(q.variance, x), per_sample(smallest.log(), x)
        if self.var_type is ModelVarType.FIXED_LARGE:
            large = torch.where(last, self.floor, q.beta)
            return per_sample(large, x), per_sample(large.log(), x)
        # Nichol & Dhariwal 2021, equation 15
        fraction = (prediction.variance + 1) / 2
        log_variance = fraction * per_sample(q.beta.log(), x) + (1 - fraction) * per_sample(smallest.log(), x)
        return log_variance.exp(), log_variance

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        mean, variance, log_variance = self.moments(prediction, s)
        if prediction.gradient is not None:
            mean = mean + variance * prediction.gradient
        spread = per_sample(s >= 0, x) * (0.5 * log_variance).exp()
        return Step(mean + spread * noise(x), prediction, state)
