"""What a metric is, for the table in scores.py: what it needs, and the function that computes it."""

from collections.abc import Callable
from typing import NamedTuple

from guided_diffusion.jobs import progress

# seconds after which a computation shows how far it is
PATIENCE = 5


class Found(NamedTuple):
    """What a metric finds.

    :ivar values: a float for each name of the metric; empty where it is undefined.
    :ivar error: standard error of the first, or None.
    :ivar notes: what is to be read with care; each goes on from the title, as in ": all images are alike".
    """

    values: tuple = ()
    error: float | None = None
    notes: tuple = ()


class Metric(NamedTuple):
    """A line of the table: numbers that are computed together.

    :ivar titles: {name, as --metrics and --json have it: title in print} of each.
    :ivar needs: numbers of (reference images, sampled images) of which it needs the features, at least; 0 where it
        reads the moments alone, which may be stored statistics.
    :ivar compute: `(reference, samples, flags, weights) -> Found`, of the Activations of both, ScoreFlags, and the
        weights [2048, 1008] of Inception's logits, None with other features.
    :ivar inception: True where it is of Inception features alone, False where of others alone, None of any.
    :ivar published: whether guided-diffusion's evaluator prints it, so that it is computed unless others are asked for.
    :ivar asked: whether it is computed only where --metrics names it.
    """

    titles: dict
    needs: tuple
    compute: Callable
    inception: bool | None = None
    published: bool = False
    asked: bool = False

    def enough(self, reference, samples):
        """Whether there are as many images as it needs, of two Activations."""
        return reference.count >= self.needs[0] and samples.count >= self.needs[1]


def counted(count, noun):
    """A number of things in words: 1 sample, 2 samples."""
    return f"{count} {noun}" + "s" * (count != 1)


def working(steps, name):
    """As `progress.shown`, of a computation of so many steps that mostly takes no time."""
    return progress.shown(steps, 0, "step", name, after=PATIENCE)
