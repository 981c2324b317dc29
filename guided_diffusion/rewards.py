"""Rewards: what says how good images are, and a small network that learns to say so in its place.

Li et al. 2024, "Reward Guided Latent Consistency Distillation", whose loss is objectives/consistency_distillation.py.

| paper | here |
| --- | --- |
| R(x, c), of an image and what it is asked for (section 4.1) | `Reward`: `images, cond -> [N]` |
| r_psi, the latent proxy reward model (section 4.2) | `ProxyReward`, of images at half their size |
"""

import importlib
import itertools
import traceback
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from . import checkpoints, dist_util
from .errors import UserError
from .flags import FlagGroup, flag
from .networks import for_inference
from .tensor_files import load_torchscript


@dataclass
class RewardFlags(FlagGroup):
    """The reward."""

    reward: str = flag(
        "",
        "What says how good images are: classifier:PATH, the log-probability of their class; or code that is given "
        "float32 [N, C, H, W] in [-1, 1] and returns [N]: torchscript:PATH, or python:MODULE.FUNCTION, which is given "
        "a dict of what the network is told too; empty is none.",
        lasting=True,
        content=True,
    )
    trust_reward: bool = flag(False, "Run the code that --reward is.")

    def create(self, parsed):
        """The Reward of these flags; None where there is none.

        :param parsed: the resolved Parsed flags of the training.
        :raises UserError: if it is not there, is code that is not trusted, or knows other images or classes.
        """
        kind, _, place = self.reward.partition(":")
        if not self.reward:
            return None
        makers = {"classifier": _classifier, "torchscript": _torchscript, "python": _python}
        if kind not in makers or not place:
            raise UserError(
                f"--reward is {self.reward!r}; expected classifier:PATH, torchscript:PATH or python:MODULE.FUNCTION"
            )
        if kind != "classifier" and not self.trust_reward:
            raise UserError(
                f"--reward {self.reward} is code that would run here; expected --trust_reward True, where you know who "
                "made it"
            )
        return Reward(makers[kind](place, parsed), f"--reward {self.reward}")


class Reward:
    """A function of images whose answer is looked at.

    :param function: `(images float32 [N, C, H, W] in [-1, 1], cond) -> [N]`, higher for better ones.
    :param name: for errors.
    """

    def __init__(self, function, name="the reward"):
        self.function, self.name = function, name

    def __call__(self, images, cond):
        """float32 [N].

        :raises UserError: if it fails, or the answer is of another shape or, of finite images, no finite number.
        """
        try:
            found = self.function(images, cond)
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            *_, last = traceback.extract_tb(error.__traceback__)
            raise UserError(
                f"{self.name} fails with {type(error).__name__} at {last.filename}:{last.lineno} ({error}); expected "
                "one number for each image"
            ) from error
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if shape != (len(images),):
            raise UserError(f"{self.name} gives {shape} for {len(images)} images; expected one number for each, [N]")
        if not found.isfinite().all() and images.isfinite().all():
            raise UserError(f"{self.name} gives numbers that are not finite; expected finite ones for any image")
        return found.float()


def _classifier(path, parsed):
    """log p(y | x) of a noisy classifier at timestep 0; 0 for an image whose class is not told."""
    network, _, flags = checkpoints.open_network(path, "reward", "classifier")
    values = parsed.values()
    if "reference_cond" in values:
        raise UserError(
            f"--reward classifier:{path} needs classes, which no inpainting network is told; expected another"
        )
    if not values["class_cond"]:
        raise UserError(f"--reward classifier:{path} needs classes; expected --class_cond True")
    size = values["large_size"] if "large_size" in values else values["image_size"]
    wanted = {"image_size": size, "image_channels": values["image_channels"], "num_classes": values["num_classes"]}
    if flags.get("class_names") and values.get("class_names"):
        wanted["class_names"] = values["class_names"]
    for name, value in wanted.items():
        if flags[name] != value:
            raise UserError(f"--reward classifier:{path} has --{name} {flags[name]}; expected {value}, as of this run")
    asked = for_inference(network.requires_grad_(False))

    def log_probability(images, cond):
        y = cond["y"]
        logits = asked(images, torch.zeros(len(images), device=images.device)).float()
        chosen = logits.log_softmax(dim=-1).gather(1, y.clamp(min=0)[:, None])[:, 0]
        return chosen.where(y >= 0, 0.0)

    return log_probability


def _torchscript(path, parsed):
    network = load_torchscript(path, dist_util.dev(), f"--reward torchscript:{path}")
    return lambda images, cond: network(images)


def _python(name, parsed):
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does
        raise UserError(f"--reward python:{name} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise UserError(f"--reward python:{name} is a {type(found).__name__}; expected a function")
    return found


def sharpness(images, cond):
    """[N], the mean absolute difference of pixels from their four neighbours: a reward that noise pleases most."""
    inner = images[:, :, 1:-1, 1:-1]
    around = images[:, :, :-2, 1:-1] + images[:, :, 2:, 1:-1] + images[:, :, 1:-1, :-2] + images[:, :, 1:-1, 2:]
    return (inner - around / 4).abs().mean(dim=(1, 2, 3))


class ProxyReward(nn.Module):
    """A small network in the place of a reward (RG-LCD, section 4.2): it sees images at half their size, and the class.

    :param channels: C of images.
    :param num_classes: K of labels y, where -1 is none; 0 for images without.
    :param width: channels of the first convolution.
    """

    def __init__(self, channels, num_classes=0, width=32):
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1 if i == 0 else 2, 1) for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.weight = nn.Embedding(num_classes + 1, widths[-1])

    def forward(self, images, y=None):
        """[N] of images [N, C, H, W] in [-1, 1]."""
        hidden = F.avg_pool2d(images, 2)
        for conv in self.convs:
            hidden = F.silu(conv(hidden))
        told = torch.zeros(len(images), dtype=torch.long, device=images.device) if y is None else y + 1
        return (hidden.mean(dim=(2, 3)) * self.weight(told)).sum(dim=1)
