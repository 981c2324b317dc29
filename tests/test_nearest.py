"""The nearest training images: against all pairs in numpy, and against scipy's test of Mann and Whitney."""

import csv

import numpy as np
import pytest
import script_runs
from PIL import Image
from processes import mpirun, needs_mpirun
from scipy.stats import mannwhitneyu

from evaluations import nearest
from guided_diffusion.images import save_pngs

FOLDER = script_runs.FOLDER.parent / "evaluations"
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(256, size=(40, 8, 8, 3), dtype=np.uint8)
# of which two are equal
TRAIN[31] = TRAIN[5]
COPIES = TRAIN[[5, 20, 3]]
NEW = RNG.integers(256, size=(9, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def place(tmp_path):
    np.savez(tmp_path / "train.npz", arr_0=TRAIN)
    np.savez(tmp_path / "samples.npz", arr_0=np.concatenate([COPIES, NEW]))
    np.savez(tmp_path / "held_out.npz", arr_0=NEW[:7])
    script_runs.mean_colours(tmp_path / "colours.pt", 8, square=4)
    return tmp_path


def run(place, *more, train="train.npz", samples="samples.npz"):
    words = [place / train, place / samples, "--out_dir", place / "out", "--batch_size", 7, *more]
    return script_runs.run("nearest", *words, folder=FOLDER)


def expected(queries, features=lambda images: images.reshape(len(images), -1)):
    """[(index, distance)] by all pairs."""
    train = features(TRAIN.astype(float))
    squares = ((features(queries.astype(float))[:, None] - train[None]) ** 2).mean(axis=2)
    return [(i, d) for i, d in zip(squares.argmin(axis=1).tolist(), np.sqrt(squares.min(axis=1)))]


def rows_of(place, name):
    with open(place / "out" / "nearest.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == name]
    assert [int(row["image"]) for row in rows] == list(range(len(rows)))
    return [(int(row["nearest"]), pytest.approx(float(row["distance"]), rel=1e-5, abs=1e-9)) for row in rows]


def test_each_has_the_nearest_of_all(place):
    said = run(place, "--held_out", place / "held_out.npz")
    assert expected(np.concatenate([COPIES, NEW])) == rows_of(place, "samples")
    assert expected(NEW[:7]) == rows_of(place, "held_out")
    assert [i for i, _ in expected(COPIES)] == [5, 20, 3] and "smallest 0\n" in said
    with Image.open(place / "out" / "nearest.png") as picture:  # 12 pairs, enlarged 8 times, captions below
        pixels = np.asarray(picture)
    for i, image in enumerate(COPIES):
        for column in (2 * i, 2 * i + 1):
            assert np.array_equal(pixels[0:64:8, 65 * column : 65 * column + 64 : 8], image)


def means(images):
    return images.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(len(images), -1) / 255


def test_by_features(place):
    run(place, "--by", "features", "--features", f"torchscript:{place / 'colours.pt'}", "--trust_code", True)
    assert expected(np.concatenate([COPIES, NEW]), means) == rows_of(place, "samples")


def test_a_folder_and_the_folder_of_a_run(place):
    run(place)
    before = (place / "out" / "nearest.csv").read_bytes()
    save_pngs(str(place / "train"), TRAIN)
    (place / "made").mkdir()
    (place / "samples.npz").rename(place / "made" / "samples_12x8x8x3.npz")
    (place / "made" / "flags.json").write_text("{}")
    run(place, train="train", samples="made")
    assert (place / "out" / "nearest.csv").read_bytes() == before


@needs_mpirun
def test_two_ranks_find_the_same(place):
    run(place, "--held_out", place / "held_out.npz")
    before = {path.name: path.read_bytes() for path in (place / "out").glob("nearest.*")}
    words = [place / "train.npz", place / "samples.npz", "--held_out", place / "held_out.npz", "--batch_size", 7]
    done = mpirun(2, FOLDER / "nearest.py", *words, "--out_dir", place / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (place / "out").glob("nearest.*")} == before


@pytest.mark.parametrize("shift", [0, -0.5, 3])
def test_the_share_is_that_of_mann_and_whitney(shift):
    rng = np.random.default_rng(1)
    samples, held_out = rng.normal(shift, size=300), rng.normal(size=200)
    samples[:9] = held_out[:9]
    share, error = nearest.share_nearer(samples, held_out)
    statistic = mannwhitneyu(samples, held_out).statistic
    assert share == pytest.approx(1 - statistic / (300 * 200), abs=1e-12)
    draws = [nearest.share_nearer(rng.normal(size=300), rng.normal(size=200))[0] for _ in range(400)]
    assert np.mean(draws) == pytest.approx(0.5, abs=4 * error / 20) and np.std(draws) == pytest.approx(error, rel=0.15)


def test_copies_are_all_nearer(place):
    np.savez(place / "samples.npz", arr_0=TRAIN[:8])
    assert "nearer: 1.000 of pairs" in run(place, "--held_out", place / "held_out.npz")


def test_training_images_that_are_held_out_are_warned_of(place, capsys):
    np.savez(place / "samples.npz", arr_0=NEW)
    np.savez(place / "known.npz", arr_0=np.concatenate([TRAIN[:3], NEW[:2]]))
    said = run(place, "--held_out", place / "known.npz") + capsys.readouterr().err
    assert "3 images of --held_out" in said and "are those of --train" in said


def test_grey_images_among_coloured_ones(place):
    np.savez(place / "samples.npz", arr_0=NEW[..., :1])
    run(place)
    assert expected(NEW[..., :1].repeat(3, axis=3)) == rows_of(place, "samples")


BAD = [
    ({"arr_0": NEW[:, :4]}, [], ["--samples", "4x8", "8x8", "--by features"]),
    ({"mu": np.zeros(4), "sigma": np.eye(4)}, [], ["--samples", "statistics and no images"]),
    ({"arr_0": NEW}, ["--held_out", "absent.npz"], ["--held_out absent.npz is not there"]),
    ({"arr_0": NEW}, ["--shown", 0], ["--shown", "0"]),
    ({"arr_0": NEW}, ["--by", "colours"], ["--by", "colours", "pixels"]),
    ({"arr_0": NEW}, ["--features", "classifier:x.pt"], ["--features does nothing with --by pixels"]),
    ({"arr_0": NEW}, ["--feature_dtype", "bf16"], ["--feature_dtype does nothing with --by pixels"]),
    ({"arr_0": np.concatenate([NEW, NEW[..., :1]], axis=3)}, [], ["--samples", "8x8x4", "8x8x3"]),
]


@pytest.mark.parametrize("arrays, more, words", BAD)
def test_bad_input(place, capsys, arrays, more, words):
    np.savez(place / "samples.npz", **arrays)
    with pytest.raises(SystemExit):
        run(place, *more)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("nearest: "))
    assert all(str(word) in line for word in words) and not list(place.glob("out/nearest.*")), line
