"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, equation 6)."""

from typing import NamedTuple

import numpy as np
import torch

# what the published evaluator adds to both diagonals where the square root of the product is not finite
EPSILON = 1e-6
# where Cholesky's way is taken: the bound of its rounding as a share of the distance, at most, and the smallest
# eigenvalue as a share of the largest, at least
TRUSTED, CONDITIONED = 1e-9, 1e-11


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

    def without(self, *others):
        """The MomentSum of the features that are not in others, each of which is the MomentSum of some of these."""
        left = MomentSum(len(self.total), self.total.device)
        for name in ("count", "total", "products"):
            setattr(left, name, getattr(self, name) - sum(getattr(other, name) for other in others))
        return left

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

    With A = L L^T by Cholesky, tr (A B)^1/2 is the sum of the square roots of the eigenvalues of L^T B L. Where those
    may have lost digits, as with a singular covariance, it is taken from A = R R^T and B = S S^T by their symmetric
    eigenvalues, as the sum of the singular values of R^T S, which takes five times as long. So the value is real, and
    exact to rounding.
    """
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    lower, failed = torch.linalg.cholesky_ex(a.covariance)
    if not failed:
        values = torch.linalg.eigvalsh(_congruent(b.covariance, lower))
        if values[0] > CONDITIONED * values[-1] > 0:
            distance = apart - 2 * values.sqrt().sum()
            if (torch.finfo(values.dtype).eps * values[-1] / values.sqrt()).sum() < TRUSTED * distance:
                return float(distance)
    common = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return max(0.0, float(apart - 2 * common))


def distance_from(reference):
    """`Moments -> its Frechet distance from reference`, for many of them.

    Singular covariances cost it digits, to some 1e-6 of the covariance's trace, and it may fall that far below 0.
    """
    lower, failed = torch.linalg.cholesky_ex(reference.covariance)
    root = _root(reference.covariance) if failed else None

    def distance(moments):
        product = root.T @ moments.covariance @ root if failed else _congruent(moments.covariance, lower)
        common = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
        gap = (reference.mean - moments.mean).square().sum()
        return float(gap + reference.covariance.trace() + moments.covariance.trace() - 2 * common)

    return distance


def _congruent(b, lower):
    """L^T B L [D, D] on and below its diagonal, all that eigvalsh reads, of a lower triangular L."""
    found, step = torch.zeros_like(b), -(-len(b) // 8)
    for start in range(0, len(b), step):
        columns = slice(start, start + step)
        below = b[start:, start:] @ lower[start:, columns]
        found[start:, columns] = lower[start:, start:].T @ below
    return found


def _root(covariance):
    """R [D, rank] with R R^T = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance_sqrtm(a, b):
    """The same as the published evaluator computes it: by scipy's square root of A B, which is not symmetric.

    It may come out slightly below 0, and takes longer. For comparison with published numbers to the last digit.
    """
    import scipy.linalg  # slow to import, and most runs need none of it

    (mean_a, cov_a), (mean_b, cov_b) = ((m.mean.cpu().numpy(), m.covariance.cpu().numpy()) for m in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    if not np.isfinite(root).all():
        ridge = EPSILON * np.eye(len(cov_a))
        root = scipy.linalg.sqrtm((cov_a + ridge) @ (cov_b + ridge))
    gap = mean_a - mean_b
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real)


FORMULAS = {"eigenvalues": frechet_distance, "sqrtm": frechet_distance_sqrtm}
