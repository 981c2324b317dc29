"""The data-set scripts: run as users run them, and read back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import script_runs
from PIL import Image
from processes import slow
from sklearn.datasets import load_digits, load_sample_images

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PHOTOS = load_sample_images().images


def script(name, *flags, cwd=ROOT):
    command = [sys.executable, os.path.join(ROOT, "datasets", name + ".py"), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def refused(capsys, name, *flags):
    """The last line that a script says before it exits with 2, run in this process."""
    with pytest.raises(SystemExit) as ended:
        script_runs.run(name, *flags, folder=Path(ROOT, "datasets"))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said
    return said.splitlines()[-1]


def written(name, out_dir, *flags):
    """Run a script; returns (images, labels or None) of the .npz, after a look at the folder."""
    said = script_runs.run(name, "--out_dir", out_dir, *flags, folder=Path(ROOT, "datasets"))
    assert str(out_dir) in said and f"{out_dir}.npz" in said
    with np.load(f"{out_dir}.npz", allow_pickle=False) as npz:
        images, labels = npz["arr_0"], npz.get("arr_1")
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == (1 if name == "digits" else 3)
    check_folder(out_dir, images, labels)
    return images, labels


def check_folder(out_dir, images, labels):
    """The folder holds just the images of the .npz, named by label and index."""
    names = sorted(os.listdir(out_dir), key=lambda name: name.split("_")[-1])
    assert len(names) == len(images)
    for index in [*range(0, len(names), 97), len(names) - 1]:
        prefix = "" if labels is None else f"{labels[index]}_"
        assert names[index] == f"{prefix}{index:05d}.png"
        with Image.open(os.path.join(out_dir, names[index])) as image:
            pixels = np.asarray(image).reshape(images.shape[1:])
            assert image.mode in ("L", "RGB") and np.array_equal(pixels, images[index])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return written("digits", tmp_path_factory.mktemp("data") / "digits")


def assert_enlarged(images, originals):
    """Shrunk again, the images are the 8x8 originals, but for what bicubic interpolation sharpens."""
    n, side = len(images), images.shape[1] // 8
    shrunk = images[..., 0].reshape(n, 8, side, 8, side).mean(axis=(2, 4)) * 16 / 255
    assert np.abs(shrunk - originals).mean() < 1
    assert np.corrcoef(shrunk.ravel(), originals.ravel())[0, 1] > 0.99


def test_digits_are_scikit_learns(digits):
    images, labels = digits
    data = load_digits()
    assert images.shape == (1797, 16, 16, 1) and labels.dtype == np.int64
    assert np.array_equal(labels, data.target)
    assert_enlarged(images, data.images)


def test_digits_of_eight_pixels_are_exact(tmp_path):
    images, _ = written("digits", tmp_path / "d", "--image_size", 8, "--split", "heldout")
    assert np.array_equal(np.round(images[..., 0] * (16 / 255)), load_digits().images[-360:])


def test_digits_of_another_size(tmp_path):
    images, _ = written("digits", tmp_path / "d", "--image_size", 32, "--split", "heldout")
    assert images.shape[1:] == (32, 32, 1)
    assert_enlarged(images, load_digits().images[-360:])


def test_digit_splits_make_up_the_whole(digits, tmp_path):
    parts = [written("digits", tmp_path / split, "--split", split) for split in ("train", "heldout")]
    for whole, *halves in zip(digits, *parts):
        assert np.array_equal(whole, np.concatenate(halves))
    assert set(parts[1][1]) == set(range(10))


def test_digits_are_read_with_their_classes(tmp_path):
    from guided_diffusion.image_datasets import Images

    images, labels = written("digits", tmp_path / "d", "--split", "heldout")
    for source in (tmp_path / "d", tmp_path / "d.npz"):
        dataset = Images(source, 16, class_cond=True, num_classes=10, random_flip=False, image_channels=1)
        assert dataset.class_names == [str(digit) for digit in range(10)]
        order = range(len(labels)) if source.suffix else np.argsort(labels, kind="stable")
        for place, index in list(enumerate(order))[::40]:
            image, extra = dataset[place]
            assert extra["y"] == labels[index]
            assert np.array_equal(np.round((image.numpy().transpose(1, 2, 0) + 1) * 127.5), images[index])


SPLITS = {"train": slice(0, 512), "heldout": slice(512, 640)}


@pytest.fixture(scope="module", params=SPLITS)
def patches(request, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("data") / "patches"
    images, labels = written(
        "photo_patches", out_dir, "--num_images", 150, "--split", request.param, "--image_size", 24
    )
    assert images.shape == (150, 24, 24, 3) and labels is None
    return request.param, images


def found_in(photo, patch):
    """Where the patch lies: 0 for the photograph as it is, 1 to 4 for its four grids of 2x2 means."""
    sources = [photo]
    for dy in range(2):
        for dx in range(2):
            part = photo[dy:, dx:]
            h, w = part.shape[0] // 2, part.shape[1] // 2
            blocks = part[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
            sources.append(np.round(blocks).astype(np.uint8))
    return [scale for scale, source in enumerate(sources) if holds(source, patch)]


def holds(source, patch):
    """Whether the patch equals the part of `source` that resembles it most."""
    _, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(source, patch, cv2.TM_SQDIFF))
    return np.array_equal(source[top : top + 24, left : left + 24], patch)


def test_each_patch_lies_wholly_in_its_own_region(patches):
    split, images = patches
    (other,) = (part for name, part in SPLITS.items() if name != split)
    scales, sources = set(), set()
    # A flat patch of sky may resemble many places; one with texture lies in one.
    textured = [patch for patch in images if patch.std() > 20][:16]
    for patch in textured:
        hits = [(n, s) for n, photo in enumerate(PHOTOS) for s in found_in(photo[:, SPLITS[split]], patch)]
        assert len(hits) == 1
        sources.add(hits[0][0])
        scales.add(hits[0][1] > 0)
        assert not any(found_in(photo[:, other], patch) for photo in PHOTOS)
    assert scales == {False, True} and sources == {0, 1}


def test_labels_say_photograph_and_scale(tmp_path):
    images, labels = written("photo_patches", tmp_path / "p", "--num_images", 100, "--image_size", 24, "--labels")
    textured = [i for i, patch in enumerate(images) if patch.std() > 20][:24]
    for i in textured:
        hits = [(n, s > 0) for n, photo in enumerate(PHOTOS) for s in found_in(photo[:, SPLITS["train"]], images[i])]
        assert hits == [(labels[i] // 2, labels[i] % 2 == 1)]
    assert len({labels[i] for i in textured}) == 4


@pytest.mark.parametrize("split", SPLITS)
def test_drawn_places_stay_inside_and_fill_their_region(split, monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "datasets"))
    import photo_patches

    seen = np.zeros((2, 427, 640), bool)
    for photo, top, left, factor in photo_patches.draw_places(4000, 32, split, seed=3):
        assert top >= 0 and left >= 0 and top + 32 * factor <= 427
        seen[photo, top : top + 32 * factor, left : left + 32 * factor] = True
    inside = np.zeros(640, bool)
    inside[SPLITS[split]] = True
    assert not seen[:, :, ~inside].any()
    assert seen[:, :, inside].mean() > 0.97


def test_the_seed_decides_the_patches(tmp_path):
    flags = ("--num_images", 5, "--image_size", 16)
    a, b, c = (
        written("photo_patches", tmp_path / str(i), *flags, "--seed", seed)[0] for i, seed in enumerate((1, 1, 2))
    )
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize(
    "name, flags, words",
    [
        ("digits", ["--image_size", 7], ["--image_size is 7", "8"]),
        ("digits", ["--image_size", 16384], ["1,797 images of 16384x16384", "GiB of memory"]),
        ("photo_patches", ["--out_dir", ""], ["--out_dir", "it is empty"]),
        ("digits", ["--split", "test"], ["--split", "heldout"]),
        ("photo_patches", ["--image_size", 65, "--split", "heldout"], ["--image_size is 65", "64"]),
        ("photo_patches", ["--num_images", 0], ["--num_images is 0"]),
        ("photo_patches", ["--seed", -1], ["--seed is -1"]),
        ("photo_patches", ["--num_images", 10**12], ["--num_images", "too large", "at most"]),
        ("photo_patches", ["--seed", 10**30], ["--seed", "too large"]),
        ("digits", ["--image_size", 10**12], ["--image_size", "too large"]),
        ("digits", ["--image_size", "1_6"], ["--image_size", "'1_6'"]),
        ("glyphs", ["--variations", "\u0661"], ["--variations", "int"]),
        ("glyphs", ["--variations", 10**12], ["--variations", "too large"]),
    ],
)
def test_wrong_values_exit_with_two(tmp_path, capsys, name, flags, words):
    said = refused(capsys, name, "--out_dir", tmp_path / "x", *flags)
    assert all(word in said for word in words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["keep.png", "keep.PNG", "keep.jpg", "Keep.WebP", "below/keep.gif"])
def test_another_data_set_in_the_folder_is_left_alone(tmp_path, capsys, name):
    """Any image that a reader would take too."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    said = refused(capsys, "digits", "--out_dir", tmp_path, "--split", "heldout")
    assert name in said and "--out_dir" in said
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


