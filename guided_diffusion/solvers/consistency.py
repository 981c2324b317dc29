"""Multistep sampling of consistency models (Song et al. 2023, "Consistency Models"), algorithm 1.

| paper | here |
| --- | --- |
| f(x, tau), a jump to the data | `prediction.x0`, of a network that was trained to jump |
| x + sqrt(tau^2 - epsilon^2) z, noise anew | sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) z |

Departures from the paper: levels keep the variance; the last step goes to the data itself, and so returns the jump.
"""

from ..scalars import combined, less, shared, sqrt
from .step import Solver, Step


class Consistency(Solver):
    """Jumps to the data, and noises what it found to the next level. One step is as exact as the network is.

    :param schedule: the NoiseSchedule.
    """

    order = 0
    stochastic = True

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, denoise, x, t, s, state, noise):
        prediction = denoise(x, t)
        if less(s, 0) is True:
            return Step(prediction.x0, prediction, state)
        level = self.schedule.alpha_bar(shared(s))
        return Step(combined(sqrt(level), prediction.x0, sqrt(1 - level), noise(x)), prediction, state)
