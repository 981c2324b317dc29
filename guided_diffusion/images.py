"""From tensors to bytes and pictures.

Pillow is imported where it is used: a script that only says its flags needs none.
"""

import io
import math

import numpy as np
import torch

from . import files

# channels of an image: what Pillow calls it
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# pixels of a line of text below an image
CAPTION = 12
# what stands between images, opaque
GREY = (128, 128, 128, 255)


def to_uint8(x, rounded=False):
    """uint8 [N, H, W, C] of images [N, C, H, W] in [-1, 1], by ADM's rule: (x + 1) * 127.5, clamped, truncated.

    :param rounded: round instead, so that 8-bit originals return unchanged.
    """
    levels = (x + 1) * 127.5 + 0.5 * rounded
    return levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images, columns=None):
    """One picture uint8 [H', W', C] of images uint8 [N, H, W, C], row by row, one grey pixel between them.

    :param columns: default the rounded-up square root of N.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), GREY[:channels], dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def as_picture(pixels):
    """The Pillow image of uint8 [H, W, C] for 1, 3 or 4 channels."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def save_pngs(folder, images, labels=None, names=None):
    """Write each image to a PNG of its own, `000007.png`, or `dog_000007.png` with labels.

    :param images: uint8 [N, H, W, C] of 1, 3 or 4 channels.
    :param labels: integers [N], or None.
    :param names: of the classes; all are called by their numbers where no file name can begin with one of them.
    """
    files.make_folder(folder)
    for name, image in zip(names_of_pngs(len(images), labels, names), images):
        data = io.BytesIO()
        as_picture(image).save(data, format="PNG")
        files.write_bytes(files.join(folder, name), data.getbuffer())


def names_of_pngs(count, labels=None, names=None):
    """The name of each file of `save_pngs`."""
    if labels is None:
        return [f"{index:06d}.png" for index in range(count)]
    fit = names and all(name and name.isprintable() and set("_/.\\").isdisjoint(name) for name in names)
    called = names if fit and min(labels) >= 0 and max(labels) < len(names) else None
    return [f"{called[label] if called else label}_{index:06d}.png" for index, label in enumerate(map(int, labels))]


def save_grid(path, images, columns=None, captions=None):
    """Write a grid as PNG; small images are enlarged so that a person sees them.

    :param path: local, or any address blobfile writes.
    :param images: uint8 [N, H, W, C] of 1, 3 or 4 channels.
    :param captions: a text below each image, or None.
    """
    from PIL import Image

    scale = max(1, 64 // images.shape[1])
    if captions is None:
        picture = as_picture(grid(images, columns))
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    else:
        large = images.repeat(scale, axis=1).repeat(scale, axis=2)
        picture = as_picture(grid(np.stack([_captioned(*pair) for pair in zip(large, captions)]), columns))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    files.write_bytes(path, data.getbuffer())


def _captioned(image, text):
    """The image uint8 [H, W, C] with a line of text below it, as far as it fits."""
    from PIL import ImageDraw, ImageFont, ImageOps

    picture = as_picture(image)
    below = ImageOps.expand(picture, (0, 0, 0, CAPTION), fill="white")
    line = text.encode("latin-1", "replace").decode("latin-1")  # what the font has, wherever it is from
    ImageDraw.Draw(below).text((1, picture.height), line, "black", ImageFont.load_default(CAPTION - 2))
    return np.asarray(below).reshape(below.height, below.width, -1)
