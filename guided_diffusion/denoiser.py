"""Denoisers: what a network says about x_t, and the adapter that asks it.

A denoiser is any callable `(x_t [N, C, ...], t [N], cond) -> Prediction`, where `cond` is a dict of what the network is
told besides. A wrapper takes a denoiser and is one. `bound` closes a finished stack over its cond, so that
solvers and measures see `(x_t, t)`.
"""

import enum
import math
from dataclasses import dataclass, replace

import torch

from .devices import on_device
from .errors import RefusedByAssertion, UserError
from .learned_variance import hold
from .scalars import combined, ratio, shared, sqrt
from .schedule import posterior


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

    Build it by `from_eps`, `from_x0` or `from_v`, and change it by `with_eps` or `with_x0`. Of x0 and eps one may be
    None: it follows from the other when it is asked for.

    :ivar x_t: [N, C, ...] the noisy images.
    :ivar alpha_bar: [N] float64, the level of x_t.
    :ivar x0: [N, C, ...] the predicted images, nominally in [-1, 1].
    :ivar eps: [N, C, ...] the predicted noise.
    :ivar variance: [N, C, ...] the network's variance output, or None: for LEARNED_RANGE a fraction
        in about [-1, 1], for LEARNED a log variance.
    :ivar gradient: [N, C, ...] of a log-likelihood, by which a solver that is `guided_by_mean` moves its mean, or None.
    :ivar given: the names of x0 and eps that it was made of.
    """

    x_t: torch.Tensor
    alpha_bar: torch.Tensor
    x0: torch.Tensor | None
    eps: torch.Tensor | None
    variance: torch.Tensor | None = None
    gradient: torch.Tensor | None = None

    def __post_init__(self):
        if self.x0 is None and self.eps is None:
            raise TypeError("a Prediction needs an x0 or an eps")
        given = tuple(name for name in ("x0", "eps") if getattr(self, name) is not None)
        object.__setattr__(self, "given", given)
        for name in ("x0", "eps"):
            if name not in given:
                object.__delattr__(self, name)  # from now on __getattr__ answers for it

    def __getattr__(self, name):
        if name not in ("x0", "eps"):
            raise AttributeError(f"a Prediction has no {name}")
        value = self.derived(name)
        object.__setattr__(self, name, value)
        return value

    def derived(self, name):
        """x0 or eps, by its name, computed from the other: a new tensor."""
        level = shared(self.alpha_bar)
        if name == "x0":
            return combined(ratio(1, sqrt(level)), self.x_t, -sqrt(ratio(1, level) - 1), self.eps)
        noise = 1 - level
        return combined(ratio(1, sqrt(noise)), self.x_t, -sqrt(ratio(level, noise)), self.x0)

    def mixed(self, signal, noise):
        """signal x0 + noise eps, a new tensor [N, C, ...], for numbers or [N]: of x0 and x_t, if only x0 was given."""
        if self.given != ("x0",):
            return combined(signal, self.x0, noise, self.eps)
        level = shared(self.alpha_bar)
        of_xt = ratio(noise, sqrt(1 - level))
        return combined(signal - of_xt * sqrt(level), self.x0, of_xt, self.x_t)

    @classmethod
    def from_eps(cls, x_t, alpha_bar, eps, variance=None):
        return cls(x_t, alpha_bar, None, eps, variance)

    @classmethod
    def from_x0(cls, x_t, alpha_bar, x0, variance=None):
        return cls(x_t, alpha_bar, x0, None, variance)

    @classmethod
    def from_v(cls, x_t, alpha_bar, v, variance=None):
        """Of v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, appendix D)."""
        level = shared(alpha_bar)
        signal, noise = sqrt(level), sqrt(1 - level)
        return cls(x_t, alpha_bar, combined(signal, x_t, -noise, v), combined(noise, x_t, signal, v), variance)

    def with_eps(self, eps):
        """The prediction of the same x_t with another eps; x0 follows."""
        return type(self)(self.x_t, self.alpha_bar, None, eps, self.variance, self.gradient)

    def with_x0(self, x0):
        """The prediction of the same x_t with another x0; eps follows."""
        return type(self)(self.x_t, self.alpha_bar, x0, None, self.variance, self.gradient)

    def with_gradient(self, gradient):
        """The same prediction, with a gradient of guidance."""
        x0, eps = (getattr(self, name) if name in self.given else None for name in ("x0", "eps"))
        return type(self)(self.x_t, self.alpha_bar, x0, eps, self.variance, gradient)

    def where(self, mask, other):
        """This prediction for the samples of `mask`, a bool or [N], and `other` for the rest.

        :param other: of the same x_t, given as this one is.
        """
        if isinstance(mask, bool):
            return self if mask else other
        mask = mask.reshape(-1, *[1] * (self.x_t.ndim - 1))
        names = [name for name in ("variance", "gradient") if getattr(self, name) is not None]
        parts = {name: getattr(self, name).where(mask, getattr(other, name)) for name in (*self.given, *names)}
        return replace(self, **({"x0": None, "eps": None} | parts))


def velocity(x_0, eps, alpha_bar):
    """v [N, C, ...] of images x_0 and their noise eps at levels alpha_bar [N]; see `Prediction.from_v`."""
    level = shared(alpha_bar)
    return combined(sqrt(level), eps, -sqrt(1 - level), x_0)


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
        self.previous = None if previous is None else list(map(int, previous))
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
        q = posterior(shared(alpha_bar), self.schedule.alpha_bar(self._before(shared(t))))
        x0 = combined(ratio(1, q.x0_coef), output, ratio(-q.xt_coef, q.x0_coef), x)
        return Prediction.from_x0(x, alpha_bar, x0, variance)

    def _before(self, t):
        """The time that the output for times t, a number or [N], lies at."""
        if not isinstance(t, torch.Tensor):
            return self.previous[math.ceil(t)]
        return on_device(self.previous, t.device).take(t.ceil().long())


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
