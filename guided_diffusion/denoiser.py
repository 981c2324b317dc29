"""Denoisers: what a network says about x_t, the adapter that asks it, and clipping.

A denoiser is any callable `(x_t [N, C, ...], t [N]) -> Prediction`. A wrapper takes a denoiser
and is one.
"""

import enum
from dataclasses import dataclass

import torch

from .errors import UserError
from .schedule import per_sample, posterior


class ModelMeanType(enum.Enum):
    """What the network's output means."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()


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

    Build it by `from_eps` or `from_x0`, and change it by `with_eps` or `with_x0`.

    :ivar x_t: [N, C, ...] the noisy images.
    :ivar alpha_bar: [N] float64, the level of x_t.
    :ivar x0: [N, C, ...] the predicted images, nominally in [-1, 1].
    :ivar eps: [N, C, ...] the predicted noise.
    :ivar variance: [N, C, ...] the network's variance output, or None: for LEARNED_RANGE a fraction
        in about [-1, 1], for LEARNED a log variance.
    """

    x_t: torch.Tensor
    alpha_bar: torch.Tensor
    x0: torch.Tensor
    eps: torch.Tensor
    variance: torch.Tensor | None = None

    @classmethod
    def from_eps(cls, x_t, alpha_bar, eps, variance=None):
        x0 = per_sample(alpha_bar.rsqrt(), x_t) * x_t - per_sample((1 / alpha_bar - 1).sqrt(), x_t) * eps
        return cls(x_t, alpha_bar, x0, eps, variance)

    @classmethod
    def from_x0(cls, x_t, alpha_bar, x0, variance=None):
        noise = 1 - alpha_bar
        eps = per_sample(noise.rsqrt(), x_t) * x_t - per_sample((alpha_bar / noise).sqrt(), x_t) * x0
        return cls(x_t, alpha_bar, x0, eps, variance)

    def with_eps(self, eps):
        """The prediction of the same x_t with another eps; x0 follows."""
        return self.from_eps(self.x_t, self.alpha_bar, eps, self.variance)

    def with_x0(self, x0):
        """The prediction of the same x_t with another x0; eps follows."""
        return self.from_x0(self.x_t, self.alpha_bar, x0, self.variance)


class NetworkDenoiser:
    """The adapter: the one place that knows how a network is called and what its output means.

    :param model: `model(x [N, C, ...], t [N], **model_kwargs)`, with 2 C output channels if the
        variance is learned, else C.
    :param schedule: the NoiseSchedule it was trained on.
    :param rescale_timesteps: the network is given t * 1000 / T as a float, instead of t.
    :param clock: `(x, t) -> t`, the time that the network is told instead of t; None tells it t.
    :param previous: [T] integers, for PREVIOUS_X alone: the time that the output for time t lies at.
    """

    def __init__(
        self,
        model,
        schedule,
        mean_type,
        var_type,
        rescale_timesteps=False,
        previous=None,
        model_kwargs=None,
        clock=None,
    ):
        self.model = model
        self.schedule = schedule
        self.mean_type = mean_type
        self.var_type = var_type
        self.rescale_timesteps = rescale_timesteps
        self.previous = previous
        self.model_kwargs = model_kwargs or {}
        self.clock = clock

    def __call__(self, x, t):
        return self.interpret(x, t, *self.network(x, t))

    def network(self, x, t):
        """The network's float32 output [N, C, ...] and its variance part (the same shape, or None)."""
        told = t if self.clock is None else self.clock(x, t)
        output = self.model(x, network_time(told, self.schedule, self.rescale_timesteps), **self.model_kwargs).float()
        channels = x.shape[1]
        expected = 2 * channels if self.var_type.is_learned else channels
        if output.shape[:2] != (x.shape[0], expected):
            raise UserError(
                f"the network returned {tuple(output.shape)} for {tuple(x.shape)}; expected {expected} channels: "
                f"--learn_sigma {self.var_type.is_learned} does not fit this network"
            )
        if self.var_type.is_learned:
            return tuple(output.split(channels, dim=1))
        return output, None

    def interpret(self, x, t, output, variance=None):
        """The Prediction that an output of `network` stands for."""
        alpha_bar = self.schedule.alpha_bar(t)
        if self.mean_type is ModelMeanType.EPSILON:
            return Prediction.from_eps(x, alpha_bar, output, variance)
        if self.mean_type is ModelMeanType.START_X:
            return Prediction.from_x0(x, alpha_bar, output, variance)
        q = posterior(alpha_bar, self.schedule.alpha_bar(self.previous.to(t.device)[t.ceil().long()]))
        x0 = (output - per_sample(q.xt_coef, x) * x) / per_sample(q.x0_coef, x)
        return Prediction.from_x0(x, alpha_bar, x0, variance)


def network_time(t, schedule, rescale_timesteps):
    """The time that networks (and classifiers) are given for training timesteps t [N], whole or in between."""
    return t.float() * (1000 / schedule.num_timesteps) if rescale_timesteps else t


class ClippedDenoiser:
    """Changes x0 by `denoised_fn` (any function of x0), then clamps it to [-1, 1]; eps follows.

    :param clip: False leaves the range alone.
    """

    def __init__(self, denoise, clip=True, denoised_fn=None):
        self.denoise = denoise
        self.clip = clip
        self.denoised_fn = denoised_fn

    def __call__(self, x, t):
        return self.apply(self.denoise(x, t))

    def apply(self, prediction):
        """The clipped prediction; the very same object where there is nothing to do."""
        x0 = prediction.x0
        if self.denoised_fn is not None:
            x0 = self.denoised_fn(x0)
        if self.clip:
            x0 = x0.clamp(-1, 1)
        return prediction if x0 is prediction.x0 else prediction.with_x0(x0)


def dynamic_threshold(x0, percentile=99.5):
    """x0 [N, C, ...] drawn into [-1, 1], image by image, by the `percentile` of its absolute values if above 1.

    A `denoised_fn`. Saharia et al. 2022 ("Imagen"), section 2.3; Lu et al. 2022 ("DPM-Solver++"), appendix on
    thresholding, with 99.5.
    """
    limits = torch.stack([image.abs().float().quantile(percentile / 100) for image in x0.flatten(1)])
    limits = per_sample(limits.clamp(min=1), x0)
    return x0.clamp(-limits, limits) / limits
