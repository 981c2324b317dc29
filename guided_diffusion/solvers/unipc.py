"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models").

Algorithms 5 to 8 of the appendix (predictor and corrector for a network that predicts x0), with the coefficients of
equation 5 and theorem 3.1. The network is asked once a step: at the predicted state, and the answer serves first to
correct the step that led there, then to predict the next.

| paper | here |
| --- | --- |
| h_i, r_k | `h`, `ratios` |
| B(h), B_1 and B_2 | `_b_function`; "bh1": -h, "bh2": e^{-h} - 1 |
| R_p, a_p (or rho_p) | `_solve` |
| D_m = x0(t_{i-m}) - x0(t_i) over r_m | `differences` |

Measured order: p + 1 with the corrector, p = 1, 2, 3. Where one coefficient alone is sought it is 1/2, as in the
released code, and only thereby bh1 and bh2 differ: every solved system gives both the same step.

Departures: the last step, to the data, is of order 1 and, as in the paper, not corrected; the order of the last
but one is not lowered.
"""

import math
from typing import ClassVar, NamedTuple

import torch

from ..denoiser import Prediction
from ..flags import Legal, flag
from ..schedule import half_log_snr, per_sample
from .step import Solver, Step, transfer

VARIANTS = ("bh1", "bh2")


class _Memory(NamedTuple):
    """The step before: its start, corrected; the (lambda, x0) of its start and before, newest first; its target."""

    start: Prediction
    history: tuple
    target: torch.Tensor


class UniPC(Solver):
    """Predicts from the latest predictions of x0, and corrects each step by the one at its end.

    :param schedule: the NoiseSchedule.
    :param order: p of the paper, 1 to 3: predictions in the predictor.
    :param variant: "bh1" or "bh2".
    """

    options: ClassVar = {
        "order": flag(0, "Order, 1 to 3, where 0 is 2.", legal=Legal("0 to 3", lambda value: 0 <= value <= 3)),
        "variant": flag("bh2", "The function B(h) of unipc.", choices=VARIANTS),
    }
    interpolates = True

    def __init__(self, schedule, order=2, variant="bh2"):
        self.schedule = schedule
        self.terms = order
        self.order = order + 1
        self.variant = variant

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = start = denoise(x, t)
        target = self.schedule.alpha_bar(s)
        history = ((half_log_snr(prediction.alpha_bar), prediction.x0),)
        if state is not None:
            corrected = self._step(*state, end=prediction.x0)
            start = Prediction.from_x0(corrected, prediction.alpha_bar, prediction.x0)
            history = (history + state.history)[: self.terms]
        return Step(self._step(start, history, target), prediction, _Memory(start, history, target))

    def _step(self, start, history, target, end=None):
        """x [N, C, ...] at levels `target` [N]; `end`, the x0 predicted there, makes the predictor a corrector."""
        x, (here, newest) = start.x_t, history[0]
        to_data = target == 1
        h = (half_log_snr(target) - here).where(~to_data, 1.0)
        ratios = [(before - here) / h for before, _ in history[1:]]
        differences = [(x0 - newest) / per_sample(r, x) for r, (_, x0) in zip(ratios, history[1:])]
        if end is not None:
            ratios.append(torch.ones_like(h))
            differences.append(end - newest)
        moved = transfer(start, target)
        # from pure noise, where h is without measure, the step is of order 1
        scale = (-target.sqrt() * self._b_function(h)).where(~to_data & (start.alpha_bar > 0), 0.0)
        for coefficient, difference in zip(self._solve(ratios, h), differences):
            moved = moved + per_sample(scale * coefficient, x) * difference
        return moved

    def _b_function(self, h):
        return -h if self.variant == "bh1" else torch.expm1(-h)

    def _solve(self, ratios, h):
        """The coefficients [N] of the differences: R a = b, with R_qk = r_k^(q - 1) and b_q = q! phi_q / B."""
        if len(ratios) < 2:
            return [0.5] * len(ratios)
        powers = torch.arange(len(ratios), device=h.device)
        matrix = torch.stack(ratios, dim=1)[:, None] ** powers[:, None]
        phi, right = torch.expm1(-h) / -h - 1, []
        for q in range(1, len(ratios) + 1):
            right.append(math.factorial(q) * phi / self._b_function(h))
            phi = phi / -h - 1 / math.factorial(q + 1)
        return torch.linalg.solve(matrix, torch.stack(right, dim=1)).unbind(dim=1)
