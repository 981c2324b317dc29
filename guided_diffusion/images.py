"""From tensors to bytes and pictures."""

import io
import math

import numpy as np
import torch
from PIL import Image

from . import files

# channels of an image: what Pillow calls it
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# what stands between images, opaque
GREY = (128, 128, 128, 255)


def to_uint8(x):
    """uint8 [N, H, W, C] of images [N, C, H, W] in [-1, 1], by ADM's rule: (x + 1) * 127.5, clamped, truncated."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


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
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def save_grid(path, images, columns=None):
    """Write a grid as PNG; small images are enlarged so that a person sees them.

    :param path: local, or any address blobfile writes.
    :param images: uint8 [N, H, W, C] of 1, 3 or 4 channels.
    """
    picture = as_picture(grid(images, columns))
    scale = max(1, 64 // images.shape[1])
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    files.write_bytes(path, data.getbuffer())
