"""Signals as a question: a loop asks between two units of work whether it should stop.

SIGTERM and Ctrl-C; SIGHUP, when the terminal is closed, unless it was ignored as under nohup; and SIGUSR1, which SLURM
sends before a job's time is over where it is told to (--signal=USR1@60).

with interruption.awaited() as asked:
    for unit in work:
        do(unit)
        if number := asked():
            interruption.stop(number, "the same command continues")
"""

import contextlib
import os
import signal
import sys
import time

import torch

from .. import dist_util

# SIGUSR1, SIGUSR2 and SIGXCPU are those of batch systems before a time limit; Windows has but the first two
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

# in place of a signal's number
TROUBLE = -1

# A terminal and a launcher may both pass on one Ctrl-C: what comes within so many seconds is the same request.
SAME_REQUEST = 1.0


@contextlib.contextmanager
def awaited():
    """Yield `asked(trouble=False) -> int`: the signal that some rank has got in this with-block, 0 for none.

    It is TROUBLE where there is no signal and some rank has called it with True: it cannot go on.

    Every rank has to call `asked` at the same places, for the answer is the same on all of them: a signal that
    reaches one rank stops all. Meanwhile signals do not end the process; but a second one, `SAME_REQUEST` seconds or
    more after the first, does what it did before the block, which is to end at once. The handlers of before come
    back after the block. Only the main thread may use it.
    """
    counts = dict.fromkeys(SIGNALS, 0)
    first = None

    def note(number, frame):
        nonlocal first
        if first is not None and time.monotonic() - first >= SAME_REQUEST:
            restore()
            os.kill(os.getpid(), number)
            return
        if first is None:
            first = time.monotonic()
        counts[number] += 1

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(trouble=False):
        noted = [*(float(counts[number]) for number in SIGNALS), float(trouble)]
        everywhere = dist_util.all_reduce_sum(torch.tensor(noted))
        return next((int(number) for number, count in zip([*SIGNALS, TROUBLE], everywhere) if count), 0)

    heard = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield asked
    finally:
        restore()


def stop(number, advice):
    """End the run in order, on every rank, with exit status 128 + `number`: 130 for Ctrl-C, 143 for SIGTERM.

    :param number: of the signal, as `asked` returned it.
    :param advice: how to continue; rank 0 prints it to standard error.
    :raises SystemExit: always.
    """
    if dist_util.is_main():
        dist_util.say(f"stopped by {signal.Signals(number).name}: {advice}")
    dist_util.cleanup()
    sys.exit(128 + number)
