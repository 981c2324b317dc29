"""Noise schedules: alpha_bar over the training timesteps, and what follows from a pair of levels."""

import math
from typing import NamedTuple

import numpy as np
import torch

from .errors import RefusedByAssertion, UnknownName, UserError
from .scalars import bounded, bounds, everywhere, log, per_sample, ratio, real, shared, sqrt

__all__ = [
    "NEARLY_NOISE",
    "PURE_NOISE",
    "SCHEDULES",
    "NoiseSchedule",
    "Posterior",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
    "half_log_snr",
    "per_sample",
    "posterior",
    "rescale_zero_terminal_snr",
]


def betas_for_alpha_bar(num_diffusion_timesteps, alpha_bar, max_beta=0.999):
    """Betas [T] (float64) that discretise a continuous alpha_bar.

    :param alpha_bar: function of u in [0, 1], decreasing from about 1 (data) to about 0 (noise).
    :param max_beta: upper limit of each beta; below 1, or the last level has no signal at all
        (Nichol & Dhariwal 2021, section 3.2).
    """
    levels = np.array([alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)])
    return np.minimum(1 - levels[1:] / levels[:-1], max_beta)


def _cosine_alpha_bar(u):
    """Nichol & Dhariwal 2021, equation 17, with offset 0.008."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _vp_alpha_bar(u):
    """Song et al. 2021 ("Score-Based Generative Modeling"), equation 33, from time 1e-3 (u = 0) to 1."""
    time = 1e-3 + (1 - 1e-3) * u
    return math.exp(-(20 - 0.1) / 2 * time**2 - 0.1 * time)


# names of `get_named_beta_schedule`
SCHEDULES = ("linear", "cosine", "vp")


def get_named_beta_schedule(schedule_name, num_diffusion_timesteps):
    """Betas [T] (float64) of a named schedule.

    "linear" is Ho et al. 2020 (1e-4 to 0.02 at T = 1000), scaled by 1000 / T so that other T end at
    the same noise; it exists for T > 20 only, where each beta stays below 1. "cosine" is
    Nichol & Dhariwal 2021. "vp" is the continuous form of linear at T levels, for few of them too.
    """
    steps = num_diffusion_timesteps
    if steps < 1:
        raise UserError(f"--diffusion_steps is {steps}; expected at least 1")
    if schedule_name == "linear":
        if steps <= 20:
            raise UserError(
                f"--diffusion_steps {steps} is too few for the linear schedule, whose betas reach 20 / steps: "
                "use at least 21, or --noise_schedule cosine or vp"
            )
        return np.linspace(0.1 / steps, 20 / steps, steps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(steps, _cosine_alpha_bar)
    if schedule_name == "vp":
        return betas_for_alpha_bar(steps, _vp_alpha_bar, max_beta=1)
    raise UnknownName(f"--noise_schedule is {schedule_name!r}; expected linear, cosine or vp")


def rescale_zero_terminal_snr(betas):
    """Betas [T] whose last level has no signal: sqrt(alpha_bar) is shifted to 0 there and scaled to keep its start.

    Lin et al. 2024 ("Common Diffusion Noise Schedules and Sample Steps are Flawed"), algorithm 1. The last beta is 1.
    """
    if len(betas) < 2:
        raise UserError("--rescale_zero_terminal_snr True leaves nothing of 1 timestep; expected at least 2")
    roots = np.sqrt(np.cumprod(1 - betas))
    levels = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return 1 - np.append(levels[0], levels[1:] / levels[:-1])


# lambda below which a level counts as nearly pure noise: the linear schedule has none such, and DPM-Solver's
# release leaves those of the cosine schedule out
NEARLY_NOISE = -5.1
# lambda that stands for that of a level without any signal, below all others
PURE_NOISE = -20.0


def half_log_snr(alpha_bar):
    """lambda = log(signal / noise) of levels, a number or [N]: +inf at the data; in pure noise, where it is -inf, -20.

    Lu et al. 2022 ("DPM-Solver"), section 2; one half of log(alpha_bar / (1 - alpha_bar)).
    """
    if isinstance(alpha_bar, torch.Tensor):
        return (0.5 * (alpha_bar.log() - torch.log1p(-alpha_bar))).clamp(min=PURE_NOISE)
    if alpha_bar == 1:
        return math.inf
    return max(0.5 * (log(alpha_bar) - math.log1p(-alpha_bar)), PURE_NOISE)


class NoiseSchedule:
    """alpha_bar of T training timesteps, held in float64 on the host, and copied to each device once.

    Time -1 is the data (alpha_bar = 1) and time T pure noise (alpha_bar = 0). Between two timesteps
    log(signal / noise) is linear in time; between the data and timestep 0, where it is infinite, the ratio
    noise variance / signal variance is.
    (Metal has no float64: the table is float32 there.)

    :param betas: [T], each in (0, 1); the last may be 1.
    :ivar ends_in_noise: the last is 1, so timestep T - 1 is pure noise, and no eps tells an x0 there.
    :ivar noisiest: lambda of timestep T - 1.
    """

    def __init__(self, betas):
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
            raise RefusedByAssertion("betas must be one row of numbers between 0 and 1; the last alone may be 1")
        self.num_timesteps = len(betas)
        self.ends_in_noise = bool(betas[-1] == 1)
        self._levels = [1.0, *np.cumprod(1 - betas).tolist(), 0.0]
        self._lambdas = np.array([*map(half_log_snr, self._levels[1:-1])])
        self.noisiest = float(self._lambdas[-1])
        self._on_device = {}

    def nearly_noise(self, alpha_bar):
        """Whether levels, a number or [N], are nearly pure noise: a bool where that is known, else bool [N]."""
        if self.noisiest >= NEARLY_NOISE:
            return False
        least, most = (half_log_snr(min(max(level, 0.0), 1.0)) for level in bounds(alpha_bar))
        if least >= NEARLY_NOISE or most < NEARLY_NOISE:
            return most < NEARLY_NOISE
        return half_log_snr(alpha_bar) < NEARLY_NOISE

    def table(self, device):
        """(alpha_bar [T + 2] of times -1..T, lambda [T] of times 0..T-1) on a device."""
        if device not in self._on_device:
            tables = np.array(self._levels), self._lambdas
            self._on_device[device] = tuple(torch.from_numpy(table).to(device, real(device)) for table in tables)
        return self._on_device[device]

    def alpha_bar(self, t):
        """alpha_bar (float64) at times t, a number or [N]: integers in -1..T, or floats from -1 to T - 1."""
        if not isinstance(t, torch.Tensor):
            whole = math.floor(t)
            return self._levels[whole + 1] if t == whole else 1 / (1 + math.exp(-2 * self._lambda(t)))
        if (number := shared(t)) is not t:
            return everywhere(self.alpha_bar(number), t)
        low, high = bounds(t)
        levels = self._alpha_bars(t)
        return levels if math.isinf(high - low) else bounded(levels, self.alpha_bar(high), self.alpha_bar(low))

    def _alpha_bars(self, t):
        levels, _ = self.table(t.device)
        if not t.is_floating_point():
            return levels.take(t + 1)
        whole = t.floor()
        return torch.where(t == whole, levels.take(whole.long() + 1), torch.sigmoid(2 * self._between(t)))

    def _between(self, t):
        """lambda [N] at times t [N] that are not whole."""
        _, table = self.table(t.device)
        last = self.num_timesteps - 1
        below = t.floor().long().clamp(0, last)
        above = (below + 1).clamp(max=last)
        fraction = (t - below).to(table.dtype)
        low, high = table.take(below), table.take(above)
        inside = low + fraction * (high - low)
        return torch.where(t < 0, float(self._lambdas[0]) - 0.5 * torch.log1p(t.to(table.dtype)), inside)

    def _lambda(self, t):
        """lambda at one time that is not whole."""
        if t < 0:
            return float(self._lambdas[0]) - 0.5 * math.log1p(t)
        below = min(math.floor(t), self.num_timesteps - 1)
        low, high = self._lambdas[below], self._lambdas[min(below + 1, self.num_timesteps - 1)]
        return float(low + (t - below) * (high - low))

    def time(self, lambdas):
        """The time (float64, -1 to T - 1) at which lambda, a number, tensor or numpy array, has these values."""
        if not isinstance(lambdas, torch.Tensor):
            return self._time(lambdas)
        _, table = self.table(lambdas.device)
        if len(table) == 1:
            inside = torch.zeros_like(lambdas)
        else:
            above = torch.searchsorted(-table, -lambdas.contiguous()).clamp(1, len(table) - 1)
            low, high = table.take(above - 1), table.take(above)
            inside = above - 1 + ((lambdas - low) / (high - low)).clamp(max=1)
        first = float(self._lambdas[0])
        return torch.where(lambdas > first, torch.expm1(2 * (first - lambdas)), inside)

    def _time(self, lambdas):
        """The same for a number or a numpy array."""
        table, numbers = self._lambdas, np.asarray(lambdas)
        if len(table) == 1:
            inside = np.zeros_like(numbers)
        else:
            above = np.searchsorted(-table, -numbers).clip(1, len(table) - 1)
            low, high = table[above - 1], table[above]
            inside = above - 1 + ((numbers - low) / (high - low)).clip(max=1)
        times = np.where(numbers > table[0], np.expm1(2 * (table[0] - numbers)), inside)
        return times if times.ndim else float(times)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0_coef x_0 + xt_coef x_t, variance), each field a number or [N] in float64.

    `beta` is the noise of the one step from s to t. Ho et al. 2020, equations 6 and 7, for a pair of
    levels that need not be neighbours.
    """

    x0_coef: float | torch.Tensor
    xt_coef: float | torch.Tensor
    variance: float | torch.Tensor
    beta: float | torch.Tensor


def posterior(alpha_bar_t, alpha_bar_s):
    """The posterior between two levels, numbers or [N]; alpha_bar_t < alpha_bar_s (s lies nearer to the data)."""
    alpha = ratio(alpha_bar_t, alpha_bar_s)
    beta = 1 - alpha
    noise_t, noise_s = 1 - alpha_bar_t, 1 - alpha_bar_s
    return Posterior(
        x0_coef=ratio(beta * sqrt(alpha_bar_s), noise_t),
        xt_coef=ratio(sqrt(alpha) * noise_s, noise_t),
        variance=ratio(beta * noise_s, noise_t),
        beta=beta,
    )
