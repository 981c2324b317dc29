"""asking.py [lines]: units of work, a question after each; `stop` where one says yes.

A unit takes a fifth of a second, or, with `lines`, until a line of standard input comes.
"""

import os
import sys
import time

from guided_diffusion import dist_util
from guided_diffusion.jobs import interruption


def say(line):
    os.write(1, f"{line}\n".encode())  # in one piece: an unbuffered print lets the other rank in before the newline


dist_util.setup_dist("cpu")
with interruption.awaited() as asked:
    for unit in range(1000):
        say(f"rank {dist_util.rank()} process {os.getpid()} unit {unit}")
        sys.stdin.readline() if sys.argv[1:] else time.sleep(0.2)
        if number := asked():
            say(f"rank {dist_util.rank()} did {unit + 1}")
            interruption.stop(number, "begin again")
dist_util.cleanup()
