"""Winograd's F(4x4, 3x3) in plain torch operations, for where there are no compiled kernels; see kernels.c.

Its transforms are products with small matrices too, which cost more than compiled ones: it pays for wide layers alone.
"""

from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F


def _both_axes(matrix):
    """The matrix of a transform along both axes of a tile, whose values are in one row."""
    one = np.array(matrix, dtype=np.float64)
    return torch.from_numpy(np.kron(one, one)).float()


# Lavin & Gray 2016, section 4.3: y = A^T [(G g G^T) * (B^T d B)] A
B_T = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
G = [
    [Fraction(1, 4), 0, 0],
    [Fraction(-1, 6), Fraction(-1, 6), Fraction(-1, 6)],
    [Fraction(-1, 6), Fraction(1, 6), Fraction(-1, 6)],
    [Fraction(1, 24), Fraction(1, 12), Fraction(1, 6)],
    [Fraction(1, 24), Fraction(-1, 12), Fraction(1, 6)],
    [0, 0, 1],
]
A_T = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
OF_FILTERS, OF_IMAGES, OF_PRODUCTS = map(_both_axes, (G, B_T, A_T))
TILES = 128  # transformed at once, so that what a step leaves for the next stays in the cache


def filters(weight):
    """The transform [36, C, O] of filters [O, C, 3, 3]."""
    outputs, inputs = weight.shape[:2]
    return (OF_FILTERS @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs)


def convolution(x, transformed, bias=None):
    """The 3x3 convolution with padding 1 of x [N, C, H, W], H and W multiples of 4: [N, O, H, W], channels last.

    :param transformed: see `filters`.
    """
    n, channels, height, width = x.shape
    outputs, down, across = transformed.shape[2], height // 4, width // 4
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    y = x.new_empty(n, height, width, outputs)
    at_once = max(1, TILES // (down * across))
    for start in range(0, n, at_once):
        tiles = padded[start : start + at_once].unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)
        v = (OF_IMAGES @ tiles.reshape(36, -1)).view(36, -1, channels)
        m = torch.bmm(v, transformed)
        images = (OF_PRODUCTS @ m.view(36, -1)).view(4, 4, -1, down, across, outputs)
        place = y[start : start + at_once].unflatten(2, (across, 4)).unflatten(1, (down, 4))
        place.copy_(images.permute(2, 3, 0, 4, 1, 5))
    return (y if bias is None else y.add_(bias)).permute(0, 3, 1, 2)
