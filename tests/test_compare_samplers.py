"""compare_samplers: distances by a second computation, controls, the table, the picture, ranks, refusals."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import launched
import numpy as np
import papers
import plot_samplers
import pytest
import script_runs
import torch
from PIL import Image
from processes import MPIRUN, needs_mpirun
from scipy.linalg import sqrtm

from evaluations.comparison import plan
from evaluations.comparison import rows as row_store
from evaluations.comparison.pictures import picture
from evaluations.comparison.rows import Row
from evaluations.comparison.settings import Settings, read_settings
from evaluations.comparison.tables import csv_table, markdown
from evaluations.precision_recall import precision_recall
from evaluations.tables import CSV_ENCODING
from guided_diffusion import checkpoints, conditioning, files, flags
from guided_diffusion.errors import UserError
from guided_diffusion.methods import TimeShift
from guided_diffusion.networks import ClassifierFlags

SHIFT = "--use_ddim True --do_time_shift True --time_shift_variant paper --cutoff 10"
SETTINGS = f"""# the first line is what the others are compared with
DDIM: --use_ddim True

TS: {SHIFT} --window {{3:30 5:20}}
control: {SHIFT} --time_shift_constant {{shift TS}}
same: --use_ddim True --eps_scaler 1.0
ancestral: --timestep_respacing {{N}}
"""
STEPS = ("--steps", "3,5")
SMALL = "--num_samples 12 --batch_size 8 --repeats 2 --columns 4 --seed 7".split()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    data = script_runs.draw_images(folder / "data", count=24)
    real = np.stack([np.asarray(Image.open(path)) for path in sorted(data.glob("*.png"))])
    np.savez(folder / "real.npz", real)
    script_runs.train_class_conditional(data, folder / "diffusion")
    script_runs.train_classifier(data, folder / "classifier")
    (folder / "settings.txt").write_text(SETTINGS)
    return folder


def command(models, out_dir, budget=STEPS):
    return [
        *("--model_path", models / "diffusion" / "model000002.pt", "--settings", models / "settings.txt"),
        *("--features", f"classifier:{models / 'classifier' / 'model000002.pt'}", "--reference", models / "real.npz"),
        *("--out_dir", out_dir, *SMALL, *budget),
    ]


@pytest.fixture(scope="module")
def compared(models, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("compared")
    script_runs.run("compare_samplers", *command(models, out_dir))
    return out_dir


def rows_of(folder):
    with open(folder / "comparison.csv", newline="", encoding="utf-8-sig") as file:
        return {(row["sampler"], row["steps"]): row for row in csv.DictReader(file)}


def row_of(path):
    """Whose row a file of the folder rows/ is: (name, budget)."""
    with np.load(path) as saved:
        values = json.loads(str(saved["values"]))
    return values["name"], values["budget"]


def features(models, images):
    """What the classifier's last projection reads: its output is that projection of it, so it can be solved for."""
    parsed = flags.Parsed({ClassifierFlags: ClassifierFlags()}, frozenset())
    _, classifier = checkpoints.load_classifier(parsed, str(models / "classifier" / "model000002.pt"))
    pool = classifier.out[-1]
    seen = {}
    project, pool.c_proj.forward = pool.c_proj.forward, lambda tokens: seen.setdefault("read", tokens)[:, :3]
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        classifier(x, torch.zeros(len(x), dtype=torch.long))
    pool.c_proj.forward = project
    return seen["read"].flatten(1).double().numpy()


def textbook_distance(a, b):
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    cross = sqrtm(covariances[0] @ covariances[1])
    gap = a.mean(axis=0) - b.mean(axis=0)
    return gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(cross).real


@pytest.mark.parametrize("name, given", [("DDIM", ["--use_ddim", True]), ("ancestral", [])])
def test_distances_are_those_of_image_sample(compared, models, tmp_path, name, given):
    real = features(models, np.load(models / "real.npz")["arr_0"])
    for repeat in range(2):
        out_dir = tmp_path / str(repeat)
        shared = ["--num_samples", 12, "--batch_size", 5, "--seed", 7 + repeat, "--timestep_respacing", 5]
        model = models / "diffusion" / "model000002.pt"
        script_runs.run("image_sample", "--model_path", model, *shared, *given, "--out_dir", out_dir)
        (path,) = out_dir.glob("samples_*.npz")
        expected = textbook_distance(features(models, np.load(path)["arr_0"]), real)
        found = float(rows_of(compared)[name, "5"][f"distance_{repeat}"])
        # scipy's root of a singular product is what limits the agreement
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)


