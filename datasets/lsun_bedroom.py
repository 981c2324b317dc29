"""The published command of guided-diffusion for LSUN, with its files <prefix>_0000000.png: datasets/lsun.py has more.

python datasets/lsun_bedroom.py bedroom_train_lmdb lsun_train_output_dir
"""

import argparse

import lsun
import numpy as np
import sources
import writer

from guided_diffusion.errors import UserError
from guided_diffusion.flags import SIDE


def open_source(args):
    """The Source of the pictures, all of one class."""
    if not args.prefix.isalnum():
        raise UserError(f"--prefix is {args.prefix!r}, expected letters and digits, for a class ends at the first _")
    source = lsun.open_source(args)
    source.labels, source.classes = np.zeros(source.count, np.int64), (args.prefix,)
    return source


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write a category of LSUN as PNG files.", allow_abbrev=False)
    parser.add_argument(
        "--image-size", type=writer.up_to(SIDE), default=256, help="height and width in pixels (default: 256)"
    )
    parser.add_argument("--prefix", default="bedroom", help="class of the files (default: bedroom)")
    parser.add_argument("data_dir", metavar="lmdb_path", help="folder of the lmdb database")
    parser.add_argument("out_dir", help="folder to write")
    parser.set_defaults(resize="fork", format="png", num_workers=4)
    sources.convert(open_source, parser.parse_args(argv), digits=7)


if __name__ == "__main__":
    main()
