"""CMMD (Jayasumana et al. 2024, "Rethinking FID: Towards a Better Evaluation Metric for Image Generation", section 4).

The squared maximum mean discrepancy of normalised features under a Gaussian kernel of bandwidth 10, times 1000; with
`--features clip:PATH` it is the paper's. As its release computes it, pairs of an image with itself count (the biased
estimate), which the paper's equation 4 leaves out: so two halves of one set are a little above 0.
"""

import torch

from .activations import float64_device
from .metric import Found, working

BANDWIDTH, SCALE = 10.0, 1000.0
# rows of kernel values at once
STRIP = 1000


def cmmd(reference, samples):
    """CMMD of features [N, D] and [M, D], in float64."""
    x, y = (_normalised(features.double()) for features in (reference, samples))
    with working(2 * len(x) + len(y), "CMMD") as add:
        within_x, within_y, between = _mean(x, x, add), _mean(y, y, add), _mean(x, y, add)
    return SCALE * (within_x + within_y - 2 * between)


def _normalised(features):
    return features / features.norm(dim=1, keepdim=True)


def _mean(x, y, add):
    """The mean over all pairs of the kernel less 1, which keeps the digits of kernels near 1."""
    total = 0.0
    for part in x.split(STRIP):
        distances = (2 - 2 * part @ y.T).clamp(min=0)  # of unit vectors, squared
        total += torch.expm1(distances / (-2 * BANDWIDTH**2)).sum().item()
        add(len(part))
    return total / (len(x) * len(y))


def score(reference, samples, flags, weights):
    """The Found of two Activations."""
    return Found((cmmd(*(images.features.to(float64_device()) for images in (reference, samples))),))