GUIDED = """plain:
guided: --classifier_path {classifier} --classifier_scale {{sweep 0,3}}
scaled: --use_ddim {{sweep True,False}} --eps_scaler {{sweep 1.0 1.1}}
"""


@pytest.fixture(scope="module")
def guided(models, tmp_path_factory):
    """The folder of a comparison over scales of guidance, with precision, recall and a judge."""
    out_dir, judge = tmp_path_factory.mktemp("guided"), models / "judge"
    script_runs.train_classifier(models / "data", judge, "--seed", 5)
    settings = out_dir / "settings.txt"
    settings.write_text(GUIDED.format(classifier=models / "classifier" / "model000002.pt"))
    more = ["--settings", settings, "--precision_recall", True, "--judge", judge / "model000002.pt"]
    script_runs.run("compare_samplers", *command(models, out_dir / "out", ("--steps", "5")), *more)
    return out_dir / "out"


def test_a_sweep_is_a_row_for_each_value(guided):
    names = ["plain", "guided 0", "guided 3", *(f"scaled {ddim} {k}" for ddim in (True, False) for k in (1.0, 1.1))]
    rows = rows_of(guided)
    assert list(rows) == [(name, "5") for name in names]
    for same in ("guided 0", "scaled False 1.0"):
        assert rows[same, "5"]["distance_0"] == rows["plain", "5"]["distance_0"]
    assert len({rows[name, "5"]["distance_0"] for name in names}) == len(names) - 2


def test_guided_rows_are_scored_as_images_of_classifier_sample(guided, models, tmp_path):
    real = torch.from_numpy(features(models, np.load(models / "real.npz")["arr_0"])).float()
    classifier, row, seen = models / "classifier" / "model000002.pt", rows_of(guided)["guided 3", "5"], []
    for repeat in range(2):
        shared = ["--num_samples", 12, "--batch_size", 5, "--seed", 7 + repeat, "--timestep_respacing", 5]
        shared += ["--model_path", models / "diffusion" / "model000002.pt", "--out_dir", tmp_path / str(repeat)]
        script_runs.run("classifier_sample", *shared, "--classifier_path", classifier, "--classifier_scale", 3)
        path = tmp_path / str(repeat) / "samples_12x16x16x3.npz"
        judged = ["--classifier_path", models / "judge" / "model000002.pt", "--samples", path]
        said = script_runs.run("classifier_accuracy", *judged, folder=script_runs.FOLDER.parent / "evaluations")
        made = torch.from_numpy(features(models, np.load(path)["arr_0"])).float()
        distance = textbook_distance(made.double().numpy(), real.double().numpy())
        assert float(row[f"distance_{repeat}"]) == pytest.approx(distance, rel=1e-4, abs=1e-7)
        seen.append([*precision_recall(real, made), int(re.search(r"(\d+) of 12", said)[1]) / 12])
    for name, values in zip(("precision", "recall", "agreement"), zip(*seen)):
        assert float(row[name]) == pytest.approx(np.mean(values), abs=1e-6), name
        assert float(row[f"{name}_spread"]) == pytest.approx(np.std(values, ddof=1), abs=1e-6), name


def test_all_samplers_start_from_the_same_noise(compared):
    rows = rows_of(compared)
    for steps in ("3", "5"):
        assert float(rows["same", steps]["difference"]) == 0
        assert rows["same", steps]["distance_0"] == rows["DDIM", steps]["distance_0"]
        assert rows["ancestral", steps]["distance_0"] != rows["DDIM", steps]["distance_0"]
        assert rows["DDIM", steps]["difference"] == ""


def test_calls_shifts_and_edges(compared):
    for (name, steps), row in rows_of(compared).items():
        assert float(row["calls_per_image"]) == int(steps)
        assert float(row["seconds_per_image"]) > 0
        assert bool(row["mean_shift"]) == (name in ("TS", "control"))
        assert bool(row["edge"]) == (name == "TS")
    for steps in ("3", "5"):
        chosen, held = (float(rows_of(compared)[name, steps]["mean_shift"]) for name in ("TS", "control"))
        # near the ends of the range the constant shift is clamped, as a search is
        assert chosen != 0 and abs(held) <= abs(round(chosen)) and held * chosen >= 0


