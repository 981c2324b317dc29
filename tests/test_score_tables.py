"""Several sets of samples in one table, references of other features, and what is found before the work begins."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image

from evaluations import evaluator, runs, scores, tables
from evaluations.features import Extractor
from evaluations.metric import Found
from guided_diffusion.errors import UserError
from guided_diffusion.jobs import folder_lock

FOLDER = Path(__file__).parents[1] / "evaluations"
REFERENCE = np.random.default_rng(1).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
SETS = {
    "dark": REFERENCE[::-1] // 2,
    "bright": 255 - REFERENCE // 2,
    "=2+3|<script>alert(1)</script>": np.random.default_rng(2).integers(256, size=(30, 16, 16, 3), dtype=np.uint8),
}
METRICS = ["--metrics", "frechet_distance,precision,recall", "--standard_error", True]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    script_runs.mean_colours(place / "means.pt", 16)
    np.savez(place / "reference.npz", REFERENCE)
    for name, images in SETS.items():
        np.savez(place / f"{name.replace('/', '_')}.npz", arr_0=images, arr_1=np.arange(len(images)) % 2)
    np.savez(place / "small.npz", REFERENCE[:, :8, :8])
    np.savez(place / "wide.npz", REFERENCE.repeat(2, axis=2))
    return place


def paths(place):
    return [place / f"{name.replace('/', '_')}.npz" for name in SETS]


def evaluate(place, out, *arguments, features=None):
    words = [
        "--trust_code",
        True,
        "--features",
        features or f"torchscript:{place}/means.pt",
        "--out_dir",
        out,
        *METRICS,
    ]
    return script_runs.run("evaluator", *arguments, *words, folder=FOLDER)


@pytest.fixture(scope="module")
def scored(place):
    """What the evaluator prints of three sets; its files lie in place/out."""
    return evaluate(place, place / "out", place / "reference.npz", *paths(place), "--json", place / "new" / "all.json")


def test_each_run_has_the_scores_it_has_alone(place, scored):
    reports = json.loads((place / "new" / "all.json").read_text())["runs"]
    assert len(reports) == 3
    for path, report in zip(paths(place), reports):
        evaluate(place, place / "alone", place / "reference.npz", path, "--json", place / "alone.json")
        assert json.loads((place / "alone.json").read_text()) == report
    assert not (place / "alone" / "scores.csv").exists()


def test_the_reference_is_computed_once(place, monkeypatch):
    computed = []
    call = Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda self, images: computed.append(len(images)) or call(self, images))
    evaluate(place, place / "again", place / "reference.npz", *paths(place))
    assert sum(computed) == 40 + 40 + 40 + 30


def test_the_tables_have_the_scores(place, scored):
    reports = json.loads((place / "new" / "all.json").read_text())["runs"]
    text = (place / "out" / "scores.csv").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(text.decode("utf-8-sig"))))
    for row, report, images in zip(rows, reports, SETS.values()):
        assert {name: float(row[name]) for name in report["scores"]} == report["scores"]
        assert int(row["count"]) == len(images)
    lines = (place / "out" / "scores.md").read_text().splitlines()
    assert lines[0] == "| samples | count | Frechet distance | Precision | Recall |" and len(lines) == 5
    first = reports[0]["scores"]
    shown = f"{first['frechet_distance']:.4g} ± {first['frechet_distance_standard_error']:.2g}"
    assert lines[2].endswith(f"| 40 | {shown} | {first['precision']:.4g} | {first['recall']:.4g} |")
    assert "\n".join(lines) in scored and f"saved scores.md, scores.csv and scores.png in {place}/out" in scored


def test_the_picture_has_a_row_of_images_for_each(place, scored):
    canvas = np.asarray(Image.open(place / "out" / "scores.png"))
    windows = np.lib.stride_tricks.sliding_window_view(canvas[..., 0], (48, 48))
    for images in SETS.values():
        for image in images[: runs.SHOWN]:
            enlarged = image.repeat(3, axis=0).repeat(3, axis=1)
            places = np.argwhere((windows[:, :, 0] == enlarged[0, :, 0]).all(axis=-1))
            assert any(np.array_equal(canvas[y : y + 48, x : x + 48], enlarged) for y, x in places)


@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        "+1",
        "-a",
        "-5+2",
        "-1e",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "a|b",
        "<b>x</b>",
        "a&b",
        "[a](b)",
        "`a`",
        "é",
        "a\nb",
    ],
)
def test_names_are_text_in_a_table(name):
    row = runs.Row(name, 3, {"kid": -0.5}, np.empty((0, 1, 1, 3), np.uint8))
    (_, (cell, count, value)) = csv.reader(io.StringIO(runs.csv_table([row]).decode("utf-8-sig"), newline=""))
    text = re.sub(r"\s", " ", name)
    assert cell in (text, "'" + text) and not cell.startswith(tables.FORMULA) and (count, value) == ("3", "-0.5")
    *_, line = lines = runs.markdown([row]).splitlines()
    assert len(lines) == 3 and len(re.findall(r"(?<!\\)\|", line)) == 4
    assert "<" not in line and not re.search(r"(?<!\\)[`\[\]]", line)
    runs.picture([row])  # whatever its font shows of it


def test_scores_that_are_not_there_leave_a_gap():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    rows = [
        runs.Row("a", 2, {"kid": 1.0, "kid_standard_error": 0.25}, images),
        runs.Row("b", 2, {"recall": 0.5}, images),
    ]
    assert [line.split("|")[3:5] for line in runs.markdown(rows).splitlines()[2:]] == [
        [" 1 ± 0.25 ", "  "],
        ["  ", " 0.5 "],
    ]
    assert runs.csv_table(rows).decode("utf-8-sig").splitlines()[1:] == ["a,2,1.0,0.25,", "b,2,,,0.5"]
    runs.picture(rows)


# -- before the work -----------------------------------------------------------------------------------


REFUSED = {
    "{place}/reference.npz {place}/wide.npz": "--samples {place}/wide.npz: features have 24 dimensions; expected 12",
    "{place}/reference.npz {place}/dark.npz {place}/small.npz": "--samples {place}/small.npz: features have 3 dim",
    "{place}/reference.npz {place}/dark.npz {place}/absent": "--samples {place}/absent is not there",
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_size_that_does_not_fit_is_found_before_any_features(place, command, monkeypatch, capsys):
    monkeypatch.setattr(Extractor, "__call__", None)
    with pytest.raises(SystemExit):
        evaluate(place, place / "refused", *command.format(place=place).split())
    assert REFUSED[command].format(place=place) in capsys.readouterr().err.splitlines()[-1]
    assert not (place / "refused" / "evaluation_flags.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_ends_the_run(place, value, monkeypatch, capsys):
    of_nothing = next(metric for metric in scores.METRICS if "precision" in metric.titles)
    changed = [m._replace(compute=lambda *_: Found((value, 0.25))) if m is of_nothing else m for m in scores.METRICS]
    monkeypatch.setattr(scores, "METRICS", changed)
    with pytest.raises(SystemExit) as ended:
        evaluate(place, place / "strange", place / "reference.npz", paths(place)[0])
    told = capsys.readouterr().err.splitlines()[-1]
    assert (
        ended.value.code == 2 and told == f"evaluator: {paths(place)[0]}: Precision is {value}; expected finite numbers"
    )


def test_runs_before_one_that_is_damaged_keep_their_scores(place, tmp_path, capsys):
    good, bad = paths(place)[0], tmp_path / "bad.npz"
    np.savez_compressed(bad, np.random.default_rng(3).integers(256, size=(300, 16, 16, 3), dtype=np.uint8))
    whole = bytearray(bad.read_bytes())
    whole[len(whole) // 2] ^= 255
    bad.write_bytes(whole)
    with pytest.raises(SystemExit):
        evaluate(place, tmp_path / "out", place / "reference.npz", good, bad, "--json", tmp_path / "new.json")
    assert str(bad) in capsys.readouterr().err
    if (tmp_path / "new.json").exists():  # else it was found before any work began
        (found,) = json.loads((tmp_path / "new.json").read_text())["runs"]
        assert found["samples"]["path"] == str(good) and (tmp_path / "out" / "scores.md").exists()


def test_a_score_that_is_none_leaves_those_before_it(place, tmp_path, monkeypatch, capsys):
    of_nothing, called = next(metric for metric in scores.METRICS if "precision" in metric.titles), []

    def compute(*_):
        called.append(1)
        return Found((float("nan"), 0.25) if len(called) == 2 else (0.5, 0.25))

    changed = [m._replace(compute=compute) if m is of_nothing else m for m in scores.METRICS]
    monkeypatch.setattr(scores, "METRICS", changed)
    with pytest.raises(SystemExit):
        evaluate(place, tmp_path / "out", place / "reference.npz", *paths(place)[:2], "--json", tmp_path / "new.json")
    first, second = json.loads((tmp_path / "new.json").read_text())["runs"]
    assert first["scores"]["precision"] == 0.5 and "precision" not in second["scores"]
    assert "Precision is nan; expected finite numbers" in capsys.readouterr().err
    assert (tmp_path / "out" / "scores.csv").exists()


def test_features_too_large_for_distances_are_refused():
    from evaluations.precision_recall import density_coverage, precision_recall

    huge = torch.full((9, 4), 1e25)
    for metric in (precision_recall, density_coverage):
        with pytest.raises(UserError, match="so large"):
            metric(huge, huge)


@pytest.mark.parametrize("name", ["evaluator", "make_reference"])
def test_two_jobs_do_not_share_a_folder(place, name, tmp_path, capsys):
    words = {
        "evaluator": [place / "reference.npz", paths(place)[0], *METRICS],
        "make_reference": [place / "reference.npz", "--out", tmp_path / "made.npz", "--image_size", 16],
    }[name]
    command = [*words, "--trust_code", True, "--features", f"torchscript:{place}/means.pt", "--out_dir", tmp_path]
    with folder_lock.locked(str(tmp_path)), pytest.raises(SystemExit):
        script_runs.run(name, *command, folder=FOLDER)
    assert f"{tmp_path} is in use by process" in capsys.readouterr().err.splitlines()[-1]
    script_runs.run(name, *command, folder=FOLDER)


# -- references of other features ----------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """A folder of pictures of several sizes."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(30):
        pixels = rng.integers(256, size=(20 + i % 3, 18 + i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_pictures_of_mixed_sizes_become_a_reference_of_any_features(place, mixed, tmp_path, monkeypatch):
    features = ["--trust_code", True, "--features", f"torchscript:{place}/means.pt"]
    words = ["--out", tmp_path / "new" / "r.npz", "--num_images", 8, "--image_size", 16, "--out_dir", tmp_path / "out"]
    script_runs.run("make_reference", mixed, *words, *features, folder=FOLDER)
    script_runs.run(
        "make_reference", mixed, *words[2:], "--out", tmp_path / "all.npz", "--num_images", 99, *features, folder=FOLDER
    )
    whole, kept = np.load(tmp_path / "all.npz"), np.load(tmp_path / "new" / "r.npz")
    assert kept["arr_0"].shape == (8, 16, 16, 3) and "mu" not in kept.files
    seen = whole["arr_0"].reshape(30, 2, 8, 2, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(30, 12) / 255
    assert np.allclose(kept["features_mu"], seen.mean(axis=0), rtol=1e-5)
    assert np.allclose(kept["features_sigma"], np.cov(seen, rowvar=False), atol=1e-7)
    # the evaluator compares with the statistics of all pictures, not with the eight of them
    found = {}
    for name in ("all", "new/r"):
        evaluate(place, tmp_path / "out", tmp_path / f"{name}.npz", paths(place)[0], "--json", tmp_path / "s.json")
        found[name] = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert found["all"]["frechet_distance"] == pytest.approx(found["new/r"]["frechet_distance"], rel=1e-6)
    # and with the pictures where the features are others
    script_runs.mean_colours(tmp_path / "other.pt", 16, square=4)
    evaluate(
        place,
        tmp_path / "out",
        tmp_path / "new" / "r.npz",
        paths(place)[0],
        features=f"torchscript:{tmp_path}/other.pt",
    )


def test_the_names_of_the_positions(place):
    from guided_diffusion import flags

    def parsed(text):
        found = flags.parse(text.split(), evaluator.GROUPS, "", positional=("reference", "samples", "more_samples"))
        return [getattr(found[evaluator.EvaluatorFlags], name) for name in ("reference", "samples", "more_samples")]

    assert parsed("r a") == ["r", "a", ""]
    assert parsed("r a b c") == ["r", "a", "b c"] == parsed("r --samples a b c") == parsed("a b c --reference r")
    assert parsed("r a --more_samples b") == ["r", "a", "b"]
    with pytest.raises(UserError, match="--gray is not a flag"):
        parsed("r a b --gray c")
