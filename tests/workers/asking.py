"""asking.py COUNT [MARK]: so many units of a fifth of a second, a question after each; `stop` where one says yes."""

import os
import sys
import time

from guided_diffusion import dist_util
from guided_diffusion.jobs import interruption


def say(line):
    os.write(1, f"{line}\n".encode())  # in one piece: an unbuffered print lets the other rank in before the newline


dist_util.setup_dist("cpu")
with interruption.awaited() as asked:
    for unit in range(int(sys.argv[1])):
        say(f"rank {dist_util.rank()} unit {unit}")
        time.sleep(0.2)
        if number := asked():
            say(f"rank {dist_util.rank()} did {unit + 1}")
            interruption.stop(number, "begin again")
dist_util.cleanup()
