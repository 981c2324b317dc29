"""Draw images of several npz as rows of one figure, a column for each index.

    python benchmarks/plot_rows.py --out swapped.png target=data/digits8_heldout.npz \\
        reference=data/digits8_heldout.npz@180 unrolled=runs/swapped/samples_360x8x8x1.npz

A row is NAME=PATH, or NAME=PATH@K, which begins at image K.
"""

import argparse

import numpy as np
from plotting import pyplot


def row(text):
    """(name, uint8 images [N, H, W, C], first) of an argument."""
    name, _, place = text.partition("=")
    path, _, first = place.partition("@")
    return name, np.load(path)["arr_0"], int(first or 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="png to write")
    parser.add_argument("--count", type=int, default=16, help="columns")
    parser.add_argument("rows", nargs="+", help="NAME=PATH or NAME=PATH@K")
    args = parser.parse_args()
    rows = [row(text) for text in args.rows]
    plot = pyplot()
    figure, panels = plot.subplots(len(rows), args.count, figsize=(0.45 * args.count + 1, 0.47 * len(rows)))
    for line, (name, images, first) in zip(panels, rows):
        for i, panel in enumerate(line):
            image = images[(first + i) % len(images)]
            panel.imshow(image.repeat(3 // image.shape[2], axis=2), interpolation="nearest")
            panel.axis("off")
        line[0].text(
            -0.15, 0.5, name, transform=line[0].transAxes, horizontalalignment="right", verticalalignment="center"
        )
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
