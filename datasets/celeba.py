"""CelebA at 64 pixels, from the folder or zip img_align_celeba, in either of the two published crops.

    python datasets/celeba.py --data_dir img_align_celeba --out_dir data/celeba64 --crop fork

fork: the whole picture of 178x218 pressed into a square by OpenCV's bilinear interpolation, which DDPM-IP and ADM-ES
    train and measure on (their celeba64_npz.py); all 202,599 pictures.
ddim: the 128 pixels around (89, 121) scaled by Pillow's bilinear filter, as in DDIM and many papers after it, which
    train on `--split train` (162,770 pictures).
"""

import cv2
import numpy as np
import pictures
import sources
from PIL import Image

from guided_diffusion import files
from guided_diffusion.errors import UserError
from guided_diffusion.image_files import find_images

SIZE = 64
SPLITS = ["all", "train", "valid", "test"]  # but for all, at their number in list_eval_partition.txt


def fork(picture):
    """uint8 [64, 64, 3] of the whole picture."""
    return cv2.resize(np.asarray(picture), (SIZE, SIZE))


def ddim(picture):
    """uint8 [64, 64, 3] of the face."""
    return np.asarray(picture.crop((25, 57, 153, 185)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


CROPS = {"fork": fork, "ddim": ddim}


def open_source(args):
    """The Source of the pictures of the split in the order of their names."""
    paths = find_images(args.data_dir).paths
    if args.split != "all":
        part = partition(args)
        missing = [path for path in paths if _name(path) not in part]
        if missing:
            raise UserError(f"--partition {args.partition} does not list {_name(missing[0])}")
        paths = [path for path in paths if part[_name(path)] == args.split]

    def pixels(path, picture):
        if picture.size != (178, 218):
            raise UserError(f"{path} is {picture.width}x{picture.height}, expected 178x218 as in img_align_celeba")
        return CROPS[args.crop](picture)

    return pictures.of_files(paths, pixels, SIZE, args.num_workers)


def partition(args):
    """{name of a picture: its split}."""
    if not args.partition:
        raise UserError(f"--split {args.split} needs --partition, the file list_eval_partition.txt of CelebA")
    try:
        text = files.read_text(args.partition)
    except UnicodeDecodeError as error:
        raise UserError(f"--partition {args.partition} is no text in UTF-8 ({error})") from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if len(line) != 2 or line[1] not in ("0", "1", "2"):
            raise UserError(f"--partition {args.partition}: line {number} is no picture with 0, 1 or 2 behind it")
    return {name: SPLITS[1 + int(number)] for name, number in lines}


def _name(path):
    return path.rpartition("/")[2]


def main(argv=None):
    parser = sources.source_parser(
        "Write CelebA at 64 pixels.", "folder or .zip img_align_celeba", out_dir="data/celeba64", splits=SPLITS
    )
    parser.add_argument("--crop", choices=CROPS, required=True, help="of DDPM-IP and ADM-ES (fork), or of DDIM")
    parser.add_argument("--partition", default="", help="list_eval_partition.txt, for a split other than all")
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
