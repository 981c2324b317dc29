"""The kernel distance between features (Binkowski et al. 2018, arXiv:1801.01401, section 4)."""

import math

import torch

from .activations import float64_device
from .metric import Found, working

# rows of kernel values at once
STRIP = 1000


def kid(reference, samples):
    """(squared maximum mean discrepancy, its standard error) of features [N, D] and [M, D], at least 2 of each.

    The kernel is (x . y / D + 1)^3, in float64; the estimate is unbiased, so it may be below 0. The error is that of
    the jackknife over both sets (Efron 1981); NaN where one has fewer than 3.
    """
    x, y = reference.double(), samples.double()
    n, m = len(x), len(y)
    with working(2 * (n + m), "KID") as add:
        within_x, within_y = _row_sums(x, x, add) - _diagonal(x), _row_sums(y, y, add) - _diagonal(y)
        of_x, of_y = _row_sums(x, y, add), _row_sums(y, x, add)
    a, b, c = within_x.sum(), within_y.sum(), of_x.sum()

    def estimate(a, b, c, n, m):
        return a / (n * (n - 1)) + b / (m * (m - 1)) - 2 * c / (n * m)

    value = estimate(a, b, c, n, m).item()
    if min(n, m) < 3:
        return value, math.nan
    without_x = estimate(a - 2 * within_x, b, c - of_x, n - 1, m)
    without_y = estimate(a, b - 2 * within_y, c - of_y, n, m - 1)
    variance = sum((len(left) - 1) * left.var(correction=0) for left in (without_x, without_y))
    return value, variance.sqrt().item()


def _kernel(products, dimension):
    return products.div_(dimension).add_(1).pow_(3)  # in place, as it is large


def _row_sums(x, y, add):
    """Sums [N] over y of the kernel of x [N, D] and y [M, D]; add(n) is told of each n rows."""
    found = []
    for part in x.split(STRIP):
        found.append(_kernel(part @ y.T, x.shape[1]).sum(dim=1))
        add(len(part))
    return torch.cat(found)


def _diagonal(x):
    return _kernel(x.square().sum(dim=1), x.shape[1])


def score(reference, samples, flags, weights):
    """The Found of two Activations."""
    value, error = kid(*(images.features.to(float64_device()) for images in (reference, samples)))
    return Found((value,), error if math.isfinite(error) else None)
