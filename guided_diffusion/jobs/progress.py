"""How far a long job is: a bar on a terminal, lines in the log elsewhere."""

import contextlib
import sys
import time
from datetime import timedelta

from tqdm.auto import tqdm

from .. import dist_util, logger

LINE_EVERY = 30  # seconds


def _hidden():
    """Whether no bar is shown: on other ranks than 0, and where standard error is no terminal."""
    return not (sys.stderr.isatty() and dist_util.is_main())


def steps(records, total):
    """The records of a batch in turn, with a bar of its steps on a terminal, which goes with the last.

    :param records: an iterable of `total` steps.
    """
    return tqdm(records, total=total, unit="step", leave=False, disable=_hidden())


@contextlib.contextmanager
def shown(total, done, unit, name="", after=0):
    """Yield `add(count)`, which says that so many more are made; rank 0 shows their rate and the time left.

    :param total: how many there are in all.
    :param done: how many of them were there before.
    :param unit: what they are, such as "image".
    :param name: of the job, where a run has several.
    :param after: seconds before anything is shown, for what mostly takes less.
    """
    began = time.monotonic()
    count, last = done, 0.0
    terminal = sys.stderr.isatty()

    def add(more):
        nonlocal count, last
        count += more
        bar.update(more)
        passed = time.monotonic() - began
        due = passed - last >= LINE_EVERY or not last or count == total
        if not terminal and dist_util.is_main() and passed >= after and due:
            last = passed
            rate = (count - done) / passed
            left = timedelta(seconds=round((total - count) / rate))
            title = f"{name}: " if name else ""
            logger.log(f"{title}{count} of {total} {unit}s, {rate:.3g} {unit}s/s, {left} left")

    with tqdm(total=total, initial=done, unit=unit, desc=name or None, disable=_hidden(), delay=after) as bar:
        yield add
