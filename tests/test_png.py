"""Images as files of their own, and back into an array, without loss."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import slow
from script_runs import run

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


def test_sampling_writes_every_image(tmp_path):
    words = ["--model_path", ROOT / "models" / "digits16.pt", "--num_samples", 3, "--batch_size", 2, "--save_png", True]
    words += ["--timestep_respacing", 1, "--classes", "7,3", "--out_dir", tmp_path]
    for _ in range(2):  # the second makes nothing anew but what is not there
        run("image_sample", *words)
        with np.load(tmp_path / "samples_3x16x16x3.npz") as npz:
            images = npz["arr_0"]
        paths = [tmp_path / "samples_3x16x16x3" / name for name in ("7_000000.png", "3_000001.png", "7_000002.png")]
        assert sorted(paths) == sorted((tmp_path / "samples_3x16x16x3").iterdir())
        for path, image in zip(paths, images):
            assert np.array_equal(np.asarray(Image.open(path)), image)
        paths[0].unlink()
