"""What a solver is and returns, and the DDIM step that every solver is built on."""

from typing import Any, ClassVar, NamedTuple

import torch

from ..denoiser import Prediction
from ..scalars import add_, either, less, ratio, shared, sqrt, where


class Step(NamedTuple):
    """The state after one solver step.

    :ivar x: [N, C, ...] the images at time s.
    :ivar prediction: what the denoiser said at time t, for records and previews.
    :ivar state: the solver's memory for its next step; None at the start and where it has none.
    """

    x: torch.Tensor
    prediction: Prediction
    state: Any = None


class Solver:
    """Base of the solvers: what is true of one stands on its class, or on the object where options decide it.

    :cvar order: of convergence, as measured; 0 where it has none.
    :cvar options: {name: flag} of its constructor's options, which are flags of the sampling scripts; an option at its
        flag's default is left to the constructor.
    :cvar takes: names of attributes of a Process that the constructor takes beside the schedule.
    :cvar interpolates: it divides by distances between the nodes of its steps.
    :cvar stochastic: its images depend on the noise that it draws.
    :cvar fixed_ends: it measures one step against the one before, so the ends of steps must stay.
    :cvar published: the published scripts have it; it draws noise once a step.
    :cvar reads_variance: its images depend on a learned variance.
    :cvar guided_by_mean: a classifier moves its mean (Dhariwal & Nichol 2021, algorithm 1), in place of the score.
    """

    order = 1
    options: ClassVar = {}
    takes = ()
    interpolates = False
    stochastic = False
    fixed_ends = False
    published = False
    reads_variance = False
    guided_by_mean = False

    def __call__(self, denoise, x, t, s, state, noise):
        """The Step from times t [N] to times s [N]."""
        raise NotImplementedError


def transfer(prediction, target, eps=None):
    """x [N, C, ...] at levels `target`, a number or [N]: DDIM without noise (Song et al. 2021, equation 12).

    :param eps: the noise direction, by default the predicted one. In sqrt(1 / alpha_bar - 1) the step is the
        straight line x / sqrt(alpha_bar) + (difference) eps: the "transfer" of PNDM and Euler's step of Heun.
    """
    target = shared(target)
    moved = prediction.mixed(sqrt(target), sqrt(1 - target))
    if eps is None or eps is prediction.eps:
        return moved
    # sum and difference apart: at alpha_bar 2e-9 the terms of the straight line are 1e4 times their sum
    level = shared(prediction.alpha_bar)
    weight = sqrt(1 - target) - sqrt(target * (ratio(1, level) - 1))
    weight = where(less(0, level), weight, 0.0)  # pure noise, from which no line leads
    return add_(moved, weight, eps - prediction.eps)


def chosen(condition, yes, no):
    """The images `yes` of samples for which the condition (a bool, or [N]) holds, else `no`, each [N, C, ...]."""
    if isinstance(condition, bool):
        return yes if condition else no
    return yes.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), no)


def is_plain(prediction, s, schedule):
    """Whether a step to times s must be DDIM's, in solvers that average noise predictions: a bool, or [N].

    At the data (s = -1) the noise is not defined. In nearly pure noise sqrt(1 / alpha_bar - 1) falls by thousands
    within one step, and so does each error of an average count.
    """
    return either(less(s, 0), schedule.nearly_noise(prediction.alpha_bar))
