"""How much of the samples looks real, and how much of the real images is reached, by nearest neighbours.

Precision and recall: Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1. Density and coverage: Naeem et al. 2020,
arXiv:2002.09797, equations 3 and 4. Each image stands for the ball around it that reaches to its k-th neighbour
within its own set, itself not counted; a point on the surface is inside.
"""

import torch

from guided_diffusion import dist_util

from .distances import DISTANCES, fp32, in_strips
from .metric import Found, working

# the published evaluator's; its float16 rule decides block by block
BLOCK = 10000
NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


def radii(features, distance, k=NEIGHBOURS):
    """Squared distances [N] from each of features [N, D], N above k, to its k-th neighbour besides itself.

    :param distance: of DISTANCES, taken of BLOCK x BLOCK at once, of which memory holds a strip.
    """
    found = []

    def smallest(rows, d):
        return d.topk(min(k + 1, d.shape[1]), dim=1, largest=False).values.float()

    with working(len(_steps(features, features)), "radii") as add:
        for u in features.split(BLOCK):
            nearest = torch.empty(len(u), 0, device=features.device)
            for v in features.split(BLOCK):
                among = torch.cat([nearest, torch.cat(in_strips(u, v, distance, smallest))], dim=1)
                nearest = among.topk(min(k + 1, among.shape[1]), dim=1, largest=False, sorted=True).values
                add(1)
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
    with working(len(_steps(reference, samples)), "precision and recall") as add:
        for rows, columns in _steps(reference, samples):
            of_rows, of_columns = reference_radii[rows], sample_radii[columns]

            def inside(strip, d, of_rows=of_rows, of_columns=of_columns):
                return (d <= of_rows[strip, None]).any(dim=0), (d <= of_columns).any(dim=1)

            made, found = zip(*in_strips(reference[rows], samples[columns], distance, inside))
            real[columns] |= torch.stack(made).any(dim=0)
            reached[rows] |= torch.cat(found)
            add(1)
    return real.sum().item() / len(real), reached.sum().item() / len(reached)


def density_coverage(reference, samples, k=DENSITY_NEIGHBOURS):
    """(mean number of the reference's balls that hold a sample, divided by k; share of those balls with a sample).

    :param reference: features [N, D], N above k.
    :param samples: features [M, D].
    """
    reference_radii = radii(reference, fp32, k)
    held, covered = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    with working(len(_steps(reference, samples)), "density and coverage") as add:
        for rows, columns in _steps(reference, samples):
            of_rows = reference_radii[rows]

            def inside(strip, d, of_rows=of_rows):
                within = d <= of_rows[strip, None]
                return within.sum(), within.any(dim=1)

            counts, found = zip(*in_strips(reference[rows], samples[columns], fp32, inside))
            held += torch.stack(counts).sum().item()
            covered[rows] |= torch.cat(found)
            add(1)
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


def _steps(reference, samples):
    """(rows, columns) of each block."""
    rows, columns = (
        [slice(start, start + BLOCK) for start in range(0, len(features), BLOCK)] for features in (reference, samples)
    )
    return [(row, column) for row in rows for column in columns]
