"""The training loop, under its published import path."""

from .training.flags import TrainFlags
from .training.log import log_loss_dict
from .training.loop import TrainLoop

__all__ = ["TrainFlags", "TrainLoop", "log_loss_dict"]
