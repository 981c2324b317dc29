"""Likelihood terms against scipy and torch.distributions."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from guided_diffusion.losses import approx_standard_normal_cdf, discretized_gaussian_log_likelihood, normal_kl

PIXELS = torch.arange(256).double() / 127.5 - 1


def test_normal_kl_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean1, logvar1, mean2, logvar2 = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(mean1, (0.5 * logvar1).exp()), Normal(mean2, (0.5 * logvar2).exp()))
    torch.testing.assert_close(normal_kl(mean1, logvar1, mean2, logvar2), expected)
    expected = kl_divergence(Normal(mean1, (0.5 * logvar1).exp()), Normal(torch.zeros_like(mean1), 1.0))
    torch.testing.assert_close(normal_kl(mean1, logvar1, 0.0, 0.0), expected)
    expected = kl_divergence(Normal(torch.full_like(mean2, 0.3), 0.5**0.5), Normal(mean2, (0.5 * logvar2).exp()))
    torch.testing.assert_close(normal_kl(0.3, np.log(0.5), mean2, logvar2), expected)


def test_cdf_is_close_to_the_normal_one():
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    np.testing.assert_allclose(approx_standard_normal_cdf(x), norm.cdf(x), atol=2e-4)


@pytest.mark.parametrize("mean", [-1.5, -0.3, 0.0, 0.99])
@pytest.mark.parametrize("log_scale", [-3.0, -1.0, 0.5])
def test_the_256_bins_have_probability_one(mean, log_scale):
    log_likelihood = discretized_gaussian_log_likelihood(
        PIXELS, means=torch.full_like(PIXELS, mean), log_scales=torch.full_like(PIXELS, log_scale)
    )
    # bins of no probability count 1e-12 each
    assert log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("mean, log_scale", [(0.1, -2.0), (-0.9, -1.0), (1.2, 0.0)])
def test_each_bin_is_an_interval_of_the_normal_distribution(mean, log_scale):
    actual = discretized_gaussian_log_likelihood(
        PIXELS, means=torch.full_like(PIXELS, mean), log_scales=torch.full_like(PIXELS, log_scale)
    ).exp()
    edges = np.concatenate([[-np.inf], (PIXELS[:-1] + 1 / 255).numpy(), [np.inf]])
    np.testing.assert_allclose(actual, np.diff(norm.cdf(edges, mean, np.exp(log_scale))), atol=2e-4)


def test_impossible_pixels_cost_a_finite_price_in_float32():
    far = discretized_gaussian_log_likelihood(
        torch.tensor([0.0]), means=torch.tensor([1.0]), log_scales=torch.tensor([-7.0])
    )
    assert far.item() == pytest.approx(np.log(1e-12), rel=1e-5)
