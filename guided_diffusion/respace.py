"""Sampling with fewer steps: which training timesteps are kept, and a process over those."""

import re
from itertools import accumulate, repeat

from .errors import UserError
from .gaussian_diffusion import GaussianDiffusion


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
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--timestep_respacing is {text!r}; expected numbers such as 250 or 10,15,20, or ddimN such as ddim50"
        ) from None


def _strided(num_timesteps, text):
    strides = {len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps - 1, 0, -1)}
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


class SpacedDiffusion(GaussianDiffusion):
    """A GaussianDiffusion that visits only some of its training timesteps.

    :param use_timesteps: the training timesteps to keep, in any order.
    :param kwargs: as GaussianDiffusion; `betas` are those of the whole training process.
    """

    def __init__(self, use_timesteps, **kwargs):
        self.use_timesteps = set(use_timesteps)
        self.original_num_steps = len(kwargs["betas"])
        super().__init__(grid=sorted(self.use_timesteps), **kwargs)
