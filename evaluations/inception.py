"""The Inception network of 2015-12-05 (Szegedy et al. 2015, arXiv:1512.00567), whose activations FID is defined on.

It differs from later Inception-v3 networks in its preprocessing, its 1008 classes, average pools that do not count
their padding, and a max pool in the last block. Tables describe it; modules bear the names of the published torch
weight file.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 299
EPSILON = 0.001
CLASSES = 1008


class Conv(NamedTuple):
    """A convolution, batch normalisation and ReLU; strided ones are not padded."""

    name: str
    channels: int
    kernel: tuple
    stride: int = 1
    padded: bool = True


def max_down(x):
    """3x3 max pool of stride 2, without padding."""
    return F.max_pool2d(x, 3, stride=2)


def max_same(x):
    """3x3 max pool that keeps the size."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def avg_same(x):
    """3x3 mean over the pixels that are there; keeps the size."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


STEM = [
    Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    max_down,
    Conv("Conv2d_3b_1x1", 80, (1, 1)),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    max_down,
]


def _mixed_5(pooled):
    return [
        [Conv("branch1x1", 64, (1, 1))],
        [Conv("branch5x5_1", 48, (1, 1)), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64, (1, 1)), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
        [avg_same, Conv("branch_pool", pooled, (1, 1))],
    ]


def _mixed_6(inner):
    return [
        [Conv("branch1x1", 192, (1, 1))],
        [Conv("branch7x7_1", inner, (1, 1)), Conv("branch7x7_2", inner, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
        [
            Conv("branch7x7dbl_1", inner, (1, 1)),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
        [avg_same, Conv("branch_pool", 192, (1, 1))],
    ]


def _mixed_7(pool):
    return [
        [Conv("branch1x1", 320, (1, 1))],
        [
            Conv("branch3x3_1", 384, (1, 1)),
            [Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))],
        ],
        [
            Conv("branch3x3dbl_1", 448, (1, 1)),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            [Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [pool, Conv("branch_pool", 192, (1, 1))],
    ]


# The branches of each block, whose outputs are joined. A branch is a list of steps; the last may be two side by side.
BLOCKS = {
    "Mixed_5b": _mixed_5(32),
    "Mixed_5c": _mixed_5(64),
    "Mixed_5d": _mixed_5(64),
    "Mixed_6a": [
        [Conv("branch3x3", 384, (3, 3), stride=2)],
        [
            Conv("branch3x3dbl_1", 64, (1, 1)),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), stride=2),
        ],
        [max_down],
    ],
    "Mixed_6b": _mixed_6(128),
    "Mixed_6c": _mixed_6(160),
    "Mixed_6d": _mixed_6(160),
    "Mixed_6e": _mixed_6(192),
    "Mixed_7a": [
        [Conv("branch3x3_1", 192, (1, 1)), Conv("branch3x3_2", 320, (3, 3), stride=2)],
        [
            Conv("branch7x7x3_1", 192, (1, 1)),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), stride=2),
        ],
        [max_down],
    ],
    "Mixed_7b": _mixed_7(avg_same),
    "Mixed_7c": _mixed_7(max_same),
}


def resize(images):
    """Images at 299x299 as the bilinear resize of TensorFlow 1 makes them, to the last bit.

    Pixel o of the result lies at o * n / 299 of the n given ones: no half-pixel shift, no aligned corners.

    :param images: [N, H, W, 3], any dtype and range.
    :return: float32 [N, 3, 299, 299].
    """
    return _stretch(_stretch(images.permute(0, 3, 1, 2).float(), 3), 2)


def _stretch(x, axis):
    n = x.shape[axis]
    scale = torch.tensor(n, dtype=torch.float32, device=x.device) / SIZE
    place = torch.arange(SIZE, dtype=torch.float32, device=x.device) * scale
    low = place.long()
    fraction = (place - low).unflatten(0, (SIZE, *[1] * (x.ndim - 1 - axis)))
    here, beside = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=n - 1))
    return here + (beside - here) * fraction


class ConvNorm(nn.Module):
    """What a Conv describes."""

    def __init__(self, channels, layer):
        super().__init__()
        padding = "same" if layer.padded and layer.stride == 1 else 0
        self.conv = nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.channels, eps=EPSILON)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self):
        """Have the convolution normalise too, by the stored mean and variance."""
        scale = self.bn.weight.double() / (self.bn.running_var.double() + EPSILON).sqrt()
        shift = self.bn.bias.double() - self.bn.running_mean.double() * scale
        weight = self.conv.weight.double() * scale[:, None, None, None]
        self.conv.weight.data = weight.float().contiguous(memory_format=torch.channels_last)
        self.conv.bias = nn.Parameter(shift.float())
        self.bn = nn.Identity()


class Mixed(nn.Module):
    """A block: branches side by side on the same input, joined along the channels."""

    def __init__(self, channels, branches):
        super().__init__()
        self.branches, self.channels = branches, 0
        for branch in branches:
            width = channels
            for layers in map(_side_by_side, branch):
                convs = [layer for layer in layers if isinstance(layer, Conv)]
                for layer in convs:
                    self.add_module(layer.name, ConvNorm(width, layer))
                width = sum(layer.channels for layer in convs) or width
            self.channels += width

    def forward(self, x):
        joined = []
        for branch in self.branches:
            parts = [x]
            for layers in map(_side_by_side, branch):
                parts = [_apply(self, layer, parts[0]) for layer in layers]
            joined += parts
        return torch.cat(joined, dim=1)


def _side_by_side(step):
    return step if isinstance(step, list) else [step]


def _apply(module, layer, x):
    """The layer of a table on x; `module` holds the weights of convolutions."""
    return module.get_submodule(layer.name)(x) if isinstance(layer, Conv) else layer(x)


class Inception(nn.Module):
    """Images to the activations that the evaluator reads; to be used in eval mode."""

    def __init__(self):
        super().__init__()
        width = 3
        for layer in STEM:
            if isinstance(layer, Conv):
                self.add_module(layer.name, ConvNorm(width, layer))
                width = layer.channels
        for name, branches in BLOCKS.items():
            self.add_module(name, Mixed(width, branches))
            width = self.get_submodule(name).channels
        self.fc = nn.Linear(width, CLASSES)
        self.to(memory_format=torch.channels_last)  # a quarter faster on CPUs

    def fold(self):
        """The same network without its normalisations, which its convolutions do too: outputs differ by rounding."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self

    @torch.no_grad()
    def forward(self, images):
        """Pooled and spatial features.

        :param images: [N, H, W, 3] in 0..255, RGB, any dtype.
        :return: (pool_3, float32 [N, 2048]; the first 7 channels of mixed_6/conv in (height, width, channel) order,
            float32 [N, 2023]).
        """
        x = (resize(images) - 128) * 0.0078125
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for layer in STEM:
                x = _apply(self, layer, x)
            for name in BLOCKS:
                x = self.get_submodule(name)(x)
                if name == "Mixed_6d":
                    spatial = x[:, :7]  # of its first branch
        return x.float().mean(dim=(2, 3)), spatial.permute(0, 2, 3, 1).float().flatten(1)
