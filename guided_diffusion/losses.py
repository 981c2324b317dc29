"""Likelihood terms of Gaussians, elementwise and in nats."""

import math

import torch


def normal_kl(mean1, logvar1, mean2, logvar2):
    """KL(N(mean1, exp logvar1) || N(mean2, exp logvar2)); tensors or numbers that broadcast, at least one a tensor."""
    like = next(a for a in (mean1, logvar1, mean2, logvar2) if isinstance(a, torch.Tensor))
    logvar1, logvar2 = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (logvar1, logvar2))
    squared = (mean1 - mean2) ** 2
    return 0.5 * (logvar2 - logvar1 + (logvar1 - logvar2).exp() + squared * (-logvar2).exp() - 1)


def approx_standard_normal_cdf(x):
    """The tanh approximation of the normal distribution function (Page 1977), good to 2e-4."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))


def discretized_gaussian_log_likelihood(x, *, means, log_scales):
    """Log-probability of 8-bit images under a Gaussian cut into 256 bins (Ho et al. 2020, equation 13).

    :param x: images in [-1, 1] on the 8-bit grid; the outermost bins reach to infinity.
    :param means, log_scales: of x's shape; log_scales are log standard deviations.
    """
    half_bin = 1 / 255
    scale = log_scales.exp()
    below = approx_standard_normal_cdf((x - half_bin - means) / scale)
    above = approx_standard_normal_cdf((x + half_bin - means) / scale)
    below = torch.where(x < -0.999, torch.zeros_like(below), below)
    above = torch.where(x > 0.999, torch.ones_like(above), above)
    return (above - below).clamp(min=1e-12).log()
