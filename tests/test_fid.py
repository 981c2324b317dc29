"""The Frechet distance: closed forms, scipy's square root, singular covariances."""

import numpy as np
import pytest
import torch
from synthetic_features import GOLDEN, draw, within_a_block

from evaluations import fid
from evaluations.fid import Moments, MomentSum, frechet_distance, frechet_distance_sqrtm, moments_of


def random_moments(seed, dimension=6):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dimension, dimension))
    return Moments(torch.from_numpy(rng.standard_normal(dimension)), torch.from_numpy(root @ root.T))


def test_gaussians_that_commute_have_a_closed_form():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    a, b = rng.uniform(0.1, 9, (2, 5))
    mean_a, mean_b = rng.standard_normal((2, 5))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    pair = [Moments(*map(torch.from_numpy, (m, turn @ np.diag(v) @ turn.T))) for m, v in ((mean_a, a), (mean_b, b))]
    assert frechet_distance(*pair) == pytest.approx(expected, abs=1e-8)


def test_two_dimensional_gaussians_have_a_closed_form():
    """tr (AB)^1/2 of 2x2 matrices is (tr AB + 2 det(AB)^1/2)^1/2, by Cayley and Hamilton."""
    a, b = random_moments(1, 2), random_moments(2, 2)
    product = a.covariance @ b.covariance
    common = (product.trace() + 2 * product.det().sqrt()).sqrt()
    gap = (a.mean - b.mean).square().sum()
    expected = gap + a.covariance.trace() + b.covariance.trace() - 2 * common
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-8)


def test_the_published_formula_agrees_where_it_is_stable():
    a, b = moments_of(draw(1, 400, 120)), moments_of(draw(2, 300, 120, shift=0.05))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance_sqrtm(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_the_published_formula_helps_itself_where_the_root_is_not_finite(monkeypatch):
    given = []

    def root(product):
        given.append(product)
        return np.full_like(product, np.nan) if len(given) == 1 else np.zeros_like(product)

    monkeypatch.setattr("scipy.linalg.sqrtm", root)
    a, b = random_moments(3), random_moments(4)
    frechet_distance_sqrtm(a, b)
    ridge = 1e-6 * np.eye(6)
    assert np.array_equal(given[1], (a.covariance.numpy() + ridge) @ (b.covariance.numpy() + ridge))


@pytest.mark.parametrize("counts", [(5, 4), (60, 80), (2, 2)])
def test_fewer_images_than_dimensions(counts):
    """For centred data A, B the common part is the nuclear norm of A^T B, whatever their rank."""
    sets = [draw(10 + i, count, 200, shift=0.1 * i).double() for i, count in enumerate(counts)]
    means = [features.mean(dim=0) for features in sets]
    a, b = ((x - m).T / (len(x) - 1) ** 0.5 for x, m in zip(sets, means))
    common = torch.linalg.matrix_norm(a.T @ b, "nuc")
    expected = (means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum() - 2 * common
    assert frechet_distance(*map(moments_of, sets)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("features", [draw(5, 50, 80), torch.ones(7, 3), torch.zeros(2, 4)])
def test_a_set_is_no_distance_from_itself(features):
    assert 0 <= frechet_distance(moments_of(features), moments_of(features)) < 1e-9


def test_published_values_of_few_images():
    """scipy's root of so singular a product is off by some 1e-6; a set's own came out < 0."""
    reference, samples = within_a_block()
    pair = [moments_of(reference[:5]), moments_of(samples[:4])]
    assert frechet_distance(*pair) == pytest.approx(float(GOLDEN["FID_n5_n4"]), rel=2e-6)
    same = moments_of(reference[:400])
    assert frechet_distance(same, same) == pytest.approx(float(GOLDEN["FID_identical_400"]), abs=1e-4)


def test_equal_images_leave_the_distance_of_their_means():
    a, b = torch.full((4, 3), 1.0), torch.full((5, 3), 3.0)
    assert frechet_distance(moments_of(a), moments_of(b)) == 12


def test_moments_in_parts_are_numpys():
    features = draw(6, 37, 9)
    total = MomentSum(9)
    for part in features.split(10):
        total.add(part)
    found = total.moments()
    assert found.count == 37
    assert np.allclose(found.mean, features.double().mean(dim=0), rtol=1e-13)
    assert np.allclose(found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-11, atol=1e-14)


def spectrum(seed, dimension, decades, turn):
    """Moments of 6 D samples whose covariance falls by so many powers of ten, along axes of `turn`."""
    rng, axes = np.random.default_rng(seed), np.linalg.qr(np.random.default_rng(turn).normal(size=2 * [dimension]))[0]
    deviations = np.logspace(0, -decades / 2, dimension)
    return moments_of(torch.from_numpy(rng.normal(0.1 * seed, deviations, (6 * dimension, dimension)) @ axes.T))


@pytest.mark.parametrize("turn", [1, 2], ids=["same axes", "other axes"])
@pytest.mark.parametrize("decades", [0, 1, 2, 4, 6, 8, 12])
@pytest.mark.parametrize("dimension", [3, 64, 200])
def test_the_fast_way_is_the_careful_one(dimension, decades, turn, monkeypatch):
    a, b = spectrum(1, dimension, decades, 1), spectrum(2, dimension, decades, turn)
    found = frechet_distance(a, b)
    monkeypatch.setattr(fid, "TRUSTED", 0)  # so that nothing is
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-10)
    if decades <= 2:  # the fast way was gone
        monkeypatch.setattr(fid, "TRUSTED", 1e-9)
        monkeypatch.setattr(fid, "_root", None)
        assert frechet_distance(a, b) == found


def covariance_of_rank(rank, dimension=30):
    x = torch.from_numpy(np.random.default_rng(rank).normal(size=(rank, dimension)))
    return Moments(torch.zeros(dimension, dtype=torch.float64), x.T @ x / rank)


@pytest.mark.parametrize("ranks", [(0, 0), (0, 30), (1, 1), (1, 60), (29, 60), (60, 29), (29, 29), (5, 12)])
def test_singular_covariances_take_the_careful_way(ranks, monkeypatch):
    """The common part is the nuclear norm of A^T B, of roots of any shape."""
    a, b = (covariance_of_rank(rank) if rank else covariance_of_rank(1) for rank in ranks)
    a, b = (m._replace(covariance=0 * m.covariance) if not rank else m for m, rank in zip((a, b), ranks))
    roots = [np.random.default_rng(rank).normal(size=(rank, 30)) / max(rank, 1) ** 0.5 for rank in ranks]
    common = np.linalg.norm(roots[0] @ roots[1].T, "nuc") if min(ranks) else 0
    expected = sum((root**2).sum() for root in roots) - 2 * common
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-7 if ranks[0] == ranks[1] else 0)


def test_moments_without_some_are_those_of_the_others():
    parts = [draw(seed, 20, 6) for seed in range(4)]
    sums = [MomentSum(6) for _ in parts]
    whole = MomentSum(6)
    for total, part in zip(sums, parts):
        total.add(part)
        whole.add(part)
    found, expected = whole.without(sums[0], sums[2]).moments(), moments_of(torch.cat([parts[1], parts[3]]))
    assert found.count == 40 and all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found[:2], expected[:2]))
