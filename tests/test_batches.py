"""Images to be scored: every source gives the same pixels in parts, and what is wrong is told in a sentence."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from refusals import one_sentence

from evaluations.batches import images_of_dataset, open_images, some_of
from guided_diffusion import logger
from guided_diffusion.image_datasets import Images
from guided_diffusion.jobs.sample_store import SampleStore

IMAGES = np.random.default_rng(0).integers(256, size=(11, 6, 5, 3), dtype=np.uint8)


def everything(images, batch_size=4, rank=0, size=1):
    return np.concatenate([part for _, part in images.batches(batch_size, rank, size)])


def png_folder(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def made_by_run(folder, seed, name=None):
    """What a sampling run with a seed leaves."""
    store, settings = SampleStore(str(folder), name.removesuffix(".npz") if name else "samples"), {"seed": seed}
    rounding = {"device": "cpu", "torch": "2"}
    store.begin({"decisive": settings, "files": {}, "threads": 1, "rounding": rounding}, alone=True)
    store.save(range(11), {"arr_0": IMAGES})
    return store.assemble([range(11)], name)[0]


@pytest.fixture
def sources(tmp_path):
    """One set of images in every form that holds them."""
    np.savez(tmp_path / "plain.npz", IMAGES)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=IMAGES, labels=np.arange(11))
    png_folder(tmp_path / "folder" / "below", IMAGES)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "folder").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    made_by_run(tmp_path / "run", 3)
    (tmp_path / "run" / "flags.json").write_text("{}")
    return [tmp_path / name for name in ("plain.npz", "packed.npz", "folder", "images.zip", "run")]


def test_all_forms_hold_the_same_images(sources):
    for path in sources:
        images = open_images(str(path), "samples")
        assert (images.count, images.size, images.channels) == (11, (6, 5), 3)
        assert np.array_equal(everything(images), IMAGES)


def test_a_batch_holds_the_same_images_on_any_number_of_ranks(sources):
    for path in sources:
        images = open_images(str(path), "samples")
        alone = list(images.batches(3, 0, 1))
        shared = sorted((part for rank in range(3) for part in images.batches(3, rank, 3)), key=lambda part: part[0])
        assert [start for start, _ in alone] == [start for start, _ in shared] == [0, 3, 6, 9]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(alone, shared))
        assert list(images.batches(11, 1, 2)) == []


def test_a_run_is_known_by_its_folder(sources):
    run = sources[-1]
    for path in (run, run / "samples_11x6x5x3.npz"):
        assert open_images(str(path), "samples").run["decisive"]["seed"] == 3
    assert open_images(str(sources[0]), "samples").run == {}


def test_each_npz_of_a_folder_has_its_own_run_and_a_changed_or_foreign_one_has_none(tmp_path):
    paths = [made_by_run(tmp_path, seed, f"{seed}.npz") for seed in (3, 4)]
    (tmp_path / "flags.json").write_text('{"num_samples": 11, "seed": 9}')
    assert [open_images(path, "samples").run["decisive"]["seed"] for path in paths] == [3, 4]
    np.savez(tmp_path / "foreign.npz", IMAGES)
    np.savez(paths[0], 255 - IMAGES)  # as many bytes
    for path in (paths[0], tmp_path / "foreign.npz"):
        assert open_images(str(path), "samples").run == {}


@pytest.mark.parametrize("shape", [(11, 6, 5), (11, 6, 5, 1)])
def test_grey_arrays_have_one_channel(tmp_path, shape):
    np.savez(tmp_path / "grey.npz", IMAGES[..., 0].reshape(shape))
    images = open_images(str(tmp_path / "grey.npz"), "samples")
    assert images.channels == 1 and np.array_equal(everything(images), IMAGES[..., :1])


def test_grey_files_have_one_channel(tmp_path):
    images = open_images(str(png_folder(tmp_path / "grey", IMAGES[..., 0])), "samples")
    assert images.channels == 1 and np.array_equal(everything(images), IMAGES[..., :1])


def test_a_batch_of_grey_and_coloured_files_has_three_channels(tmp_path):
    folder = png_folder(tmp_path / "both", [*IMAGES[:5, ..., 0], *IMAGES[5:8]])
    parts = [part for _, part in open_images(str(folder), "samples").batches(4, 0, 1)]
    assert np.array_equal(parts[0], IMAGES[:4, ..., :1])
    assert np.array_equal(parts[1], [np.repeat(IMAGES[4, ..., :1], 3, axis=2), *IMAGES[5:8]])


def test_arrays_may_have_a_fourth_channel_and_files_lose_it(tmp_path):
    four = np.concatenate([IMAGES, IMAGES[..., :1]], axis=3)
    np.savez(tmp_path / "four.npz", four)
    images = open_images(str(tmp_path / "four.npz"), "samples")
    assert images.channels == 4 and np.array_equal(everything(images), four)
    images = open_images(str(png_folder(tmp_path / "four", four)), "samples")
    assert images.channels == 3 and np.array_equal(everything(images), IMAGES)


def test_stored_statistics_with_and_without_images(tmp_path):
    mean, covariance = np.arange(3, dtype=np.float32), np.eye(3)
    stored = {"mu": mean, "sigma": covariance, "mu_s": mean[:2], "sigma_s": covariance[:2, :2], "mu_clip": mean}
    np.savez(tmp_path / "both.npz", arr_0=IMAGES, **stored)
    np.savez(tmp_path / "alone.npz", **stored)
    for name, count in (("both", 11), ("alone", 0)):
        images = open_images(str(tmp_path / f"{name}.npz"), "reference")
        assert images.count == count == sum(len(part) for _, part in images.batches(4, 0, 1))
        found = images.statistics["features"]
        assert found.mean.tolist() == [0, 1, 2] and found.covariance.tolist() == covariance.tolist()
        assert found.count == 0 and len(images.statistics["spatial"].mean) == 2


def test_labels_are_those_of_the_array_or_of_names(tmp_path):
    labels = np.arange(11) % 3
    for name, given, expected in (("fine", labels, labels), ("float", labels / 1, None), ("short", labels[:9], None)):
        np.savez(tmp_path / f"{name}.npz", arr_0=IMAGES, arr_1=given)
        found = open_images(str(tmp_path / f"{name}.npz"), "samples").labels
        assert np.array_equal(found, expected) if expected is not None else found is None
    names = {"prefixes": "{:.1s}_{}.png", "folders": "{}/{}.png", "numbers": "{1}.png", "apart": "{1}_x.png"}
    for name, form in names.items():
        for i, kind in enumerate(("bee", "ant", "bee", "ant")):
            path = tmp_path / name / form.format(kind, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[i]).save(path)
        found = open_images(str(tmp_path / name), "samples").labels
        assert found is None if name in ("numbers", "apart") else found.tolist() == [0, 0, 1, 1]


def test_training_images_come_as_training_has_them(tmp_path):
    folder = png_folder(tmp_path / "data", IMAGES)
    data = Images(str(folder), 5, random_flip=False)
    images = images_of_dataset(data, "data_dir", [4, 7])
    assert np.array_equal(everything(images), IMAGES[[4, 7], :5])  # the middle square of 6x5, rounded up


def test_some_of_many_indices():
    found = some_of(1000, 10)
    assert len(set(found)) == 10 and sorted(found) == list(found) and max(found) > 500
    assert list(some_of(3, 10)) == [0, 1, 2]
    assert list(some_of(1000, 10)) == list(found) != list(some_of(1000, 10, seed=1))


def save(path, *arrays, **named):
    np.savez(path, *arrays, **named)
    return path


def truncated(path, **named):
    np.savez(path, **named)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def flipped(path):
    """A byte of the first image is wrong, which the archive's checksum shows at the end."""
    np.savez(path, IMAGES)
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    return path


