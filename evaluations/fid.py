"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, equation 6)."""

from typing import NamedTuple

import numpy as np
import torch

from .metric import Found, counted

# variance of equal float32 features, relative to their squared mean
ROUNDING = 1e-12
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
    import scipy.linalg  # slow to import, and most runs need none of it

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


# -- metrics -----------------------------------------------------------------------------------------


def score(reference, samples, flags, weights):
    """The Found of two Activations by their features, with a standard error where flags.bootstrap asks for one."""
    found = _found(reference.moments, samples.moments, flags)
    if not (found.values and flags.bootstrap):
        return found
    if samples.features is None:
        return found._replace(notes=(*found.notes, " standard error undefined: it needs images"))
    error = bootstrap_error(samples.features, reference.moments, flags.bootstrap, flags.seed)
    if samples.count > samples.features.shape[1]:
        return found._replace(error=error)
    unreliable = (
        " standard error is unreliable: the draws have singular covariances, as there are "
        f"{counted(samples.count, 'sample')} for {samples.features.shape[1]} dimensions"
    )
    return found._replace(error=error, notes=(*found.notes, unreliable))


def spatial_score(reference, samples, flags, weights):
    """The Found of two Activations by their spatial features."""
    return _found(reference.spatial, samples.spatial, flags)


def _found(reference, samples, flags):
    """The Found of two Moments, either of which may be None."""
    if reference is None or samples is None:
        return Found(notes=(" undefined: expected at least 2 images, or stored statistics, of either set",))
    pair, notes, dimension = {"reference": reference, "sampled": samples}, (), len(reference.mean)
    few = [moments.count for moments in pair.values() if 0 < moments.count <= dimension]
    if alike := [who for who, moments in pair.items() if _without_variance(moments)]:
        notes = (f": all {' and all '.join(alike)} images have the same features, of variance 0",)
    elif few:
        notes = (
            f": {min(few)} images are too few for {dimension} dimensions, so a covariance is singular and the value "
            "too high",
        )
    return Found((FORMULAS[flags.fid_formula](reference, samples),), notes=notes)


def _without_variance(moments):
    """Whether features differ by no more than rounding."""
    return bool(moments.covariance.trace() <= ROUNDING * moments.mean.square().sum())
