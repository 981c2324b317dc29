"""Log means of different weight on every rank; rank 0 also says what `dumpkvs` returned."""

import sys

from guided_diffusion import dist_util, logger


def main(folder):
    dist_util.setup_dist("cpu")
    logger.configure(folder)
    rank = dist_util.rank()
    logger.logkv("step", 7 + rank)
    # rank 0 logs 1, rank 1 logs 5, 5, 5: the mean over all calls is 4
    for _ in range(1 + 2 * rank):
        logger.logkv_mean("loss", 1.0 + 4 * rank)
    if rank == 1:
        logger.logkv_mean("only_there", 3.0)
    logger.info("hello from", rank)
    logger.dumpkvs()
    dist_util.cleanup()


main(*sys.argv[1:])
