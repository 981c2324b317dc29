"""Draw and print what each variant changes of its sampler's distance, from a comparison.csv of compare_samplers.

python benchmarks/plot_differences.py benchmarks/solvers_digits.csv --out runs/differences.png

A sampler's name is SAMPLER or SAMPLER + VARIANT. A dot is the distance of a variant less that of the plain sampler, in
per cent of the latter: the mean of the repeats, which share their noise, and its standard error. The table has the
same, below the plain distances with their standard deviations. Needs matplotlib.
"""

import argparse
import re

import numpy as np
from plotting import compared, pyplot

# of budgets, as soon as the colours begin anew
MARKERS = "osD^v"
# per cent, up to which the axis is linear; beyond it is logarithmic
LINEAR, TICKS = 10, (5, 10, 30, 100, 300, 1000)


def read(path):
    """{sampler: {variant: {budget: distances [repeats]}}} of a comparison.csv; the plain variant is ""."""
    found = {}
    for sampler, variant, row, repeats in compared(path):
        found.setdefault(sampler, {}).setdefault(variant, {})[row["budget"]] = np.array(repeats)
    return found


def change(distances, plain):
    """(mean, standard error) of what paired distances [repeats] are above plain ones, in per cent of their mean."""
    differences = 100 * (distances - plain) / plain.mean()
    return differences.mean(), differences.std(ddof=1) / len(differences) ** 0.5


def table(samplers):
    """Markdown of {sampler: {variant: {budget: distances}}}: a column for a sampler and budget, a row for a variant."""
    columns = [(sampler, budget) for sampler, variants in samplers.items() for budget in variants[""]]
    lines = ["| | " + " | ".join(map(", ".join, columns)) + " |", "| --- |" + " ---: |" * len(columns)]
    plain = [samplers[sampler][""][budget] for sampler, budget in columns]
    lines.append("| plain | " + " | ".join(f"{base.mean():.3g} ± {base.std(ddof=1):.2g}" for base in plain) + " |")
    for variant in dict.fromkeys(variant for variants in samplers.values() for variant in variants if variant):
        cells = []
        for (sampler, budget), base in zip(columns, plain):
            found = samplers[sampler].get(variant, {}).get(budget)
            cells.append("" if found is None else "{:+.1f} ± {:.1f} %".format(*change(found, base)))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_words(budgets):
    """ "5, 10, 20 steps" of "5 steps" and so on; the budgets themselves where they are in several units."""
    counts, units = zip(*(budget.partition(" ")[::2] for budget in budgets))
    return f"{', '.join(counts)} {units[0]}" if len({*units}) == 1 else ", ".join(budgets)


def spelt(name, words):
    """A name with other words for its parts, pairs of both."""
    for part, whole in words:
        name = re.sub(rf"\b{re.escape(part)}\b", whole, name)
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="comparison.csv file")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--samplers", default="", help="those to draw, with commas between; all if empty")
    parser.add_argument("--words", default="", help="what to write for parts of names, ES=Epsilon Scaling,...")
    args = parser.parse_args()
    words = [pair.split("=", 1) for pair in args.words.split(",") if pair]
    if bad := [pair[0] for pair in words if len(pair) == 1]:
        parser.error(f"--words has {bad[0]}; expected PART=WORDS, with commas between")
    try:
        found = read(args.table)
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"expected a comparison.csv file of compare_samplers: {error}")
    samplers = {name: variants for name, variants in found.items() if "" in variants and len(variants) > 1}
    chosen = [name.strip() for name in args.samplers.split(",") if name.strip()] or [*samplers]
    if missing := [name for name in chosen if name not in samplers]:
        parser.error(f"--samplers has {missing[0]}; expected some of {', '.join(samplers) or 'none'}")
    samplers = {name: samplers[name] for name in chosen}
    if not samplers:
        parser.error(f"{args.table} has no sampler with a variant; expected names such as DDIM and DDIM + ES 1.01")
    print(table(samplers))
    heights = [len(variants) - 1 for variants in samplers.values()]
    plt = pyplot()
    size = 8, 0.27 * sum(heights) + 0.5 * len(heights)
    figure, panels = plt.subplots(len(samplers), 1, sharex=True, squeeze=False, height_ratios=heights, figsize=size)
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for panel, (sampler, variants) in zip(panels.flat, samplers.items()):
        plain = variants.pop("")
        for number, (budget, base) in enumerate(plain.items()):
            colour, marker = colours[number % len(colours)], MARKERS[number // len(colours) % len(MARKERS)]
            rows = [(i, *change(line[budget], base)) for i, line in enumerate(variants.values()) if budget in line]
            places, means, errors = np.array(rows).reshape(-1, 3).T
            places = places + 0.2 * (number - (len(plain) - 1) / 2)  # beside each other
            panel.errorbar(means, places, xerr=errors, fmt=marker, ms=5, color=colour, label=budget)
        panel.axvline(0, color="0.6", linewidth=1)
        panel.set_yticks(range(len(variants)), [spelt(name, words) for name in variants])
        panel.set_ylim(len(variants) - 0.5, -0.5)
        distances = ", ".join(f"{base.mean():.3g}" for base in plain.values())
        title = f"{spelt(sampler, words)}: plain {distances} in {in_words(plain)}"
        panel.set_title(title, loc="right", fontsize="medium")
    handles = panels[0, 0].get_legend_handles_labels()
    if len(handles[1]) > 1:
        figure.legend(*handles, loc="outside upper center", ncols=len(handles[1]))
    last = panels[-1, 0]
    last.set_xscale("symlog", linthresh=LINEAR)  # which the other panels share
    low, high = last.get_xlim()
    places = [sign * place for place in TICKS for sign in (-1, 1)]
    shown = [place for place in places if low <= place <= high]
    if len(shown) > 1:
        last.set_xticks([0, *shown])
    else:  # all within the linear part
        last.set_xscale("linear")
    last.xaxis.set_major_formatter("{x:g}")
    last.set_xlim(low, high)
    last.set_xlabel("distance, change from plain in % (± standard error); left is better", loc="right")
    try:
        figure.savefig(args.out)
    except (OSError, ValueError) as error:
        parser.error(f"--out cannot be written: {error}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
