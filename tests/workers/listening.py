"""A rank that says on which addresses it listens."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from open_sockets import sockets

from guided_diffusion import dist_util

dist_util.setup_dist("cpu")
dist_util.barrier()
dist_util.say(f"listens on {sorted({address for _, address, listens, _ in sockets() if listens})}")
dist_util.barrier()
dist_util.cleanup()
