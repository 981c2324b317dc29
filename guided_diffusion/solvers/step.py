"""What a solver returns."""

from typing import Any, NamedTuple

import torch

from ..denoiser import Prediction


class Step(NamedTuple):
    """The state after one solver step.

    :ivar x: [N, C, ...] the images at time s.
    :ivar prediction: what the denoiser said at time t, for records and previews.
    :ivar state: the solver's memory for its next step; None at the start and where it has none.
    """

    x: torch.Tensor
    prediction: Prediction
    state: Any = None
