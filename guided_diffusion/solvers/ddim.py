"""DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models"), in both directions: equations 12 and 16.

| paper | here |
| --- | --- |
| alpha_t, a product already | alpha_bar |
| sigma_t, which eta scales | `_sigma` |
| predicted x_0 | `prediction.x0` |
| direction pointing to x_t | `prediction.eps` times what sigma leaves of the noise |

Departures from the paper: the last step goes to the data itself (alpha_bar = 1), so it returns the predicted x0;
a step to a noisier level, which encodes, draws no noise at any eta.
"""

from typing import ClassVar

from ..flags import FRACTION, flag
from ..scalars import add_, at_least_zero, less, ratio, shared, sqrt
from .step import Solver, Step, transfer


class DDIM(Solver):
    """Equation 12 of the paper between any two levels; s > t encodes data into noise.

    :param schedule: the NoiseSchedule.
    :param eta: 0 is deterministic, 1 has the variance of DDPM with the small fixed variance.
        Encoding is deterministic at any eta.
    """

    published = True
    options: ClassVar = {
        "eta": flag(0.0, "Noise of DDIM: 0 none, 1 that of DDPM with the small variance.", legal=FRACTION)
    }

    def __init__(self, schedule, eta=0.0):
        self.schedule = schedule
        self.eta = eta
        self.stochastic = eta > 0

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        target = self.schedule.alpha_bar(shared(s))
        if self.eta == 0:
            return Step(transfer(prediction, target), prediction, state)
        sigma = self._sigma(shared(prediction.alpha_bar), target)
        moved = prediction.mixed(sqrt(target), sqrt(at_least_zero(1 - target - sigma**2)))
        if less(0, sigma) is not False:
            moved = add_(moved, sigma, noise(x))
        return Step(moved, prediction, state)

    def _sigma(self, alpha_bar, target):
        """Equation 16; no noise towards the data, nor when encoding."""
        step_noise = at_least_zero(1 - ratio(alpha_bar, target))
        return self.eta * sqrt(ratio(1 - target, 1 - alpha_bar) * step_noise)
