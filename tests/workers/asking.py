"""Units of work, a question after each; `stop` where one says yes.

A unit ends with a line of standard input, or after a fifth of a second where no more lines can come.
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
        sys.stdin.readline() or time.sleep(0.2)
        if number := asked():
            say(f"rank {dist_util.rank()} did {unit + 1}")
            interruption.stop(number, "begin again")
dist_util.cleanup()
