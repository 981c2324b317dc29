"""Classifier guidance (Dhariwal & Nichol 2021, section 4).

Both forms need the gradient of a log-likelihood with respect to x. Algorithm 1 moves the mean of the ancestral
sampler, algorithm 2 the predicted noise, for any other solver.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from ..denoiser import network_time
from ..errors import UserError
from ..flags import at_least, flag
from ..scalars import add_, shared, sqrt
from .method import Method


@dataclass
class ClassifierGuidance(Method):
    """Classifier guidance (Dhariwal & Nichol 2021)."""

    classifier_path: str = flag("", "Checkpoint of the noisy classifier.", content=True, essential="classifier_path")
    classifier_scale: float = flag(
        1.0, "Weight of the classifier's gradient; 0 is no guidance.", legal=at_least(0), essential="classifier_scale"
    )
    # the network of --classifier_path, once it is read
    classifier: Any = field(default=None, repr=False, compare=False)

    by_default = False

    def gradient(self, process):
        """`(x, t, cond) -> [N, C, ...]` of the log-likelihood, at training timesteps t [N]; None guides nothing."""
        if self.classifier is None or self.classifier_scale == 0:
            return None
        gradient = ClassifierGradient(self.classifier, self.classifier_scale)
        return lambda x, t, cond: gradient(x, network_time(t, process.schedule, process.rescale_timesteps), cond["y"])

    def wrap(self, denoise, process):
        gradient = self.gradient(process)
        if gradient is None:
            return denoise
        by_mean = process.solver is not None and process.solver.guided_by_mean
        return (MeanGuidedDenoiser if by_mean else ScoreGuidedDenoiser)(denoise, gradient)

    def suspect(self, process):
        guides = self.gradient(process) is not None
        return f"a lower --classifier_scale than {self.classifier_scale:g} moves images less" if guides else ""

    def check(self, process, solver):
        if process.schedule.ends_in_noise and self.gradient(process) is not None:
            raise UserError(
                f"--classifier_scale {self.classifier_scale} moves a prediction by what its state says of the image, "
                "and with --rescale_zero_terminal_snr True the first state says nothing; expected --classifier_scale 0"
            )


class ScoreGuidedDenoiser:
    """Algorithm 2: eps moves by -sqrt(1 - alpha_bar) * gradient, and x0 follows. For any solver.

    :param gradient: `(x, t, cond) -> [N, C, ...]`.
    """

    def __init__(self, denoise, gradient):
        self.denoise = denoise
        self.gradient = gradient

    def __call__(self, x, t, cond):
        prediction = self.denoise(x, t, cond)
        scale = -sqrt(1 - shared(prediction.alpha_bar))
        return prediction.with_eps(add_(prediction.eps.clone(), scale, self.gradient(x, t, cond)))


class MeanGuidedDenoiser:
    """Algorithm 1: the prediction carries the gradient, by which a solver that is `guided_by_mean` moves its mean.

    :param gradient: `(x, t, cond) -> [N, C, ...]`.
    """

    def __init__(self, denoise, gradient):
        self.denoise = denoise
        self.gradient = gradient

    def __call__(self, x, t, cond):
        prediction = self.denoise(x, t, cond)
        return prediction.with_gradient(self.gradient(x, t, cond).float())


class ClassifierGradient:
    """The gradient of `scale * log p(y | x_t)` of a noisy classifier.

    :param classifier: `classifier(x [N, C, H, W], t [N]) -> logits [N, K]`.
    :param scale: the guidance scale s of the paper.
    """

    def __init__(self, classifier, scale=1.0):
        self.classifier = classifier
        self.scale = scale

    def __call__(self, x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_probs = self.classifier(x, t).float().log_softmax(dim=-1)
            chosen = log_probs.gather(1, y.unsqueeze(1)).sum()
            return self.scale * torch.autograd.grad(chosen, x)[0]
