"""Denoisers: what a network says about x_t, and the adapter that asks it.

A denoiser is any callable `(x_t [N, C, ...], t [N], cond) -> Prediction`, where `cond` is a dict of what the network is
told besides. A wrapper takes a denoiser and is one. `bound` closes a finished stack over its cond, so that
solvers and measures see `(x_t, t)`.
"""

import enum
from dataclasses import dataclass, replace

import torch

from .errors import RefusedByAssertion, UserError
from .learned_variance import hold
from .schedule import per_sample, posterior


class ModelMeanType(enum.Enum):
    """What the network's output means."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()
    VELOCITY = enum.auto()


class ModelVarType(enum.Enum):
    """Where the variance of the reverse step comes from."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()

    @property
    def is_learned(self):
        return self in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)


@dataclass(frozen=True)
class Prediction:
    """One answer about x_t, in which x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps always holds.

    Build it by `from_eps`, `from_x0` or `from_v`, and change it by `with_eps` or `with_x0`.

    :ivar x_t: [N, C, ...] the noisy images.
    :ivar alpha_bar: [N] float64, the level of x_t.
    :ivar x0: [N, C, ...] the predicted images, nominally in [-1, 1].
    :ivar eps: [N, C, ...] the predicted noise.
    :ivar variance: [N, C, ...] the network's variance output, or None: for LEARNED_RANGE a fraction
        in about [-1, 1], for LEARNED a log variance.
    :ivar gradient: [N, C, ...] of a log-likelihood, by which a solver that is `guided_by_mean` moves its mean, or None.
    """

    x_t: torch.Tensor
    alpha_bar: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    variance: torch.Tensor | None = None
    gradient: torch.Tensor | None = None

    @classmethod
    def from_eps(cls, x_t, alpha_bar, eps, variance=None):
        x0 = per_sample(alpha_bar.rsqrt(), x_t) * x_t - per_sample((1 / alpha_bar - 1).sqrt(), x_t) * eps
        return cls(x_t, alpha_bar, x0, eps, variance)

    @classmethod
    def from_x0(cls, x_t, alpha_bar, x0, variance=None):
        noise = 1 - alpha_bar
        eps = per_sample(noise.rsqrt(), x_t) * x_t - per_sample((alpha_bar / noise).sqrt(), x_t) * x0
        return cls(x_t, alpha_bar, x0, eps, variance)

    @classmethod
    def from_v(cls, x_t, alpha_bar, v, variance=None):
        """Of v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, appendix D)."""
        signal, noise = (per_sample(level.sqrt(), x_t) for level in (alpha_bar, 1 - alpha_bar))
        return cls(x_t, alpha_bar, signal * x_t - noise * v, noise * x_t + signal * v, variance)

    def with_eps(self, eps):
        """The prediction of the same x_t with another eps; x0 follows."""
        changed = self.from_eps(self.x_t, self.alpha_bar, eps)
        return replace(self, x0=changed.x0, eps=eps)

    def with_x0(self, x0):
        """The prediction of the same x_t with another x0; eps follows."""
        changed = self.from_x0(self.x_t, self.alpha_bar, x0)
        return replace(self, x0=x0, eps=changed.eps)

    def where(self, mask, other):
        """This prediction for the samples of `mask` [N], `other` for those beside it."""
        mask = mask.reshape(-1, *[1] * (self.x_t.ndim - 1))
        return replace(self, x0=self.x0.where(mask, other.x0), eps=self.eps.where(mask, other.eps))


def velocity(x_0, eps, alpha_bar):
    """v [N, C, ...] of images x_0 and their noise eps at levels alpha_bar [N]; see `Prediction.from_v`."""
    return per_sample(alpha_bar.sqrt(), x_0) * eps - per_sample((1 - alpha_bar).sqrt(), x_0) * x_0


def bound(denoise, cond):
    """The denoiser `(x_t, t) -> Prediction` that tells the network `cond`, a dict of tensors [N, ...]."""
    return lambda x, t: denoise(x, t, cond)