def test_the_same_command_goes_on_with_what_is_missing(models, tmp_path):
    def seconds():
        return {key: row["seconds_per_image"] for key, row in rows_of(tmp_path).items()}

    script_runs.run("compare_samplers", *command(models, tmp_path))
    table, first = rows_of(tmp_path), seconds()
    kept = {row_of(path): path for path in (tmp_path / "rows").iterdir()}
    assert kept.keys() == {(name, f"{steps} steps") for name, steps in first}
    kept["same", "3 steps"].unlink()
    damaged = kept["TS", "5 steps"]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    printed = script_runs.run("compare_samplers", *command(models, tmp_path))
    # a time that is measured anew is another
    assert {key for key, took in seconds().items() if took != first[key]} == {("same", "3"), ("TS", "5")}
    for key, row in rows_of(tmp_path).items():
        assert {**row, "seconds_per_image": ""} == {**table[key], "seconds_per_image": ""}
    for kept_row in ("DDIM, 3 steps", "same, 5 steps", "TS, 3 steps"):
        assert f"{kept_row}: taken from" in printed
    assert "TS, 5 steps: taken from" not in printed and "same, 3 steps: taken from" not in printed
    first = seconds()
    script_runs.run("compare_samplers", *command(models, tmp_path), "--seed", 8)
    assert all(seconds()[key] != first[key] for key in first)


def test_an_edited_solver_has_other_rows(tmp_path, monkeypatch):
    copies = [tmp_path / name for name in ("guided_diffusion", "evaluations")]
    for module, copy in zip((files, row_store), copies):
        shutil.copytree(Path(module.__file__).parent, copy)
        monkeypatch.setattr(module, "__file__", str(copy / Path(module.__file__).name))
    before = row_store.digest_of_code()
    heun = copies[0] / "solvers" / "heun.py"
    heun.write_text(heun.read_text().replace("0.5)", "0.4)"))
    assert row_store.digest_of_code() != before


def test_the_control_of_a_search_without_a_step_to_move_is_without_shift(models, tmp_path):
    path = tmp_path / "settings.txt"
    still = SHIFT.replace("--cutoff 10", "--cutoff 98 --timestep_respacing ddim{N}")
    path.write_text(
        "plain: --use_ddim True --timestep_respacing ddim{N}\n"
        f"still: {still} --window 4\n"
        f"control: {still} --time_shift_constant {{shift still}}\n"
    )
    script_runs.run("compare_samplers", *command(models, tmp_path / "out", ("--steps", "3")), "--settings", path)
    rows = rows_of(tmp_path / "out")
    assert rows["control", "3"]["distance_0"] == rows["plain", "3"]["distance_0"] == rows["still", "3"]["distance_0"]


CALLS = """two a step: --solver heun
one a step: --use_ddim True
search: --use_ddim True --do_time_shift True --time_shift_variant paper --window {5:2 11:4} --cutoff 10
grid with gaps: --solver plms --timestep_respacing ddim{N}
"""


def test_equal_calls_instead_of_equal_steps(compared, models, tmp_path):
    path = tmp_path / "settings.txt"
    path.write_text(CALLS)
    script_runs.run("compare_samplers", *command(models, tmp_path / "out", ("--calls", "5,11")), "--settings", path)
    with open(tmp_path / "out" / "comparison.csv", newline="", encoding="utf-8-sig") as file:
        rows = {(row["sampler"], row["budget"]): row for row in csv.DictReader(file)}
    took = {key: (int(row["steps"]), float(row["calls_per_image"])) for key, row in rows.items()}
    assert took == {
        ("two a step", "5 calls"): (3, 4),  # 2 N - 2 from the noisiest cosine timestep
        ("two a step", "11 calls"): (6, 10),
        ("one a step", "5 calls"): (5, 5),
        ("one a step", "11 calls"): (11, 11),
        ("search", "5 calls"): (5, 5),
        ("search", "11 calls"): (11, 11),
        ("grid with gaps", "5 calls"): (4, 5),  # N + 1; there is no ddim11
        ("grid with gaps", "11 calls"): (10, 11),
    }
    assert rows["one a step", "5 calls"]["distance_0"] == rows_of(compared)["DDIM", "5"]["distance_0"]
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("| sampler | 5 calls | 11 calls |")


