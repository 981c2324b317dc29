"""ImageNet from the ILSVRC2012 folder, centre-cropped and scaled as ADM's training does, with 1,000 classes.

    python datasets/imagenet.py --data_dir ILSVRC2012/train --out_dir data/imagenet64 --image_size 64

A class is its WordNet id, which is a sub-folder (train/n01440764/n01440764_2708.JPEG) or, where all lie in one folder,
the beginning of the file's name. Their sorted ids are the numbers 0 to 999 of the published checkpoints.
"""

import re

import numpy as np
import pictures
import sources

from guided_diffusion import image_labels
from guided_diffusion.crops import center_crop_arr
from guided_diffusion.errors import UserError
from guided_diffusion.image_files import find_images


def open_source(args):
    """The Source of the pictures in the order of their paths."""
    paths = find_images(args.data_dir).paths
    _, names = image_labels.names_of_files(args.data_dir, paths)
    for path, name in zip(paths, names):
        if not re.fullmatch(r"n\d{8}", name):
            raise UserError(f"{path} has the class {name}, expected a WordNet id such as n01440764")
    classes, labels = np.unique(names, return_inverse=True)
    size = args.image_size
    return pictures.of_files(
        paths, lambda _, picture: center_crop_arr(picture, size), size, args.num_workers, labels, classes.tolist()
    )


def main(argv=None):
    parser = sources.source_parser(
        "Write ImageNet.",
        "folder of ILSVRC2012's pictures, such as its train",
        out_dir="data/imagenet64",
        image_size=64,
    )
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
