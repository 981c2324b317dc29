"""Draw the loss curves of training runs from their progress.csv.

Needs matplotlib.

python benchmarks/plot_training.py models/emoji32_progress.csv models/emoji32_ip_progress.csv \\
    models/emoji32_eps_progress.csv models/emoji32_classifier_progress.csv models/digits16_progress.csv \\
    models/digits16_classifier_progress.csv --out models/training.png
"""

import argparse
import csv
import math
from pathlib import Path

from plotting import plain_log_scale, pyplot

CURVES = {"mse": "training", "train_loss": "training", "val_loss": "validation"}
COLUMNS = 3


def curves(path):
    """{"training" or "validation": (steps, values)} of the losses in a progress.csv, where they have values."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for key, name in CURVES.items():
        points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
        if points:
            found[name] = tuple(zip(*points))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("progress", nargs="+", help="progress.csv files, one panel each")
    parser.add_argument("--out", required=True, help="the PNG to write")
    args = parser.parse_args()
    columns = min(COLUMNS, len(args.progress))
    rows = math.ceil(len(args.progress) / columns)
    figure, panels = pyplot().subplots(rows, columns, figsize=(4.8 * columns, 3.8 * rows), squeeze=False)
    for panel, path in zip(panels.flat, args.progress):
        for name, (steps, values) in curves(path).items():
            panel.plot(steps, values, label=name)
        title = Path(path).stem.removesuffix("_progress").replace("_", " ")
        panel.set(title=title, xlabel="step", ylabel="loss", yscale="log")
        plain_log_scale(panel)
        panel.legend()
    for panel in panels.flat[len(args.progress) :]:
        panel.remove()
    figure.savefig(args.out)
    print(f"wrote {Path(args.out).resolve()}")


if __name__ == "__main__":
    main()