OF_OTHERS = {
    "no array": {"weights": np.ones(3)},
    "another size": {"arr_0": np.zeros((2, 9, 9, 3), np.uint8)},
    "other images of the size": {"arr_0": np.zeros((3, 32, 32, 3), np.uint8)},
    "fewer images of the size": {"arr_0": np.zeros((1, 32, 32, 3), np.uint8)},
}


@pytest.mark.parametrize("there", [None, *OF_OTHERS])
def test_what_others_wrote_is_not_replaced(tmp_path, capsys, there):
    """An array, or a picture of another size."""
    path = tmp_path / ("x.npz" if there else "x/00000.png")
    if there:
        np.savez(path, **OF_OTHERS[there])
    else:
        path.parent.mkdir()
        Image.new("RGB", (40, 30)).save(path)
    before = path.read_bytes()
    said = refused(capsys, "photo_patches", "--out_dir", tmp_path / "x", "--num_images", 3)
    assert path.name in said and path.read_bytes() == before


def test_more_images_of_the_same_set_take_the_place_of_fewer(tmp_path):
    for count in (2, 3):
        images, _ = written("photo_patches", tmp_path / "x", "--num_images", count)
        assert len(images) == count


@pytest.mark.parametrize("encoding", [*slow("ascii"), "utf-8:strict"])
def test_names_that_a_terminal_cannot_show(tmp_path, encoding):
    out = os.path.join(os.fsencode(tmp_path), b"out\xfc")
    command = [
        sys.executable,
        os.path.join(ROOT, "datasets", "photo_patches.py"),
        "--num_images",
        "1",
        "--out_dir",
        out,
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith(b"wrote 1 images")


def test_ctrl_c_is_a_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "datasets"))
    from writer import say

    def interrupted(args):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit) as end:
        say(interrupted, None)
    assert end.value.code == 130 and capsys.readouterr().err == "stopped: nothing was finished\n"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_writer_takes_any_channels(tmp_path, monkeypatch, channels):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "datasets"))
    from writer import write_images

    images = np.random.default_rng(0).integers(256, size=(2, 5, 7, channels), dtype=np.uint8)
    folder, npz = write_images(tmp_path / "x", images)
    for place in range(2):
        with Image.open(os.path.join(folder, f"{place:05d}.png")) as picture:
            assert np.array_equal(np.asarray(picture).reshape(5, 7, channels), images[place])
    with np.load(npz) as arrays:
        assert np.array_equal(arrays["arr_0"], images)


def test_the_same_command_may_be_repeated_from_anywhere(tmp_path):
    flags = ("--out_dir", "here", "--num_images", 3)
    first, second = (script("photo_patches", *flags, cwd=tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert str(tmp_path / "here") in second.stdout


@pytest.mark.parametrize("name", ["digits", "photo_patches"])
def test_help_has_a_sentence_and_a_default_for_every_flag(name, capsys):
    with pytest.raises(SystemExit):
        script_runs.run(name, "--help", folder=Path(ROOT, "datasets"))
    options = capsys.readouterr().out.split("options:")[1]
    assert " ".join(options.split()).count("(default: ") == options.count("\n  --")
