"""How training draws timesteps, and the weights that keep the loss unbiased."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from . import dist_util
from .devices import sent
from .errors import UnknownName, UserError
from .flags import FlagGroup, flag


@dataclass
class SamplerFlags(FlagGroup):
    """Which timesteps training draws."""

    schedule_sampler: str = flag(
        "uniform", "How training draws timesteps.", choices=("uniform", "loss-second-moment"), lasting=True
    )

    def create(self, diffusion):
        """The ScheduleSampler of these flags."""
        return create_named_schedule_sampler(self.schedule_sampler, diffusion)


def create_named_schedule_sampler(name, diffusion):
    """The sampler called "uniform" or "loss-second-moment", for a GaussianDiffusion."""
    if name == "uniform":
        return UniformSampler(diffusion)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(diffusion)
    raise UnknownName(f"--schedule_sampler is {name!r}; expected uniform or loss-second-moment")


class ScheduleSampler(ABC):
    """A distribution over step indices. Importance weights keep the expected loss what it is."""

    @abstractmethod
    def weights(self):
        """Positive numpy weights [num_timesteps], not necessarily normalised."""

    def state_dict(self):
        """{name: tensor} of all that it has learnt; empty where it learns nothing."""
        return {}

    def load_state_dict(self, state):
        """Go on from a `state_dict`.

        :raises UserError: if it is that of another sampler or number of timesteps.
        """
        mine = self.state_dict()
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in state.items()}:
            raise UserError("it is the history of another --schedule_sampler or number of --diffusion_steps")
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    def sample(self, batch_size, device):
        """Step indices [N] (int64) and loss weights [N] (float32), by numpy's global generator."""
        p = self.weights() / np.sum(self.weights())
        drawn = np.random.choice(len(p), size=(batch_size,), p=p)
        indices = sent(torch.from_numpy(drawn).long(), torch.device(device))
        if p.min() == p.max():
            return indices, torch.ones(batch_size, device=device)
        return indices, sent(torch.from_numpy(1 / (len(p) * p[drawn])).float(), torch.device(device))


class UniformSampler(ScheduleSampler):
    """Each step equally often, weight 1."""

    def __init__(self, diffusion):
        self.diffusion = diffusion
        self._weights = np.ones(diffusion.num_timesteps)

    def weights(self):
        return self._weights


class LossAwareSampler(ScheduleSampler):
    """A sampler that learns from the losses that training sees."""

    def update_with_local_losses(self, local_ts, local_losses):
        """Share this rank's steps [N] and losses [N] with all ranks, then update; every rank must call it.

        All ranks see the same losses in the same order, so that their weights stay equal.
        """
        ts = dist_util.all_gather(local_ts)
        losses = dist_util.all_gather(local_losses.float())
        self.update_with_all_losses(ts.tolist(), losses.tolist())

    @abstractmethod
    def update_with_all_losses(self, ts, losses):
        """Take note of the losses (numbers) at steps `ts` (indices), of equal length; passes by those not finite."""


class LossSecondMomentResampler(LossAwareSampler):
    """Draws a step in proportion to the root mean square of its last losses.

    Nichol & Dhariwal 2021, equation 18. Uniform until each step has its full history.

    :param history_per_term: how many losses are remembered per step.
    :param uniform_prob: share of draws that stay uniform, so that no weight explodes.
    """

    def __init__(self, diffusion, history_per_term=10, uniform_prob=0.001):
        self.diffusion = diffusion
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        steps = diffusion.num_timesteps
        self._loss_history = np.zeros((steps, history_per_term))
        self._loss_counts = np.zeros(steps, dtype=np.int64)

    def weights(self):
        steps = len(self._loss_counts)
        if (self._loss_counts < self.history_per_term).any():
            return np.ones(steps)
        rms = np.sqrt(np.mean(self._loss_history**2, axis=-1))
        return (1 - self.uniform_prob) * rms / np.sum(rms) + self.uniform_prob / steps

    def update_with_all_losses(self, ts, losses):
        for t, loss in zip(ts, losses):
            if math.isfinite(loss):
                self._loss_history[t, self._loss_counts[t] % self.history_per_term] = loss
                self._loss_counts[t] += 1

    def state_dict(self):
        # these share memory with the arrays, so that copying into them loads
        return {"losses": torch.from_numpy(self._loss_history), "seen": torch.from_numpy(self._loss_counts)}
