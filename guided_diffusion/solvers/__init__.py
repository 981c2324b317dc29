"""Solvers: one file each, `(denoise, x, t, s, state, noise) -> Step` between any two times.

t and s are [N] training timesteps, `noise(x)` draws standard normal noise like x, and `state` is
what the solver returned from its step before (None at first). A class declares its `order`.
"""

from .ddim import DDIM
from .ddpm import DDPM

SOLVERS = {"ddpm": DDPM, "ddim": DDIM}
