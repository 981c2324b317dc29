"""What the figures of this project share: their style, tables, and labels at the ends of lines. Needs matplotlib."""

import csv
from pathlib import Path

import numpy as np

BACKGROUND = {"color": "0.82", "linewidth": 1, "zorder": 1}


def pyplot():
    """matplotlib.pyplot in the style of this project, for files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.style.use(Path(__file__).with_name("style.mplstyle"))
    return pyplot


def compared(path):
    """(sampler, variant, row, distances of the repeats) of each row of a comparison.csv of compare_samplers.

    A sampler's name there is SAMPLER or SAMPLER + VARIANT; the variant without a name is "".

    :raises ValueError: for a row that is cut short, or a table of fewer than two repeats.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "distance_1" not in (reader.fieldnames or ()):
            raise ValueError(f"{path} has no columns distance_0 and distance_1")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} has not as many cells as the first")
            sampler, _, variant = row["sampler"].partition(" + ")
            repeats = [float(value) for column, value in row.items() if column.startswith("distance_")]
            yield sampler, variant, row, repeats


def round_numbers(low, high):
    """1, 2 and 5 times the powers of ten, from low to high."""
    return [m * 10.0**k for k in range(-9, 10) for m in (1, 2, 5) if low <= m * 10.0**k <= high]


def plain_log_scale(panel):
    """Mark the logarithmic y axis of a panel, whose limits are final, at round numbers written out."""
    panel.set_yticks(round_numbers(*panel.get_ylim()))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()


def spread(places, gap):
    """The numbers nearest to `places`, by least squares, that are in their order and at least `gap` apart."""
    order = np.argsort(places, kind="stable")
    # less their gaps the numbers have to increase, so neighbours that would not are given their mean
    blocks = []
    for i, place in enumerate(np.asarray(places, float)[order]):
        blocks.append((place - i * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (last, count), (before, others) = blocks.pop(), blocks.pop()
            blocks.append(((last * count + before * others) / (count + others), count + others))
    means = np.concatenate([np.full(count, mean) for mean, count in blocks])
    found = np.empty(len(means))
    found[order] = means + gap * np.arange(len(means))
    return found


def label_ends(panel, lines, gap=0.085):
    """Write the labels of lines at the right of a panel, each beside the end of its line, none on another.

    :param panel: Axes whose limits are final.
    :param lines: Line2D with labels.
    :param gap: between labels, as a fraction of the panel's height.
    """
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    heights = panel.transAxes.inverted().transform(panel.transData.transform(ends))[:, 1]
    for line, end, place in zip(lines, ends, spread(heights, gap)):
        panel.annotate(
            line.get_label(),
            end,
            (1.05, place),
            textcoords="axes fraction",
            color=line.get_color(),
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2},
        )
