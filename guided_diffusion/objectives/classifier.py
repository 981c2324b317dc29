"""The loss of classifiers of noisy images, which can guide sampling (Dhariwal & Nichol 2021, section 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..flags import FlagGroup, at_least, flag
from ..resample import SamplerFlags, UniformSampler
from .objective import Loss
from .sampled import SampledObjective


@dataclass
class ValidationFlags(FlagGroup):
    """Noise and validation."""

    noised: bool = flag(True, "Train on noisy images, as guidance needs; False trains on clean ones.", lasting=True)
    anneal_lr: bool = flag(False, "Let the learning rate fall linearly to 0 over --iterations.", lasting=True)
    val_data_dir: str = flag("", "Folder or npz of held-out images, to log val_ losses; empty for none.")
    eval_interval: int = flag(5, "Steps between held-out batches.", legal=at_least(1))


class ClassifierObjective(SampledObjective):
    """Cross entropy of a classifier of noisy images, and its accuracy.

    :param diffusion: the GaussianDiffusion whose noise the images get.
    :param sampler: a ScheduleSampler.
    :param noised: False leaves the images clean, at timestep 0.
    :param split: "train" or "val", which the logged names begin with; the sampler learns from "train" alone.
    """

    flags = (*SampledObjective.flags, ValidationFlags)

    def __init__(self, diffusion, sampler, noised=True, split="train"):
        super().__init__(diffusion, sampler)
        self.noised = noised
        self.split = split

    @classmethod
    def create(cls, parsed, diffusion):
        return cls(diffusion, parsed[SamplerFlags].create(diffusion), parsed[ValidationFlags].noised)

    @classmethod
    def held_out(cls, parsed, diffusion):
        """The same for held-out images, at timesteps drawn uniformly."""
        return cls(diffusion, UniformSampler(diffusion), parsed[ValidationFlags].noised, "val")

    def __call__(self, model, x, cond):
        labels = cond["y"]
        if self.noised:
            t, weights = self.sampler.sample(x.shape[0], x.device)
            x = self.diffusion.q_sample(x, t)
        else:
            t, weights = torch.zeros_like(labels), torch.ones_like(labels, dtype=torch.float32)
        logits = model(x, self.diffusion.network_time(t)).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        if self.noised and self.split == "train":
            self.update_sampler(t, loss)
        terms = {"loss": loss.detach(), "acc@1": _hits(logits, labels, 1), "acc@5": _hits(logits, labels, 5)}
        return Loss(loss * weights, {f"{self.split}_{name}": value for name, value in terms.items()}, t)


def _hits(logits, labels, k):
    """1 where the label [N] is among the k largest logits [N, K], else 0."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels.unsqueeze(1)).any(dim=1).float()
