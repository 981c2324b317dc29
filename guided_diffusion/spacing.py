"""Grids of sampling: which N of the training timesteps 0..T-1 a sampler visits, before it ends at the data (-1).

A grid is a list of N different integers, increasing. Integers, because these networks were trained on no others:
real times are rounded, and where rounding makes two equal (many steps near the data) they move apart, to the next
free timestep. The published grids are those of `space_timesteps`.
"""

import re
from itertools import accumulate, repeat

import numpy as np
import torch

from .errors import UserError
from .flags import whole
from .schedule import NEARLY_NOISE, half_log_snr


class NoSuchGrid(UserError):
    """No stride keeps so many timesteps."""


def space_timesteps(num_timesteps, section_counts):
    """The set of training timesteps to keep.

    :param num_timesteps: T of the training process.
    :param section_counts: "ddimN" for the one stride that keeps exactly N of range(T), from 0; or numbers
        (a list, or "10,15,20"): T is cut into that many equal sections, and each keeps its number of steps,
        evenly spread with both ends.
    :raises UserError: (a ValueError) if that cannot be had; it names the nearest counts that can.
    """
    if isinstance(section_counts, str):
        if section_counts.startswith("ddim"):
            return _strided(num_timesteps, section_counts)
        section_counts = _parse_counts(section_counts)
    sections = len(section_counts)
    sizes = [num_timesteps // sections + (i < num_timesteps % sections) for i in range(sections)]
    kept, start = set(), 0
    for size, count in zip(sizes, section_counts):
        if not size:
            raise UserError(
                f"--timestep_respacing has {sections} sections of {num_timesteps} timesteps; expected at most as "
                "many sections"
            )
        if not 1 <= count <= size:
            raise UserError(
                f"--timestep_respacing asks for {count} steps of a section of {size} timesteps; expected 1 to {size}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1
        # summed, not multiplied: the published rounding of halves depends on it
        kept.update(start + round(offset) for offset in accumulate(repeat(stride, count - 1), initial=0.0))
        start += size
    return kept


def _parse_counts(text):
    try:
        return [whole(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--timestep_respacing is {text!r}; expected numbers such as 250 or 10,15,20, or ddimN such as ddim50"
        ) from None


def _strided(num_timesteps, text):
    strides = {len(range(0, num_timesteps, stride)): stride for stride in range(max(num_timesteps - 1, 1), 0, -1)}
    digits = text[len("ddim") :]
    if not re.fullmatch("[0-9]{1,9}", digits):
        raise UserError(f"--timestep_respacing is {text!r}; expected a number of steps after ddim, such as ddim50")
    wanted = int(digits)
    if wanted not in strides:
        below = [f"ddim{n}" for n in [max((n for n in strides if n < wanted), default=None)] if n]
        above = [f"ddim{n}" for n in [min((n for n in strides if n > wanted), default=None)] if n]
        raise NoSuchGrid(
            f"--timestep_respacing {text} cannot be had from {num_timesteps} timesteps with one stride; "
            f"nearest: {' or '.join(below + above)}"
        )
    return set(range(0, num_timesteps, strides[wanted]))


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
