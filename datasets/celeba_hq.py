"""CelebA-HQ at 256 pixels, from a folder or zip of its pictures.

    python datasets/celeba_hq.py --data_dir celeba_hq_256 --out_dir data/celeba_hq256

Pictures of 256 pixels are taken as they are, as ADM-ES took them; larger ones (1024 pixels) are halved by averaging,
as ADM's training does. `--split train` takes the folder of that name, where the download is parted into train (27,000)
and valid or val (3,000).
"""

import os

import pictures
import sources

from guided_diffusion.errors import UserError

SPLITS = {"all": ("",), "train": ("train",), "valid": ("valid", "val")}


def open_source(args):
    """The Source of the pictures of the split in the order of their names."""
    folders = [os.path.join(args.data_dir, name) for name in SPLITS[args.split]]
    there = [folder for folder in folders if args.split == "all" or os.path.isdir(folder)]
    if not there:
        raise UserError(f"--split {args.split} expected the folder {folders[0]}, which is not there")
    return pictures.of_squares(there[0] if args.split != "all" else args.data_dir, 256, args.num_workers)


def main(argv=None):
    parser = sources.source_parser(
        "Write CelebA-HQ at 256 pixels.",
        "folder or .zip of the pictures, in one folder or parted into train and valid",
        out_dir="data/celeba_hq256",
        splits=list(SPLITS),
    )
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
