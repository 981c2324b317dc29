"""Noise schedules against formulas written down anew."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.errors import UserError
from guided_diffusion.schedule import (
    NoiseSchedule,
    betas_for_alpha_bar,
    get_named_beta_schedule,
    half_log_snr,
    posterior,
)

ALL_T = [21, 50, 100, 199, 1000, 4000]


def linear_beta(i, steps):
    return (0.1 + (20 - 0.1) * i / (steps - 1)) / steps


def cosine_beta(i, steps):
    # cos^2(a) = (1 + cos 2a) / 2
    level = [1 + math.cos((k / steps + 0.008) / 1.008 * math.pi) for k in (i, i + 1)]
    return min(0.999, 1 - level[1] / level[0])


def vp_beta(i, steps):
    # the mean of beta(t) = 0.1 + 19.9 t over a step, times its length
    length = (1 - 1e-3) / steps
    return -math.expm1(-length * (0.1 + 19.9 * (1e-3 + (i + 0.5) * length)))


@pytest.mark.parametrize("steps", ALL_T)
@pytest.mark.parametrize("name, formula", [("linear", linear_beta), ("cosine", cosine_beta), ("vp", vp_beta)])
def test_named_betas(name, formula, steps):
    betas = get_named_beta_schedule(name, steps)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, [formula(i, steps) for i in range(steps)], rtol=1e-10)


@pytest.mark.parametrize("steps", range(1, 21))
def test_cosine_takes_the_few_steps_that_linear_refuses(steps):
    with pytest.raises(UserError, match=f"--diffusion_steps {steps} .*at least 21.*--noise_schedule cosine"):
        get_named_beta_schedule("linear", steps)
    np.testing.assert_allclose(
        get_named_beta_schedule("cosine", steps), [cosine_beta(i, steps) for i in range(steps)], rtol=1e-10
    )


@pytest.mark.parametrize("name, steps, word", [("sqrt", 100, "--noise_schedule"), ("cosine", 0, "--diffusion_steps")])
def test_refused_schedules_name_the_flag(name, steps, word):
    with pytest.raises(UserError, match=word):
        get_named_beta_schedule(name, steps)


def test_betas_for_alpha_bar_give_back_the_function_up_to_the_limit():
    def alpha_bar(u):
        return math.exp(-3 * u**2) - math.exp(-3)

    betas = betas_for_alpha_bar(40, alpha_bar, max_beta=0.5)
    levels = np.cumprod(1 - betas) * alpha_bar(0)
    limited = int(np.argmax(betas == 0.5))
    expected = [alpha_bar((i + 1) / 40) for i in range(limited)]
    assert 20 < limited < 40 and (betas[limited:] == 0.5).all()
    np.testing.assert_allclose(levels[:limited], expected, rtol=1e-12)


@pytest.mark.parametrize("steps", ALL_T)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_levels_are_running_products_between_data_and_noise(name, steps):
    betas = get_named_beta_schedule(name, steps)
    levels = NoiseSchedule(betas).alpha_bar(torch.arange(-1, steps + 1)).numpy()
    assert levels.dtype == np.float64
    assert levels[0] == 1 and levels[-1] == 0
    np.testing.assert_allclose(np.log(levels[1:-1]), np.cumsum(np.log1p(-betas)), rtol=1e-9)


@pytest.mark.parametrize("betas", [[1.0, 0.1], [0.1, 1.1], [0.0, 0.1], [[0.1]], [0.1, float("nan")]])
def test_betas_outside_the_unit_interval_are_refused(betas):
    with pytest.raises(ValueError, match="between 0 and 1"):
        NoiseSchedule(betas)


@pytest.mark.parametrize("ab_t, ab_s", [(0.3, 0.31), (0.1, 0.8), (0.5, 0.95), (1e-3, 0.2)])
def test_posterior_is_bayes_rule(ab_t, ab_s):
    x0, x_t = 0.6, -0.4
    q = posterior(*torch.tensor([[ab_t], [ab_s]], dtype=torch.float64))
    x_s = np.linspace(-8, 8, 200001)
    alpha = ab_t / ab_s
    prior = np.exp(-((x_s - math.sqrt(ab_s) * x0) ** 2) / (2 * (1 - ab_s)))
    likelihood = np.exp(-((x_t - math.sqrt(alpha) * x_s) ** 2) / (2 * (1 - alpha)))
    weight = prior * likelihood / (prior * likelihood).sum()
    mean = (weight * x_s).sum()
    assert (q.x0_coef * x0 + q.xt_coef * x_t).item() == pytest.approx(mean, abs=1e-9)
    assert q.variance.item() == pytest.approx((weight * (x_s - mean) ** 2).sum(), rel=1e-9)
    assert q.beta.item() == pytest.approx(1 - alpha)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("kept", [range(0, 1000, 40), range(0, 1000, 10), [0, 7, 333, 334, 999], [999]])
def test_pairs_of_levels_give_the_tables_of_respaced_betas(name, kept):
    """The published way: betas of the kept steps first, then every table from those betas."""
    schedule = NoiseSchedule(get_named_beta_schedule(name, 1000))
    full = np.cumprod(1 - get_named_beta_schedule(name, 1000))
    before, betas = 1.0, []
    for t in kept:
        betas.append(1 - full[t] / before)
        before = full[t]
    betas = np.array(betas)
    levels = np.cumprod(1 - betas)
    earlier = np.append(1.0, levels[:-1])
    times = torch.tensor([-1, *kept])
    q = posterior(schedule.alpha_bar(times[1:]), schedule.alpha_bar(times[:-1]))
    np.testing.assert_allclose(q.beta, betas, atol=1e-14)
    np.testing.assert_allclose(q.variance, betas * (1 - earlier) / (1 - levels), atol=1e-14)
    np.testing.assert_allclose(q.x0_coef, betas * np.sqrt(earlier) / (1 - levels), atol=1e-14)
    np.testing.assert_allclose(q.xt_coef, (1 - earlier) * np.sqrt(1 - betas) / (1 - levels), atol=1e-14)


BETWEEN = torch.tensor([-0.999, -0.5, -1e-3, 0.5, 1.25, 499.5, 997.75, 998.999], dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_whole_times_keep_every_bit_as_floats(name):
    schedule = NoiseSchedule(get_named_beta_schedule(name, 1000))
    t = torch.arange(-1, 1000)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(schedule.alpha_bar(t.to(dtype)), schedule.alpha_bar(t))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_between_timesteps_log_snr_is_linear_and_time_is_its_inverse(name):
    schedule = NoiseSchedule(get_named_beta_schedule(name, 1000))
    levels = np.cumprod(1 - get_named_beta_schedule(name, 1000))
    inner = BETWEEN[BETWEEN > 0]
    log_snr = np.interp(inner, np.arange(1000), np.log(levels / (1 - levels)))
    np.testing.assert_allclose(schedule.alpha_bar(inner), 1 / (1 + np.exp(-log_snr)), rtol=1e-10)
    # towards the data, noise variance over signal variance falls to 0 in proportion
    near = BETWEEN[BETWEEN < 0]
    ratio = (1 / levels[0] - 1) * (1 + near.numpy())
    np.testing.assert_allclose(schedule.alpha_bar(near), 1 / (1 + ratio), rtol=1e-14)
    times = torch.cat([torch.arange(-1, 1000), BETWEEN])
    lambdas = half_log_snr(schedule.alpha_bar(times))
    np.testing.assert_allclose(schedule.time(lambdas), times, atol=1e-6)
    assert schedule.time(torch.tensor([float("inf"), 20.0, -20.0], dtype=torch.float64))[[0, 2]].tolist() == [-1, 999]


def test_a_schedule_of_one_timestep_has_times():
    schedule = NoiseSchedule([0.5])
    lambdas = half_log_snr(schedule.alpha_bar(torch.tensor([-1.0, -0.5, 0.0], dtype=torch.float64)))
    np.testing.assert_allclose(schedule.time(lambdas), [-1, -0.5, 0])
