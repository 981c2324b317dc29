"""Read five images of a folder in order; each rank saves its own as OUT/RANK.npz."""

import sys

import numpy as np

from guided_diffusion import dist_util
from guided_diffusion.image_datasets import load_data


def main(folder, out, size):
    dist_util.setup_dist()
    told = dict(batch_size=5, image_size=int(size), deterministic=True, random_flip=False)
    images, _ = next(load_data(data_dir=folder, **told))
    np.savez(f"{out}/{dist_util.rank()}.npz", arr_0=images.numpy())


main(*sys.argv[1:])
