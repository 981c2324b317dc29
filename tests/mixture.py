"""A mixture of three Gaussians as one-dimensional data: its exact noise prediction, and a grid uniform in log SNR."""

import numpy as np
import torch
from scipy.integrate import solve_ivp

from guided_diffusion.denoiser import Prediction
from guided_diffusion.schedule import NoiseSchedule

WEIGHT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEAN = torch.tensor([-1.0, 0.4, 1.2], dtype=torch.float64)
DEVIATION = torch.tensor([0.15, 0.25, 0.1], dtype=torch.float64)
# lambda = log(signal / noise) where the linear schedule (beta 0.1 to 20, continuous time) has t = 1 and 0.001
FIRST, LAST = (0.5 * np.log(a / (1 - a)) for a in np.exp([-10.05, -1.0995e-4]))


def exact_eps(x, alpha_bar):
    """E[eps | x_t] elementwise for x [N, ...] and alpha_bar [N], both float64."""
    x, ab = x[..., None], alpha_bar.reshape(-1, *[1] * x.ndim)
    variance = ab * DEVIATION**2 + 1 - ab
    away = x - ab.sqrt() * MEAN
    responsibility = torch.softmax(WEIGHT.log() - 0.5 * variance.log() - 0.5 * away**2 / variance, dim=-1)
    return (1 - ab[..., 0]).sqrt() * (responsibility * away / variance).sum(dim=-1)


def denoiser(schedule):
    """The exact denoiser."""

    def denoise(x, t):
        alpha_bar = schedule.alpha_bar(t)
        return Prediction.from_eps(x, alpha_bar, exact_eps(x, alpha_bar))

    return denoise


def uniform_schedule(steps):
    """A NoiseSchedule whose timesteps `steps` (at FIRST) down to 0 (at LAST) are equally far apart in lambda."""
    levels = 1 / (1 + np.exp(-2 * np.linspace(LAST, FIRST, steps + 1)))
    return NoiseSchedule(1 - levels / np.concatenate([[1], levels[:-1]]))


def starts():
    """States [41, 1, 1, 1] at FIRST."""
    return torch.linspace(-2.5, 2.5, 41, dtype=torch.float64).reshape(-1, 1, 1, 1)


def solution(x):
    """Where the probability-flow ODE takes states x [N, 1, 1, 1] from FIRST to LAST: d(x / signal) / d lambda."""

    def slope(half_log_snr, scaled):
        alpha_bar = torch.full((len(scaled),), 1 / (1 + np.exp(-2 * half_log_snr)), dtype=torch.float64)
        eps = exact_eps(torch.from_numpy(scaled) * alpha_bar.sqrt(), alpha_bar)
        return -np.exp(-half_log_snr) * eps.numpy()

    signal = [np.sqrt(1 / (1 + np.exp(-2 * half_log_snr))) for half_log_snr in (FIRST, LAST)]
    start = x.flatten().numpy() / signal[0]
    solved = solve_ivp(slope, (FIRST, LAST), start, method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1] * signal[1]).reshape(x.shape)
