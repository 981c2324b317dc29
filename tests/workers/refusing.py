"""Rank 1 alone refuses its input in a script's body, while rank 0 waits for it."""

from guided_diffusion import dist_util
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import launch


def body(parsed):
    if dist_util.rank() == 1:
        raise UserError("the disk of rank 1 is full")
    dist_util.barrier()


launch.run("refusing", __doc__, [], body)
