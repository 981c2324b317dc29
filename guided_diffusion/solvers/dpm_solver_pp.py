"""DPM-Solver++ (Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models").

Exponential integrators for the predicted x0 as a function of lambda: algorithm 1 (2S), algorithm 2 (2M), and the
SDE solvers of section 5 with the midpoint form of the difference. 3M is in the authors' released code alone.

| paper | here |
| --- | --- |
| alpha_t, sigma_t | sqrt(alpha_bar), sqrt(1 - alpha_bar) |
| lambda_t, h_i | `half_log_snr(alpha_bar)`, `h` |
| x_theta(x_t, t) | `prediction.x0` |
| r_0 = h_{i-1} / h_i, r_1 = h_{i-2} / h_i | `r0`, `r1` |
| phi_1, phi_2, phi_3 of the released code | e^{-h} - 1, phi_1 / h + 1, phi_2 / h - 1/2 |

Order 1 (equation 14) is DDIM's step, so every solver here is DDIM's step plus differences of predictions.

Departures. The last step, to the data (lambda infinite), is of order 1. 2S takes r = 1/2. The published 3M weighs
an estimate D_2 of h^2 x0'' / 2 by phi_3, which belongs to h^2 x0'': its order is 2. With twice D_2 the order is 3.
Both exist, as dpmpp_3m and dpmpp_3m_exact; at 10 to 40 steps the published one is often as good or better.
The released code lowers the order of the last but one of few steps, which is not done here.
"""

import torch

from ..scalars import add_, at_least_zero, combined, everywhere, expm1, less, ratio, shared, sqrt, where
from ..schedule import half_log_snr
from .step import Solver, Step, transfer


def _step_of_lambda(prediction, target, to_data):
    """(lambda of the prediction, length h of the step), numbers or [N]; towards the data h, which is infinite, is 1."""
    here = half_log_snr(shared(prediction.alpha_bar))
    return here, where(to_data, 1.0, half_log_snr(target) - here)


class DPMSolverPPMultistep(Solver):
    """2M and 3M: the latest predictions and their divided differences in lambda.

    :param schedule: the NoiseSchedule.
    :param terms: predictions in use, 1 to 3.
    :param second_difference: factor of D_2 in 3M, 1 as published or 2.
    """

    def __init__(self, schedule, terms, second_difference=1):
        self.schedule = schedule
        self.interpolates = terms > 1
        self.terms = terms
        self.second_difference = second_difference
        self.order = 2 if terms == 3 and second_difference == 1 else terms

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target, to_data = self.schedule.alpha_bar(shared(s)), less(s, 0)
        here, h = _step_of_lambda(prediction, target, to_data)
        history = ((here, prediction.x0), *(state or ()))[: self.terms]
        moved, memory = transfer(prediction, target), history[: self.terms - 1]
        if len(history) == 1 or to_data is True:
            return Step(moved, prediction, memory)
        scale, phi1 = where(to_data, 0.0, sqrt(target)), expm1(-h)
        r0, difference = _between(history[0], history[1], h)
        if len(history) == 2:
            return Step(add_(moved, ratio(-scale * phi1 / 2, r0), difference), prediction, memory)
        r1, before = _between(history[1], history[2], h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        bend = ratio(phi2 * r0 - self.second_difference * phi3, r0 + r1)
        moved = add_(moved, ratio(scale * (phi2 + bend), r0), difference)
        return Step(add_(moved, ratio(-scale * bend, r1), before), prediction, memory)


def _between(newer, older, h):
    """(distance in lambda over h, a number or [N]; difference [N, C, ...]) of two (lambda, x0).

    A divided difference, the slope over a step of length h, is the second over the first.
    """
    return ratio(newer[0] - older[0], h), newer[1] - older[1]


class DPMSolverPP2S(Solver):
    """2S: the prediction at the middle of the step, in lambda, takes it.

    :param schedule: the NoiseSchedule.
    """

    order = 2

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target, to_data = self.schedule.alpha_bar(shared(s)), less(s, 0)
        moved = transfer(prediction, target)
        if to_data is True:
            return Step(moved, prediction, state)
        here, h = _step_of_lambda(prediction, target, to_data)
        middle = at_least_zero(self.schedule.time(here + h / 2))
        along = transfer(prediction, self.schedule.alpha_bar(middle))
        second = denoise(along, middle if isinstance(middle, torch.Tensor) else everywhere(middle, x))
        weight = where(to_data, 0.0, -sqrt(target) * expm1(-h))
        weight = where(less(0, prediction.alpha_bar), weight, 0.0)  # pure noise has no middle
        return Step(add_(moved, weight, second.x0 - prediction.x0), prediction, state)


class DPMSolverPPSDE(Solver):
    """SDE-DPM-Solver++: the reverse diffusion instead of its ODE. Its order is that of the moments.

    :param schedule: the NoiseSchedule.
    :param terms: predictions in use: 1 (the same as DDPM with the small variance) or 2 (2M).
    """

    stochastic = True

    def __init__(self, schedule, terms=2):
        self.schedule = schedule
        self.interpolates = terms > 1
        self.terms = self.order = terms

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target, to_data = self.schedule.alpha_bar(shared(s)), less(s, 0)
        here, h = _step_of_lambda(prediction, target, to_data)
        history = ((here, prediction.x0), *(state or ()))[: self.terms]
        fresh = where(to_data, 1.0, -expm1(-2 * h))  # share of the variance at s that is drawn anew
        kept = sqrt(ratio(1 - target, 1 - shared(prediction.alpha_bar)) * (1 - fresh))
        moved = combined(kept, x, sqrt(target) * fresh, prediction.x0)
        if to_data is not True:
            if len(history) == 2:
                r, difference = _between(*history, h)
                moved = add_(moved, ratio(where(to_data, 0.0, sqrt(target) * fresh / 2), r), difference)
            moved = add_(moved, sqrt((1 - target) * fresh), noise(x))
        return Step(moved, prediction, history[: self.terms - 1])
