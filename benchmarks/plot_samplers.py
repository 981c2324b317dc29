"""Draw distance against network calls, a line for each solver, from comparison.csv files of compare_samplers.

python benchmarks/plot_samplers.py benchmarks/solvers_digits.csv benchmarks/solvers_photos.csv --out solvers.png

A sampler's name is SOLVER or SOLVER + VARIANT. Each file is a row of panels, one for each variant. Needs matplotlib.
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def curves(path):
    """{variant: {solver: [(calls, distance), ...]}} of a comparison.csv; the variant without a name is ""."""
    found = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            solver, _, variant = row["sampler"].partition(" + ")
            point = float(row["calls_per_image"]), float(row["distance"])
            found.setdefault(variant, {}).setdefault(solver, []).append(point)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", help="comparison.csv files, one row of panels each")
    parser.add_argument("--out", required=True, help="the PNG to write")
    args = parser.parse_args()
    files = {Path(path).stem: curves(path) for path in args.tables}
    columns = max(map(len, files.values()))
    size = 3.6 * columns + 1.5, 3.6 * len(files)
    figure, panels = plt.subplots(len(files), columns, figsize=size, sharey="row", squeeze=False)
    styles = {}
    for line, (name, variants) in zip(panels, files.items()):
        for panel, (variant, solvers) in zip(line, variants.items()):
            for solver, points in solvers.items():
                order = styles.setdefault(solver, len(styles))
                style = {"color": f"C{order % 8}", "linestyle": ("-", "--")[order // 8 % 2], "marker": "."}
                panel.plot(*zip(*sorted(points)), **style, label=solver)
            panel.set(title=" + ".join(filter(None, (name, variant))), xscale="log", yscale="log")
            panel.set_xlabel("network calls per image")
            panel.grid(alpha=0.3, which="both")
        line[0].set_ylabel("Frechet distance")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / size[0], 1))
    figure.savefig(args.out, dpi=90)
    print(f"wrote {Path(args.out).resolve()}")


if __name__ == "__main__":
    main()
