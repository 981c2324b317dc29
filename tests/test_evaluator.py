"""evaluator.py and compare.py as a user runs them, with features so simple that the scores can be computed again."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import script_runs
import torch
from PIL import Image
from processes import MPIRUN, clean_env, needs_mpirun, run

from evaluations import jackknife, kid, precision_recall, scores
from evaluations.fid import frechet_distance, moments_of
from evaluations.metric import Found, Metric
from guided_diffusion.jobs.sample_store import SampleStore

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "evaluations"
# 32x32 images: the mean colours of 8x8 squares
FEATURES = 48
REFERENCE = np.random.default_rng(1).integers(256, size=(70, 32, 32, 3), dtype=np.uint8)
SAMPLES = np.random.default_rng(2).integers(20, 256, size=(66, 32, 32, 3), dtype=np.uint8)


# of the run that made the samples
SETTINGS = {
    "decisive": {"seed": 5, "timestep_respacing": "ddim25"},
    "threads": 1,
    "rounding": {"device": "cpu", "torch": "2"},
}


def means(images):
    """The features, in numpy: float64 [N, 48]."""
    squares = images.reshape(len(images), 4, 8, 4, 8, 3).mean(axis=(2, 4)) / 255
    return torch.from_numpy(squares.transpose(0, 3, 1, 2).reshape(len(images), FEATURES))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the network of the features and some sets of images, by which the tests name them."""
    place = tmp_path_factory.mktemp("evaluator")
    script_runs.mean_colours(place / "means.pt", 32)
    sets = {"reference": REFERENCE, "samples": SAMPLES, "one": SAMPLES[:1], "two": SAMPLES[:2], "three": SAMPLES[:3]}
    sets |= {"equal": np.repeat(SAMPLES[:1], 9, axis=0), "collapsed": np.repeat(REFERENCE[:1], 60, axis=0)}
    for name, images in sets.items():
        np.savez(place / f"{name}.npz", images)
    np.savez(place / "floats.npz", SAMPLES / 255)
    np.savez(place / "small.npz", SAMPLES[:, :16, :16])
    np.savez(place / "grey.npz", SAMPLES[..., :1])
    np.savez(place / "grey_in_colour.npz", np.repeat(SAMPLES[..., :1], 3, axis=3))
    np.savez(place / "four.npz", SAMPLES[..., [0, 1, 2, 0]])
    np.savez(place / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    (place / "ema_0.999_000010.pt").write_bytes(b"other weights than in the run")
    store = SampleStore(str(place / "run"), "samples")
    store.begin(SETTINGS | {"files": {"model_path": checkpoint_of(place)}}, alone=True)
    store.save(range(66), {"arr_0": SAMPLES})
    store.assemble([range(66)])
    (place / "run" / "flags.json").write_text('{"seed": 6, "num_samples": 66}')
    (place / "several.json").write_text('{"runs": [{"scores": {"fid": 1}}, {"scores": {"fid": 2}}]}')
    (place / "text.json").write_text('{"scores": {"fid": "low"}}')
    return place


def checkpoint_of(place):
    """What the run noted of its checkpoint."""
    return {"path": str(place / "ema_0.999_000010.pt"), "sha256": hashlib.sha256(b"weights").hexdigest()}


def evaluate(place, *arguments):
    """(what evaluator.py prints, its report) of words in which {place} stands for the folder."""
    words = [str(word).format(place=place) for word in arguments]
    if "--features" not in words:
        words += ["--trust_code", True, "--features", f"torchscript:{place}/means.pt"]
    if "--out_dir" not in words:
        words += ["--out_dir", str(place / "out")]
    printed = script_runs.run("evaluator", *words, "--json", place / "report.json", folder=FOLDER)
    return printed, json.loads((place / "report.json").read_text())


BOTH = ("{place}/reference.npz", "{place}/samples.npz")


def test_scores_are_those_of_the_features(place):
    printed, report = evaluate(place, *BOTH)
    a, b = means(REFERENCE), means(SAMPLES)
    scores = report["scores"]
    assert scores["frechet_distance"] == pytest.approx(frechet_distance(moments_of(a), moments_of(b)), rel=1e-5)
    assert (scores["precision"], scores["recall"]) == precision_recall.precision_recall(a, b)
    assert (scores["density"], scores["coverage"]) == precision_recall.density_coverage(a, b)
    assert (scores["kid"], scores["kid_standard_error"]) == pytest.approx(kid.kid(a, b), rel=1e-4)
    lines = printed.splitlines()
    assert f"Precision: {scores['precision']:.4g}" in lines
    assert f"Frechet distance: {scores['frechet_distance']:.4g}" in lines
    assert report["settings"]["pr_distance"] == "fp32"


def test_flags_in_place_of_positions_and_some_metrics(place):
    named = ["--samples", BOTH[1], "--metrics", "recall,frechet_distance", "--reference", BOTH[0]]
    _, report = evaluate(place, *named)
    _, all_of_it = evaluate(place, *BOTH)
    assert report["scores"] == {name: all_of_it["scores"][name] for name in ("frechet_distance", "recall")}


def test_the_last_digits_of_the_published_formula_and_of_float16(place):
    _, report = evaluate(place, *BOTH, "--fid_formula", "sqrtm", "--pr_distance", "fp16")
    _, default = evaluate(place, *BOTH)
    assert report["scores"]["frechet_distance"] == pytest.approx(default["scores"]["frechet_distance"], rel=1e-6)
    assert report["settings"]["pr_distance"] == "fp16" and report["settings"]["fid_formula"] == "sqrtm"


def brightness(reference, samples, flags, weights):
    """A metric of no paper: how much brighter samples are, and its spread."""
    gap = samples.features.mean(dim=1) - reference.features.mean()
    notes = () if len(gap) > 2 else (f": {len(gap)} images are few",)
    return Found((gap.mean().item(), gap.std().item()), gap.std().item() / len(gap) ** 0.5, notes)


def test_a_metric_is_a_function_and_a_line_of_the_table(place, monkeypatch):
    titles = {"brighter": "Brighter by", "brighter_spread": "Spread of that"}
    monkeypatch.setattr(scores, "METRICS", [*scores.METRICS, Metric(titles, (1, 2), brightness)])
    a, b = means(REFERENCE), means(SAMPLES)
    expected = (b.mean() - a.mean()).item()
    printed, report = evaluate(place, *BOTH, "--metrics", "recall,brighter")
    found = report["scores"]
    assert list(found) == ["recall", "brighter", "brighter_standard_error"]
    assert found["brighter"] == pytest.approx(expected, rel=1e-5)
    assert found["brighter_standard_error"] == pytest.approx(b.mean(dim=1).std().item() / 66**0.5, rel=1e-5)
    lines = printed.splitlines()
    assert f"Brighter by: {found['brighter']:.4g}" in lines
    assert f"Brighter by standard error: {found['brighter_standard_error']:.4g}" in lines
    # without Inception it is one of the metrics that are there
    assert list(evaluate(place, *BOTH)[1]["scores"])[-3:] == ["brighter", "brighter_spread", "brighter_standard_error"]
    notes = evaluate(place, BOTH[0], "{place}/two.npz", "--metrics", "brighter,brighter_spread")[1]["notes"]
    assert "Brighter by, Spread of that: 2 images are few" in notes
    notes = evaluate(place, BOTH[0], "{place}/one.npz", "--metrics", "brighter")[1]["notes"]
    assert ("Brighter by undefined: expected at least 1 reference image and 2 sampled images, found 70 and 1") in notes


def test_features_are_kept_for_the_metrics_that_read_them():
    of = scores.ScoreFlags()
    assert of.kept(["fid", "sfid", "frechet_distance"]) == (False, False, False)
    assert of.kept(["fid", "inception_score"]) == of.kept(["fid_infinity"]) == (False, True, False)
    assert of.kept(["fid", "recall"]) == of.kept(["coverage"]) == (True, True, False)
    of = scores.ScoreFlags(standard_error=True)
    assert of.kept(["fid"]) == (False, True, False) and of.kept(["sfid"]) == (False, False, True)
    assert of.kept(["inception_score", "precision"]) == (True, True, False)


def test_the_published_five_and_all_others():
    five = ["inception_score", "fid", "sfid", "precision", "recall"]
    assert scores.ScoreFlags().chosen(inception=True) == five
    assert scores.ScoreFlags().chosen(inception=False) == [
        *("frechet_distance", "precision", "recall", "kid", "density", "coverage")
    ]


def test_grey_images_are_scored_as_colours_of_which_all_are_alike(place):
    grey, colour = (evaluate(place, BOTH[0], f"{{place}}/{name}.npz")[1] for name in ("grey", "grey_in_colour"))
    assert grey["scores"] == colour["scores"]
    assert [note for note in grey["notes"] if note not in colour["notes"]] == [
        "--samples: grey images are repeated to three channels"
    ]


def test_a_set_against_itself_from_a_zip(place):
    with zipfile.ZipFile(place / "reference.zip", "w") as archive:
        for i, image in enumerate(REFERENCE):
            with archive.open(f"{i:03d}.png", "w") as file:
                Image.fromarray(image).save(file, format="PNG")
    _, report = evaluate(place, "{place}/reference.zip", BOTH[0])
    assert report["reference"]["type"] == "zip of images" and report["reference"]["count"] == len(REFERENCE)
    assert report["reference"]["sha256"] == hashlib.sha256((place / "reference.zip").read_bytes()).hexdigest()
    scores = report["scores"]
    assert scores["frechet_distance"] < 1e-9 and scores["precision"] == scores["recall"] == scores["coverage"] == 1


def test_collapsed_samples(place):
    scores = evaluate(place, BOTH[0], "{place}/collapsed.npz")[1]["scores"]
    assert scores["precision"] == 1 and scores["recall"] < 0.02
    scores = evaluate(place, "{place}/collapsed.npz", BOTH[0])[1]["scores"]
    assert scores["precision"] < 0.02 and scores["recall"] == 1


@pytest.mark.parametrize(
    "name, undefined",
    [
        ("one", ["Frechet distance", "KID", "Precision, Recall"]),
        ("two", ["Precision, Recall"]),
        ("three", ["Precision, Recall"]),
        ("equal", []),
    ],
)
@pytest.mark.parametrize("role", ["samples", "reference"])
def test_small_and_equal_sets_give_numbers_or_say_why_not(place, name, undefined, role):
    other = ["--reference", BOTH[0]] if role == "samples" else ["--samples", BOTH[1]]
    _, report = evaluate(place, "--" + role, f"{{place}}/{name}.npz", *other)
    assert all(np.isfinite(value) for value in report["scores"].values()), report["scores"]
    told = [note for note in report["notes"] if "undefined" in note]
    for names in undefined:
        assert any(note.startswith(names) for note in told), told
    assert len(told) == len(undefined) + (role == "reference" and name != "equal")  # density needs 6 real images


def test_notes_on_what_the_images_are(place):
    printed, report = evaluate(place, BOTH[0], "{place}/grey.npz", "--metrics", "precision")
    assert "66 samples: not comparable with published FID-50k" in report["notes"]
    assert "--samples: grey images are repeated to three channels" in report["notes"]
    assert all(f"warning: {note}" in printed for note in report["notes"])
    few = evaluate(place, "{place}/three.npz", BOTH[1])[1]["notes"]
    assert any("3 images are too few for 48 dimensions" in note for note in few)
    swapped = "the reference was sampled by a run here, and the samples were not: make sure they are not swapped"
    assert swapped in evaluate(place, "{place}/run", BOTH[1], "--metrics", "precision")[1]["notes"]


def test_notes_on_few_and_equal_images(place):
    metrics = ["--metrics", "frechet_distance,precision"]
    notes = evaluate(place, BOTH[0], "{place}/one.npz", *metrics)[1]["notes"]
    assert "1 sample: not comparable with published FID-50k" in notes
    needed = "expected at least 4 reference images and 4 sampled images, found 70 and 1"
    assert f"Precision undefined: {needed}" in notes
    notes = evaluate(place, BOTH[0], "{place}/equal.npz", *metrics)[1]["notes"]
    assert "Frechet distance: all sampled images have the same features, of variance 0" in notes
    assert not any("too few" in note for note in notes)


def test_the_report_says_where_samples_come_from_and_leaves_their_folder_alone(place):
    kept = (place / "run" / "flags.json").read_bytes()
    _, report = evaluate(place, BOTH[0], "{place}/run", "--out_dir", "{place}/run")
    samples = report["samples"]
    assert samples["sampling"] == SETTINGS["decisive"] and samples["files"] == {"model_path": checkpoint_of(place)}
    assert samples["ema_rate"] == "0.999" and "truncated" in samples["uint8_rule"]
    path = place / "run" / "samples_66x32x32x3.npz"
    assert samples["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and samples["count"] == 66
    assert report["features"]["sha256"] == hashlib.sha256((place / "means.pt").read_bytes()).hexdigest()
    assert report["versions"]["torch"] == torch.__version__ and report["versions"]["device"] == "cpu"
    assert (place / "run" / "flags.json").read_bytes() == kept
    assert json.loads((place / "run" / "evaluation_flags.json").read_text())["reference"] == str(
        place / "reference.npz"
    )
    assert evaluate(place, *BOTH)[1]["samples"]["uint8_rule"] == "unknown"


# samples and the note on their standard error, if any
ERRORS = {
    "samples": "Frechet distance standard error is that of independent samples: too high if their classes",
    "labelled": "",
    "few_classes": "Frechet distance standard error is that of classes at random, so too high: by class",
    "six": "Frechet distance standard error is unreliable: 6 samples for 48 dimensions leave singular covariances",
    "three": "Frechet distance standard error undefined: expected at least 5 samples, found 3",
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_distance_with_its_standard_error(place, name):
    np.savez(place / "labelled.npz", arr_0=SAMPLES, arr_1=np.arange(66) % 3)
    np.savez(place / "few_classes.npz", arr_0=SAMPLES, arr_1=np.arange(66) // 3)
    np.savez(place / "six.npz", arr_0=SAMPLES[:6], arr_1=np.array([0, 0, 0, 1, 1, 2]))
    asked = ["--standard_error", True, "--metrics", "frechet_distance", "--seed", 3]
    _, report = evaluate(place, BOTH[0], f"{{place}}/{name}.npz", *asked)
    _, plain = evaluate(place, BOTH[0], f"{{place}}/{name}.npz", "--metrics", "frechet_distance")
    found, features = report["scores"], means(np.load(place / f"{name}.npz")["arr_0"])
    assert found["frechet_distance"] == plain["scores"]["frechet_distance"]
    told = [note for note in report["notes"] if "standard error" in note]
    assert [note[: len(ERRORS[name])] for note in told] == [ERRORS[name]] * bool(ERRORS[name])
    labels = np.load(place / f"{name}.npz").get("arr_1")
    expected, _ = jackknife.standard_error(features.float(), moments_of(means(REFERENCE).float()), labels, 3)
    assert found.get("frechet_distance_standard_error") == (expected and pytest.approx(expected, rel=1e-3))
    assert report["settings"]["standard_error"] is True and "standard_error" not in plain["settings"]


def test_a_distance_of_infinitely_many_samples(place):
    _, report = evaluate(place, *BOTH, "--metrics", "frechet_distance,frechet_distance_infinity")
    assert report["scores"]["frechet_distance_infinity"] < report["scores"]["frechet_distance"]
    assert any("infinitely many samples is unreliable: 66 samples are few for 48 dim" in n for n in report["notes"])


def test_compare_lists_what_differs(place, capsys):
    evaluate(place, *BOTH)
    first = (place / "report.json").read_text()
    (place / "first.json").write_text(first)
    evaluate(place, BOTH[0], "{place}/run", "--pr_distance", "fp16")
    printed = script_runs.run("compare", place / "first.json", place / "report.json", folder=FOLDER).splitlines()
    assert "settings.pr_distance: fp32 -> fp16" in printed
    assert "samples.sampling: - -> given" in printed and "samples.files: - -> given" in printed
    assert not any(line.startswith(("scores.kid", "reference", "samples.path")) for line in printed)
    same = script_runs.run("compare", "--first", place / "first.json", place / "first.json", folder=FOLDER)
    assert same == "the reports differ in nothing\n"
    evaluate(place, BOTH[0], "{place}/collapsed.npz")
    printed = script_runs.run("compare", place / "first.json", place / "report.json", folder=FOLDER)
    old, new = (json.loads(text)["scores"]["recall"] for text in (first, (place / "report.json").read_text()))
    assert f"scores.recall: {old} -> {new} ({new - old:+.6g})" in printed.splitlines()


WITH = " --trust_code True --features torchscript:{place}/means.pt"
REFUSED = {
    "evaluator": ["--reference is not given"],
    "evaluator {place}/reference.npz": ["--samples is not given"],
    "evaluator {place}/none.npz {place}/samples.npz" + WITH: ["{place}/none.npz", "is not there"],
    "evaluator {place}/reference.npz {place}/samples.npz {place}/none.npz" + WITH: ["--samples {place}/none.npz"],
    "evaluator {place}/samples.npz --reference {place}/reference.npz --gray": ["--gray"],
    "evaluator {place}/reference.npz {place}/samples.npz --bootstrap 100": ["--bootstrap", "--standard_error True"],
    # looked at before there is a network
    "evaluator {place}/reference.npz {place}/samples.npz --metrics fid,lpips": ["'lpips'", "inception_score, fid"],
    "evaluator {place}/reference.npz {place}/none.npz --metrics kid,lpips" + WITH: ["'lpips'", "frechet_distance"],
    "evaluator {place}/reference.npz {place}/samples.npz --json {place}" + WITH: ["--json {place}", "folder"],
    "evaluator {place}/reference.npz {place}/floats.npz" + WITH: ["--samples", "float64", "uint8"],
    "evaluator {place}/reference.npz {place}/statistics.npz" + WITH: ["--samples", "swap"],
    "evaluator {place}/statistics.npz {place}/samples.npz" + WITH: ["--reference", "no images"],
    "evaluator {place}/reference.npz {place}/samples.npz --metrics fid" + WITH: ["fid", "frechet_distance"],
    "evaluator {place}/reference.npz {place}/four.npz" + WITH: ["means.pt takes images of 3 channels; these have 4"],
    "evaluator {place}/reference.npz {place}/samples.npz --pr_distance fp8" + WITH: ["--pr_distance"],
    "evaluator {place}/reference.npz {place}/samples.npz --batch_size 0" + WITH: ["--batch_size"],
    "evaluator {place}/reference.npz {place}/samples.npz --json {place}/samples.npz" + WITH: [
        "would replace",
        "--samples",
    ],
    "evaluator {place}/reference.npz {place}/samples.npz --json {place}/./reference.npz" + WITH: ["--reference reads"],
    "make_reference {place}/reference.npz --out {place}/reference.npz" + WITH: ["would replace", "--data_dir reads"],
    "compare {place}/several.json {place}/several.json": ["--first", "the reports of 2 runs"],
    "compare {place}/text.json {place}/text.json": ["--first", "fid is no number"],
    "compare {place}/none.json {place}/none.json": ["--first {place}/none.json"],
    "compare": ["--first is not given"],
    "make_reference {place}/reference.npz": ["--out"],
    "make_reference {place}/reference.npz --out r.npz --features dino": ["--features"],
    "make_reference {place}/reference.npz --out {place}/r.npz --image_size 4" + WITH: [
        "means.pt fails on",
        "(1, 3, 4, 4)",
    ],
    "make_reference {place}/reference.npz --out {place}/means.pt/r.npz" + WITH: [
        "--out {place}/means.pt/r.npz",
        "made",
    ],
    "make_reference {place}/one.npz --out r.npz": ["one image"],
}


@pytest.mark.parametrize("command", REFUSED)
def test_mistakes_are_told_in_a_sentence(place, command, capsys, monkeypatch):
    monkeypatch.setenv("INCEPTION_WEIGHTS", str(place / "no weights"))
    monkeypatch.setenv("OPENAI_LOGDIR", str(place / "out"))
    name, *words = command.format(place=place).split()
    with pytest.raises(SystemExit) as ended:
        script_runs.run(name, *words, folder=FOLDER)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and told.startswith(f"{name}: ")
    assert all(word.format(place=place) in told for word in REFUSED[command]), told


@needs_mpirun
def test_two_ranks_give_the_numbers_of_one(place):
    _, alone = evaluate(place, *BOTH, "--batch_size", 8)
    words = [word.format(place=place) for word in BOTH]
    words += [
        "--trust_code",
        True,
        "--features",
        f"torchscript:{place}/means.pt",
        "--batch_size",
        8,
        "--json",
        place / "two.json",
    ]
    done = run(MPIRUN, "-n", 2, sys.executable, FOLDER / "evaluator.py", *words, "--out_dir", place / "two")
    assert done.returncode == 0, done.stderr
    shared = json.loads((place / "two.json").read_text())
    assert shared["scores"] == pytest.approx(alone["scores"], rel=1e-9)
    assert shared["reference"]["sha256"] == alone["reference"]["sha256"]
    assert done.stdout.count("Precision: ") == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_does_not_depend_on_the_number_of_images(place):
    """50,000 random images of 32x32 are 154 MB; a tenth of them is scored for comparison."""
    images = np.random.default_rng(0).integers(256, size=(50000, 32, 32, 3), dtype=np.uint8)
    peaks = []
    for count in (5000, 50000):
        np.savez(place / "many.npz", images[:count])
        words = ["--reference", place / "reference.npz", "--samples", place / "many.npz", "--out_dir", place / "many"]
        words += ["--trust_code", True, "--features", f"torchscript:{place}/means.pt", "--metrics", "frechet_distance"]
        command = [sys.executable, ROOT / "tests" / "workers" / "peak_memory.py", FOLDER / "evaluator.py", *words]
        done = subprocess.run(list(map(str, command)), env=clean_env(), capture_output=True, text=True)
        assert "Frechet distance: " in done.stdout, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1].removeprefix("peak MB: ")))
    assert peaks[1] - peaks[0] < 20, peaks
