"""Sources of single picture files, cropped and scaled as a data set wants it."""

from functools import partial

import numpy as np
import sources
from PIL import Image

from guided_diffusion.crops import center_crop_arr
from guided_diffusion.errors import UserError
from guided_diffusion.image_files import find_images, open_picture
from guided_diffusion.image_stream import read_ahead


def of_files(paths, pixels, size, num_workers, labels=None, classes=()):
    """The Source of files.

    :param paths: in their order; members of a zip too.
    :param pixels: (path, picture) -> uint8 [size, size, 3].
    """

    def read(start):
        return read_ahead(lambda path: pixels(path, open_picture(path)[0]), iter(paths[start:]), num_workers)

    return sources.Source(len(paths), read, (size, size, 3), labels, classes)


def of_squares(data_dir, size, num_workers):
    """The Source of a folder or zip of square pictures of that size; larger ones are scaled as ADM's training does."""
    return of_files(find_images(data_dir).paths, partial(square, size), size, num_workers)


def square(size, path, picture):
    """:raises UserError: for a picture that is no square, or is smaller."""
    if picture.width != picture.height or picture.width < size:
        raise UserError(f"{path} is {picture.width}x{picture.height}, expected {size}x{size}, or a larger square")
    return center_crop_arr(picture, size)


def boxed(picture, size):
    """The middle square of a picture whose smaller side was averaged down to `size`: the crop of ADM's LSUN."""
    scale = size / min(picture.size)
    width, height = (round(scale * side) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    return pixels[top : top + size, left : left + size]
