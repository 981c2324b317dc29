"""The kernel distance against scikit-learn's kernel, and its standard error against the spread of fresh sets."""

import math

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel
from synthetic_features import draw

from evaluations.kid import kid


def by_scikit_learn(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    within = [polynomial_kernel(z, degree=3, coef0=1) for z in (x, y)]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return sum(means) - 2 * polynomial_kernel(x, y, degree=3, coef0=1).mean()


@pytest.mark.parametrize("counts", [(2, 2), (40, 25), (1100, 30)])
def test_value_by_scikit_learn(counts):
    x, y = draw(1, counts[0], 60), draw(2, counts[1], 60, shift=0.05)
    assert kid(x, y)[0] == pytest.approx(by_scikit_learn(x, y), rel=1e-9)


def test_standard_error_is_the_jackknifes():
    x, y = draw(3, 9, 12), draw(4, 7, 12)
    error = 0
    for left_out in (
        [kid(x[np.arange(9) != i], y)[0] for i in range(9)],
        [kid(x, y[np.arange(7) != i])[0] for i in range(7)],
    ):
        n = len(left_out)
        error += (n - 1) / n * sum((v - np.mean(left_out)) ** 2 for v in left_out)
    assert kid(x, y)[1] == pytest.approx(math.sqrt(error), rel=1e-9)


def test_standard_error_is_the_spread_over_fresh_sets():
    pairs = [kid(draw(100 + i, 60, 20), draw(500 + i, 50, 20, shift=0.2)) for i in range(150)]
    values, errors = np.array(pairs).T
    assert np.mean(errors) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_two_images_have_no_standard_error():
    assert math.isnan(kid(draw(1, 2, 5), draw(2, 2, 5))[1])
