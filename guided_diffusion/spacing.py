"""Grids of sampling: which N of the training timesteps 0..T-1 a sampler visits, before it ends at the data (-1).

A grid is a list of N different integers, increasing. Integers, because these networks were trained on no others:
real times are rounded, and where rounding makes two equal (many steps near the data) they move apart, to the next
free timestep. The published grids are in `respace.space_timesteps`.
"""

import re

import numpy as np
import torch

from .errors import UserError
from .schedule import NEARLY_NOISE, half_log_snr


def uniform(schedule, steps):
    """N equal steps of time from T - 1 to the data, which itself is the last target (Lin et al. 2024, "trailing")."""
    total = schedule.num_timesteps
    return _whole(total * np.arange(steps, 0, -1) / steps - 1, total)


def quad(schedule, steps):
    """Steps that are equal in the square root of time, dense at the data (Song et al. 2021, appendix D.2)."""
    total = schedule.num_timesteps
    return _whole(total * (np.arange(steps, 0, -1) / steps) ** 2 - 1, total)


def logsnr(schedule, steps):
    """N times of equal distance in lambda = log(signal / noise), down to 0 (Lu et al. 2022, "DPM-Solver")."""
    first, last = _ends(schedule)
    return _at(schedule, np.linspace(first, last, steps))


def karras(schedule, steps, exponent=7):
    """N times, down to 0, of equal distance in noise^(1/7), where noise is exp(-lambda).

    Karras et al. 2022 ("EDM"), equation 5 with rho = 7.
    """
    first, last = (np.exp(-end / exponent) for end in _ends(schedule))
    return _at(schedule, -exponent * np.log(np.linspace(first, last, steps)))


SPACINGS = {"uniform": uniform, "quad": quad, "logsnr": logsnr, "karras": karras}


def spaced(name, schedule, text):
    """The grid of N steps by a spacing's name.

    :param text: N as --timestep_respacing has it; empty is T.
    :raises UserError: if it is no number from 1 to T.
    """
    total = schedule.num_timesteps
    if not text:
        return list(range(total))
    if not (re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= total):
        raise UserError(
            f"--timestep_respacing is {text!r}; with --spacing {name} expected a number from 1 to {total}, or nothing "
            "for all timesteps"
        )
    return SPACINGS[name](schedule, int(text))


def _ends(schedule):
    """lambda of the noisiest timestep that is not nearly pure noise, and of timestep 0.

    The last four cosine timesteps span as much of lambda as the 900 before them.
    """
    lambdas = half_log_snr(schedule.alpha_bar(torch.arange(schedule.num_timesteps)))
    return lambdas[lambdas >= NEARLY_NOISE].min().item(), lambdas[0].item()


def _at(schedule, lambdas):
    return _whole(schedule.time(torch.from_numpy(lambdas)).numpy(), schedule.num_timesteps)


def _whole(times, total):
    """Falling real times as a grid; the noisiest of them keeps its place."""
    grid = []
    for i, time in enumerate(np.rint(times).astype(int).clip(0, total - 1)):
        above = grid[-1] - 1 if grid else total - 1
        grid.append(int(min(max(time, len(times) - 1 - i), above)))
    return grid[::-1]
