"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, equation 6)."""

from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """What the distance needs of a set of features.

    :ivar mean: [D] float64.
    :ivar covariance: [D, D] float64, divisor N - 1.
    """

    mean: torch.Tensor
    covariance: torch.Tensor


class MomentSum:
    """Moments of features that arrive in parts; memory does not depend on their number.

    :param dimension: D.
    :param device: where the float64 sums are kept.
    """

    def __init__(self, dimension, device="cpu"):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.products = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def add(self, features):
        """Count features [n, D]."""
        features = features.to(self.total)
        self.count += len(features)
        self.total += features.sum(dim=0)
        self.products += features.T @ features

    def moments(self):
        """The Moments of all features so far, at least 2."""
        mean = self.total / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Moments(mean, covariance)


def moments_of(features):
    """The Moments of features [N, D], N at least 2."""
    total = MomentSum(features.shape[1], features.device)
    total.add(features)
    return total.moments()


def frechet_distance(a, b):
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) of two Moments; a float, at least 0.

    tr (A B)^1/2 is the sum of the square roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric, so that
    the value is real also where a covariance is singular.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * common
    return max(0.0, float(distance))
