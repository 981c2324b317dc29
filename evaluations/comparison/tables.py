"""Rows of a comparison as csv and as Markdown."""

import statistics

from evaluations.tables import csv_bytes, markdown_table
from guided_diffusion import methods

COLUMNS = [
    *("sampler", "budget", "steps", "distance", "spread", "difference", "difference_spread"),
    *("calls_per_image", "seconds_per_image", *methods.columns()),
]


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


def names_and_budgets(rows):
    """The samplers and the budgets, each once, in order."""
    return list(dict.fromkeys(row.name for row in rows)), list(dict.fromkeys(row.budget for row in rows))


def csv_table(rows):
    """A line for each row under COLUMNS, and the distance of each repeat, as bytes; what does not apply is empty."""
    lines = [[*COLUMNS, *_columns(rows), *(f"distance_{i}" for i in range(len(rows[0].distances)))]]
    for row in rows:
        apart, found = difference(row, rows) or (None, None), [row.findings[column] for column in methods.columns()]
        values = [*mean_and_spread(row.distances), *apart, row.calls, row.seconds, *found]
        values += [number for name in rows[0].scores for number in mean_and_spread(row.scores[name])]
        values += row.distances
        lines.append([row.name, row.budget, row.steps, *(_shown(value, ".6g") for value in values)])
    return csv_bytes(lines)


def markdown(rows):
    """Two tables: distances by sampler and budget, and what each row took, with its further scores."""
    names, budgets = names_and_budgets(rows)
    cells = {(row.name, row.budget): _cell(row, rows) for row in rows}
    distances = [["sampler", *budgets]]
    distances += [[name, *(cells.get((name, each), "") for each in budgets)] for name in names]
    took = [["sampler", "budget", "steps", "calls per image", "seconds per image"]]
    took[0] += [*rows[0].scores, *(heading for heading, _ in methods.columns().values())]
    for row in rows:
        found = [_shown(row.findings[column], form) for column, (_, form) in methods.columns().items()]
        scored = ["{:.3f} ± {:.3f}".format(*mean_and_spread(row.scores[name])) for name in rows[0].scores]
        took.append([row.name, row.budget, str(row.steps), f"{row.calls:g}", f"{row.seconds:.4f}", *scored, *found])
    return markdown_table(distances) + "\n" + markdown_table(took)


def _columns(rows):
    """Headings of the means and the spreads of further scores."""
    return [heading for name in rows[0].scores for heading in (name, f"{name}_spread")]


def _cell(row, rows):
    text = "{:.2f} ± {:.2f}".format(*mean_and_spread(row.distances))
    apart = difference(row, rows)
    return text if apart is None else text + " ({:+.2f} ± {:.2f})".format(*apart)


def _shown(value, form):
    return "" if value is None else format(value, form)
