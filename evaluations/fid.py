"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, equation 6)."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch

# what the published evaluator adds to both diagonals where the square root of the product is not finite
EPSILON = 1e-6


class Moments(NamedTuple):
    """What the distance needs of a set of features.

    :ivar mean: [D] float64.
    :ivar covariance: [D, D] float64, divisor N - 1.
    :ivar count: N, or 0 where it is not known.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int = 0


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
        return Moments(mean, covariance, int(self.count))


def moments_of(features):
    """The Moments of features [N, D], N at least 2."""
    total = MomentSum(features.shape[1], features.device)
    total.add(features)
    return total.moments()


def frechet_distance(a, b):
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) of two Moments; a float, at least 0.

    With A = R R^T and B = S S^T by their symmetric eigenvalues, tr (A B)^1/2 is the sum of the singular values of
    R^T S. So the value is real, and exact to rounding also where a covariance is singular.
    """
    return _distance(a, _root(a.covariance), b)


def _root(covariance):
    """R [D, rank] with R R^T = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


def _distance(a, root, b):
    common = torch.linalg.svdvals(root.T @ _root(b.covariance)).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * common
    return max(0.0, float(distance))


def frechet_distance_sqrtm(a, b):
    """The same as the published evaluator computes it: by scipy's square root of A B, which is not symmetric.

    It may come out slightly below 0, and takes longer. For comparison with published numbers to the last digit.
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((m.mean.cpu().numpy(), m.covariance.cpu().numpy()) for m in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    if not np.isfinite(root).all():
        ridge = EPSILON * np.eye(len(cov_a))
        root = scipy.linalg.sqrtm((cov_a + ridge) @ (cov_b + ridge))
    gap = mean_a - mean_b
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real)


FORMULAS = {"eigenvalues": frechet_distance, "sqrtm": frechet_distance_sqrtm}


def bootstrap_error(features, reference, times, seed=0):
    """Standard error of the distance of features [N, D] from a reference, by the bootstrap (Efron 1979).

    The features are drawn anew with replacement, N of N, and the reference stays.

    :param reference: Moments.
    :param times: number of draws, at least 2.
    :param seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    root = _root(reference.covariance)
    values = []
    for _ in range(times):
        drawn = torch.randint(len(features), (len(features),), generator=generator)
        resampled = moments_of(features[drawn].to(reference.mean))
        values.append(_distance(reference, root, resampled))
    return float(np.std(values, ddof=1))
