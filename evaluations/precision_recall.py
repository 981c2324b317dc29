"""How much of the samples looks real, and how much of the real images is reached, by nearest neighbours.

Precision and recall: Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1. Density and coverage: Naeem et al. 2020,
arXiv:2002.09797, equations 3 and 4. Each image stands for the ball around it that reaches to its k-th neighbour
within its own set, itself not counted; a point on the surface is inside.
"""

import torch

from guided_diffusion import dist_util

from .distances import DISTANCES, fp32
from .metric import Found

# the published evaluator's; its float16 rule decides block by block
BLOCK = 10000
NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


def radii(features, distance, k=NEIGHBOURS):
    """Squared distances [N] from each of features [N, D], N above k, to its k-th neighbour besides itself.

    :param distance: `(u [n, D], v [m, D]) -> squared distances [n, m]`, of which at most BLOCK x BLOCK are
        computed at once.
    """
    found = []
    for u in features.split(BLOCK):
        nearest = torch.empty(len(u), 0, device=features.device)
        for v in features.split(BLOCK):
            among = torch.cat([nearest, distance(u, v).float()], dim=1)
            nearest = among.topk(min(k + 1, among.shape[1]), dim=1, largest=False, sorted=True).values
        found.append(nearest[:, k])
    return torch.cat(found)


def precision_recall(reference, samples, distance=fp32, k=NEIGHBOURS):
    """(share of samples inside a ball of the reference, share of the reference inside a ball of the samples).

    :param reference: features [N, D], N above k.
    :param samples: features [M, D], M above k.
    :param distance: as for `radii`.
    """
    reference_radii, sample_radii = (radii(features, distance, k) for features in (reference, samples))
    real = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    reached = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows, columns in _blocks(reference, samples):
        d = distance(reference[rows], samples[columns])
        real[columns] |= (d <= reference_radii[rows, None]).any(dim=0)
        reached[rows] |= (d <= sample_radii[columns]).any(dim=1)
    return real.sum().item() / len(real), reached.sum().item() / len(reached)


def density_coverage(reference, samples, k=DENSITY_NEIGHBOURS):
    """(mean number of the reference's balls that hold a sample, divided by k; share of those balls with a sample).

    :param reference: features [N, D], N above k.
    :param samples: features [M, D].
    """
    reference_radii = radii(reference, fp32, k)
    held, covered = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows, columns in _blocks(reference, samples):
        inside = fp32(reference[rows], samples[columns]) <= reference_radii[rows, None]
        held += inside.sum().item()
        covered[rows] |= inside.any(dim=1)
    return held / (k * len(samples)), covered.sum().item() / len(covered)


def score(reference, samples, flags, weights):
    """The Found of two Activations: precision and recall."""
    distance = DISTANCES[flags.distance(inception=weights is not None)]
    return Found(precision_recall(*_on_device(reference, samples), distance))


def density_score(reference, samples, flags, weights):
    """The Found of two Activations: density and coverage."""
    return Found(density_coverage(*_on_device(reference, samples)))


def _on_device(*activations):
    return [images.features.to(dist_util.dev()) for images in activations]


def _blocks(reference, samples):
    for row in range(0, len(reference), BLOCK):
        for column in range(0, len(samples), BLOCK):
            yield slice(row, row + BLOCK), slice(column, column + BLOCK)
