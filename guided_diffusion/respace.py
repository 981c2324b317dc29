"""Sampling with fewer steps: a process over some of its training timesteps."""

from collections.abc import Callable
from dataclasses import dataclass

from .devices import on_device
from .gaussian_diffusion import GaussianDiffusion
from .spacing import space_timesteps

__all__ = ["SpacedDiffusion", "space_timesteps"]


class SpacedDiffusion(GaussianDiffusion):
    """A GaussianDiffusion that visits only some of its training timesteps.

    Networks and `cond_fn` are wrapped by `_wrap_model`, so that they are given training timesteps.

    :param use_timesteps: the training timesteps to keep, in any order.
    :param kwargs: as GaussianDiffusion; `betas` are those of the whole training process.
    """

    def __init__(self, use_timesteps, **kwargs):
        self.use_timesteps = set(use_timesteps)
        self.original_num_steps = len(kwargs["betas"])
        super().__init__(grid=sorted(self.use_timesteps), **kwargs)

    def _wrap_model(self, model):
        """`model` as it is asked here; what is wrapped already passes unchanged."""
        if isinstance(model, _WrappedModel):
            return model
        return _WrappedModel(model, self.timestep_map, self.rescale_timesteps, self.original_num_steps)

    def p_mean_variance(self, model, *args, **kwargs):
        """As GaussianDiffusion, of the wrapped network."""
        return super().p_mean_variance(self._wrap_model(model), *args, **kwargs)

    def condition_mean(self, cond_fn, *args, **kwargs):
        """As GaussianDiffusion, by the wrapped `cond_fn`."""
        return super().condition_mean(self._wrap_model(cond_fn), *args, **kwargs)

    def condition_score(self, cond_fn, *args, **kwargs):
        """As GaussianDiffusion, by the wrapped `cond_fn`."""
        return super().condition_score(self._wrap_model(cond_fn), *args, **kwargs)

    def training_losses(self, model, *args, **kwargs):
        """As GaussianDiffusion, of the wrapped network."""
        return super().training_losses(self._wrap_model(model), *args, **kwargs)

    def _scale_timesteps(self, t):
        """The step indices themselves: what is asked is wrapped."""
        return t


@dataclass(eq=False)
class _WrappedModel:
    """A network, or a `cond_fn`, that takes step indices in place of training timesteps.

    :param timestep_map: the training timestep of each index.
    :param rescale_timesteps: it is given them scaled to 0..1000, as floats.
    :param original_num_steps: how many training timesteps there are.
    """

    model: Callable
    timestep_map: list
    rescale_timesteps: bool
    original_num_steps: int

    def __call__(self, x, ts, **kwargs):
        told = on_device(self.timestep_map, ts.device).take(ts.long())
        if self.rescale_timesteps:
            told = told.float() * (1000 / self.original_num_steps)
        return self.model(x, told, **kwargs)
