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
from guided_diffusion.image_arrays import read_arrays
from guided_diffusion.image_files import images_below
from guided_diffusion.jobs.terminal import lasting


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
    refuse_others(folder, names, images.shape[1:3])
    refuse_another(folder + ".npz", images)
    for name, image in zip(names, images):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(os.path.join(folder, name))
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": np.asarray(labels, dtype=np.int64)})
    files.write_npz(folder + ".npz", arrays | ({"classes": classes} if classes else {}))
    return folder, folder + ".npz"


def sweep(path):
    """Delete what killed commands left unfinished of a file."""
    files.remove_unfinished(os.path.dirname(path), time.time(), re.escape(os.path.basename(path)))


def refuse_others(folder, names, size):
    """Validate that a folder holds no image but PNGs of these names, as a command that was killed left them.

    :param size: (height, width) of the images.
    :raises UserError: for others, since a reader would mix the two, and for those that would be replaced.
    """
    there = {os.path.relpath(path, folder) for path in images_below(folder)}
    foreign = there - set(names) or {name for name in there if not _has_size(os.path.join(folder, name), size)}
    if foreign:
        raise UserError(f"--out_dir {folder} holds {min(foreign)} of another data set, expected an empty folder")


def _has_size(path, size):
    try:
        with Image.open(path) as image:
            return (image.height, image.width) == tuple(size)
    except OSError:
        return True  # cut short when its command was killed


def refuse_another(path, images):
    """Validate that nothing lies where an .npz is to be written but an earlier one of these images, fewer or more.

    :param images: uint8 [N, H, W, C], those that are to be written or the first of them.
    :raises UserError: for anything else.
    """
    if not os.path.exists(path):
        return
    try:
        there = read_arrays(path)[0]
        alike = np.array_equal(there[: len(images)], images[: len(there)])
    except UserError:
        alike = False
    if not alike:
        raise UserError(f"{path} is there, and of another data set; expected another --out_dir, or that it is removed")


def parser(description, out_dir, image_size=None, splits=(), sizes=None):
    """The flags every data set shares, as an ArgumentParser: --out_dir, --image_size and, with splits, --split.

    :param image_size: the default; None for images of one size alone, without the flag.
    :param sizes: of which the size has to be one.
    """
    p = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--out_dir", type=_named, default=out_dir, help="folder to write; the .npz lies beside it")
    if image_size:
        p.add_argument(
            "--image_size", type=up_to(SIDE), default=image_size, choices=sizes, help="height and width in pixels"
        )
    if splits:
        p.add_argument("--split", choices=splits, default=splits[0], help="which part of the images to write")
    return p


def _named(text):
    """The `type` of a path that has to be given."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; expected the path of a folder")
    return text


def expect_memory(images, size, channels=3):
    """Validate that a memory holds so many images of size by size.

    :raises UserError: if it does not.
    """
    needed, there = images * size**2 * channels, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{images:,} images of {size}x{size} are {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB of memory; expected fewer, or a smaller --image_size"
        )


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


def say(call, args, stopped="stopped: nothing was finished"):
    """Print what `call(args)` returns; a ValueError or an OSError exits with 2 and its sentence, Ctrl-C with 130."""
    with lasting():
        try:
            print(call(args))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print(stopped, file=sys.stderr)
            sys.exit(130)