def text(path):
    path.write_text("no images here")
    return path


def array(path):
    with open(path, "wb") as file:
        np.save(file, IMAGES)
    return path


def mixed(path):
    png_folder(path, [*IMAGES[:2], IMAGES[2, :4]])
    return path


def folder_of_run(path, *names):
    path.mkdir()
    (path / "flags.json").write_text("{}")
    for name in names:
        np.savez(path / name, IMAGES)
    return path


def empty(path):
    path.mkdir()
    return path


def broken(path):
    folder = png_folder(path, IMAGES)
    (folder / "03.png").write_bytes(b"nothing")
    return folder


REFUSED = {
    "nothing.npz": (lambda path: path, ["is not there"]),
    "text.npz": (text, ["damaged or no npz"]),
    "float.npz": (lambda path: save(path, IMAGES / 255), ["float64 [11, 6, 5, 3]", "uint8 [N, H, W, 3]"]),
    "key.npz": (lambda path: save(path, images=IMAGES), ["images", "arr_0", "mu and sigma"]),
    "shape.npz": (lambda path: save(path, IMAGES.transpose(0, 3, 1, 2).copy()), ["[11, 3, 6, 5]", "[N, H, W, 3]"]),
    "flat.npz": (lambda path: save(path, IMAGES[0, 0]), ["[5, 3]"]),
    "column.npz": (lambda path: save(path, IMAGES[0, :5, :1, 0]), ["[5, 1]"]),
    "deep.npz": (lambda path: save(path, IMAGES[..., :1, None]), ["[11, 6, 5, 1, 1]"]),
    "none.npz": (lambda path: save(path, IMAGES[:0]), ["at least one image"]),
    "fortran.npz": (lambda path: save(path, np.asfortranarray(IMAGES)), ["Fortran order"]),
    "object.npz": (lambda path: save(path, np.array([None])), ["object"]),
    "cut.npz": (lambda path: truncated(path, arr_0=IMAGES), ["damaged or no npz", "it ends too soon"]),
    "flipped.npz": (flipped, ["damaged", "CRC"]),
    "mu.npz": (lambda path: save(path, mu=np.zeros(3), sigma=np.eye(2)), ["[3]", "[2, 2]"]),
    "nan.npz": (lambda path: save(path, mu=np.zeros(2), sigma=np.full((2, 2), np.nan)), ["finite"]),
    "empty": (empty, ["holds no image"]),
    "mixed": (mixed, ["mixes sizes", "6x5", "4x5"]),
    "broken": (broken, ["03.png cannot be read"]),
    "no_run": (lambda path: folder_of_run(path), ["holds 0 npz"]),
    "runs": (lambda path: folder_of_run(path, "a.npz", "b.npz"), ["a.npz, b.npz"]),
    "array.npz": (array, ["single array"]),
    "text.zip": (text, ["not a readable .zip"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path, name):
    make, words = REFUSED[name]
    path = str(make(tmp_path / name))
    one_sentence(lambda: everything(open_images(path, "samples")), path, *words)


# what is no covariance of any features: mu, sigma, and words of the refusal
NO_STATISTICS = {
    "negative": (np.zeros(4), -np.eye(4), "eigenvalue -1"),
    "indefinite": (np.zeros(4), np.diag([1, 2, 3, -0.01]), "eigenvalue -0.01"),
    "indefinite by its sides": (np.zeros(2), np.array([[1.0, 2], [2, 1]]), "eigenvalue -1"),
    "triangular": (np.zeros(4), np.triu(np.ones((4, 4))), "not symmetric"),
    "nearly symmetric": (np.zeros(2), np.array([[1, 0.1], [0.11, 1]]), "not symmetric"),
    "complex": (np.zeros(4), np.eye(4) + 0j, "real numbers"),
    "complex mean": (1j * np.zeros(4), np.eye(4), "real numbers"),
    "text": (np.array(["a", "b"]), np.eye(2), "real numbers"),
    "truth values": (np.zeros(2), np.eye(2, dtype=bool), "real numbers"),
    "longer mean": (np.zeros(5), np.eye(4), "[5] and [4, 4]"),
    "mean in a row": (np.zeros((1, 4)), np.eye(4), "[1, 4] and [4, 4]"),
    "not square": (np.zeros(4), np.ones((4, 5)), "[4] and [4, 5]"),
    "nothing": (np.zeros(0), np.zeros((0, 0)), "[0] and [0, 0]"),
    "numbers": (np.float64(0), np.float64(1), "[] and []"),
    "nan mean": (np.full(2, np.nan), np.eye(2), "not finite"),
    "infinite": (np.zeros(2), np.diag([1, np.inf]), "not finite"),
}


@pytest.mark.parametrize("images", [{}, {"arr_0": IMAGES}], ids=["alone", "with images"])
@pytest.mark.parametrize("keys", [("mu", "sigma"), ("mu_s", "sigma_s"), ("features_mu", "features_sigma")])
@pytest.mark.parametrize("name", NO_STATISTICS)
def test_statistics_that_are_no_covariance_are_refused(tmp_path, name, keys, images):
    mean, covariance, words = NO_STATISTICS[name]
    fine = {"mu": np.zeros(3), "sigma": np.eye(3), "features_network": "abc fp32"}
    path = str(save(tmp_path / "set.npz", **images, **fine | dict(zip(keys, (mean, covariance)))))
    one_sentence(lambda: open_images(path, "reference"), f"--reference {path}: {keys[0]} and {keys[1]}", words)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_covariances_of_any_rank_and_rounding_are_taken(tmp_path, rank, kind):
    x = np.random.default_rng(rank).normal(size=(rank + 1, 12))
    covariance = np.cov(10 * x, rowvar=False).astype(kind) if kind != np.int64 else np.eye(12, dtype=kind)
    found = open_images(str(save(tmp_path / "a.npz", mu=x.mean(0).astype(kind), sigma=covariance)), "reference")
    assert np.array_equal(found.statistics["features"].covariance, covariance.astype(float))


def test_no_path_at_all():
    one_sentence(lambda: open_images("", "reference"), "--reference", "not given")


def test_what_a_folder_has_beside_images_and_in_them_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warn", said.append)
    for name, mode in (("a.png", "RGB"), ("b.png", "RGBA")):
        Image.new(mode, (8, 8)).save(tmp_path / name)
    (tmp_path / "c.tif").write_bytes(b"II")
    assert open_images(str(tmp_path), "samples").count == 2
    assert all(line.startswith(f"--samples {tmp_path}: ") for line in said)
    assert ["1 .tif: not read" in line for line in said].count(True) == 1
    assert ["are transparent in places" in line for line in said].count(True) == 1
