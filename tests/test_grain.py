"""Grain and colours: against scipy's convolution, and images of which they are known."""

import re

import numpy as np
import pytest
import script_runs
from PIL import Image
from scipy.ndimage import convolve

from evaluations import grain

FOLDER = script_runs.FOLDER.parent / "evaluations"
KERNEL = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_is_the_mean_absolute_laplacian_inside(channels):
    images = np.random.default_rng(0).integers(256, size=(3, 6, 9, channels), dtype=np.uint8)
    found = grain.measured(images)
    for image, (laplacian, contrast, *colours) in zip(images.astype(float), found):
        edges = [convolve(image[..., c], KERNEL)[1:-1, 1:-1] for c in range(channels)]
        assert laplacian == pytest.approx(np.abs(edges).mean())
        assert contrast == pytest.approx(image.std()) and colours == pytest.approx(image.mean(axis=(0, 1)))


def test_the_table_of_noise_and_of_a_ramp(tmp_path):
    """A slope has no Laplacian; that of uniform noise is known to the precision of its standard error."""
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None], (5, 16, 16, 3))
    np.savez(tmp_path / "ramp.npz", arr_0=ramp)
    noise = np.random.default_rng(1).integers(256, size=(200, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=noise)
    said = script_runs.run(
        "grain", tmp_path / "ramp.npz", tmp_path / "noise.npz", "--out_dir", tmp_path / "out", folder=FOLDER
    )
    assert re.search(r"ramp.npz \| 5 \| 0.00 \+- 0.00 \| 4.61 \+- 0.00 \| 7.50 \+- 0.00, 7.50", said)
    mean, error = map(float, re.search(r"noise.npz \| 200 \| (\S+) \+- (\S+) \|", said).groups())
    draws = np.random.default_rng(2).integers(256, size=(10**6, 5)).astype(float)
    assert abs(mean - np.abs(4 * draws[:, 0] - draws[:, 1:].sum(axis=1)).mean()) < 4 * error < 10


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_grey_files_among_coloured_ones(tmp_path, batch_size):
    """Count for three equal colours, in whatever batch they are."""
    grey = np.random.default_rng(0).integers(256, size=(5, 5), dtype=np.uint8)
    for name, pixels in (("a", grey), ("b", np.stack([grey, grey // 2, grey // 4], axis=2)), ("c", grey)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    words = [tmp_path, "--batch_size", batch_size, "--out_dir", tmp_path / "out"]
    said = script_runs.run("grain", *words, folder=FOLDER)
    means = [(2 * grey.mean() + (grey // k).mean()) / 3 for k in (1, 2, 4)]
    assert ", ".join(f"{mean:.2f} +- " for mean in means[:1]) in said
    found = re.search(r"(\S+) \+- \S+, (\S+) \+- \S+, (\S+) \+-", said).groups()
    assert np.allclose(list(map(float, found)), means, atol=0.006)


@pytest.mark.parametrize("name, folder", [("grain", FOLDER), ("evaluator", FOLDER)])
def test_a_quotation_without_an_end_is_one_sentence(tmp_path, capsys, name, folder):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, 9, 9, 3), np.uint8))
    words = [tmp_path / "x.npz"] * (1 + (name == "evaluator"))
    with pytest.raises(SystemExit):
        script_runs.run(name, *words, "--more_samples", "it's", "--out_dir", tmp_path / "out", folder=folder)
    assert f'{name}: --more_samples: No closing quotation in "it\'s"' in capsys.readouterr().err


def test_a_further_set_is_named_by_its_flag(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, 9, 9, 3), np.uint8))
    with pytest.raises(SystemExit):
        script_runs.run("grain", tmp_path / "x.npz", "nowhere.npz", "--out_dir", tmp_path / "out", folder=FOLDER)
    assert "--more_samples nowhere.npz is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arrays", [{"arr_0": np.zeros((2, 2, 9, 3), np.uint8)}, {"mu": np.zeros(4), "sigma": np.eye(4)}]
)
def test_bad_input(tmp_path, capsys, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(SystemExit):
        script_runs.run("grain", tmp_path / "x.npz", "--out_dir", tmp_path / "out", folder=FOLDER)
    assert "x.npz holds no images of at least 3x3; expected images" in capsys.readouterr().err
