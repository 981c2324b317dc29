"""Whole sampling loops on Gaussian data, against the closed form."""

import itertools

import gaussians
import numpy as np
import pytest
import torch

from guided_diffusion.denoiser import ModelVarType
from guided_diffusion.sampling import sample
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.solvers import DDIM, DDPM

SCHEDULES = ["linear", "cosine"]
STEPS = ["1", "2", "3", "5", "ddim25", "100", "10,15,20", ""]


def process(schedule, respacing=""):
    return create_gaussian_diffusion(noise_schedule=schedule, timestep_respacing=respacing, sigma_small=True)


def ddpm(diffusion):
    return DDPM(diffusion.schedule, ModelVarType.FIXED_SMALL, diffusion.process.variance_floor)


def levels_down(diffusion):
    """Noisiest first, ending at the data: computed from the betas alone."""
    kept = np.cumprod(1 - get_named_beta_schedule(diffusion_name(diffusion), 1000))[diffusion.timestep_map]
    return [*kept[::-1], 1.0]


def diffusion_name(diffusion):
    return "linear" if np.isclose(diffusion.schedule.alpha_bar(torch.tensor([0])).item(), 1 - 1e-4) else "cosine"


def last(records):
    *_, record = records
    return record.x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("respacing", STEPS)
def test_ddim_is_its_exact_composition(schedule, respacing):
    d = process(schedule, respacing)
    x = last(sample(gaussians.denoiser(d.schedule), DDIM(d.schedule), d.timestep_map, gaussians.zeros_then_ones()))
    gain, offset = gaussians.affine(x)
    levels = levels_down(d)
    expected = gaussians.ddim_gain(levels)
    np.testing.assert_allclose(gain, expected, rtol=1e-8)
    np.testing.assert_allclose(offset, gaussians.MEAN * (1 - expected * np.sqrt(levels[0])), atol=1e-8)
    if respacing == "":
        np.testing.assert_allclose(gain**2, gaussians.VARIANCE, rtol=0.02)
        np.testing.assert_allclose(gain, gaussians.ode_gain(levels[0], 1), rtol=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("respacing", STEPS)
def test_ddpm_has_the_exact_moments(schedule, respacing):
    """Row k of the batch hears unit noise at draw k alone; so the variance is a sum of squares."""
    d = process(schedule, respacing)
    steps = d.num_timesteps
    x = torch.zeros(steps + 2, 4, 1, 1, dtype=torch.float64)
    x[steps] = 1
    draws = iter(range(steps))

    def noise(x):
        z = torch.zeros_like(x)
        z[next(draws)] = 1
        return z

    x = last(sample(gaussians.denoiser(d.schedule), ddpm(d), d.timestep_map, x, noise))[:, :, 0, 0].numpy()
    mean, variance = gaussians.ddpm_moments(levels_down(d))
    np.testing.assert_allclose(x[-1], mean, atol=1e-8)
    np.testing.assert_allclose(((x - x[-1]) ** 2).sum(axis=0), variance, rtol=1e-7, atol=1e-12)
    if respacing == "":
        np.testing.assert_allclose(mean, gaussians.MEAN, atol=0.02)
        np.testing.assert_allclose(variance, gaussians.VARIANCE, rtol=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("respacing", STEPS)
def test_the_class_runs_the_same_loops(schedule, respacing):
    d = process(schedule, respacing)
    model = gaussians.network(get_named_beta_schedule(schedule, 1000))
    x = gaussians.zeros_then_ones(torch.float32)
    gain, _ = gaussians.affine(d.ddim_sample_loop(model, x.shape, noise=x, clip_denoised=False))
    # where the grid starts at alpha_bar 2.4e-9, float32 noise predictions are enlarged 2e4 times
    np.testing.assert_allclose(gain, gaussians.ddim_gain(levels_down(d)), rtol=1e-4, atol=4e-3)
    torch.manual_seed(0)
    drawn = d.p_sample_loop(model, (2, 4, 32, 32), clip_denoised=False)
    mean, variance = gaussians.ddpm_moments(levels_down(d))
    pixels = drawn.transpose(0, 1).flatten(1).double().numpy()
    count = pixels.shape[1]
    np.testing.assert_allclose(pixels.mean(axis=1), mean, atol=5 * np.sqrt(variance.max() / count) + 4e-3)
    np.testing.assert_allclose(pixels.var(axis=1), variance, rtol=5 * np.sqrt(2 / count), atol=1e-4)


def lambda_grid(schedule, steps):
    """Times with uniform steps of log(signal / noise), from nearly noise to nearly data."""
    ab = schedule.alpha_bar(torch.arange(schedule.num_timesteps)).numpy()
    log_snr = 0.5 * np.log(ab / (1 - ab))
    wanted = np.linspace(log_snr[int(0.9 * len(ab))], log_snr[int(0.02 * len(ab))], steps + 1)
    return [int(np.abs(log_snr - w).argmin()) for w in wanted]


def slope(sizes, errors):
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_has_its_declared_order(name):
    schedule = NoiseSchedule(get_named_beta_schedule(name, 8000))
    denoise, solver = gaussians.denoiser(schedule), DDIM(schedule)
    sizes, errors = [10, 20, 40, 80], []
    for steps in sizes:
        times, x, state = lambda_grid(schedule, steps), gaussians.zeros_then_ones(), None
        for t, s in itertools.pairwise(times):
            x, _, state = solver(denoise, x, torch.tensor([t, t]), torch.tensor([s, s]), state, torch.zeros_like)
        ends = schedule.alpha_bar(torch.tensor([times[0], times[-1]])).numpy()
        errors.append(np.abs(gaussians.affine(x)[0] - gaussians.ode_gain(*ends)).max())
    assert abs(slope(sizes, errors) - DDIM.order) < 0.25


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm_has_its_declared_weak_order(name):
    """The variance in the end, from the exact variance at the start."""
    schedule = NoiseSchedule(get_named_beta_schedule(name, 8000))
    denoise = gaussians.denoiser(schedule)
    solver = DDPM(schedule, ModelVarType.FIXED_SMALL, variance_floor=1e-20)
    sizes, errors = [20, 40, 80, 160], []
    for steps in sizes:
        times = lambda_grid(schedule, steps)
        start, end = (schedule.alpha_bar(torch.tensor(times[i])).item() for i in (0, -1))
        variance = start * gaussians.VARIANCE + 1 - start
        for t, s in itertools.pairwise(times):
            t, s = torch.tensor([t, t]), torch.tensor([s, s])
            gain, _ = gaussians.affine(solver(denoise, gaussians.zeros_then_ones(), t, s, None, torch.zeros_like).x)
            still = solver(denoise, 0 * gaussians.zeros_then_ones(), t, s, None, torch.zeros_like).x
            kicked = solver(denoise, 0 * gaussians.zeros_then_ones(), t, s, None, torch.ones_like).x
            variance = gain**2 * variance + ((kicked - still)[0, :, 0, 0] ** 2).numpy()
        errors.append(np.abs(variance - (end * gaussians.VARIANCE + 1 - end)).max())
    assert abs(slope(sizes, errors) - DDPM.order) < 0.25


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("respacing", STEPS)
def test_ddim_with_eta_one_is_ddpm_with_the_small_variance(schedule, respacing):
    d = process(schedule, respacing)
    denoise = gaussians.denoiser(d.schedule)
    starts = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    runs = []
    for solver in (DDIM(d.schedule, eta=1.0), ddpm(d)):
        torch.manual_seed(3)
        runs.append([r.x for r in sample(denoise, solver, d.timestep_map, starts)])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("respacing", ["25", ""])
def test_encoding_then_decoding_returns(schedule, respacing):
    d = process(schedule, respacing)
    denoise, solver, start = gaussians.denoiser(d.schedule), DDIM(d.schedule), gaussians.zeros_then_ones()
    levels = levels_down(d)[:-1]
    x = start
    for t, s in [*zip(d.timestep_map, d.timestep_map[1:]), *zip(d.timestep_map[:0:-1], d.timestep_map[-2::-1])]:
        x = solver(denoise, x, torch.tensor([t, t]), torch.tensor([s, s]), None, torch.zeros_like).x
    gain, _ = gaussians.affine(x)
    exact = gaussians.ddim_gain(levels[::-1]) * gaussians.ddim_gain(levels)
    np.testing.assert_allclose(gain, exact, rtol=1e-8)
    if respacing == "":
        np.testing.assert_allclose(x, start, atol=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_class_encodes_and_decodes(schedule):
    d = process(schedule, "200")
    model = gaussians.network(get_named_beta_schedule(schedule, 1000))
    start = torch.tensor(gaussians.MEAN + 0.7 * np.sqrt(gaussians.VARIANCE)).float().reshape(1, 4, 1, 1)
    top = 150
    x = start
    for i in range(top):
        x = d.ddim_reverse_sample(model, x, torch.tensor([i]), clip_denoised=False)["sample"]
    a, b = d.alphas_cumprod[[0, top]]
    levels = d.alphas_cumprod[: top + 1]
    away = start.flatten().double().numpy() - np.sqrt(a) * gaussians.MEAN
    code = np.sqrt(b) * gaussians.MEAN + gaussians.ddim_gain(levels) * away
    np.testing.assert_allclose(x.flatten(), code, atol=1e-4)
    for i in range(top, 0, -1):
        x = d.ddim_sample(model, x, torch.tensor([i]), clip_denoised=False)["sample"]
    np.testing.assert_allclose(x.flatten(), start.flatten(), atol=0.02)
