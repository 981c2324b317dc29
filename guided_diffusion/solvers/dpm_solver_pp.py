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

from ..schedule import half_log_snr, per_sample
from .step import Solver, Step, transfer


def _step_of_lambda(prediction, target, s):
    """(lambda of the prediction, length h of the step), each [N]; towards the data h, which is infinite, is 1."""
    here = half_log_snr(prediction.alpha_bar)
    return here, (half_log_snr(target) - here).where(s >= 0, 1.0)


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
        target = self.schedule.alpha_bar(s)
        here, h = _step_of_lambda(prediction, target, s)
        history = ((here, prediction.x0), *(state or ()))[: self.terms]
        moved = transfer(prediction, target)
        scale = target.sqrt().where(s >= 0, 0.0)
        phi1 = torch.expm1(-h)
        if len(history) > 1:
            r0, d0 = _divided_difference(history[0], history[1], h)
        if len(history) == 2:
            moved = moved - per_sample(scale * phi1 / 2, x) * d0
        if len(history) == 3:
            r1, d1 = _divided_difference(history[1], history[2], h)
            phi2 = phi1 / h + 1
            phi3 = phi2 / h - 0.5
            bend = (phi2 * r0 - self.second_difference * phi3) / (r0 + r1)
            moved = moved + per_sample(scale * phi2, x) * d0 + per_sample(scale * bend, x) * (d0 - d1)
        return Step(moved, prediction, history[: self.terms - 1])


def _divided_difference(newer, older, h):
    """(r [N], slope over a step of length h) of two (lambda [N], x0 [N, C, ...])."""
    r = (newer[0] - older[0]) / h
    return r, (newer[1] - older[1]) / per_sample(r, newer[1])


class DPMSolverPP2S(Solver):
    """2S: the prediction at the middle of the step, in lambda, takes it.

    :param schedule: the NoiseSchedule.
    """

    order = 2

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target = self.schedule.alpha_bar(s)
        moved = transfer(prediction, target)
        if (s < 0).all():
            return Step(moved, prediction, state)
        here, h = _step_of_lambda(prediction, target, s)
        middle = self.schedule.time(here + h / 2).clamp(min=0)
        second = denoise(transfer(prediction, self.schedule.alpha_bar(middle)), middle)
        weight = -target.sqrt() * torch.expm1(-h)
        weight = weight.where((s >= 0) & (prediction.alpha_bar > 0), 0.0)  # pure noise has no middle
        return Step(moved + per_sample(weight, x) * (second.x0 - prediction.x0), prediction, state)


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
        target = self.schedule.alpha_bar(s)
        here, h = _step_of_lambda(prediction, target, s)
        history = ((here, prediction.x0), *(state or ()))[: self.terms]
        fresh = (-torch.expm1(-2 * h)).where(s >= 0, 1.0)  # share of the variance at s that is drawn anew
        kept = ((1 - target) / (1 - prediction.alpha_bar) * (1 - fresh)).sqrt()
        moved = per_sample(kept, x) * x + per_sample(target.sqrt() * fresh, x) * prediction.x0
        if len(history) == 2:
            _, slope = _divided_difference(*history, h)
            moved = moved + per_sample((target.sqrt() * fresh / 2).where(s >= 0, 0.0), x) * slope
        moved = moved + per_sample(((1 - target) * fresh).sqrt(), x) * noise(x)
        return Step(moved, prediction, history[: self.terms - 1])
