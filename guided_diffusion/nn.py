"""The small parts the networks are made of."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from .errors import UserError

GROUPS = 32

SiLU = nn.SiLU


class GroupNorm32(nn.GroupNorm):
    """Group normalisation in float32 whatever the input's dtype, which the result keeps."""

    def forward(self, x):
        normed = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


def normalization(channels):
    """The group normalisation of 32 groups that stands before every convolution.

    :raises UserError: if 32 does not divide `channels`.
    """
    if channels % GROUPS:
        raise UserError(
            f"--num_channels (times the channel multiplier) gives a layer of {channels} channels, "
            f"which must be a multiple of {GROUPS}"
        )
    return GroupNorm32(GROUPS, channels)


def _layer(kind, dims):
    if dims not in (1, 2, 3):
        raise UserError(f"dims must be 1, 2 or 3, not {dims}")
    return getattr(nn, f"{kind}{dims}d")


def conv_nd(dims, *args, **kwargs):
    """A convolution over `dims` axes: 1, 2 or 3; the other arguments are those of nn.Conv2d."""
    return _layer("Conv", dims)(*args, **kwargs)


def convert_convolution(layer, dtype):
    """Convert the weight and bias of a convolution in place; any other layer is left alone, and so are its parts."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        for param in (layer.weight, layer.bias):
            if param is not None:
                param.data = param.data.to(dtype)


def avg_pool_nd(dims, *args, **kwargs):
    """Average pooling over `dims` axes: 1, 2 or 3; the other arguments are those of nn.AvgPool2d."""
    return _layer("AvgPool", dims)(*args, **kwargs)


def adaptive_avg_pool_nd(dims, output_size):
    """Average pooling of `dims` axes, 1, 2 or 3 of any length, down to `output_size`."""
    return _layer("AdaptiveAvgPool", dims)(output_size)


def linear(*args, **kwargs):
    """nn.Linear."""
    return nn.Linear(*args, **kwargs)


@torch.no_grad()
def update_ema(target_params, source_params, rate=0.99):
    """Move every target in place to rate * target + (1 - rate) * source.

    :param target_params: iterable of tensors, whose dtype and device stay.
    :param source_params: iterable of equally many tensors with the same shapes.
    :raises ValueError: for unequal numbers of them.
    """
    targets = list(target_params)
    sources = [s.to(t) for t, s in zip(targets, source_params, strict=True)]
    torch._foreach_lerp_(targets, sources, 1 - rate)


@torch.no_grad()
def zero_module(module):
    """Set every parameter to zero; returns the module."""
    for p in module.parameters():
        p.zero_()
    return module


@torch.no_grad()
def scale_module(module, scale):
    """Multiply every parameter by `scale`; returns the module."""
    for p in module.parameters():
        p.mul_(scale)
    return module


def mean_flat(tensor):
    """The mean over every axis but the first: [N, ...] -> [N]."""
    return tensor.mean(dim=tuple(range(1, tensor.ndim)))


def timestep_embedding(timesteps, dim, max_period=10000):
    """Sinusoids of the time: Vaswani et al. 2017, section 3.5, as used in DDPM (Ho et al. 2020, appendix B).

    :param timesteps: [N], fractions allowed.
    :param max_period: wavelengths grow geometrically from 2 pi towards 2 pi * max_period.
    :return: float32 [N, dim], the cosines first, then the sines; an odd `dim` ends in a zero.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def checkpoint(func, inputs, params, flag):
    """func(*inputs); where `flag` is set, its activations are recomputed in the backward pass, not kept.

    :param inputs: tuple of the arguments of `func`.
    :param params: belongs to the published signature: gradients reach whatever `func` closes over without it.
    """
    if not flag:
        return func(*inputs)
    return CheckpointFunction.apply(func, len(inputs), *inputs, *params)


class CheckpointFunction:
    """A call whose activations are recomputed in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""

    @staticmethod
    def apply(run_function, length, *args):
        """run_function(*args[:length]); random draws (dropout) and autocast are replayed as they were.

        :param length: how many of `args` are its arguments; the weights that may follow get their gradients anyway.
        """
        return torch_checkpoint(run_function, *args[:length], use_reentrant=False)
