"""The Frechet distance of infinitely many samples, against Gaussians whose true distance is known."""

import numpy as np
import pytest
import torch
from processes import slow

from evaluations.fid import Moments, frechet_distance, moments_of
from evaluations.fid_infinity import extrapolated


def gaussian(dimension, shift, scale):
    """(mean, deviations, reference, true distance) of samples about a standard Gaussian."""
    mean, deviations = np.full(dimension, shift), np.linspace(1, scale, dimension)
    reference = Moments(torch.zeros(dimension, dtype=torch.float64), torch.eye(dimension, dtype=torch.float64))
    return mean, deviations, reference, (mean**2).sum() + ((deviations - 1) ** 2).sum()


@pytest.mark.parametrize("shift", [0.3, *slow(0.0)])
@pytest.mark.parametrize("scale", [1.4, *slow(1.0)])
@pytest.mark.parametrize(("dimension", "count"), [(2, 60), (8, 300), (40, 800)])
def test_the_bias_of_few_samples_is_gone(dimension, count, shift, scale):
    mean, deviations, reference, true = gaussian(dimension, shift, scale)
    rng = np.random.default_rng(0)
    sets = [torch.from_numpy(rng.normal(mean, deviations, (count, dimension))) for _ in range(60)]
    plain = np.array([frechet_distance(moments_of(x), reference) for x in sets])
    found = np.array([extrapolated(x, reference)[0] for x in sets])
    bias, chance = plain.mean() - true, found.std(ddof=1) / 60**0.5
    assert abs(found.mean() - true) < 3 * chance + 0.12 * bias  # for terms beyond 1/N
    if dimension > 2:  # where it is not lost in chance
        assert bias > 4 * chance


def test_with_classes_in_turn_it_varies_less():
    """Two far classes: drawn at random their shares vary in the subsets, and the distance with them."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    sets = [torch.from_numpy(rng.normal(0, 0.1, (200, 1)) + 4.0 * labels[:, None]) for _ in range(40)]
    reference = moments_of(torch.tensor([[0.0], [4.0]] * 5000))
    by_class, at_random = ([extrapolated(x, reference, kinds)[0] for x in sets] for kinds in (labels, None))
    assert np.std(by_class) < 0.5 * np.std(at_random)


@pytest.mark.parametrize(("count", "told"), [(3, "undefined: 3 samples are too few"), (30, "unreliable: 30 samples")])
def test_few_samples_are_said(count, told):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(count, 10)))
    value, notes = extrapolated(x, gaussian(10, 0, 1)[2])
    assert told in notes[0] and (value is None) == ("undefined" in told)
    assert extrapolated(x, gaussian(10, 0, 1)[2]) == (value, notes)
