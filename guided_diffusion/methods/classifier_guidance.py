"""Classifier guidance (Dhariwal & Nichol 2021, section 4).

Both forms need the gradient of a log-likelihood with respect to x, `cond_fn(x, t) -> [N, C, ...]`.
"""

import torch

from ..schedule import per_sample


class ScoreGuidedDenoiser:
    """Algorithm 2: eps moves by -sqrt(1 - alpha_bar) * gradient, and x0 follows. For any solver."""

    def __init__(self, denoise, cond_fn):
        self.denoise = denoise
        self.cond_fn = cond_fn

    def __call__(self, x, t):
        prediction = self.denoise(x, t)
        scale = per_sample((1 - prediction.alpha_bar).sqrt(), x)
        return prediction.with_eps(prediction.eps - scale * self.cond_fn(x, t))


class ClassifierGradient:
    """The gradient of `scale * log p(y | x_t)` of a noisy classifier.

    :param classifier: `classifier(x [N, C, H, W], t [N]) -> logits [N, K]`.
    :param scale: the guidance scale s of the paper; 0 asks the classifier nothing.
    """

    def __init__(self, classifier, scale=1.0):
        self.classifier = classifier
        self.scale = scale

    def __call__(self, x, t, y):
        if self.scale == 0:
            return torch.zeros_like(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_probs = self.classifier(x, t).float().log_softmax(dim=-1)
            chosen = log_probs.gather(1, y[:, None]).sum()
            return self.scale * torch.autograd.grad(chosen, x)[0]
