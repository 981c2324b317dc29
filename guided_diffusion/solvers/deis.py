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
from ..scalars import add_, less, real, shared, sqrt, where
from ..schedule import half_log_snr
from .step import Solver, Step, transfer

# of Gauss and Legendre on [-1, 1]
POINTS, WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(20))


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
        target, to_data = self.schedule.alpha_bar(shared(s)), less(s, 0)
        history = ((shared(t), prediction.eps), *(state or ()))[: self.degree + 1]
        moved = transfer(prediction, target)
        if to_data is not True:
            here = half_log_snr(shared(prediction.alpha_bar))
            # an empty step: to the data there are no differences
            there = where(to_data, here, half_log_snr(target))
            # that of the newest follows from the others
            _, *integrals = self._integrals([time for time, _ in history], here, there)
            if integrals:
                moved = add_(moved, -sqrt(target) * sum(integrals), prediction.eps)
            for integral, (_, eps) in zip(integrals, history[1:]):
                moved = add_(moved, sqrt(target) * integral, eps)
        return Step(moved, prediction, history[: self.degree])

    def _integrals(self, times, here, there):
        """For each of the times, the integral over rho of the polynomial in t that is 1 there, and 0 at the others.

        :param times, here, there: numbers or [N]; the last two are lambda at the ends of the step.
        """
        half = (there - here) / 2
        tensors = [value for value in (half, *times) if isinstance(value, torch.Tensor)]
        numbers = not tensors
        if tensors:  # a step whose samples share a time may follow others of which they did not
            nothing = torch.zeros_like(tensors[0], dtype=real(tensors[0].device))
            half, here = half + nothing, here + nothing
        stack = np.array if numbers else torch.stack
        along = stack([here + half + half * point for point in POINTS])
        measure = stack([-half * weight for weight in WEIGHTS]) * (np if numbers else torch).exp(-along)
        clock = self.schedule.time(along)
        integrals = []
        for j, node in enumerate(times):
            basis = measure
            for other in (*times[:j], *times[j + 1 :]):
                basis = basis * (clock - other) / (node - other)
            integrals.append(basis.sum(0))
        return [*map(float, integrals)] if numbers else torch.stack(integrals)
