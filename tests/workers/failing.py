"""Rank 1 fails in the way given while rank 0 waits for it."""

import sys

from guided_diffusion import dist_util
from guided_diffusion.errors import UserError

FAILURES = {
    "bug": RuntimeError("rank one is broken"),
    "user": UserError("--batch_size 0: expected a positive number"),
}


def main(failure):
    dist_util.setup_dist("cpu")
    dist_util.barrier()
    if dist_util.rank() == 1:
        raise FAILURES[failure]
    dist_util.barrier()


main(*sys.argv[1:])
