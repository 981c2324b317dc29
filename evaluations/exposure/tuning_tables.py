"""What a tuning measured and tried: tuning.csv, tuning.md and tuning.png."""

import csv
import io

import numpy as np

from guided_diffusion import files

from . import figure

COLUMNS = ("proposal", "method", "flags", "numbers", "distance", "distance_se", "gain", "gain_se")


def save(candidates, results, chosen, folder):
    """Write all three to a folder.

    :param candidates: the first is the sampler as it is.
    :param results: {sampler: {measure: {curve: Curve}, "times": [S]}}.
    :param chosen: one of the candidates.
    """
    files.write_text(files.join(folder, "tuning.csv"), csv_text(candidates))
    files.write_text(files.join(folder, "tuning.md"), markdown(candidates))
    if plt := figure.pyplot():
        with plt.rc_context(figure.STYLE):
            drawing = drawn(plt, candidates, results, chosen)
            figure.write(drawing, files.join(folder, "tuning.png"))
            plt.close(drawing)


def csv_text(candidates):
    """A line for each Candidate under COLUMNS; what was not tried is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for c in candidates:
        table.writerow([*_words(c), *([f"{number:.6g}" for number in c.trial] if c.trial else [""] * 4)])
    return text.getvalue()


def markdown(candidates):
    """The same as a table of Markdown, without the columns that are empty."""
    tried = candidates[0].trial is not None
    lines = [["proposal", "method", "flags", "measured", *["distance", "gain"] * tried]]
    for c in candidates:
        shown = (
            [f"{c.trial.distance:.3f} ± {c.trial.error:.3f}", f"{c.trial.gain:+.3f} ± {c.trial.gain_error:.3f}"]
            if tried
            else []
        )
        lines.append([*_words(c), *shown])
    head, *body = ["| " + " | ".join(line) + " |\n" for line in lines]
    return "".join([head, "| --- |" + " --- |" * 3 + " ---: |" * 2 * tried + "\n", *body])


def _words(c):
    values = " ".join(f"--{name} {value}" for name, value in c.values.items())
    numbers = ", ".join(f"{word} {value:.5g} ± {error:.2g}" for word, (value, error) in c.numbers.items())
    return [c.name, c.method, values, numbers]


def drawn(plt, candidates, results, chosen):
    """A panel for each thing that was measured of all samplers, and one for the trials, where there were any."""
    tried = candidates[0].trial is not None
    figures, axes = plt.subplots(1, 2 + tried, figsize=(6.5 * (2 + tried), 4.8), squeeze=False)
    lengths, shifts = axes[0, :2]
    along = next((curves["norms"]["eps_along"] for curves in results.values() if "norms" in curves), None)
    for number, (name, curves) in enumerate(results.items()):
        colour = figure.COLOURS[number % len(figure.COLOURS)]
        length = curves.get("norms", curves.get("lengths", {})).get("eps_sampled")
        if along and length:
            errors = np.hypot(length.errors, along.errors) / along.values
            figure.draw_curve(lengths, curves["times"], length.values / along.values, errors, colour)
            lengths.plot([], [], color=colour, label=name)
        if "variance" in curves:
            shift = curves["variance"]["shift"]
            figure.draw_curve(shifts, curves["times"], shift.values, shift.errors, colour)
    for panel, level in ((lengths, 1), (shifts, 0)):
        panel.axhline(level, color="0.6", lw=1.2, zorder=1)
        panel.invert_xaxis()
        panel.set_xlabel("timestep (noise to image)")
    lengths.set_ylabel("length of predicted noise along sampling,\nover that of the true noise along it")
    lengths.legend(fontsize=9)
    shifts.set_ylabel("timesteps from a state's own time\nto the one that fits its variance")
    if tried:
        trials, places = axes[0, 2], range(len(candidates))
        gains, errors = ([getattr(c.trial, part) for c in candidates] for part in ("gain", "gain_error"))
        colours = [figure.COLOURS[1] if c is chosen else figure.COLOURS[0] for c in candidates]
        trials.barh(places, gains, xerr=2 * np.array(errors), color=colours, ecolor="0.3")
        trials.set_yticks(places, [c.name for c in candidates], fontsize=9)
        trials.invert_yaxis()
        trials.set_xlabel("gain in Frechet distance, ± 2 standard errors")
    return figures
