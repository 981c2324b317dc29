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

from ..schedule import per_sample
from .step import Solver, Step, is_plain, transfer

# weights of the newest predictions, newest first, where 1 to 4 of them are known
ADAMS_BASHFORTH = torch.tensor(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    dtype=torch.float64,
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
        target, plain = self.schedule.alpha_bar(s), is_plain(prediction, s)
        past, known = state or ((), torch.zeros_like(s, dtype=torch.long))
        history, known = (prediction.eps, *past)[: self.terms], (known + 1).clamp(max=self.terms)
        weights = ADAMS_BASHFORTH.to(x)[known - 1].unbind(dim=1)
        eps = sum(per_sample(weight, x) * e for weight, e in zip(weights, history))
        warming_up = (known <= self.warm_up_steps) & ~plain
        if warming_up.any():
            # plain steps do not use it, and they alone go to the data
            average = self.average(denoise, prediction, t, s.clamp(min=0))
            eps = average.where(per_sample(warming_up, x).bool(), eps)
        eps = eps.where(~per_sample(plain, x).bool(), prediction.eps)
        nearly_noise = is_plain(prediction, s.clamp(min=0))
        memory = history[: self.terms - 1], known.where(~nearly_noise, 0)
        return Step(transfer(prediction, target, eps), prediction, memory)

    def _eps_after(self, denoise, start, eps, t):
        return denoise(transfer(start, self.schedule.alpha_bar(t), eps), t).eps

    def _heun(self, denoise, start, t, s):
        return (start.eps + self._eps_after(denoise, start, start.eps, s)) / 2

    def _runge_kutta(self, denoise, start, t, s):
        """Equation 13."""
        middle = (t + s) / 2
        second = self._eps_after(denoise, start, start.eps, middle)
        third = self._eps_after(denoise, start, second, middle)
        fourth = self._eps_after(denoise, start, third, s)
        return (start.eps + 2 * second + 2 * third + fourth) / 6
