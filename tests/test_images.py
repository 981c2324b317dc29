"""From tensors to bytes and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.images import grid, save_grid, to_uint8


@pytest.mark.parametrize(
    "value, byte",
    [
        (-1.0, 0),
        (-2.0, 0),
        (1.0, 255),
        (7.0, 255),
        (0.0, 127),  # 127.5 is truncated
        (128 / 127.5 - 1 + 1e-6, 128),
        (128 / 127.5 - 1 - 1e-5, 127),
        (0.99999, 254),
    ],
)
def test_rule_of_the_published_code(value, byte):
    assert to_uint8(torch.full((1, 3, 2, 2), value)).tolist() == [[[[byte] * 3] * 2] * 2]


def test_channels_go_last():
    images = torch.arange(24.0).reshape(2, 3, 2, 2) / 127.5 - 1 + 1e-4
    out = to_uint8(images)
    assert out.dtype == np.uint8 and out.flags["C_CONTIGUOUS"]
    assert out[1, 0, 1].tolist() == [13, 17, 21]
    assert np.array_equal(np.moveaxis(out, -1, 1), np.arange(24).reshape(2, 3, 2, 2))


GREY = 128


def test_grid_by_hand():
    a, b, c = (np.full((1, 2, 3), v, np.uint8) for v in (1, 2, 3))
    expected = [[1, 1, GREY, 2, 2], [GREY] * 5, [3, 3, GREY, GREY, GREY]]
    assert grid(np.stack([a, b, c]))[..., 0].tolist() == expected
    assert grid(np.stack([a, b, c]), columns=3)[..., 1].tolist() == [[1, 1, GREY, 2, 2, GREY, 3, 3]]
    assert grid(a[None]).tolist() == a.tolist()


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_are_of_the_kind_of_their_images(tmp_path, channels, mode):
    images = np.random.default_rng(0).integers(256, size=(2, 64, 64, channels), dtype=np.uint8)
    save_grid(str(tmp_path / "x.png"), images)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == mode
        shown = np.asarray(picture).reshape(64, 129, channels)
    assert np.array_equal(shown[:, :64], images[0]) and np.array_equal(shown[:, 65:], images[1])
    assert (shown[:, 64] == [GREY, GREY, GREY, 255][:channels]).all()


@pytest.mark.parametrize("count, columns", [(1, 1), (4, 2), (5, 3), (9, 3), (10, 4), (100, 10)])
def test_grids_are_nearly_square(count, columns):
    assert grid(np.zeros((count, 2, 2, 3), np.uint8)).shape[1] == 3 * columns - 1


@pytest.mark.parametrize("size, scale", [(8, 8), (24, 2), (64, 1), (100, 1)])
def test_pictures_show_each_pixel_at_least_once(tmp_path, size, scale):
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    save_grid(str(tmp_path / "x.png"), images)
    with Image.open(tmp_path / "x.png") as picture:
        shown = np.asarray(picture)
    assert np.array_equal(shown, np.kron(grid(images), np.ones((scale, scale, 1), np.uint8)))
