"""DEIS, tAB (Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator").

Equation 14 with the coefficients of equation 15, in the variable rho (proposition 3): the noise prediction is
replaced by the polynomial in t through its values at the latest times, and that is integrated.

| paper | here |
| --- | --- |
| rho | sqrt(1 / alpha_bar - 1) = exp(-lambda) |
| r, the degree | `degree`; tAB0 is DDIM |
| C_ij, at the scale of x / sqrt(alpha_bar) | `_integrals` |
| eps_theta at t_{i+j} | `history`, newest first |

Measured order: degree + 1. The coefficient of the newest prediction follows from the others, since all of
them add up to the step in rho; so the step is DDIM's plus differences.

Departures from the paper: the last step, to the data, is DDIM's. From the released code: 20 points of Gauss and
Legendre in lambda for the integrals, instead of 10,000 rectangles, and log(signal / noise) linear between timesteps,
instead of alpha_bar. (diffusers has a third kind: polynomials in lambda.)
"""

from typing import ClassVar

import numpy as np
import torch

from ..flags import Legal, flag
from ..schedule import half_log_snr, per_sample
from .step import Solver, Step, transfer

POINTS, WEIGHTS = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(20))


class DEIS(Solver):
    """Integrates the polynomial in t through the latest noise predictions.

    :param schedule: the NoiseSchedule.
    :param order: degree of the polynomial, 1 to 3, as the paper counts: tAB1 to tAB3.
    """

    options: ClassVar = {
        "order": flag(0, "Degree, tAB1 to tAB3, where 0 is 3.", legal=Legal("0 to 3", lambda value: 0 <= value <= 3))
    }
    interpolates = True

    def __init__(self, schedule, order=3):
        self.schedule = schedule
        self.degree = order
        self.order = order + 1

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target = self.schedule.alpha_bar(s)
        history = ((t, prediction.eps), *(state or ()))[: self.degree + 1]
        here = half_log_snr(prediction.alpha_bar)
        there = half_log_snr(target).where(s >= 0, here)  # an empty step: to the data there are no differences
        moved = transfer(prediction, target)
        integrals = self._integrals(torch.stack([time for time, _ in history]), here, there)
        for integral, (_, eps) in zip(integrals[1:], history[1:]):
            moved = moved + per_sample(target.sqrt() * integral, x) * (eps - prediction.eps)
        return Step(moved, prediction, history[: self.degree])

    def _integrals(self, times, here, there):
        """[K, N]: for each of the times [K, N], the integral over rho of the polynomial that is 1 there, else 0.

        :param here, there: lambda [N] at the ends of the step.
        """
        half = (there - here) / 2
        points, weights = POINTS.to(half), WEIGHTS.to(half)
        along = (here + half)[:, None] + half[:, None] * points
        measure = -half[:, None] * weights * torch.exp(-along)
        clock = self.schedule.time(along)
        times = times.to(clock)[..., None]
        integrals = []
        for j, node in enumerate(times):
            others = [other for k, other in enumerate(times) if k != j]
            basis = torch.ones_like(clock)
            for other in others:
                basis = basis * (clock - other) / (node - other)
            integrals.append((measure * basis).sum(dim=1))
        return torch.stack(integrals)
