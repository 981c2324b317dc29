"""Draw distance against network calls, a panel for each solver, from comparison.csv files of compare_samplers.

python benchmarks/plot_samplers.py benchmarks/solvers_digits.csv --titles "digits, 16x16" \\
    --out benchmarks/solvers.png

A sampler's name is SOLVER or SOLVER + VARIANT; a panel has a line for each variant, and its band is from the lowest
to the highest of the repeats. Prints the same numbers as a Markdown table, the variants of a solver in one cell.
Needs matplotlib.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import NamedTuple

from plotting import BACKGROUND, compared, plain_log_scale, pyplot, round_numbers

COLUMNS = 5


class Point(NamedTuple):
    """What a sampler cost and gave: network calls per image; mean, lowest and highest distance of the repeats."""

    calls: float
    distance: float
    low: float
    high: float


def read(path):
    """{solver: {variant: {budget: Point}}} of a comparison.csv; the variant without a name is ""."""
    found = {}
    for solver, variant, row, repeats in compared(path):
        point = Point(float(row["calls_per_image"]), float(row["distance"]), min(repeats), max(repeats))
        found.setdefault(solver, {}).setdefault(variant, {})[row["budget"]] = point
    return found


def name_of(path):
    """What a file is called without --titles: its own name, or that of the folder that compare_samplers wrote it to."""
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
        shown = [" / ".join("–" if point is None else f"{point.distance:.3g}" for point in cell) for cell in cells]
        lines.append(f"| {solver} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def draw_solvers(figure, title, solvers, styles, last):
    """Draw one table of `read` in a figure; above 3 times the median distance it is cut off.

    :param styles: {variant: how its lines look}.
    :param last: whether nothing is below it.
    """
    rows = math.ceil(len(solvers) / COLUMNS)
    panels = figure.subplots(rows, min(COLUMNS, len(solvers)), sharex=True, sharey=True, squeeze=False)
    points = [p for variants in solvers.values() for line in variants.values() for p in line.values()]
    low, high = 0.8 * min(p.distance for p in points), 3 * statistics.median(p.distance for p in points)
    budgets = sorted(int(budget.split()[0]) for budget in budgets_of(solvers))
    labelled = [budget for budget in budgets if budget in round_numbers(1, budgets[-1])] or budgets
    for panel, (solver, variants) in zip(panels.flat, solvers.items()):
        for other in solvers.values():
            first = sorted(next(iter(other.values())).values())
            panel.plot([p.calls for p in first], [p.distance for p in first], **BACKGROUND)
        for variant, line in variants.items():
            line = sorted(line.values())
            calls = [p.calls for p in line]
            panel.plot(calls, [p.distance for p in line], **styles[variant])
            band = styles[variant]["color"]
            panel.fill_between(
                calls, [p.low for p in line], [p.high for p in line], color=band, alpha=0.13, linewidth=0
            )
        panel.set(title=solver, xscale="log", yscale="log", ylim=(low, high))
        panel.set_xticks(labelled, labelled)
        plain_log_scale(panel)
    for panel in panels.flat[len(solvers) :]:
        panel.remove()
    figure.suptitle(title, fontweight="bold")
    figure.supylabel("Frechet distance", fontsize="medium")
    if last:
        figure.supxlabel("network calls per image", fontsize="medium")


def draw(tables):
    """The figure of {title: what `read` returns}: for each a block of panels, in which grey lines are the others."""
    plt = pyplot()
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    variants = list(dict.fromkeys(variant for solvers in tables.values() for variant in variants_of(solvers)))
    styles = {
        variant: {"color": colours[(i - 1) % len(colours)], "marker": "o", "markersize": 5, "label": variant or "plain"}
        for i, variant in enumerate(variants)
    }
    rows = [math.ceil(len(solvers) / COLUMNS) for solvers in tables.values()]
    figure = plt.figure(figsize=(14, 2.5 * sum(rows) + 0.6 * len(rows) + 0.8))
    blocks = figure.subfigures(len(tables), 1, height_ratios=rows, squeeze=False)[:, 0]
    for block, (title, solvers) in zip(blocks, tables.items()):
        draw_solvers(block, title, solvers, styles, last=block is blocks[-1])
    handles = [plt.Line2D([], [], **style) for style in styles.values()]
    handles.append(plt.Line2D([], [], label=f"{handles[0].get_label()}, other solvers", **BACKGROUND))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", help="comparison.csv files, a block of panels each")
    parser.add_argument("--titles", nargs="+", help="what to call each file; default: its name, or its folder's")
    parser.add_argument("--out", required=True, help="the PNG to write")
    args = parser.parse_args()
    titles = args.titles or [name_of(path) for path in args.tables]
    if len(titles) != len(args.tables):
        parser.error(f"--titles has {len(titles)} for {len(args.tables)} files; expected one for each")
    if len(set(titles)) < len(titles):
        parser.error(f"some of the files have the same name: {', '.join(titles)}; --titles gives them others")
    try:
        tables = {title: read(path) for title, path in zip(titles, args.tables)}
        empty = [path for path, solvers in zip(args.tables, tables.values()) if not solvers]
        if empty:
            parser.error(f"no rows in {' or '.join(empty)}")
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"expected comparison.csv files of compare_samplers: {error}")
    print("\n\n".join(table(title, solvers) for title, solvers in tables.items()))
    try:
        draw(tables).savefig(args.out)
    except (OSError, ValueError) as error:
        parser.error(f"--out cannot be written: {error}")
    print(f"wrote {Path(args.out).resolve()}")


if __name__ == "__main__":
    main()
