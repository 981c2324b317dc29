"""What a comparison of samplers shows: rows as csv, as Markdown and as a picture."""

import csv
import io
import statistics
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guided_diffusion.images import grid

COLUMNS = [
    *("sampler", "budget", "steps", "distance", "spread", "difference", "difference_spread"),
    *("calls_per_image", "seconds_per_image", "mean_shift", "edge"),
]


@dataclass
class Row:
    """What one sampler gave with one budget.

    :ivar budget: what all samplers of its column spend, such as "10 steps" or (at most) "10 calls".
    :ivar steps: that it took.
    :ivar distances: Frechet distance of each repeat, at least 2; repeats of the same place have the same noise.
    :ivar calls: network evaluations per image.
    :ivar seconds: of one process per image, without the features.
    :ivar shift: mean of the time shifts in training timesteps; None where nothing was shifted.
    :ivar edge: fraction of the searches that ended at an edge of the window; None where nothing was searched.
    :ivar images: uint8 [n, H, W, 3] to show, the same indices in every row.
    """

    name: str
    budget: str
    steps: int
    distances: list
    calls: float
    seconds: float
    shift: float | None
    edge: float | None
    images: np.ndarray


def mean_and_spread(values):
    """(mean, standard deviation with divisor n - 1) of numbers."""
    return statistics.mean(values), statistics.stdev(values)


def difference(row, rows):
    """Mean and spread of a row's distances less those of the first row of that budget; None for that row itself.

    Repeats share their noise, so this spread is far below the distances' own.
    """
    first = next(other for other in rows if other.budget == row.budget)
    if first is row:
        return None
    return mean_and_spread([mine - base for mine, base in zip(row.distances, first.distances, strict=True)])


def csv_text(rows):
    """A line for each row under COLUMNS, and the distance of each repeat; what does not apply is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS + [f"distance_{i}" for i in range(len(rows[0].distances))])
    for row in rows:
        apart = difference(row, rows) or (None, None)
        values = [*mean_and_spread(row.distances), *apart, row.calls, row.seconds, row.shift, row.edge, *row.distances]
        table.writerow([row.name, row.budget, row.steps, *(_shown(value, ".6g") for value in values)])
    return text.getvalue()


def markdown(rows):
    """Two tables: distances by sampler and budget, and what each row took."""
    names, budgets = _names_and_budgets(rows)
    cells = {(row.name, row.budget): _cell(row, rows) for row in rows}
    lines = ["| sampler | " + " | ".join(budgets) + " |", "| --- |" + " ---: |" * len(budgets)]
    lines += [f"| {name} | " + " | ".join(cells.get((name, each), "") for each in budgets) + " |" for name in names]
    lines += [
        "",
        "| sampler | budget | steps | calls per image | seconds per image | mean shift | searches at an edge |",
    ]
    lines += ["| --- |" + " ---: |" * 6]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.budget} | {row.steps} | {row.calls:g} | {row.seconds:.4f} | "
            f"{_shown(row.shift, '+.1f')} | {_shown(row.edge, '.0%')} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows, side=48, gap=8):
    """A Pillow image: a line of images for each sampler, a block of columns for each budget.

    :param side: images are enlarged by whole factors up to about so many pixels.
    :param gap: pixels between blocks.
    """
    names, budgets = _names_and_budgets(rows)
    scale = max(1, side // rows[0].images.shape[1])
    blocks = {}
    for row in rows:
        block = Image.fromarray(grid(row.images, len(row.images)))
        blocks[row.name, row.budget] = block.resize((block.width * scale, block.height * scale), Image.NEAREST)
    width, height = next(iter(blocks.values())).size
    font = ImageFont.load_default(13)
    left, top = 2 * gap + max(round(font.getlength(name)) for name in names), 24
    size = left + (width + gap) * len(budgets), top + (height + 2) * len(names)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, budget in enumerate(budgets):
        draw.text((left + column * (width + gap), 4), budget, fill="black", font=font)
    for line, name in enumerate(names):
        draw.text((gap, top + line * (height + 2) + height // 2), name, fill="black", font=font, anchor="lm")
        for column, budget in enumerate(budgets):
            if (name, budget) in blocks:
                canvas.paste(blocks[name, budget], (left + column * (width + gap), top + line * (height + 2)))
    return canvas


def _names_and_budgets(rows):
    """The samplers and the budgets, each once, in order."""
    return list(dict.fromkeys(row.name for row in rows)), list(dict.fromkeys(row.budget for row in rows))


def _cell(row, rows):
    text = "{:.2f} ± {:.2f}".format(*mean_and_spread(row.distances))
    apart = difference(row, rows)
    return text if apart is None else text + " ({:+.2f} ± {:.2f})".format(*apart)


def _shown(value, form):
    return "" if value is None else format(value, form)
