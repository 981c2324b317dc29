"""What a tuning measured and tried: tuning.csv, tuning.md and tuning.png."""

import numpy as np

from evaluations.tables import csv_bytes, markdown_table
from guided_diffusion import files

from . import figure

COLUMNS = ("proposal", "method", "flags", "numbers", "distance", "distance_se", "gain", "gain_se")


def save(candidates, results, chosen, folder):
    """Write all three to a folder.

    :param candidates: the first is the sampler as it is.
    :param results: {sampler: {measure: {curve: Curve}, "times": [S]}}.
    :param chosen: one of the candidates.
    """
    files.write_bytes(files.join(folder, "tuning.csv"), csv_bytes(lines(candidates)))
    files.write_text(files.join(folder, "tuning.md"), markdown(candidates))
    if plt := figure.pyplot():
        with plt.rc_context(figure.STYLE):
            drawing = drawn(plt, candidates, results, chosen)
            figure.write(drawing, files.join(folder, "tuning.png"))
            plt.close(drawing)


def lines(candidates):
    """The headings, and a line for each Candidate; what was not tried is empty."""
    tried = ([f"{number:.6g}" for number in c.trial] if c.trial else [""] * 4 for c in candidates)
    return [COLUMNS, *([*_words(c), *numbers] for c, numbers in zip(candidates, tried))]


def markdown(candidates):
    """The same as a table of Markdown, without the columns that are empty."""
    found = [["proposal", "method", "flags", "measured"]]
    found += map(_words, candidates)
    if candidates[0].trial is not None:
        found[0] += ["distance", "gain"]
        for line, c in zip(found[1:], candidates):
            distance, error, gain, gain_error = c.trial
            line += [f"{distance:.3f} ± {error:.3f}", f"{gain:+.3f} ± {gain_error:.3f}"]
    return markdown_table(found)


def _words(c):
    values = " ".join(f"--{name} {value}" for name, value in c.values.items())
    # a number without an error was chosen, not measured
    numbers = ", ".join(
        f"{word} {value:.5g} ± {error:.2g}" if error else f"{word} {value:.5g}"
        for word, (value, error) in c.numbers.items()
    )
    return [c.name, c.method, values, numbers]


def drawn(plt, candidates, results, chosen):
    """A panel for each thing that was measured of all samplers, and one for the trials, where there were any."""
    tried = candidates[0].trial is not None
    figures, axes = plt.subplots(1, 2 + tried, figsize=(6.5 * (2 + tried), 5.8), squeeze=False)
    lengths, shifts = axes[0, :2]
    along = next((curves["norms"]["eps_along"] for curves in results.values() if "norms" in curves), None)
    for number, (name, curves) in enumerate(results.items()):
        colour = figure.COLOURS[number % len(figure.COLOURS)]
        length = curves.get("norms", curves.get("lengths", {})).get("eps_sampled")
        if along and length:
            errors = np.hypot(length.errors, along.errors) / along.values
            figure.draw_curve(lengths, curves["times"], length.values / along.values, errors, color=colour)
            lengths.plot([], [], color=colour, label=name)
        if "variance" in curves:
            shift = curves["variance"]["shift"]
            figure.draw_curve(shifts, curves["times"], shift.values, shift.errors, color=colour)
    for panel, level in ((lengths, 1), (shifts, 0)):
        panel.axhline(level, color="0.6", lw=1.2, zorder=1)
        panel.invert_xaxis()
        panel.set_xlabel("timestep (noise to image)")
    lengths.set_ylabel("length of predicted noise along sampling,\nover that of the true noise along it")
    figures.legend(loc="outside lower left", fontsize=9)
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
