"""Grain and colours: against scipy's convolution, and images of which they are known."""

import re

import numpy as np
import pytest
import script_runs
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


@pytest.mark.parametrize(
    "arrays", [{"arr_0": np.zeros((2, 2, 9, 3), np.uint8)}, {"mu": np.zeros(4), "sigma": np.eye(4)}]
)
def test_bad_input(tmp_path, capsys, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(SystemExit):
        script_runs.run("grain", tmp_path / "x.npz", "--out_dir", tmp_path / "out", folder=FOLDER)
    assert "x.npz holds no images of at least 3x3; expected images" in capsys.readouterr().err
