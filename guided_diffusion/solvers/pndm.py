"""PNDM, its second-order variant, PLMS and iPNDM: multistep methods along DDIM's straight line.

Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds": equation 11 (transfer), 12 (linear
multistep), 13 (Runge-Kutta), algorithm 2; appendix for the second-order variant S-PNDM. PLMS is F-PNDM with a
cheaper start (Rombach et al. 2022, released code). iPNDM, without any, is from Zhang & Chen 2023 ("DEIS").

| paper | here |
| --- | --- |
| phi(x, eps, t, t') | `transfer(prediction, alpha_bar(t'), eps)` |
| e_t, e_{t+delta}, ... | `history`, newest first, of which each sample has `known` |
| t + delta / 2 | `middle`, between two timesteps where needed |

Order 2, all of them, whatever the number of terms: the weights assume steps that are uniform in the variable
along which the transfer is straight, which no usual grid is.

Departures from the paper: the last step, to the data, is DDIM's, and so is a step from nearly pure noise (see
`is_plain`); what the latter predicts is not remembered, and the warm-up begins after it. From the released code: the
network is told the timestep whose alpha_bar is used, and not the one before it; a middle between two timesteps
stays a fraction; the noisiest step is not dropped; the last step ends at the data and not at alpha_bar of timestep 0.
"""

import torch

from ..scalars import add_, at_least_zero, bounded, bounds, either, less, per_sample, shared
from .step import Solver, Step, chosen, is_plain, transfer

# weights of the newest predictions, newest first, where 1 to 4 of them are known
ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class PNDM(Solver):
    """Noise predictions of the latest steps in fixed proportion, carried along DDIM's straight line.

    :param schedule: the NoiseSchedule.
    :param terms: noise predictions in the average, once there are so many.
    :param warm_up: what stands in while there are fewer: "runge_kutta" for terms - 1 steps (4 calls each),
        "heun" for the first step (2 calls), or "" for what averages there are.
    """

    order = 2

    def __init__(self, schedule, terms=4, warm_up="runge_kutta"):
        self.schedule = schedule
        self.terms = terms
        self.warm_up_steps = {"runge_kutta": terms - 1, "heun": 1, "": 0}[warm_up]
        self.average = self._runge_kutta if warm_up == "runge_kutta" else self._heun

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target, plain = self.schedule.alpha_bar(shared(s)), is_plain(prediction, s, self.schedule)
        past, known = state or ((), 0)
        history, known = (prediction.eps, *past)[: self.terms], self._one_more(known)
        eps = self._multistep(history, shared(known))
        # plain steps do not use the average, and they alone go to the data
        needless = either(plain, less(self.warm_up_steps, known))
        if needless is not True:
            average = self.average(denoise, prediction, t, at_least_zero(s))
            eps = chosen(needless, eps, average)
        memory = history[: self.terms - 1], self._remembered(known, self.schedule.nearly_noise(prediction.alpha_bar))
        return Step(transfer(prediction, target, chosen(plain, prediction.eps, eps)), prediction, memory)

    def _one_more(self, known):
        """How many predictions are known with the new one, a number or [N]."""
        low, high = bounds(known)
        if low == high:
            return min(low + 1, self.terms)
        return bounded((known + 1).clamp(max=self.terms), min(low + 1, self.terms), min(high + 1, self.terms))

    def _remembered(self, known, forgets):
        """How many of the known are remembered, where a step of nearly pure noise forgets all."""
        if isinstance(forgets, bool):
            return 0 if forgets else known
        return bounded(forgets.logical_not() * known, 0, bounds(known)[1])

    def _multistep(self, history, known):
        """Equation 12 with `known` predictions, a number or [N]: the weighted sum [N, C, ...]."""
        if not isinstance(known, torch.Tensor):
            if known == 1:
                return history[0]
            weights = ADAMS_BASHFORTH[known - 1][:known]
        else:
            weights = [sum((known == n + 1) * row[j] for n, row in enumerate(ADAMS_BASHFORTH)) for j in range(4)]
        mixed = history[0] * per_sample(weights[0], history[0])
        for weight, eps in zip(weights[1:], history[1:]):
            mixed = add_(mixed, weight, eps)
        return mixed

    def _eps_after(self, denoise, start, eps, t):
        level = self.schedule.alpha_bar(shared(t))
        return denoise(transfer(start, level, eps), t).eps

    def _heun(self, denoise, start, t, s):
        return torch.lerp(start.eps, self._eps_after(denoise, start, start.eps, s), 0.5)

    def _runge_kutta(self, denoise, start, t, s):
        """Equation 13."""
        middle = midway(t, s)
        second = self._eps_after(denoise, start, start.eps, middle)
        third = self._eps_after(denoise, start, second, middle)
        fourth = self._eps_after(denoise, start, third, s)
        return (start.eps / 6).add_(second, alpha=1 / 3).add_(third, alpha=1 / 3).add_(fourth, alpha=1 / 6)


def midway(t, s):
    """The times [N] in the middle between t and s, whole or half; they remember what is known of them."""
    (t_low, t_high), (s_low, s_high) = bounds(t), bounds(s)
    return bounded((t + s) / 2, (t_low + s_low) / 2, (t_high + s_high) / 2)
