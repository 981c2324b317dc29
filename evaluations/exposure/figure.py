"""What was measured, as exposure_bias.png: a panel for each measure, a line for each setting. Needs matplotlib."""

import io

import numpy as np

from guided_diffusion import files, logger

STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
# Okabe and Ito's colours, which the colour-blind tell apart too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# of a logarithmic axis, in its largest number
LEAST = 1e-5
DASHES = ("-", "--", ":", "-.")
# of lines, as soon as the colours begin anew
MARKERS = "os^Dv"


def pyplot():
    """matplotlib.pyplot for files, or None where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        logger.warn("no figure is drawn without matplotlib; pip install matplotlib adds it")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(results, folder, measures):
    """Draw exposure_bias.png of some Results, where matplotlib is there."""
    if plt := pyplot():
        with plt.rc_context(STYLE):
            figure = drawn(plt, results, measures)
            write(figure, files.join(folder, "exposure_bias.png"))
            plt.close(figure)


def write(figure, path):
    """Write a figure as PNG, without the date and version that would change its bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": None})
    files.write_bytes(path, data.getbuffer())


def drawn(plt, results, measures):
    """The figure: bands of two standard errors, theory in grey; curves of a panel differ in their dashes."""
    columns = 2 if len(measures) > 1 else 1
    rows = -(-len(measures) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(7 * columns, 4.2 * rows), squeeze=False)
    for panel in grid.flat[len(measures) :]:
        panel.axis("off")
    for panel, measure in zip(grid.flat, measures):
        log = measure.scale == "log"
        for place, name in enumerate(measure.drawn):
            for number, result in enumerate(results):
                curve, look = result.curves[measure.name][name], _look(number)
                draw_curve(panel, result.times, curve.values, curve.errors, DASHES[place], log, **look)
                if curve.theory is not None:
                    theory = np.where(curve.theory > 0, curve.theory, np.nan) if log else curve.theory
                    panel.plot(result.times, theory, color="0.6", lw=1.2, ls=DASHES[place], zorder=1)
        panel.set_yscale(measure.scale)
        if log:  # what lies deeper is 0 up to its error
            panel.set_ylim(bottom=panel.get_ylim()[1] * LEAST)
        panel.invert_xaxis()
        panel.set(xlabel="timestep (noise to image)", ylabel=measure.label)
        keys = [panel.plot([], [], color="black", ls=DASHES[i], label=name)[0] for i, name in enumerate(measure.drawn)]
        panel.legend(handles=keys)
    looks = {title(result, results): _look(i) for i, result in enumerate(results)}
    handles = [panel.plot([], [], label=label, **look)[0] for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def title(result, results):
    """What a line is called: by its setting, and by its budget where there are several."""
    if len({other.budget for other in results}) == 1:
        return result.name
    return f"{result.name}, {result.budget}"


def _look(number):
    """How line `number` looks."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}


def draw_curve(panel, times, values, errors, dashes="-", log=False, *, color, marker="o"):
    """A line with a band of two standard errors; on a logarithmic scale the band stays above 0."""
    panel.plot(times, values, color=color, ls=dashes, marker=marker, ms=2.5 if marker == "o" else 4)
    low = (values - 2 * errors).clip(min=values / 100) if log else values - 2 * errors
    panel.fill_between(times, low, values + 2 * errors, color=color, alpha=0.15, lw=0)
