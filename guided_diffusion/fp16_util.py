"""Training in lower precision, under its published import path."""

import torch

from .nn import convert_convolution
from .training.precision import INITIAL_LG_LOSS_SCALE, MixedPrecisionTrainer

__all__ = ["INITIAL_LG_LOSS_SCALE", "MixedPrecisionTrainer", "convert_module_to_f16", "convert_module_to_f32"]


def convert_module_to_f16(l):  # noqa: E741
    """Convert the weight and bias of a convolution to float16 in place; any other layer is left alone."""
    convert_convolution(l, torch.float16)


def convert_module_to_f32(l):  # noqa: E741
    """As `convert_module_to_f16`, to float32."""
    convert_convolution(l, torch.float32)
