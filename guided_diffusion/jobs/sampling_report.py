"""What a sampling run says of its steps and of what they cost."""

import json

import torch

from .. import dist_util, files, logger


def log_grid(diffusion):
    """Print the timesteps that sampling visits, and save all of them as grid.json in the output folder, on rank 0."""
    times = [*reversed(diffusion.timestep_map), -1]
    if dist_util.is_main():
        shown = times if len(times) <= 60 else [*times[:5], "...", *times[-5:]]
        logger.log(f"{len(times) - 1} steps by way of the timesteps: " + " ".join(map(str, shown)))
        files.write_text(files.join(logger.get_dir(), "grid.json"), json.dumps(times) + "\n")


def log_calls(diffusion, images=None):
    """Print how often the network was asked for an image, over all ranks: images are compared at equal calls.

    :param images: of all ranks; by default those whose sampling was begun.
    """
    counts = torch.tensor([diffusion.network_calls, diffusion.images_begun], dtype=torch.int64)
    calls, begun = dist_util.all_reduce_sum(counts.to(dist_util.dev())).tolist()
    images = begun if images is None else images
    if images and dist_util.is_main():
        logger.log(f"network calls: {calls / images:g} for each of {images:g} images")
