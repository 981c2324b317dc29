"""What a step takes, measured on the machine that is to do the work: the end of a dry run."""

import sys
import time

import torch

from .. import dist_util, logger


def tried(step, images, steps=1):
    """Take a step, and log its speed and the most memory that the process has had.

    :param step: called once; on a GPU a first call, which the speed leaves out, warms up before it.
    :param images: of the step, on this rank.
    :param steps: how many of them an image takes.
    """
    device = dist_util.dev()
    if device.type == "cuda":
        step()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    if device.type == "cuda":
        peak, whose = torch.cuda.max_memory_allocated(device), f"of {device}"
    else:
        peak, whose = _peak_of_process(), "of the process"
    speed = images * dist_util.world_size() / (seconds * steps)
    logger.log(f"one step of {images} images on each rank: {seconds:.3g} s; {speed:.3g} images per second in all")
    if peak is not None:
        logger.log(f"peak memory {whose}: {peak / 2**30:.2f} GiB")


def _peak_of_process():
    """The most memory that the process has had, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def count(network):
    """Log how many parameters a network has."""
    logger.log(f"parameters: {sum(p.numel() for p in network.parameters()):,}")
