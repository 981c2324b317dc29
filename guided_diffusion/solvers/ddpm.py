"""Ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models"): algorithm 2, equations 6 and 7.

The learned variance is that of Nichol & Dhariwal 2021 ("Improved Denoising Diffusion Probabilistic Models"),
equation 15, and fewer steps are theirs too: beta and its posterior are those between two kept levels.

| paper | here |
| --- | --- |
| mu tilde (x_t, x_0) | `posterior(...)`: x0_coef x0 + xt_coef x_t |
| beta tilde_t, beta_t | `posterior(...).variance`, `.beta` |
| v of the learned variance, in [0, 1] | `(prediction.variance + 1) / 2` |
| sigma_t, z | `spread`, `noise(x)` |

Departures from the paper, as published code has them: the mean is that of the predicted (and clipped) x0, not of
eps; where the log of the last step's variance, which is zero, is needed, a floor stands in for it.
"""

import torch

from ..denoiser import ModelVarType
from ..scalars import add_, combined, less, log, per_sample, shared, sqrt, where
from ..schedule import posterior
from .step import Solver, Step


def floor_of(schedule, grid):
    """The posterior variance of the step before the last of a grid; a grid of one step has none, and gets 1e-20."""
    if len(grid) < 2:
        return 1e-20
    before, now = map(schedule.alpha_bar, grid[:2])
    return posterior(now, before).variance


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

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        q = posterior(shared(prediction.alpha_bar), self.schedule.alpha_bar(shared(s)))
        moved = combined(q.x0_coef, prediction.x0, q.xt_coef, x)
        last = less(s, 0)
        if last is True and prediction.gradient is None:
            return Step(moved, prediction, state)
        spread = self._spread(prediction, q, last)
        add = torch.Tensor.addcmul_ if self.var_type.is_learned else add_
        if prediction.gradient is not None:
            variance = q.variance if self.var_type is ModelVarType.FIXED_SMALL else spread**2
            moved = add(moved, variance, prediction.gradient)
        if last is not True:
            drawn = noise(x)
            moved = add(moved, spread, drawn if last is False else drawn * per_sample(last.logical_not(), x))
        return Step(moved, prediction, state)

    def _spread(self, prediction, q, last):
        """The standard deviation, with the floor at the last step: a number or [N]; if learned, [N, C, ...]."""
        if self.var_type is ModelVarType.LEARNED:
            return (prediction.variance / 2).exp_()
        if self.var_type is ModelVarType.FIXED_LARGE:
            return sqrt(where(last, self.floor, q.beta))
        least = where(last, self.floor, q.variance)
        if self.var_type is ModelVarType.FIXED_SMALL:
            return sqrt(least)
        # Nichol & Dhariwal 2021, equation 15
        learned, least, most = prediction.variance, log(least), log(q.beta)
        half_log = learned * per_sample((most - least) / 4, learned)
        return half_log.add_(per_sample((most + least) / 4, learned)).exp_()
