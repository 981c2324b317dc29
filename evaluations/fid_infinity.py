"""The Frechet distance of infinitely many samples (Chong and Forsyth 2020, arXiv:1911.07023, section 4).

The distance of N samples is too high by about a constant over N. So it is taken at several N, a line is fitted over
1/N, and its value at 0 is the answer. Departures: subsets have their classes in turn where the samples have, and at
each N it is the mean over all subsets that do not overlap.
"""

import numpy as np

from .fid import distance_from
from .jackknife import dealt, sum_of
from .metric import counted, working

# numbers of samples that the line is fitted through, and the smallest as a share of all: as in the paper
POINTS, SMALLEST = 15, 0.1
# samples for each dimension from which on the distance is about linear in 1/N
ENOUGH = 2.4


def extrapolated(features, reference, labels=None, seed=0):
    """(the distance of features [N, D] extrapolated to infinite N, notes on it).

    :param reference: Moments, which are taken as exact.
    :param labels: int [N] of the classes, or None where they are not known.
    :param seed: of the subsets.
    :return: the value is None where there are too few samples; it may be below 0.
    """
    count, dimension = features.shape
    order, unit = dealt(count, labels, seed)
    smallest, notes = max(SMALLEST * count, ENOUGH * dimension), ()
    if smallest > count / 2:
        notes = (
            f" is unreliable: {counted(count, 'sample')} are few for {dimension} dimensions, expected at least "
            f"{round(2 * ENOUGH * dimension)}",
        )
        smallest = count / 2
    sizes = sorted({int(size) // unit * unit for size in np.linspace(smallest, count, POINTS)} - {0, 1})
    if len(sizes) < 3:
        return None, (f" undefined: {counted(count, 'sample')} are too few",)
    distance, means = distance_from(reference), []
    with working(sum(count // size for size in sizes), "extrapolation") as add:
        for size in sizes:
            found = []
            for start in range(0, count - size + 1, size):
                found.append(distance(sum_of(features[order[start : start + size]], reference).moments()))
                add(1)
            means.append(np.mean(found))
    return float(np.polyfit(1 / np.array(sizes), means, 1)[1]), notes
