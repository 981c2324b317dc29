"""asking.py COUNT: so many units of a fifth of a second, with a question after each; `stop` where one says yes."""

import sys
import time

from guided_diffusion import dist_util, interruption

dist_util.setup_dist("cpu")
with interruption.awaited() as asked:
    for unit in range(int(sys.argv[1])):
        print(f"rank {dist_util.rank()} unit {unit}", flush=True)
        time.sleep(0.2)
        if number := asked():
            print(f"rank {dist_util.rank()} did {unit + 1}", flush=True)
            interruption.stop(number, "begin again")
dist_util.cleanup()
