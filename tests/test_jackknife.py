"""The standard error of a Frechet distance, held to the known spread over sets of real digits and of Gaussians."""

from functools import cache

import numpy as np
import pytest
import torch
from embedded_models import CLASSIFIER
from sklearn.datasets import load_digits

from evaluations.features import FeatureFlags
from evaluations.fid import Moments, distance_from, frechet_distance, moments_of
from evaluations.jackknife import dealt, in_turn, jackknife_variance, standard_error
from evaluations.metric import Found

DIGITS = load_digits()
SETS = 60
FACTOR = 1.5


@cache
def features(name):
    """Features [1797, D] of scikit-learn's digits: of the embedded classifier, pixels, or a random layer of them."""
    pixels = torch.from_numpy(DIGITS.images.reshape(-1, 64) / 16).float()
    if name == "classifier":
        large = np.round(DIGITS.images * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
        extract = FeatureFlags(features=f"classifier:{CLASSIFIER}").create()
        return torch.cat([extract(part[..., None]).pool for part in np.array_split(large, 18)])
    if name == "random layer":
        return (pixels @ torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) / 8).relu()
    return pixels


def set_of_digits(rng, count, turn):
    """Indices of a set of digits: as many of each in turn, or any."""
    if not turn:
        return rng.choice(len(DIGITS.target), count, replace=False)
    each = [rng.choice(np.flatnonzero(DIGITS.target == digit), count // 10, replace=False) for digit in range(10)]
    return np.stack(each, axis=1).reshape(-1)


@pytest.mark.parametrize("turn", [True, False], ids=["in turn", "at random"])
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("classifier", 100),
        ("pixels", 100),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("classifier", 200), ("random layer", 160)]),
    ],
)
def test_the_error_is_the_spread_over_sets_of_real_digits(name, count, turn):
    found = features(name)
    reference, rng = moments_of(found), np.random.default_rng(1)
    sets = [set_of_digits(rng, count, turn) for _ in range(SETS)]
    spread = np.std([frechet_distance(moments_of(found[chosen]), reference) for chosen in sets], ddof=1)
    estimates = [standard_error(found[chosen], reference, DIGITS.target[chosen], seed=1) for chosen in sets]
    assert all(notes == () for _, notes in estimates)
    errors = np.array([error for error, _ in estimates])
    for typical in (np.median(errors), np.sqrt(np.mean(errors**2))):
        assert 1 / FACTOR < typical / spread < FACTOR


def test_in_one_dimension_the_spread_is_known():
    """Against a wide reference, over fresh sets of Gaussian samples; there the distance is far from its smallest."""
    rng = np.random.default_rng(0)
    reference = Moments(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    fresh = torch.from_numpy(rng.normal(1, 1, (400, 300, 1)))
    spread = np.std([frechet_distance(moments_of(x), reference) for x in fresh])
    errors = [standard_error(x, reference, np.arange(300) % 7 // 4)[0] for x in fresh[:60]]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.15)
    assert standard_error(fresh[0], reference) == standard_error(fresh[0], reference)
    assert standard_error(fresh[0], reference)[0] != standard_error(fresh[0], reference, seed=1)[0]


def without_of(values, statistic):
    """The statistic of values without some of them."""
    return lambda *left_out: statistic(np.delete(values, left_out, axis=0))


def test_of_a_mean_it_is_the_variance_of_the_mean():
    values = np.random.default_rng(0).normal(size=10)
    assert jackknife_variance(without_of(values, np.mean), 10) == pytest.approx(values.var(ddof=1) / 10)


def test_of_a_square_it_is_not_twice_the_variance():
    """D means of variance 1/n about 0, squared, sum to a variance of 2 D/n^2; the plain jackknife finds twice that."""

    def square(x):
        return (x.mean(axis=0) ** 2).sum()

    draws = np.random.default_rng(0).normal(size=(400, 10, 20))
    found = [jackknife_variance(without_of(row, square), 10) for row in draws]
    plain = [81 / 10 * np.var([square(np.delete(row, i, axis=0)) for i in range(10)], ddof=1) for row in draws]
    variance = 2 * 20 / 10**2
    assert np.mean(plain) > 1.9 * variance and 0.9 * variance < np.mean(found) < 1.4 * variance


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, False),
        (np.zeros(50, int), False),
        (np.arange(50) % 7, True),
        (np.arange(50) // 5, True),
        (np.arange(48) // 5, False),
        (np.random.default_rng(0).integers(10, size=100), False),
    ],
)
def test_classes_are_in_turn_where_their_numbers_are_equal(labels, expected):
    assert in_turn(labels) == expected
    count = 50 if labels is None else len(labels)
    order, unit = dealt(count, labels, seed=3)
    assert sorted(order) == list(range(count)) and unit == (len(set(labels)) if expected else 1)
    for start in range(0, count - unit + 1, unit):
        assert unit == 1 or len(set(labels[order[start : start + unit]])) == unit
    assert not np.array_equal(order, dealt(count, labels, seed=4)[0])


@pytest.mark.parametrize(
    ("count", "labels", "told"),
    [
        (4, np.zeros(4, int), "undefined: expected at least 5 samples, found 4"),
        (100, None, "independent samples: too high if their classes were in turn"),
        (40, np.arange(40) // 4, "by class it needs at least 5 samples of each"),
        (60, np.arange(60) % 10, "is unreliable: 60 samples for 64 dimensions"),
    ],
)
def test_an_error_that_cannot_be_trusted_says_so(count, labels, told):
    found = features("pixels")
    error, notes = standard_error(found[:count], moments_of(found), labels)
    assert any(told in note for note in notes) and (error is None) == ("undefined" in told)
    assert isinstance(Found((1.0,), error, notes).notes, tuple)


def test_equal_samples_have_no_error():
    reference = moments_of(features("pixels"))
    assert standard_error(features("pixels")[:1].repeat(200, 1), reference)[0] < 1e-6


def test_many_distances_from_one_reference():
    reference = moments_of(features("random layer"))
    distance = distance_from(reference)
    for count in (100, 400):
        other = moments_of(features("random layer")[:count])
        assert distance(other) == pytest.approx(frechet_distance(other, reference), rel=1e-5)
