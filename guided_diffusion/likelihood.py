"""The variational bound of a diffusion process on the likelihood of images, term by term (Ho et al. 2020, equation 5).

Everywhere x_0 is [N, C, ...] in [-1, 1], and terms are [N] in bits per dimension.
"""

import math

import torch

from .losses import discretized_gaussian_log_likelihood, normal_kl
from .nn import mean_flat
from .schedule import per_sample, posterior
from .solvers import DDPM


def noised(schedule, x_0, t, noise):
    """x_t [N, C, ...] of x_0 at training timesteps t [N], by `noise` of x_0's shape."""
    alpha_bar = schedule.alpha_bar(t)
    return per_sample(alpha_bar.sqrt(), x_0) * x_0 + per_sample((1 - alpha_bar).sqrt(), x_0) * noise


def marginal(schedule, x_0, t):
    """Mean, variance and log variance of q(x_t | x_0), each of x_0's shape, at training timesteps t [N]."""
    alpha_bar = schedule.alpha_bar(t)
    variance = per_sample(1 - alpha_bar, x_0).expand_as(x_0)
    log_variance = per_sample((1 - alpha_bar).log(), x_0).expand_as(x_0)
    return per_sample(alpha_bar.sqrt(), x_0) * x_0, variance, log_variance


def posterior_moments(process, x_0, x_t, t, s):
    """Mean, variance and (floored) log variance of q(x_s | x_t, x_0), between training timesteps t and s [N]."""
    q = posterior(*(process.schedule.alpha_bar(time) for time in (t, s)))
    mean = per_sample(q.x0_coef, x_t) * x_0 + per_sample(q.xt_coef, x_t) * x_t
    floored = torch.where(s < 0, process.variance_floor, q.variance)
    variance, log_variance = (per_sample(v, x_t).expand_as(x_t) for v in (q.variance, floored.log()))
    return mean, variance, log_variance


def bound(process, prediction, x_0, t, s):
    """The term of the step from t to s [N]: a Kullback-Leibler divergence, at s = -1 the likelihood of 8-bit data."""
    true_mean, _, true_log_variance = posterior_moments(process, x_0, prediction.x_t, t, s)
    solver = DDPM(process.schedule, process.var_type, process.variance_floor)
    mean, _, log_variance = solver.moments(prediction, s)
    kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
    nll = -discretized_gaussian_log_likelihood(x_0, means=mean, log_scales=0.5 * log_variance)
    return torch.where(s < 0, mean_flat(nll), mean_flat(kl)) / math.log(2)


def prior_bound(schedule, x_0, t):
    """The divergence of q(x_t | x_0) from the standard normal, at the noisiest training timesteps t [N]."""
    mean, _, log_variance = marginal(schedule, x_0, t)
    return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)