def refuse_untaken(cond, takes):
    """Validate that a network can be told all of cond. A class may be there for its guiding classifier alone.

    :param takes: names of what it is told; None where it does not say.
    :raises UserError: naming the first that it does not take.
    """
    foreign = [] if takes is None else [name for name in cond if name not in takes and name != "y"]
    if foreign:
        raise UserError(
            f"the network cannot be told {foreign[0]}, which a conditioning gives; expected one whose `takes` has it, "
            f"not {', '.join(takes) or 'nothing'} alone"
        )


class NetworkDenoiser:
    """The adapter: the one place that knows how a network is called and what its output means.

    :param model: `model(x [N, C, ...], t [N], **cond)`, with 2 C output channels if the variance is learned, else C.
    :param schedule: the NoiseSchedule it was trained on.
    :param rescale_timesteps: the network is given t * 1000 / T as a float, instead of t.
    :param previous: [T] integers, for PREVIOUS_X alone: the time that the output for time t lies at.
    :param clock: `(x, t) -> t`, the time that the network is told instead of t; None tells it t.
    :param takes: names in cond that the network is told; None tells it all.
    :param clip_variance: hold learned variances in their interval.
    """

    def __init__(
        self,
        model,
        schedule,
        mean_type,
        var_type,
        rescale_timesteps=False,
        previous=None,
        clock=None,
        takes=None,
        clip_variance=False,
    ):
        self.model = model
        self.schedule = schedule
        self.mean_type = mean_type
        self.var_type = var_type
        self.rescale_timesteps = rescale_timesteps
        self.previous = previous
        self.clock = clock
        self.takes = takes
        self.clip_variance = clip_variance

    def __call__(self, x, t, cond):
        return self.interpret(x, t, *self.network(x, t, cond))

    def network(self, x, t, cond):
        """The network's float32 output [N, C, ...] and its variance part (the same shape, or None)."""
        told = t if self.clock is None else self.clock(x, t)
        if self.takes is not None:
            cond = {name: cond[name] for name in self.takes if name in cond}
        output = self.model(x, network_time(told, self.schedule, self.rescale_timesteps), **cond).float()
        return split_output(output, x, self.var_type, self.clip_variance)

    def interpret(self, x, t, output, variance=None):
        """The Prediction that an output of `network` stands for."""
        alpha_bar = self.schedule.alpha_bar(t)
        if self.mean_type is ModelMeanType.EPSILON:
            return Prediction.from_eps(x, alpha_bar, output, variance)
        if self.mean_type is ModelMeanType.START_X:
            return Prediction.from_x0(x, alpha_bar, output, variance)
        if self.mean_type is ModelMeanType.VELOCITY:
            return Prediction.from_v(x, alpha_bar, output, variance)
        q = posterior(alpha_bar, self.schedule.alpha_bar(self.previous.to(t.device)[t.ceil().long()]))
        x0 = (output - per_sample(q.xt_coef, x) * x) / per_sample(q.x0_coef, x)
        return Prediction.from_x0(x, alpha_bar, x0, variance)


def split_output(output, x, var_type, clip_variance=False):
    """A network's output for x [N, C, ...] as (what it predicts, its variance part or None), each of x's shape.

    :param clip_variance: hold the variance part, where it is a fraction, in its interval.
    :raises UserError: if it has another number of channels than `var_type` needs.
    """
    channels = x.shape[1]
    expected = 2 * channels if var_type.is_learned else channels
    if output.shape[:2] != (x.shape[0], expected):
        raise RefusedByAssertion(
            f"the network returned {tuple(output.shape)} for {tuple(x.shape)}; expected {expected} channels: "
            f"--learn_sigma {var_type.is_learned} does not fit this network"
        )
    if not var_type.is_learned:
        return output, None
    said, variance = output.split(channels, dim=1)
    return said, hold(variance) if clip_variance and var_type is ModelVarType.LEARNED_RANGE else variance


def network_time(t, schedule, rescale_timesteps):
    """The time that networks (and classifiers) are given for training timesteps t [N], whole or in between."""
    return t.float() * (1000 / schedule.num_timesteps) if rescale_timesteps else t
