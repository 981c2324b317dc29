"""Sampling grids against their formulas."""

import itertools

import numpy as np
import pytest
import torch

from guided_diffusion.errors import UserError
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule, half_log_snr
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.spacing import SPACINGS, spaced

SCHEDULES = {name: NoiseSchedule(get_named_beta_schedule(name, 1000)) for name in ("linear", "cosine")}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 500, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SPACINGS)
def test_grids_are_distinct_timesteps_in_order(name, schedule, steps):
    grid = SPACINGS[name](SCHEDULES[schedule], steps)
    assert len(grid) == steps and all(a < b for a, b in itertools.pairwise(grid))
    assert grid[0] >= 0 and grid[-1] <= 999 and all(type(t) is int for t in grid)


def test_time_grids():
    assert SPACINGS["uniform"](SCHEDULES["linear"], 5) == [199, 399, 599, 799, 999]
    assert SPACINGS["quad"](SCHEDULES["linear"], 5) == [39, 159, 359, 639, 999]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name, warp", [("logsnr", lambda lam: lam), ("karras", lambda lam: np.exp(-lam / 7))])
def test_noise_grids_are_even_in_their_variable_up_to_rounding(name, warp, schedule):
    process = SCHEDULES[schedule]
    grid = SPACINGS[name](process, 8)
    lambdas = half_log_snr(process.alpha_bar(torch.tensor(grid))).numpy()
    neighbours = [half_log_snr(process.alpha_bar(torch.tensor(grid) + d * 0.5)).numpy() for d in (-1.0, 1.0)]
    assert grid[0] == 0 and -5.1 < lambdas[-1] < -5.05
    even = np.linspace(warp(lambdas[0]), warp(lambdas[-1]), 8)[1:-1]
    low, high = np.sort([warp(n[1:-1]) for n in neighbours], axis=0)
    assert ((low <= even) & (even <= high)).all()


def test_the_flag_chooses_the_grid():
    diffusion = create_gaussian_diffusion(noise_schedule="cosine", timestep_respacing="12", spacing="quad")
    assert diffusion.timestep_map == SPACINGS["quad"](diffusion.schedule, 12)
    assert create_gaussian_diffusion(spacing="karras", steps=30).timestep_map == list(range(30))


@pytest.mark.parametrize("text", ["ddim10", "10,20", "0", "1001", "-3", "a"])
def test_only_a_number_of_steps_goes_with_a_spacing(text):
    with pytest.raises(UserError, match="--timestep_respacing is .*--spacing uniform expected a number from 1 to 1000"):
        spaced("uniform", SCHEDULES["linear"], text)
