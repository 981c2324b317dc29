"""What was measured, as exposure_bias.png: a panel for each measure, a line for each setting. Needs matplotlib."""

import io

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
DASHES = ("-", "--", ":", "-.")


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
    """The figure: bands of two standard errors, and in grey what theory has; curves of a panel differ in their dashes."""
    columns = 2 if len(measures) > 1 else 1
    rows = -(-len(measures) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(7 * columns, 4.2 * rows), squeeze=False)
    for panel in grid.flat[len(measures) :]:
        panel.axis("off")
    for panel, measure in zip(grid.flat, measures):
        for place, name in enumerate(measure.drawn):
            for number, result in enumerate(results):
                curve, colour = result.curves[measure.name][name], COLOURS[number % len(COLOURS)]
                label = title(result, results) if place == 0 else None
                draw_curve(panel, result.times, curve.values, curve.errors, colour, DASHES[place], label, measure.scale)
                if curve.theory is not None:
                    panel.plot(result.times, curve.theory, color="0.6", lw=1.2, ls=DASHES[place], zorder=1)
        panel.set_yscale(measure.scale)
        panel.invert_xaxis()
        panel.set(xlabel="timestep (noise to image)", ylabel=measure.label)
        panel.set_title(", ".join(f"{name} {DASHES[i]}" for i, name in enumerate(measure.drawn)))
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def title(result, results):
    """What a line is called: by its setting, and by its budget where there are several."""
    if len({other.budget for other in results}) == 1:
        return result.name
    return f"{result.name}, {result.budget}"


def draw_curve(panel, times, values, errors, colour, dashes, label, scale="linear"):
    """A line with a band of two standard errors; on a logarithmic scale the band stays above 0."""
    panel.plot(times, values, color=colour, ls=dashes, label=label, marker="o", ms=2.5)
    low = values - 2 * errors
    panel.fill_between(
        times, low.clip(min=values * 1e-2) if scale == "log" else low, values + 2 * errors, color=colour, alpha=0.15, lw=0
    )