@needs_mpirun
def test_two_ranks_give_the_same_table(compared, models, tmp_path):
    script = script_runs.FOLDER / "compare_samplers.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(part) for part in (MPIRUN, "-n", 2, sys.executable, script, *command(models, tmp_path))]
    subprocess.run(arguments, check=True, env=environment, timeout=300)
    one, two = rows_of(compared), rows_of(tmp_path)
    assert list(one) == list(two)
    for key in one:
        for column in set(one[key]) - {"sampler", "budget", "seconds_per_image"}:
            if one[key][column]:
                assert float(two[key][column]) == pytest.approx(float(one[key][column]), rel=1e-6), (key, column)
    assert (compared / "comparison.png").read_bytes() == (tmp_path / "comparison.png").read_bytes()


# -- the table and the picture ---------------------------------------------------------------------


def made_rows():
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(4, 2, 16, 16, 3), dtype=np.uint8)
    return [
        Row("base", "5 steps", 5, [10.0, 14.0], 5, 0.5, {"mean_shift": None, "edge": None}, images[0]),
        Row("moved", "5 steps", 5, [9.0, 12.0], 5, 0.5, {"mean_shift": 2.5, "edge": 0.25}, images[1]),
        Row("base", "10 steps", 10, [8.0, 8.0], 10, 1.0, {"mean_shift": None, "edge": None}, images[2]),
        Row("moved", "10 steps", 10, [8.5, 9.5], 10, 1.0, {"mean_shift": -2.0, "edge": None}, images[3]),
    ]


def test_means_spreads_and_paired_differences():
    lines = markdown(made_rows()).splitlines()
    assert lines[0] == "| sampler | 5 steps | 10 steps |"
    # by hand: spreads 4 / sqrt 2 and 3 / sqrt 2; the differences -1, -2 and 0.5, 1.5
    assert lines[2] == "| base | 12.00 ± 2.83 | 8.00 ± 0.00 |"
    assert lines[3] == "| moved | 10.50 ± 2.12 (-1.50 ± 0.71) | 9.00 ± 0.71 (+1.00 ± 0.71) |"
    assert "| moved | 5 steps | 5 | 5 | 0.5000 | +2.5 | 25% |" in lines
    table = list(csv.DictReader(csv_table(made_rows()).decode(CSV_ENCODING).splitlines()))
    assert float(table[3]["difference"]) == 1.0 and table[0]["difference"] == "" and table[3]["edge"] == ""


def test_the_table_of_solvers_and_variants(tmp_path):
    rows = made_rows()
    rows[1].name, rows[3].name = "base + moved", "other + moved"
    (tmp_path / "table.csv").write_bytes(csv_table(rows))
    assert plot_samplers.table("model", plot_samplers.read(tmp_path / "table.csv")).splitlines()[2:] == [
        "| base | 12 / 10.5 | 8 / – |",
        "| other | – / – | – / 9 |",
    ]


def test_the_picture_holds_every_image():
    rows = made_rows()
    canvas = np.asarray(picture(rows, side=32))
    for row in rows:
        for image in row.images:
            enlarged = image.repeat(2, axis=0).repeat(2, axis=1)
            windows = np.lib.stride_tricks.sliding_window_view(canvas[..., 0], enlarged.shape[:2])
            places = np.argwhere((windows[:, :, 0, :] == enlarged[0, :, 0]).all(axis=-1))
            assert any(np.array_equal(canvas[y : y + 32, x : x + 32], enlarged) for y, x in places)


def test_the_picture_holds_grey_images_too():
    rows = made_rows()
    for row in rows:
        row.images = row.images[..., :1]
    canvas = np.asarray(picture(rows, side=16))
    first = rows[0].images[0]
    windows = np.lib.stride_tricks.sliding_window_view(canvas, (16, 16), axis=(0, 1))  # [h, w, 3, 16, 16]
    assert (windows == first[..., 0]).all(axis=(2, 3, 4)).any()


