"""Images as files of their own, and back into an array, without loss."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import slow
from script_runs import run

from guided_diffusion.image_datasets import Images

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pack(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    import pack

    yield lambda *words: pack.main(list(map(str, words)))
    for name in ("pack", "writer"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("names", [None, ["cat", "dog"], *slow(["a_b", "c/d"], [])])
@pytest.mark.parametrize(
    "count, size", [(12, 9), *(pytest.param(*rare, marks=pytest.mark.slow) for rare in [(1, 8), (300, 2)])]
)
def test_an_array_becomes_files_and_these_the_array(pack, tmp_path, capsys, channels, names, count, size):
    rng = np.random.default_rng(0)
    arrays = {"arr_0": rng.integers(256, size=(count, size, size, channels), dtype=np.uint8)}
    if names is not None:
        arrays["arr_1"] = np.arange(count)[::-1] % 2 if count > 1 else np.zeros(1, dtype=np.int64)
    np.savez(tmp_path / "in.npz", **arrays, **({"classes": np.array(names)} if names else {}))
    pack("--data_dir", tmp_path / "in.npz", "--out_dir", tmp_path / "files", "--png")
    paths = sorted((tmp_path / "files").iterdir(), key=lambda path: path.stem.rpartition("_")[2])
    assert len(paths) == count and f"wrote {count}" in capsys.readouterr().out
    for path, image in zip(paths, arrays["arr_0"]):
        assert np.array_equal(np.asarray(Image.open(path)).reshape(image.shape), image)
    words = ["--data_dir", tmp_path / "files", "--out_dir", tmp_path / "out", "--image_size", size]
    pack(*words, "--image_channels", channels, *(["--labels"] if names is not None else []))
    with np.load(tmp_path / "out.npz") as back:
        assert np.array_equal(back["arr_0"], arrays["arr_0"])
        if names is not None:
            known = names if names == ["cat", "dog"] else ["0", "1"]
            assert [str(back["classes"][y]) for y in back["arr_1"]] == [known[y] for y in arrays["arr_1"]]


@pytest.mark.parametrize("names", [["1", "a_b"], ["1", "c/d"], ["1", ".e"], ["1", "f\ng"], ["1"]])
def test_classes_stay_apart_whatever_their_names(pack, tmp_path, names):
    """They are called by their numbers where not all names fit, since such a number may be another's name."""
    labels = np.array([0, 0, 1, 1])
    np.savez(tmp_path / "in.npz", np.zeros((4, 8, 8, 3), np.uint8), labels, classes=np.array(names))
    pack("--data_dir", tmp_path / "in.npz", "--out_dir", tmp_path / "files", "--png")
    data = Images(tmp_path / "files", 8, class_cond=True, random_flip=False)
    assert data.class_names == ["0", "1"] and data.labels.tolist() == labels.tolist()


def refused(pack, capsys, *words):
    with pytest.raises(SystemExit) as end:
        pack(*words)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("labels", [np.zeros(2, int), np.eye(3, dtype=int), np.zeros(3)])
def test_labels_that_are_none_are_refused_before_anything_is_written(pack, tmp_path, capsys, labels):
    np.savez(tmp_path / "in.npz", np.zeros((3, 8, 8, 3), np.uint8), labels)
    said = refused(pack, capsys, "--data_dir", tmp_path / "in.npz", "--out_dir", tmp_path / "files", "--png")
    assert "arr_1 is" in said and "expected integers [3]" in said and not (tmp_path / "files").exists()


def test_files_of_an_earlier_set_are_not_mixed_in(pack, tmp_path, capsys):
    for count in (4, 2):
        np.savez(tmp_path / f"{count}.npz", np.zeros((count, 8, 8, 3), np.uint8))
    words = ["--out_dir", tmp_path / "files", "--png"]
    pack("--data_dir", tmp_path / "4.npz", *words)
    assert "000002.png of another data set" in refused(pack, capsys, "--data_dir", tmp_path / "2.npz", *words)
    said = refused(pack, capsys, "--data_dir", tmp_path / "4.npz", *words, "--image_size", 8)
    assert "--image_size has no meaning with --png" in said


@pytest.mark.parametrize(
    "there",
    [
        {"weights": np.ones(3)},
        {"arr_0": np.zeros((2, 9, 9, 3), np.uint8)},
        {"arr_0": np.ones((3, 8, 8, 3), np.uint8)},
        {"arr_0": np.ones((1, 8, 8, 3), np.uint8)},
        None,
    ],
)
def test_an_array_of_others_is_not_replaced(pack, tmp_path, capsys, there):
    np.savez(tmp_path / "in.npz", np.zeros((3, 8, 8, 3), np.uint8))
    (tmp_path / "out.npz").write_bytes(b"mine")
    if there:
        np.savez(tmp_path / "out.npz", **there)
    before = (tmp_path / "out.npz").read_bytes()
    said = refused(pack, capsys, "--data_dir", tmp_path / "in.npz", "--out_dir", tmp_path / "out", "--image_size", 8)
    assert "out.npz is there, and of another data set" in said and (tmp_path / "out.npz").read_bytes() == before


@pytest.mark.parametrize("more", [{}, {"arr_1": np.arange(300) % 3}])
def test_a_set_that_grew_or_shrank_is_packed_anew(pack, tmp_path, more):
    """Of more than the images that are looked at."""
    drawn = np.random.default_rng(0).integers(256, size=(300, 8, 8, 3), dtype=np.uint8)
    words = ["--data_dir", tmp_path / "in.npz", "--out_dir", tmp_path / "out", "--image_size", 8]
    for count in (100, 300, 300, 280):
        np.savez(tmp_path / "in.npz", drawn[:count], **{name: values[:count] for name, values in more.items()})
        pack(*words, *(["--labels"] if more else []))
        with np.load(tmp_path / "out.npz") as packed:
            assert np.array_equal(packed["arr_0"], drawn[:count])


def test_sampling_writes_every_image(tmp_path):
    words = ["--model_path", ROOT / "models" / "digits16.pt", "--num_samples", 3, "--batch_size", 2, "--save_png", True]
    words += ["--timestep_respacing", 1, "--classes", "7,3", "--out_dir", tmp_path]
    for _ in range(2):  # the second makes nothing anew but what is not there
        run("image_sample", *words)
        with np.load(tmp_path / "samples_3x16x16x1.npz") as npz:
            images = npz["arr_0"][..., 0]
        paths = [tmp_path / "samples_3x16x16x1" / name for name in ("7_000000.png", "3_000001.png", "7_000002.png")]
        assert sorted(paths) == sorted((tmp_path / "samples_3x16x16x1").iterdir())
        for path, image in zip(paths, images):
            assert np.array_equal(np.asarray(Image.open(path)), image)
        paths[0].unlink()
