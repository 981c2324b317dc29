"""The one way a data set is written: a folder of PNG files, and the same images in an .npz beside it.

That is for sets that fit in memory; sources.py writes larger ones as they are read.
"""

import argparse
import os
import re
import sys
import time

import numpy as np
from PIL import Image

from guided_diffusion import files
from guided_diffusion.errors import UserError
from guided_diffusion.flags import SIDE, whole


def write_images(out_dir, images, labels=None, classes=None):
    """Write `<class>_<index>.png`, or `<index>.png` without labels, into `out_dir`, and `<out_dir>.npz`.

    :param images: uint8 [N, H, W, C] of 1, 3 or 4 channels; arr_0 in the .npz.
    :param labels: integers [N]; arr_1 in the .npz, as int64.
    :param classes: the name of each label, sorted; `classes` in the .npz. None calls them by their numbers.
    :return: the absolute paths of both.
    :raises ValueError: if the folder already holds a PNG of another data set, since a reader would mix the two.
    """
    folder = os.path.abspath(out_dir)
    prefixes = [""] * len(images) if labels is None else [f"{classes[i] if classes else i}_" for i in labels]
    names = [f"{prefix}{index:05d}.png" for index, prefix in enumerate(prefixes)]
    os.makedirs(folder, exist_ok=True)
    sweep(folder + ".npz")
    refuse_others(folder, names)
    for name, image in zip(names, images):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(os.path.join(folder, name))
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": np.asarray(labels, dtype=np.int64)})
    files.write_npz(folder + ".npz", arrays | ({"classes": classes} if classes else {}))
    return folder, folder + ".npz"


def sweep(path):
    """Delete what killed commands left unfinished of a file."""
    files.remove_unfinished(os.path.dirname(path), time.time(), re.escape(os.path.basename(path)))


def refuse_others(folder, names):
    """:raises UserError: if a folder holds a PNG of another name, since a reader would mix the two."""
    foreign = {name for name in os.listdir(folder) if name.endswith(".png") and name[0] != "."} - set(names)
    if foreign:
        raise UserError(f"--out_dir {folder} holds {min(foreign)} of another data set, expected an empty folder")


def parser(description, out_dir, image_size=None, splits=(), sizes=None):
    """The flags every data set shares, as an ArgumentParser: --out_dir, --image_size and, with splits, --split.

    :param image_size: the default; None for images of one size alone, without the flag.
    :param sizes: of which the size has to be one.
    """
    p = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--out_dir", default=out_dir, help="folder to write; the .npz lies beside it")
    if image_size:
        p.add_argument(
            "--image_size", type=up_to(SIDE), default=image_size, choices=sizes, help="height and width in pixels"
        )
    if splits:
        p.add_argument("--split", choices=splits, default=splits[0], help="which part of the images to write")
    return p


def up_to(most):
    """The `type` of a flag of argparse: the whole numbers up to `most`, which a memory holds, in ASCII digits."""

    def count(text):
        value = whole(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{value} is too large; expected at most {most}")
        return value

    count.__name__ = "int"  # what argparse calls it in its errors
    return count


def run(make, args):
    """Write what `make(args)` returns, the arguments of `write_images`, and say where; errors as of `say`."""

    def written(args):
        images, *named = make(args)
        paths = write_images(args.out_dir, images, *named)
        height, width = images.shape[1:3]
        return f"wrote {len(images):,} images of {height}x{width} to {paths[0]} and {paths[1]}"

    say(written, args)


def say(call, args):
    """Print what `call(args)` returns; a ValueError or an OSError exits with 2 and its sentence."""
    try:
        print(call(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
