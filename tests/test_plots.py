"""The figures in benchmarks: labels that do not lie on each other, panels by family, a figure of every table."""

import itertools
from pathlib import Path

import numpy as np
import plot_differences
import plot_samplers
import plot_training
import plotting
import pytest
import script_runs
import solver_orders
from matplotlib.text import Text
from PIL import Image
from scipy.optimize import minimize

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def width(path):
    with Image.open(path) as image:
        return image.width


def test_labels_are_spread_by_least_squares():
    places = np.array([0.5, 0.1, 0.52, 0.51, 0.9, 0.12])
    found = plotting.spread(places, 0.1)
    ranks = np.argsort(places)
    apart = [{"type": "ineq", "fun": lambda x, a=a, b=b: x[b] - x[a] - 0.1} for a, b in itertools.pairwise(ranks)]
    expected = minimize(lambda x: ((x - places) ** 2).sum(), places, constraints=apart, tol=1e-12).x
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert plotting.spread([0.2, 0.4], 0.1).tolist() == [0.2, 0.4]


def test_labels_at_the_ends_of_lines_do_not_overlap():
    plt = plotting.pyplot()
    figure, panel = plt.subplots(figsize=(5, 4.6))
    panel.set(ylim=(0, 1), xlim=(0, 2))
    plotting.label_ends(panel, [panel.plot([0, 1], [0, 0.5], label=f"line {i}")[0] for i in range(4)])
    figure.canvas.draw()
    # of the words alone, without the line that leads to them
    boxes = sorted((Text.get_window_extent(text) for text in panel.texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    plt.close(figure)


def test_small_families_of_solvers_share_a_panel():
    families = {"a1": "A", "b1": "B", "b2": "B", "b3": "B", "c1": "C", "c2": "C"}
    assert solver_orders.panels_of(families) == {"A, C": ["a1", "c1", "c2"], "B": ["b1", "b2", "b3"]}
    assert solver_orders.panels_of(dict.fromkeys(families, "B")) == {"B": list(families)}


def test_solvers_are_known_by_their_families():
    named = {
        name: solver_orders.family_of(make(solver_orders.SCHEDULE)) for name, make in solver_orders.CHOICES.items()
    }
    assert named["dpmpp_3m"] == "DPM-Solver++" and named["plms"] == named["ipndm"] == "PNDM"
    assert all(len(family) < 20 for family in named.values())


def test_a_point_holds_the_repeats(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("sampler,budget,calls_per_image,distance,distance_0,distance_1\nddim + TS,5 steps,5,2,1,3\n")
    assert plot_samplers.read(path) == {"ddim": {"TS": {"5 steps": (5.0, 2.0, 1.0, 3.0)}}}


def test_tables_are_drawn_under_titles(tmp_path):
    out, table = tmp_path / "plot.png", BENCHMARKS / "solvers_digits.csv"
    printed = script_runs.run("plot_samplers", table, "--titles", "digits", "--out", out, folder=BENCHMARKS)
    assert printed.startswith("| digits | 5 calls |") and width(out) == 1400


def test_titles_are_one_for_each_file(tmp_path, capsys):
    table = BENCHMARKS / "solvers_digits.csv"
    with pytest.raises(SystemExit):
        script_runs.run("plot_samplers", table, table, "--titles", "a", "--out", tmp_path / "x", folder=BENCHMARKS)
    assert "--titles has 1 for 2 files" in capsys.readouterr().err


def test_losses_are_drawn(tmp_path):
    models = BENCHMARKS.parent / "models"
    assert set(plot_training.curves(models / "digits16_classifier_progress.csv")) == {"training", "validation"}
    script_runs.run("plot_training", models / "digits16_progress.csv", "--out", tmp_path / "x.png", folder=BENCHMARKS)
    assert width(tmp_path / "x.png") > 400


def test_changes_are_paired_and_in_per_cent_of_the_plain_sampler(tmp_path):
    """By hand: 4, 5, 6 plain and 5, 5, 8 of the variant differ by 20, 0 and 40 % of 5."""
    table = tmp_path / "comparison.csv"
    rows = [
        "DDIM,10 steps,4,5,6",
        "DDIM + ES 1.01,10 steps,5,5,8",
        "DDIM + ES 0.99,20 steps,1,2,3",
        "DDPM,10 steps,1,1,1",
    ]
    table.write_text("\n".join(["sampler,budget,distance_0,distance_1,distance_2", *rows]))
    found = plot_differences.read(table)["DDIM"]
    mean, error = plot_differences.change(found["ES 1.01"]["10 steps"], found[""]["10 steps"])
    assert (mean, error) == (pytest.approx(20), pytest.approx(20 / 3**0.5))
    printed = script_runs.run("plot_differences", table, "--out", tmp_path / "x.png", folder=BENCHMARKS)
    assert width(tmp_path / "x.png") > 100
    header, _, plain, scaled, none, _ = printed.splitlines()
    assert header == "| | DDIM, 10 steps |" and plain == "| plain | 5 ± 1 |"
    assert scaled == "| ES 1.01 | +20.0 ± 11.5 % |" and none == "| ES 0.99 |  |"
    table.write_text("\n".join(["sampler,budget,distance_0,distance_1,distance_2", "DDIM,10 steps,4,5,6"]))
    for path in (table, tmp_path / "missing.csv", BENCHMARKS / "style.mplstyle"):
        with pytest.raises(SystemExit):
            script_runs.run("plot_differences", path, "--out", tmp_path / "x.png", folder=BENCHMARKS)


HEADER = "sampler,budget,calls_per_image,distance,distance_0,distance_1"


@pytest.mark.parametrize("name", ["plot_differences", "plot_samplers"])
@pytest.mark.parametrize(
    "lines, words",
    [
        ([HEADER, "DDIM,5 steps,5,1,1"], "line 2 has not as many cells"),
        ([HEADER, "DDIM,5 steps,5,1,1,1", "DDIM + TS,5 steps,5,1,1,1,1"], "line 3 has not as many cells"),
        ([HEADER, "DDIM,5 steps,5,1,1,one"], "one"),
        (["sampler,budget,calls_per_image,distance", "DDIM,5 steps,5,1"], "no columns distance_0"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(tmp_path, capsys, name, lines, words):
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(SystemExit):
        script_runs.run(name, tmp_path / "t.csv", "--out", tmp_path / "x.png", folder=BENCHMARKS)
    assert words in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["plot_differences", "plot_samplers"])
def test_a_picture_of_no_known_format_is_one_sentence(tmp_path, capsys, name):
    rows = [HEADER, "DDIM,5 steps,5,1,1,1", "DDIM + TS,5 steps,5,1,1,2"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(SystemExit):
        script_runs.run(name, tmp_path / "t.csv", "--out", tmp_path / "x.xyz", folder=BENCHMARKS)
    assert "--out cannot be written" in capsys.readouterr().err.splitlines()[-1]
