"""The scores of several sets of samples as one table: Markdown, csv and a picture."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guided_diffusion import files

from .comparison.pictures import FONT_SIZE, SMALLEST, images_in_a_row
from .scores import ERROR, title
from .tables import csv_bytes, markdown_table

# images of a row of the picture
SHOWN = 10
GAP = 10


class Row(NamedTuple):
    """A set of samples.

    :ivar name: of the row.
    :ivar count: number of samples.
    :ivar scores: {name: float}, with standard errors as ScoreFlags.chosen names have them.
    :ivar images: uint8 [n, H, W, C] to show; none for n = 0.
    """

    name: str
    count: int
    scores: dict
    images: np.ndarray


def first_images(images):
    """The first few images [n, H, W, C] of an ImageSet."""
    return next(images.batches(SHOWN, 0, 1), (0, np.empty((0, 1, 1, 3), np.uint8)))[1]


def save(rows, folder):
    """Write scores.md, scores.csv and scores.png."""
    files.write_text(files.join(folder, "scores.md"), markdown(rows))
    files.write_bytes(files.join(folder, "scores.csv"), csv_table(rows))
    data = io.BytesIO()
    picture(rows).save(data, format="PNG")
    files.write_bytes(files.join(folder, "scores.png"), data.getbuffer())


def markdown(rows):
    """A line for each row, four digits of each score and its standard error."""
    names = _names(rows)
    lines = [[row.name, str(row.count), *(_cell(row, name) for name in names)] for row in rows]
    return markdown_table([["samples", "count", *map(title, names)], *lines])


def csv_table(rows):
    """A line for each row, all digits, standard errors in columns of their own, as bytes."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    lines = [[row.name, row.count, *(row.scores.get(name, "") for name in names)] for row in rows]
    return csv_bytes([["samples", "count", *names], *lines])


def picture(rows, side=48):
    """A Pillow image: of each row its name, its images, its scores and their standard errors.

    :param side: images are enlarged by whole factors up to about so many pixels.
    """
    font, names = ImageFont.load_default(FONT_SIZE), _names(rows)
    columns = [["samples", *(row.name for row in rows)]]
    columns += [[title(name), *(_cell(row, name) for row in rows)] for name in names]
    strips = [images_in_a_row(row.images, side) if len(row.images) else Image.new("RGB", (1, 1)) for row in rows]
    widths = [max(round(font.getlength(text)) for text in column) + GAP for column in columns]
    line, shown = max(SMALLEST, *(strip.height for strip in strips)) + 2, max(strip.width for strip in strips) + GAP
    canvas = Image.new("RGB", (GAP + sum(widths) + shown, SMALLEST + line * len(rows)), "white")
    draw, x = ImageDraw.Draw(canvas), GAP
    for place, (column, width) in enumerate(zip(columns, widths)):
        draw.text((x, SMALLEST // 2), column[0], fill="dimgrey", font=font, anchor="lm")
        for number, text in enumerate(column[1:]):
            draw.text((x, SMALLEST + line * number + line // 2), text, fill="black", font=font, anchor="lm")
        x += width
        if place == 0:
            for number, strip in enumerate(strips):
                canvas.paste(strip, (x, SMALLEST + line * number))
            x += shown
    return canvas


def _names(rows):
    """The scores of any row, without standard errors."""
    return list(dict.fromkeys(name for row in rows for name in row.scores if not name.endswith(ERROR)))


def _cell(row, name):
    if name not in row.scores:
        return ""
    error = row.scores.get(name + ERROR)
    return f"{row.scores[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")
