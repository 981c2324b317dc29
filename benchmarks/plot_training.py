"""Draw the loss curves of training runs from their progress.csv.

Needs matplotlib.

python benchmarks/plot_training.py models/digits16_progress.csv models/photo32_progress.csv --out models/training.png
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def curve(path, key):
    """Steps and values of a column of progress.csv, where it has values."""
    with open(path, newline="") as file:
        rows = [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row.get(key)]
    return list(zip(*rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("progress", nargs="+", help="progress.csv files, one panel each")
    parser.add_argument("--out", required=True, help="the PNG to write")
    args = parser.parse_args()
    figure, panels = plt.subplots(1, len(args.progress), figsize=(4 * len(args.progress), 3), squeeze=False)
    for panel, path in zip(panels[0], args.progress):
        header = Path(path).read_text().splitlines()[0].split(",")
        for key in ("mse", "train_loss", "val_loss"):
            if key in header:
                panel.plot(*curve(path, key), label=key)
        panel.set(title=Path(path).stem.removesuffix("_progress"), xlabel="step", yscale="log")
        panel.legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=100)
    print(f"wrote {Path(args.out).resolve()}")


if __name__ == "__main__":
    main()
