"""Draw distance against network calls, a line for each solver, from comparison.csv files of compare_samplers.

python benchmarks/plot_samplers.py benchmarks/solvers_*.csv --out benchmarks/solvers.png

A sampler's name is SOLVER or SOLVER + VARIANT. Each file is a row of panels, one for each variant. Prints the same
numbers as a Markdown table, the variants of a solver in one cell. Needs matplotlib.
"""

import argparse
import csv
import statistics
from pathlib import Path


def read(path):
    """{solver: {variant: {budget: (calls, distance)}}} of a comparison.csv; the variant without a name is ""."""
    found = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            solver, _, variant = row["sampler"].partition(" + ")
            point = float(row["calls_per_image"]), float(row["distance"])
            found.setdefault(solver, {}).setdefault(variant, {})[row["budget"]] = point
    return found


def name_of(path):
    """What a file is called in the picture: its own name, or that of the folder that compare_samplers wrote it to."""
    path = Path(path)
    return path.absolute().parent.name if path.stem == "comparison" else path.stem


def variants_of(solvers):
    """The variants of any solver, in order."""
    return list(dict.fromkeys(variant for variants in solvers.values() for variant in variants))


def budgets_of(solvers):
    """The budgets of any solver, such as "10 calls", in order."""
    return list(dict.fromkeys(b for found in solvers.values() for points in found.values() for b in points))


def table(name, solvers):
    """A Markdown table: a line for each solver, a column for each budget, a cell of distances by variant."""
    variants = variants_of(solvers)
    budgets = budgets_of(solvers)
    lines = [f"| {name} | " + " | ".join(budgets) + " |", "| --- |" + " ---: |" * len(budgets)]
    for solver, found in solvers.items():
        cells = [[found.get(variant, {}).get(budget) for variant in variants] for budget in budgets]
        shown = [" / ".join("–" if point is None else f"{point[1]:.3g}" for point in cell) for cell in cells]
        lines.append(f"| {solver} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def draw(tables):
    """The figure of {name: what `read` returns}; above 3 times a row's median distance it is cut off."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(len(variants_of(solvers)) for solvers in tables.values())
    width, height = 3.6 * columns, 3.6 * len(tables)
    figure, panels = plt.subplots(
        len(tables), columns, figsize=(width, height), sharex=True, sharey="row", squeeze=False
    )
    names = list(dict.fromkeys(solver for solvers in tables.values() for solver in solvers))
    styles = {
        name: {"color": f"C{i % 8}", "linestyle": ("-", "--", ":", "-.")[i // 8 % 4], "marker": "."}
        for i, name in enumerate(names)
    }
    handles = {}
    for line, (name, solvers) in zip(panels, tables.items()):
        ticks = sorted(int(budget.split()[0]) for budget in budgets_of(solvers))
        for panel, variant in zip(line, variants_of(solvers)):
            for solver, found in solvers.items():
                if variant in found:
                    (handles[solver],) = panel.plot(*zip(*sorted(found[variant].values())), **styles[solver])
            panel.set(title=" + ".join(filter(None, (name, variant))), xscale="log", yscale="log")
            panel.set_xticks(ticks, ticks)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        line[0].set_ylabel("Frechet distance")
        distances = [p[1] for found in solvers.values() for points in found.values() for p in points.values()]
        low, high = 0.8 * min(distances), 3 * statistics.median(distances)
        round_numbers = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5)]
        line[0].set_yticks([y for y in round_numbers if low <= y <= high])
        line[0].yaxis.set_major_formatter("{x:g}")
        line[0].set_ylim(low, high)
        for panel in line[len(variants_of(solvers)) :]:
            panel.remove()
    for panel in panels[-1]:
        panel.set_xlabel("network calls per image")
    side = max(1.5, 0.09 * max(map(len, names)))  # inches of the legend
    figure.set_size_inches(width + side, height)
    figure.legend(handles.values(), handles, loc="center right", fontsize=9)
    figure.tight_layout(rect=(0, 0, width / (width + side), 1))
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", help="comparison.csv files, one row of panels each")
    parser.add_argument("--out", required=True, help="the PNG to write")
    args = parser.parse_args()
    try:
        tables = {name_of(path): read(path) for path in args.tables}
        if len(tables) < len(args.tables):
            parser.error(f"some of the files have the same name: {', '.join(map(name_of, args.tables))}")
        if not all(tables.values()):
            parser.error(f"no rows in {' or '.join(path for path in args.tables if not tables[name_of(path)])}")
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"expected comparison.csv files of compare_samplers: {error}")
    print("\n\n".join(table(name, solvers) for name, solvers in tables.items()))
    try:
        draw(tables).savefig(args.out, dpi=90)
    except OSError as error:
        parser.error(f"--out cannot be written: {error}")
    print(f"wrote {Path(args.out).resolve()}")


if __name__ == "__main__":
    main()
