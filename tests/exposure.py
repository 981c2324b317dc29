"""Exposure bias measured without files or scripts: closed-form data, networks and samplers."""

from typing import NamedTuple

import numpy as np
import torch

from evaluations.exposure import sums
from evaluations.exposure.measures import MEASURES, Lengths, Setup
from evaluations.exposure.walks import Gaussian
from guided_diffusion.denoiser import ModelMeanType
from guided_diffusion.methods.time_shift import pixel_variance
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.solvers.flags import SolverFlags


class Real:
    """Real images [N, C, H, W] as `batch_maker` takes them."""

    def __init__(self, images):
        self.images, self.count = images, len(images)
        self.data_variance = float(pixel_variance(images).mean())
        self.gaussian = Gaussian(images)

    def batch(self, indices):
        return self.images[list(indices)], {}


class Exact:
    """A network `(x, t)` of eps, in double precision, times a factor of the kept step; or of the v that says the same.

    :param eps: `(x, alpha_bar [N]) -> eps`.
    :param factor: `i -> number`, of the kept steps of `grid`.
    """

    takes = ()

    def __init__(self, eps, process, shape, factor=None):
        self.eps, self.schedule, self.shape, self.factor = eps, process.schedule, shape, factor
        self.grid, self.says_v = torch.tensor(process.grid), process.mean_type is ModelMeanType.VELOCITY

    def __call__(self, x, t):
        eps = self.eps(x.double(), self.schedule.alpha_bar(t))
        if self.factor:
            eps = eps * self.factor(torch.searchsorted(self.grid, t).double())[:, None, None, None]
        if self.says_v:
            level = self.schedule.alpha_bar(t)[:, None, None, None]
            eps = (eps - (1 - level).sqrt() * x) / level.sqrt()
        return eps.float()


class Found(NamedTuple):
    """What `Method.propose` reads of a Result."""

    times: np.ndarray
    levels: np.ndarray
    data_variance: float
    gaussian_error: float
    curves: dict
    findings: dict
    predicts_eps: bool = True


def process(steps, solver="ddim", methods=(), schedule="linear", prediction="eps", **options):
    flags = DiffusionFlags(
        noise_schedule=schedule, timestep_respacing=str(steps), sigma_small=True, prediction=prediction
    )
    return flags.create(methods, SolverFlags(solver=solver, **options))


def measured(made, network, real, measures=MEASURES, seed=0, batch=16):
    """The Found of a Process and a network."""
    levels = made.schedule.alpha_bar(torch.tensor(made.grid)).numpy()
    setup = Setup(made.schedule, np.array(made.grid), levels, real.data_variance, real.gaussian)
    make_batch = sums.batch_maker(made, network, real, seed, setup, measures)
    starts = range(0, real.count, batch)
    chunks = [range(i, min(i + batch, real.count)) for i in starts]
    total = sums.added(((chunk, make_batch(chunk)) for chunk in chunks), real.count)
    curves = sums.curves_of(total, real.count, setup, measures)
    return Found(setup.times, levels, real.data_variance, 0.0, curves, {}, made.mean_type is ModelMeanType.EPSILON)


KNOWN = {measure.name: measure for measure in (Lengths(), *MEASURES)}
