"""Processes and batches of images for tests, put together as scripts do it."""

from dataclasses import dataclass
from typing import Any

from guided_diffusion.generate import images
from guided_diffusion.methods import ClassifierGuidance, Clipping, Thresholding, of_values
from guided_diffusion.process import DiffusionFlags, SpacingFlags
from guided_diffusion.solvers.flags import SolverFlags


@dataclass
class Guided(ClassifierGuidance):
    """Guidance by any gradient `(x, t, **cond) -> [N, C, ...]`."""

    cond_fn: Any = None

    def gradient(self, process):
        return lambda x, t, cond: self.cond_fn(x, t, **cond)


def process(
    solver="ddpm",
    clip=True,
    guide=None,
    spacing="published",
    thresholding="static",
    diffusion=None,
    methods=None,
    **options,
):
    """The Process of a solver with its options.

    :param guide: `(x, t, **cond) -> gradient`, or None.
    :param diffusion: {flag: value} of DiffusionFlags.
    :param methods: {flag: value} of methods.
    """
    made = [Clipping(clip), Thresholding(thresholding), *of_values(methods or {})]
    if guide is not None:
        made.append(Guided(cond_fn=guide))
    flags = DiffusionFlags(**(diffusion or {}))
    return flags.create(made, SolverFlags(solver=solver, **options), SpacingFlags(spacing))


def batch(made, network, noise, shape, cond=None):
    """Images [N, C, H, W] of a Process and any `network(x, t, **cond)`.

    :param shape: (C, H, W).
    """

    def called(x, t, **told):
        return network(x, t, **told)

    called.shape = shape
    return images(made, called, noise, cond or {})
