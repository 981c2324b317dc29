"""The standard error of a Frechet distance by the jackknife (Efron and Stein 1981, The jackknife estimate of variance).

Near its smallest values the distance is a square of random deviations, of which the jackknife finds twice the variance,
and the bootstrap more. So blocks are left out one by one and two by two, and what two do beyond the sum of both is
taken off: the paper's correction of the bias, which is exact for such squares.
"""

from itertools import combinations

import numpy as np
import torch

from .fid import MomentSum, distance_from
from .metric import counted, working

# blocks that are left out, at least and at most: many, but so that few samples are over
BLOCKS = (5, 10)


def in_turn(labels):
    """Whether classes have equally many samples, up to one, as if they were set and not drawn.

    :param labels: int [N], or None where they are not known.
    """
    if labels is None:
        return False
    counts = np.unique(labels, return_counts=True)[1]
    return len(counts) > 1 and counts.max() - counts.min() <= 1


def dealt(count, labels=None, seed=0):
    """(an order [N] of samples at random, n): every n in a row from a multiple of n on are of n different classes.

    n is the number of classes where they are in turn, else 1.
    """
    order = np.random.default_rng(seed).permutation(count)
    if not in_turn(labels):
        return order, 1
    _, kinds, counts = np.unique(np.asarray(labels)[order], return_inverse=True, return_counts=True)
    place = np.empty(count, int)  # of each sample among those of its class
    place[np.argsort(kinds, kind="stable")] = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.lexsort((kinds, place))], len(counts)


def standard_error(features, reference, labels=None, seed=0):
    """(standard error, notes on it) of the Frechet distance of features [N, D] from a reference, which stays.

    Where classes are in turn it is that of drawing anew within each class, else that of drawing anew among all.

    :param reference: Moments.
    :param labels: int [N] of the classes, or None where they are not known.
    :param seed: of the blocks.
    :return: the error is None where there are too few samples.
    """
    count, dimension = features.shape
    order, unit = dealt(count, labels, seed)
    notes = ()
    if labels is None:
        notes = (
            " standard error is that of independent samples: too high if their classes were in turn, as there are no "
            "labels (arr_1 of an npz)",
        )
    elif unit > 1 and count // unit < BLOCKS[0]:
        notes = (
            " standard error is that of classes at random, so too high: by class it needs at least "
            f"{BLOCKS[0]} samples of each",
        )
        order, unit = dealt(count, None, seed)
    rounds = count // unit
    if rounds < BLOCKS[0]:
        return None, (f" standard error undefined: expected at least {BLOCKS[0]} samples, found {count}",)
    blocks = max(range(BLOCKS[0], BLOCKS[1] + 1), key=lambda number: number * (rounds // number * number))
    size = rounds // blocks * unit
    if count - 2 * size <= dimension:
        notes += (
            f" standard error is unreliable: {counted(count, 'sample')} for {dimension} dimensions leave singular "
            "covariances when some are left out",
        )
    parts = [sum_of(features[order[start * size : (start + 1) * size]], reference) for start in range(blocks)]
    whole, distance = sum_of(features, reference), distance_from(reference)
    with working(1 + blocks + blocks * (blocks - 1) // 2, "standard error") as add:

        def without(*left_out):
            add(1)
            return distance(whole.without(*(parts[i] for i in left_out)).moments())

        variance = jackknife_variance(without, blocks)
    return float(np.sqrt(variance * blocks * size / count)), notes


def jackknife_variance(without, blocks):
    """The variance of a statistic by leaving out one and two of its blocks.

    :param without: `(*numbers of blocks that are left out) -> the statistic of the others`.
    :param blocks: their number.
    """
    whole, single = without(), np.array([without(i) for i in range(blocks)])
    both = [
        blocks * whole - (blocks - 1) * (single[i] + single[j]) + (blocks - 2) * without(i, j)
        for i, j in combinations(range(blocks), 2)
    ]
    first = (blocks - 1) ** 2 / blocks * single.var(ddof=1)
    second = np.square(both - np.mean(both)).sum() / (blocks * (blocks - 1))
    # the variance of a square alone is found twice
    return max(first - second, first / 2)


def sum_of(features, reference):
    """The MomentSum of features [N, D], where the reference lies."""
    total = MomentSum(features.shape[1], reference.mean.device)
    for part in torch.as_tensor(features).split(1000):
        total.add(part)
    return total
