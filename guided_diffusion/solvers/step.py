"""What a solver returns, and the DDIM step that every solver is built on."""

from typing import Any, NamedTuple

import torch

from ..denoiser import Prediction
from ..schedule import NEARLY_NOISE, half_log_snr, per_sample


class Step(NamedTuple):
    """The state after one solver step.

    :ivar x: [N, C, ...] the images at time s.
    :ivar prediction: what the denoiser said at time t, for records and previews.
    :ivar state: the solver's memory for its next step; None at the start and where it has none.
    """

    x: torch.Tensor
    prediction: Prediction
    state: Any = None


def transfer(prediction, target, eps=None):
    """x [N, C, ...] at levels `target` [N]: DDIM without noise (Song et al. 2021, equation 12).

    :param eps: the noise direction, by default the predicted one. In sqrt(1 / alpha_bar - 1) the step is the
        straight line x / sqrt(alpha_bar) + (difference) eps: the "transfer" of PNDM and Euler's step of Heun.
    """
    x = prediction.x_t
    moved = per_sample(target.sqrt(), x) * prediction.x0 + per_sample((1 - target).sqrt(), x) * prediction.eps
    if eps is None:
        return moved
    # sum and difference apart: at alpha_bar 2e-9 the terms of the straight line are 1e4 times their sum
    weight = (1 - target).sqrt() - (target * (1 / prediction.alpha_bar - 1)).sqrt()
    return moved + per_sample(weight, x) * (eps - prediction.eps)


def is_plain(prediction, s):
    """[N] Whether a step must be DDIM's, in solvers that average noise predictions.

    At the data (s = -1) the noise is not defined. From nearly pure noise sqrt(1 / alpha_bar - 1) falls by
    thousands within one step, and so does each error of an average count.
    """
    return (s < 0) | (half_log_snr(prediction.alpha_bar) < NEARLY_NOISE)
