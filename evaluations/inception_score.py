"""The Inception score (Salimans et al. 2016, arXiv:1606.03498, section 4) by guided-diffusion's conventions."""

from typing import NamedTuple

import numpy as np
import torch

from .metric import Found

# rows of probabilities at once, as the published evaluator has it
ROWS = 512
SPLIT = 5000


class Score(NamedTuple):
    """An Inception score.

    :ivar value: a float, at least 1 up to rounding.
    :ivar zeros: probabilities that underflowed to 0; the published evaluator prints nan where there are any.
    """

    value: float
    zeros: int


def inception_score(features, weights, split_size=SPLIT):
    """The mean over splits of exp(mean_i sum_c p(c|i) (log p(c|i) - log mean_i p(c|i))), all in float32.

    Splits are consecutive rows; a shorter last one counts as much as the others. 0 log 0 is 0.

    :param features: pool_3 activations [N, 2048].
    :param weights: of the logits [2048, C]; there is no bias.
    :return: a Score.
    """
    logits = (part.to(weights) @ weights for part in features.split(ROWS))
    p = torch.cat([part.softmax(dim=1).cpu() for part in logits]).numpy()
    scores = [_score_of(part) for part in np.split(p, range(split_size, len(p), split_size))]
    return Score(float(np.mean(scores)), int((p == 0).sum()))


def score(reference, samples, flags, weights):
    """The Found of the samples' Activations."""
    found = inception_score(samples.features, weights)
    underflow = (
        f": {found.zeros} probabilities underflow to 0 and 0 log 0 counts as 0, "
        "where the published evaluator prints nan"
    )
    return Found((found.value,), notes=(underflow,) if found.zeros else ())


def _score_of(p):
    mean = p.mean(axis=0, keepdims=True)
    ratios = np.log(p, where=p > 0, out=np.zeros_like(p)) - np.log(mean, where=mean > 0, out=np.zeros_like(mean))
    return np.exp((p * ratios).sum(axis=1).mean())
