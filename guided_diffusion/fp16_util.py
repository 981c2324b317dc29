"""Training in lower precision, under its published import path."""

from .training.precision import INITIAL_LG_LOSS_SCALE, MixedPrecisionTrainer

__all__ = ["INITIAL_LG_LOSS_SCALE", "MixedPrecisionTrainer"]
