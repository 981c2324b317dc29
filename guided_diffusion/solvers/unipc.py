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
from ..scalars import add_, expm1, less, ratio, shared, sqrt, where
from ..schedule import half_log_snr
from .step import Solver, Step, transfer

VARIANTS = ("bh1", "bh2")


class _Memory(NamedTuple):
    """The step before: its start, corrected; the (lambda, x0) of its start and before, newest first; its target; what
    it predicted there.
    """

    start: Prediction
    history: tuple
    target: torch.Tensor
    moved: torch.Tensor


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
        target = self.schedule.alpha_bar(shared(s))
        history = ((half_log_snr(shared(prediction.alpha_bar)), prediction.x0),)
        if state is not None:
            corrected = self._step(state.start, state.history, state.target, end=prediction.x0)
            if x is not state.moved:  # a Correction moved the state, and moves its corrected place as far
                corrected = corrected + (x - state.moved)
            start = Prediction.from_x0(corrected, prediction.alpha_bar, prediction.x0)
            history = (history + state.history)[: self.terms]
        moved = self._step(start, history, target)
        return Step(moved, prediction, _Memory(start, history, target, moved))

    def _step(self, start, history, target, end=None):
        """x [N, C, ...] at levels `target`, a number or [N]; `end`, the x0 predicted there, makes it a corrector."""
        here, _ = history[0]
        inside = less(target, 1)
        if inside is False:
            return transfer(start, target)
        h = where(inside, half_log_snr(target) - here, 1.0)
        ratios = [ratio(before - here, h) for before, _ in history[1:]]
        others = [x0 for _, x0 in history[1:]]
        if end is not None:
            ratios.append(1.0)
            others.append(end)
        # from pure noise, where h is without measure, the step is of order 1
        scale = where(inside, -sqrt(target) * self._b_function(h), 0.0)
        scale = where(less(0, start.alpha_bar), scale, 0.0)
        weights = [ratio(scale * coefficient, r) for coefficient, r in zip(self._solve(ratios, h), ratios)]
        # of their differences from the newest x0, whose own share is taken off once
        moved = start.mixed(sqrt(target) - sum(weights), sqrt(1 - target))
        for weight, x0 in zip(weights, others):
            moved = add_(moved, weight, x0)
        return moved

    def _b_function(self, h):
        return -h if self.variant == "bh1" else expm1(-h)

    def _solve(self, ratios, h):
        """The coefficients of the differences: R a = b, with R_qk = r_k^(q - 1) and b_q = q! phi_q / B.

        a_k is the sum over q of b_q times the coefficient of r^(q - 1) in the polynomial that is 1 at r_k and 0 at the
        other ratios, since R times these coefficients is the unit matrix.
        """
        if len(ratios) < 2:
            return [0.5] * len(ratios)
        phi, right = expm1(-h) / -h - 1, []
        for q in range(1, len(ratios) + 1):
            right.append(math.factorial(q) * phi / self._b_function(h))
            phi = phi / -h - 1 / math.factorial(q + 1)
        solved = []
        for k, node in enumerate(ratios):
            powers = [1.0]  # coefficients of the polynomial, lowest first
            for other in ratios[:k] + ratios[k + 1 :]:
                raised, kept = [0.0, *powers], [*powers, 0.0]
                powers = [ratio(a - other * b, node - other) for a, b in zip(raised, kept)]
            solved.append(sum(a * b for a, b in zip(powers, right)))
        return solved