def test_the_picture_has_room_for_names_and_distances():
    """Names and distances are black on white: they are where no image is."""
    canvas = np.asarray(picture(made_rows(), side=16)).min(axis=2)
    assert canvas[:, 0].min() == canvas[:, -1].min() == 255


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, flag, sentence",
    [
        ("DDIM --use_ddim True", [], "expected NAME: FLAGS"),
        ("a: \na: ", [], "a second time"),
        ("# nothing", [], "has no line NAME: FLAGS"),
        ("a: --use_dim True", [], "setting 'a': --use_dim is not a flag of this script; did you mean --use_ddim?"),
        ("a: --eps_scaler 'x", [], "setting 'a': No closing quotation"),
        ("a: --seed 3", [], "setting 'a': --seed is for the command line"),
        ("a: --use_ddim True --eta {3:0.5}", [], "setting 'a': {3:0.5} says nothing at 5 steps"),
        (f"a: {SHIFT} --time_shift_constant {{shift b}}", [], "{shift b} says nothing"),
        ("a:\nb: --thresholding dynamic --clip_denoised False", [], "setting 'b': --thresholding dynamic contradicts"),
        (f"a:\nb: {SHIFT} --window 30 --solver bdia", [], "setting 'b': --use_ddim True contradicts"),
        ("a:\nb: --num_channels 64", [], "  --num_channels is 64, the checkpoint has 32"),
        (
            "a:\nb: --timestep_respacing 3",
            [],
            "setting 'b': --timestep_respacing 3 keeps 3 timesteps where --steps has 5",
        ),
        (
            "a:",
            ["--timestep_respacing", "5"],
            "setting 'a': --timestep_respacing 5 keeps 5 timesteps where --steps has 3",
        ),
        ("a|b:", [], "has a | in its name"),
        ("a: --eps_scaler {sweep 1,1|2}", [], "has a | in its name"),
        ("a: --use_ddim True --eta {3:0.5 3:0.6 5:1}", [], "{3:0.5 3:0.6 5:1} has a number of steps twice"),
        ("a: --use_ddim True --eta {3: 0.5 5:1}", [], "{3: 0.5 5:1} says nothing at 3 steps"),
        ("a: --use_ddim True --eta {3:0.5 5:1 junk}", [], "{3:0.5 5:1 junk} says nothing at 3 steps"),
        ("a: --eps_scaler {sweep }", [], "setting 'a': {sweep} has no values"),
        ("a: --classifier_scale 2", [], "setting 'a': --classifier_scale is for guidance"),
        ("a: ", ["--precision_recall", "True", "--num_samples", "3"], "--precision_recall True needs more than 3"),
        ("a: ", ["--judge", "nowhere.pt"], "--judge: checkpoint nowhere.pt does not exist"),
        ("a: ", ["--steps", "5,5"], "--steps is '5,5'"),
        ("a: ", ["--steps", "0"], "--steps is '0'"),
        ("a: ", ["--calls", "7,7"], "--calls is '7,7'"),
        ("a: --window {3:5}", ["--calls", "7"], "setting 'a': {3:5} says nothing at 7 calls"),
        ("a: --timestep_respacing 3", ["--calls", "7"], "keeps 3 timesteps where --calls has 7"),
        ("a: --timestep_respacing 5", ["--calls", "2"], "'a': it takes 5 network calls in its shortest form, where"),
        ("a: --timestep_respacing ddim{N} --solver plms", ["--calls", "2"], "'a': it takes 3 network calls in its"),
        ("a: --spacing quad --order 2", ["--calls", "7"], "setting 'a': --order 2 is read by"),
        ("a: --help", [], "setting 'a': --help is for the command line"),
        ("a: ", ["--calls", "5", "--steps", "5"], "--calls 5 contradicts --steps 5"),
        ("a: ", ["--num_samples", "1"], "--num_samples is 1"),
        ("a: ", ["--repeats", "1"], "--repeats is 1"),
        ("a: ", ["--features", "resnet"], "expected inception, classifier:PATH"),
        ("a: ", ["--features", "classifier:nowhere.pt"], "nowhere.pt"),
        ("a: ", ["--reference", "nowhere.npz"], "--reference nowhere.npz is not there"),
        ("a: ", ["--settings", "nowhere.txt"], "--settings nowhere.txt cannot be read"),
        ("a: ", ["--settings", ""], "--settings is not given"),
    ],
)
def test_mistakes_get_one_sentence(models, tmp_path, capsys, settings, flag, sentence):
    path = tmp_path / "settings.txt"
    path.write_text(settings + "\n")
    arguments = [*command(models, tmp_path / "out", () if "--calls" in flag else STEPS), "--settings", path, *flag]
    with pytest.raises(SystemExit) as stop:
        script_runs.run("compare_samplers", *arguments)
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and sentence in said[-1] and said[-1].count("setting ") < 2


