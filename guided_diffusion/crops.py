"""ADM's crops: from a picture of any size to a square of pixels."""

import math
import random

import numpy as np


def center_crop_arr(pil_image, image_size):
    """ADM's centre crop: shrink until the smaller side is `image_size`, then keep the middle square.

    :return: uint8 [image_size, image_size, C], without the last axis for a grey image.
    """
    pixels = _scale_smaller_side(pil_image, image_size)
    top, left = ((side - image_size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(pil_image, image_size, min_crop_frac=0.8, max_crop_frac=1.0, rng=random):
    """ADM's random crop: a square that spans between the two fractions of the smaller side.

    :param rng: a `random.Random`, by default Python's global one, or a numpy Generator.
    :return: as of `center_crop_arr`.
    """
    below = rng.integers if isinstance(rng, np.random.Generator) else rng.randrange
    smallest, largest = (math.ceil(image_size / frac) for frac in (max_crop_frac, min_crop_frac))
    pixels = _scale_smaller_side(pil_image, smallest + int(below(largest - smallest + 1)))
    top, left = (int(below(side - image_size + 1)) for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def augmented(picture, size, random_crop, random_flip, rng):
    """Pixels of a crop, mirrored or not; `rng` as of `random_crop_arr`."""
    pixels = random_crop_arr(picture, size, rng=rng) if random_crop else center_crop_arr(picture, size)
    return mirrored(pixels, rng) if random_flip else pixels


def mirrored(pixels, rng):
    """The pixels [H, W, ...], mirrored left to right with probability 1/2."""
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _scale_smaller_side(pil_image, target):
    """Pixels of the image, scaled so that its smaller side is `target`.

    Halving by box first, as often as it goes, keeps the bicubic step below a factor of two, where it
    does not alias.
    """
    while min(pil_image.size) >= 2 * target:
        pil_image = _halved(pil_image)
    if min(pil_image.size) == target:
        return np.asarray(pil_image)
    scale = target / min(pil_image.size)
    size = [round(side * scale) for side in pil_image.size]
    from PIL import Image

    return np.asarray(pil_image.resize(size, Image.Resampling.BICUBIC))


def _halved(picture):
    """Half as wide and as high by Pillow's box filter.

    Where both sides are even, that is the mean of two neighbours in each row and then in each column, halves rounded
    up: here of all four bytes of a pixel at once, three times as fast. Of tall images Pillow halves the columns first.
    """
    from PIL import Image

    width, height = (side // 2 for side in picture.size)
    if picture.mode != "RGB" or picture.size != (2 * width, 2 * height) or height > 2 * width:
        return picture.resize((width, height), Image.Resampling.BOX)
    pixels = np.frombuffer(picture.tobytes("raw", "RGBX"), np.uint32).reshape(2 * height, 2 * width)
    rows = _means_of_bytes(pixels[:, ::2], pixels[:, 1::2])
    both = _means_of_bytes(rows[::2], rows[1::2])
    return Image.frombytes("RGB", (width, height), both.tobytes(), "raw", "RGBX")


def _means_of_bytes(a, b):
    """(x + y + 1) // 2 of each byte of uint32 arrays: x | y has what the mean of x and y has beyond half of x ^ y."""
    return (a | b) - (((a ^ b) >> 1) & 0x7F7F7F7F)
