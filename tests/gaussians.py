"""Gaussian data, whose exact noise prediction, moments and ODE solution are known in closed form."""

import itertools

import numpy as np
import torch

from guided_diffusion.denoiser import Prediction

MEAN = np.array([0.5, -0.3, 0.0, 0.8])
VARIANCE = np.array([0.04, 0.5, 1.0, 2.0])


def column(values, x):
    return torch.as_tensor(values, dtype=x.dtype)[:, None, None]


def exact_eps(x, alpha_bar):
    """E[eps | x_t] of N(MEAN, VARIANCE) by channel; x [N, 4, H, W], alpha_bar [N]."""
    ab = alpha_bar.to(x.dtype)[:, None, None, None]
    mean, variance = column(MEAN, x), column(VARIANCE, x)
    return (1 - ab).sqrt() * (x - ab.sqrt() * mean) / (ab * variance + 1 - ab)


def denoiser(schedule):
    """The exact denoiser, in x's precision."""

    def denoise(x, t):
        alpha_bar = schedule.alpha_bar(t)
        return Prediction.from_eps(x, alpha_bar, exact_eps(x, alpha_bar))

    return denoise


def network(betas):
    """The exact eps network, which is given integer training timesteps."""
    levels = torch.from_numpy(np.cumprod(1 - betas))
    return lambda x, t: exact_eps(x.double(), levels[t]).float()


def zeros_then_ones(dtype=torch.float64):
    """Two starts [2, 4, 1, 1], from which an affine map per channel can be read off."""
    return torch.stack([torch.zeros(4, 1, 1, dtype=dtype), torch.ones(4, 1, 1, dtype=dtype)])


def affine(images):
    """(gain [4], offset [4]) of the map that made `images` of `zeros_then_ones()`."""
    at_zero, at_one = (images[i, :, 0, 0].double().numpy() for i in (0, 1))
    return at_one - at_zero, at_zero


def ddim_gain(alpha_bars):
    """The exact gain [4] of DDIM along the levels: each step multiplies x_t - sqrt(alpha_bar) mean."""
    gain = np.ones(4)
    for a, b in itertools.pairwise(alpha_bars):
        gain *= (np.sqrt(a * b) * VARIANCE + np.sqrt((1 - a) * (1 - b))) / (a * VARIANCE + 1 - a)
    return gain


def ode_gain(a, b):
    """What `ddim_gain` tends to: the marginals' ratio of standard deviations."""
    return np.sqrt((b * VARIANCE + 1 - b) / (a * VARIANCE + 1 - a))


def ddpm_moments(alpha_bars):
    """Exact mean [4] and variance [4] after ancestral steps with the posterior's variance, from N(0, 1)."""
    mean, variance = np.zeros(4), np.ones(4)
    for a, b in itertools.pairwise(alpha_bars):
        # x0 given x_t, then x_s given both: Gaussians conditioned one on the other
        to_x0 = np.sqrt(a) * VARIANCE / (a * VARIANCE + 1 - a)
        noise_x0, noise_xt = 1 / (1 - b) if b < 1 else np.inf, (a / b) / (1 - a / b)
        posterior_variance = 1 / (noise_x0 + noise_xt) if b < 1 else 0.0
        on_x0 = np.sqrt(b) * posterior_variance * noise_x0 if b < 1 else 1.0
        on_xt = posterior_variance / (1 - a / b) * np.sqrt(a / b)
        offset = on_x0 * (MEAN - to_x0 * np.sqrt(a) * MEAN)
        gain = on_x0 * to_x0 + on_xt
        mean, variance = gain * mean + offset, gain**2 * variance + posterior_variance
    return mean, variance