def test_a_constant_of_0_that_was_not_measured_searches():
    """The control of a search that moved nothing is without shift; the flag's own 0 is its default."""
    shift = "--use_ddim True --do_time_shift True --time_shift_constant"
    lines = {"literal": f"{shift} 0", "control": f"{shift} {{shift literal}}"}
    groups, overrides = script_runs.groups_of("image_sample")
    shared = flags.parse([], groups, "", overrides)
    settings = Settings(lines, groups, shared)
    found = {name: settings.parse(name, 5, plan.Budget(5, "steps"), {"literal": {"shift": 0}}) for name in lines}
    assert [found[name][TimeShift].do_time_shift for name in lines] == [True, False]


def test_a_judge_that_does_not_fit_is_refused_before_any_sampling(models, tmp_path, capsys):
    """One of other classes, or of other channels."""
    settings = tmp_path / "settings.txt"
    settings.write_text("a:\n")
    digits = script_runs.FOLDER.parent / "models" / "digits16_classifier.pt"
    more = ["--settings", settings, "--judge", digits]
    with pytest.raises(SystemExit):
        script_runs.run("compare_samplers", *command(models, tmp_path / "out"), *more)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--judge {digits} takes images of 1 channel; these have 3" in said


def test_another_image_size_is_refused(models, tmp_path, capsys):
    np.savez(tmp_path / "real.npz", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(SystemExit):
        script_runs.run("compare_samplers", *command(models, tmp_path), "--reference", tmp_path / "real.npz")
    assert "takes images of 16x16; these are 8x8" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [("--steps", "2"), ("--calls", "4")])
def test_guidance_of_a_network_without_classes_is_refused_before_any_sampling(models, tmp_path, capsys, budget):
    model = script_runs.train_diffusion(models / "data", tmp_path / "run")
    (tmp_path / "settings.txt").write_text("plain: --use_ddim True\nguided: --use_ddim True --guidance_scale 3\n")
    given = ["--model_path", model, "--settings", tmp_path / "settings.txt"]
    with pytest.raises(SystemExit):
        script_runs.run("compare_samplers", *command(models, tmp_path / "out", budget), *given)
    said = capsys.readouterr().err
    assert "guided" in said and "--guidance_scale 3.0 needs a network that is told a class or a reference" in said
    assert not list((tmp_path / "out").rglob("*.npz"))


@pytest.mark.parametrize("scale, told, refused", [(1, "", False), (3, "", True), (3, "bright", False)])
def test_the_plan_tells_a_network_what_its_conditionings_say(monkeypatch, tmp_path, scale, told, refused):
    """Guidance is possible where any of them can be left out, and refused before sampling where none can."""
    monkeypatch.setattr(conditioning, "CONDITIONINGS", [*conditioning.CONDITIONINGS, papers.Brightness])
    script = launched.read("compare_samplers")
    (tmp_path / "model.json").write_text(json.dumps({"num_channels": 32, "image_size": 16}))
    words = ["--model_path", tmp_path / "model.pt", "--timestep_respacing", 4, "--guidance_scale", scale]
    groups = [group for group in script.groups if group not in checkpoints.GUIDANCE] + [papers.BrightnessFlags]
    parsed = flags.parse([*map(str, words), "--by_brightness", str(bool(told))], groups, "", script.overrides)
    if refused:
        with pytest.raises(UserError, match="--guidance_scale 3.0 needs a network that is told a class or a reference"):
            plan.process_of(parsed)
    else:
        assert plan.calls_of(parsed) == (4 if scale == 1 else 8)


def test_the_flags_that_are_saved_are_those_of_the_network(compared):
    saved = json.loads((compared / "flags.json").read_text())
    given = dict(zip(script_runs.NETWORK[::2], script_runs.NETWORK[1::2]))
    for name, value in {**given, "--class_cond": "True", "--num_classes": "3", "--learn_sigma": "True"}.items():
        assert str(saved[name.removeprefix("--")]) == value
    assert saved["repeats"] == 2 and saved["timestep_respacing"] == ""


@pytest.mark.parametrize("first", ["# a note: of what\nDDIM: --use_ddim True", "DDIM: --use_ddim True"])
def test_a_byte_order_mark_is_no_part_of_a_settings_file(tmp_path, first):
    (tmp_path / "settings.txt").write_text(f"{first}\n", encoding="utf-8-sig")
    assert read_settings(tmp_path / "settings.txt") == {"DDIM": "--use_ddim True"}
