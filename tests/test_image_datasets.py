"""The image stream against files whose content is known."""

import itertools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.errors import UserError
from guided_diffusion.image_datasets import (
    Images,
    batches,
    center_crop_arr,
    describe,
    load_data,
    load_superres_data,
    random_crop_arr,
    with_low_res,
)
from guided_diffusion.image_files import list_image_files, open_picture, read_npz

SIZE = 4


def flat(value, size=SIZE):
    """A picture of one grey value, by which it is known again."""
    return np.full((size, size, 3), value, np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def seven(tmp_path):
    """Seven flat pictures of the values 0, 10, ..., 60: four of class a, then three of class b."""
    for i in range(7):
        save(tmp_path / f"{'aaaabbb'[i]}_{i}.png", flat(10 * i))
    return tmp_path


def values(batch):
    """Which of the flat pictures a batch holds."""
    return torch.round((batch[0][:, 0, 0, 0] + 1) * 127.5).int().tolist()


def stream_of(*, data_dir, batch_size, image_size=SIZE, **told):
    """The scripts' stream of batches; arguments of Images and of `batches` together."""
    of_batches = {"deterministic", "rank", "size", "num_workers", "start"} & told.keys()
    dataset = Images(data_dir, image_size, **{k: v for k, v in told.items() if k not in of_batches})
    return batches(dataset, batch_size, **{k: told[k] for k in of_batches})


def read(n, **kwargs):
    return list(itertools.islice(stream_of(**kwargs), n))


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- the order of the stream ----


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("deterministic", [False, True])
def test_ranks_share_out_each_epoch_exactly_once(seven, size, deterministic):
    dataset = Images(seven, SIZE, random_flip=False)
    ranks = [batches(dataset, 1, deterministic=deterministic, rank=r, size=size, num_workers=0) for r in range(size)]
    rounds = -(-5 * 7 // size)
    draws = [value for _ in range(rounds) for rank in ranks for value in values(next(rank))]
    epochs = [draws[7 * e : 7 * e + 7] for e in range(5)]
    assert all(sorted(epoch) == list(range(0, 70, 10)) for epoch in epochs)
    if deterministic:
        assert all(epoch == sorted(epoch) for epoch in epochs)
    else:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_global_batch_does_not_depend_on_the_number_of_ranks(seven):
    one = [sorted(values(b)) for b in read(6, data_dir=seven, batch_size=4)]
    halves = [read(6, data_dir=seven, batch_size=2, rank=r, size=2) for r in range(2)]
    two = [sorted(values(a) + values(b)) for a, b in zip(*halves)]
    assert one == two


def test_a_batch_larger_than_the_data_runs_over_epochs(seven):
    (batch,) = read(1, data_dir=seven, batch_size=21)
    assert sorted(values(batch)) == sorted(list(range(0, 70, 10)) * 3)


def same(one, two):
    return all(
        torch.equal(a[0], b[0]) and a[1].keys() == b[1].keys() and torch.equal(a[1]["y"], b[1]["y"])
        for a, b in zip(one, two, strict=True)
    )


@pytest.fixture
def textured(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        save(tmp_path / f"{i % 2}_{i}.png", rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    return dict(data_dir=tmp_path, batch_size=3, class_cond=True, random_crop=True)


def test_the_stream_is_the_same_for_any_number_of_workers(textured):
    alone, *others = (read(9, num_workers=n, **textured) for n in (0, 1, 2))
    assert all(same(alone, other) for other in others)


def test_start_is_the_same_as_skipping(textured):
    assert same(read(9, rank=1, size=2, **textured)[4:], read(5, rank=1, size=2, start=4, **textured))


def test_start_reads_nothing_it_skips(seven):
    (seven / "a_0.png").write_bytes(b"broken")
    stream = stream_of(data_dir=seven, batch_size=1, deterministic=True, start=1)
    assert values(next(stream)) == [10]


def test_the_seed_decides(textured):
    assert same(read(4, seed=3, **textured), read(4, seed=3, **textured))
    assert not same(read(4, seed=3, **textured), read(4, seed=4, **textured))


def test_crop_and_flip_differ_between_epochs(textured):
    dataset = Images(textured["data_dir"], SIZE, random_crop=True)
    assert len({dataset[0, epoch][0].numpy().tobytes() for epoch in range(8)}) > 4
    assert torch.equal(dataset[0][0], dataset[0, 0][0])


# ---- shapes, ranges, flips, crops ----


def test_a_batch_is_float32_from_minus_one_to_one_with_int64_labels(tmp_path):
    save(tmp_path / "x_0.png", flat(0))
    save(tmp_path / "x_1.png", flat(255))
    (batch,) = read(1, data_dir=tmp_path, batch_size=2, class_cond=True, deterministic=True)
    images, extra = batch
    assert images.dtype == torch.float32 and images.shape == (2, 3, SIZE, SIZE)
    assert images[0].unique() == -1 and images[1].unique() == 1
    assert list(extra) == ["y"] and extra["y"].dtype == torch.int64
    assert read(1, data_dir=tmp_path, batch_size=2)[0][1] == {}


def test_every_grey_value_is_scaled_as_published(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / "0.png", np.repeat(ramp[..., None], 3, axis=2))
    image, _ = Images(tmp_path, 16, random_flip=False)[0]
    expected = np.float32(ramp) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(image.numpy(), np.broadcast_to(expected, (3, 16, 16)))


def test_half_of_the_images_are_mirrored_and_only_sideways(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    save(tmp_path / "0.png", pixels)
    straight, _ = Images(tmp_path, SIZE, random_flip=False)[0]
    dataset = Images(tmp_path, SIZE)
    drawn = [dataset[0, epoch][0] for epoch in range(400)]
    mirrored = [torch.equal(image, straight.flip(2)) for image in drawn]
    assert all(m or torch.equal(image, straight) for m, image in zip(mirrored, drawn))
    assert 150 < sum(mirrored) < 250


def test_centre_crop_keeps_the_middle_of_an_image_of_the_right_height():
    ramp = np.arange(4 * 9 * 3, dtype=np.uint8).reshape(4, 9, 3)
    assert np.array_equal(center_crop_arr(Image.fromarray(ramp), 4), ramp[:, 2:6])
    upright = ramp.transpose(1, 0, 2).copy()
    assert np.array_equal(center_crop_arr(Image.fromarray(upright), 4), upright[2:6])


def halved(pixels):
    """The mean of 2x2 blocks as Pillow rounds it: first along the rows, then along the columns."""
    rows = np.floor((pixels[:, ::2] + pixels[:, 1::2]) / 2 + 0.5)
    return np.floor((rows[::2] + rows[1::2]) / 2 + 0.5)


def test_centre_crop_halves_by_the_mean_of_blocks():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    quarter = halved(halved(pixels.astype(float)))
    assert np.array_equal(center_crop_arr(Image.fromarray(pixels), 4), quarter[:, 1:5])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_halving_is_pillows_box_filter_bit_for_bit(mode):
    rng = np.random.default_rng(0)
    for width, height in [
        (2, 2),
        (6, 4),
        (8, 16),
        (8, 18),
        (2, 40),
        (41, 20),
        (20, 41),
        (33, 33),
        (200, 6),
        (128, 128),
    ]:
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        picture = Image.fromarray(rng.integers(256, size=(height, width, *channels), dtype=np.uint8))
        target = min(width, height) // 2  # one halving, after which the smaller side fits
        shrunk = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
        pixels, (left, top) = np.asarray(shrunk), ((side - target) // 2 for side in shrunk.size)
        assert np.array_equal(center_crop_arr(picture, target), pixels[top : top + target, left : left + target])


def test_centre_crop_keeps_a_linear_gradient_linear():
    # Bicubic interpolation reproduces a straight line away from the borders.
    gradient = np.tile(np.arange(0, 200, 2, dtype=np.uint8)[:, None, None], (1, 100, 3))
    out = center_crop_arr(Image.fromarray(gradient), 60).astype(float)
    places = (np.arange(60) + 0.5) * 100 / 60 - 0.5
    assert out.shape == (60, 60, 3)
    assert np.abs(out[3:-3] - (2 * places)[3:-3, None, None]).max() <= 1


@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (31, 64), (64, 33), (5, 200)])
def test_crops_have_the_size_whatever_the_picture(shape):
    picture = Image.fromarray(np.zeros((*shape, 3), np.uint8))
    assert center_crop_arr(picture, 16).shape == (16, 16, 3)
    rng = np.random.default_rng(0)
    assert all(random_crop_arr(picture, 16, rng=rng).shape == (16, 16, 3) for _ in range(20))


def test_random_crop_spans_between_its_fractions_and_reaches_every_corner():
    # Two ramps tell where a crop lies, and their slopes how much of the picture it spans.
    ramp = np.arange(0, 240, 4, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(0)), axis=2)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(pixels)
    crops = np.stack([random_crop_arr(picture, 40, rng=rng) for _ in range(300)]).astype(float)
    slope = (crops[:, 30, 20, 0] - crops[:, 10, 20, 0]) / 20 / 4
    spans = slope * 40 / 60
    assert 0.78 < spans.min() < 0.82 and 0.98 < spans.max() < 1.02
    middles = crops[:, 20, 20, :2]
    assert np.ptp(middles, axis=0).min() > 0.8 * 0.2 * 240
    assert np.corrcoef(middles.T)[0, 1] < 0.3


def test_random_crop_is_decided_by_its_generator():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    a, b, c = (random_crop_arr(picture, 8, rng=np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


# ---- files ----


def test_files_are_found_in_sub_folders_and_links_in_either_case(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    wanted = ["b.JPG", "a/c.jpeg", "a/b/d.Png", "e.gif", "f.BMP", "g.webp"]
    for name in wanted:
        save(root / name, flat(0))
    save(elsewhere / "h.png", flat(0))
    (root / "notes.txt").write_text("no image")
    os.symlink(elsewhere, root / "link")
    expected = sorted(str(root / name) for name in [*wanted, "link/h.png"])
    assert list_image_files(str(root)) == expected


def test_nothing_to_read_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    empty = refusal(list_image_files, str(tmp_path))
    assert "--data_dir" in empty and all(e in empty for e in "jpg jpeg png gif bmp webp".split())
    assert "nowhere" in refusal(list_image_files, str(tmp_path / "nowhere"))
    assert "--data_dir" in refusal(Images, "", SIZE)


@pytest.mark.parametrize(
    "pixels, mode",
    [
        (np.full((SIZE, SIZE), 100, np.uint8), None),
        (np.full((SIZE, SIZE), 100 * 256 + 7, np.uint16), None),
        (np.full((SIZE, SIZE, 4), 100, np.uint8), None),
        (np.full((SIZE, SIZE, 3), 100, np.uint8), "P"),
    ],
    ids=["grey", "16-bit", "rgba", "palette"],
)
def test_every_kind_of_png_becomes_rgb(tmp_path, pixels, mode):
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(tmp_path / "0.png")
    image, _ = Images(tmp_path, SIZE)[0]
    expected = 102 if mode == "P" else 100  # 102 is the nearest colour of the web palette
    assert torch.allclose(image, torch.full((3, SIZE, SIZE), expected / 127.5 - 1))


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_named(tmp_path, damage, num_workers):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "0.png", noise)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "cut": whole[: len(whole) // 2]}[damage])
    message = refusal(read, 1, data_dir=tmp_path, batch_size=1, num_workers=num_workers)
    assert str(path) in message and "--skip_bad" in message


def test_skip_bad_takes_the_next_image_and_counts(seven):
    for name in ("a_0.png", "a_1.png", "b_6.png"):
        (seven / name).write_bytes(b"broken")
    dataset = Images(seven, SIZE, class_cond=True, skip_bad=True)
    stream = batches(dataset, 7, deterministic=True, num_workers=2)
    for _ in range(2):
        batch = next(stream)
        assert values(batch) == [20, 20, 20, 30, 40, 50, 20]
        assert batch[1]["y"].tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert dataset.num_skipped == 3


def test_all_images_broken_is_an_end(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    assert "none of its 3" in refusal(read, 1, data_dir=tmp_path, batch_size=1, skip_bad=True)


# ---- classes ----


def labels_of(dataset):
    return [dataset[i][1]["y"] for i in range(len(dataset))]


def test_classes_by_prefix(seven):
    dataset = Images(seven, SIZE, class_cond=True)
    assert dataset.class_names == ["a", "b"]
    assert labels_of(dataset) == [0, 0, 0, 0, 1, 1, 1]


@pytest.fixture
def nested(tmp_path):
    """Sub-folders that disagree with the prefixes, one of them with a folder of its own."""
    for name in ("dog/x_1.png", "cat/y_1.png", "cat/deeper/x_2.png"):
        save(tmp_path / name, flat(0))
    return tmp_path


@pytest.mark.parametrize("ending", ["", "/", "//"])
def test_classes_by_folder(nested, ending):
    dataset = Images(str(nested) + ending, SIZE, class_cond=True)
    assert dataset.class_names == ["cat", "dog"] and labels_of(dataset) == [0, 0, 1]


def test_classes_by_folder_under_a_relative_path(nested, monkeypatch):
    for folder, data_dir in ((nested.parent, f"./{nested.name}"), (nested, "."), (nested / "cat", "..")):
        monkeypatch.chdir(folder)
        assert Images(data_dir, SIZE, class_cond=True).class_names == ["cat", "dog"]


def test_the_source_of_classes_can_be_chosen(nested):
    dataset = Images(nested, SIZE, class_cond=True, class_source="prefix")
    assert dataset.class_names == ["x", "y"] and labels_of(dataset) == [0, 1, 0]
    assert "--class_source" in refusal(Images, nested, SIZE, class_cond=True, class_source="csv")


def test_a_file_without_a_class_is_named(nested):
    top = save(nested / "z_9.png", flat(0))
    assert str(top) in refusal(Images, nested, SIZE, class_cond=True, class_source="folder")
    plain = save(nested / "plain.png", flat(0))
    message = refusal(Images, nested, SIZE, class_cond=True, class_source="prefix")
    assert str(plain) in message and "names no class" in message
    assert Images(nested, SIZE).class_names is None


def test_more_classes_than_the_model_has(seven):
    stream_of(data_dir=seven, batch_size=1, image_size=SIZE, class_cond=True, num_classes=2)
    message = refusal(stream_of, data_dir=seven, batch_size=1, image_size=SIZE, class_cond=True, num_classes=1)
    assert "--num_classes is 1" in message and "2 classes" in message


# ---- npz ----


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


IMAGES = np.stack([flat(10 * i) for i in range(5)])


def test_npz_images_and_labels(tmp_path):
    path = npz(tmp_path / "x.npz", arr_0=IMAGES, arr_1=np.array([2, 0, 1, 0, 2], np.int32))
    (batch,) = read(1, data_dir=path, batch_size=5, class_cond=True, deterministic=True, num_classes=3)
    assert values(batch) == [0, 10, 20, 30, 40]
    assert batch[1]["y"].tolist() == [2, 0, 1, 0, 2] and batch[1]["y"].dtype == torch.int64
    assert Images(path, SIZE, class_cond=True).class_names == ["0", "1", "2"]
    assert read(1, data_dir=path, batch_size=1)[0][1] == {}


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(x_train=IMAGES), ["x_train", "arr_0"]),
        (dict(arr_0=IMAGES.astype(np.float32)), ["float32", "uint8"]),
        (dict(arr_0=IMAGES[..., 0]), ["[5, 4, 4]", "[N, H, W, 3]"]),
        (dict(arr_0=IMAGES.transpose(0, 3, 1, 2)), ["[5, 3, 4, 4]"]),
        (dict(arr_0=IMAGES[:0]), ["at least one"]),
        (dict(arr_0=np.array([None])), ["cannot be read as an array"]),
        (dict(arr_0=IMAGES), ["has no arr_1 with the labels"]),
        (dict(arr_0=IMAGES, arr_1=np.zeros(5)), ["float64", "integers"]),
        (dict(arr_0=IMAGES, arr_1=np.zeros(4, int)), ["[4]", "[5]"]),
        (dict(arr_0=IMAGES, arr_1=np.array([0, -1, 0, 0, 0])), ["-1", "--num_classes"]),
        (dict(arr_0=IMAGES, arr_1=np.arange(5)), ["--num_classes is 3", "up to 4"]),
    ],
)
def test_npz_mistakes_are_one_sentence(tmp_path, arrays, words):
    path = npz(tmp_path / "x.npz", **arrays)
    message = refusal(stream_of, data_dir=path, batch_size=1, image_size=SIZE, class_cond=True, num_classes=3)
    assert str(path) in message and all(word in message for word in words)


def test_what_is_no_npz_at_all(tmp_path):
    path = tmp_path / "x.npz"
    assert str(path) in refusal(Images, path, SIZE)
    for content in (b"", b"no zip", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        assert str(path) in refusal(Images, path, SIZE)


# ---- super-resolution, summary, flags ----


def test_super_resolution_conditions_on_the_mean_of_blocks(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}_.png", np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    torch.manual_seed(0)
    stream = load_superres_data(large_size=12, small_size=4, data_dir=tmp_path, batch_size=3, class_cond=True)
    large, extra = next(stream)
    assert large.shape == (3, 3, 12, 12) and set(extra) == {"low_res", "y"}
    blocks = large.reshape(3, 3, 4, 3, 4, 3).mean(dim=(3, 5))
    assert torch.allclose(extra["low_res"], blocks, atol=1e-6)
    torch.manual_seed(0)
    plain = load_data(image_size=12, data_dir=tmp_path, batch_size=3, class_cond=True)
    assert torch.equal(large, next(plain)[0])


def test_the_summary_is_one_line(seven):
    line = describe(Images(seven, SIZE, class_cond=True, random_crop=True))
    start, end = f"7 images from {seven}, 2 classes ", "random crop to 4x4, random flip"
    assert line == f"{start}from file-name prefixes (a b), {end}"
    assert "no classes, centre crop to 4x4, no flip" in describe(Images(seven, SIZE, random_flip=False))


@pytest.mark.parametrize("flag, value", [("batch_size", 0), ("image_size", 0), ("num_workers", -1), ("seed", -1)])
def test_numbers_out_of_range_are_refused_at_once(seven, flag, value):
    arguments = dict(data_dir=seven, batch_size=1, image_size=SIZE) | {flag: value}
    assert f"--{flag} is {value}" in refusal(stream_of, **arguments)


def test_a_small_size_above_the_large_one_is_refused(seven):
    message = refusal(load_superres_data, large_size=4, small_size=8, data_dir=seven, batch_size=1)
    assert "--small_size is 8" in message and "--large_size" in message


def test_reading_warns_of_nothing(seven):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(2, data_dir=seven, batch_size=3, class_cond=True)


# ---- channels ----


@pytest.fixture
def kinds(tmp_path):
    """Pictures grey, coloured, half transparent, with 16 bits, and with a palette; {name: pixels}."""
    rng = np.random.default_rng(0)
    grey = rng.integers(256, size=(SIZE, SIZE), dtype=np.uint8)
    rgba = rng.integers(256, size=(SIZE, SIZE, 4), dtype=np.uint8)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "b.png", rgba[..., :3])
    save(tmp_path / "c.png", rgba)
    Image.fromarray(grey.astype(np.uint16) << 8 | 77).save(tmp_path / "d.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "e.png")
    return tmp_path, grey, rgba


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_of_any_kind_become_images_of_so_many_channels(kinds, channels):
    folder, grey, rgba = kinds
    dataset = Images(folder, SIZE, random_flip=False, image_channels=channels)
    images = torch.stack([dataset[i][0] for i in range(5)])
    assert images.shape == (5, channels, SIZE, SIZE) and images.dtype is torch.float32
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for place in (0, 3, 4):  # transparency is 255 where the file has none
        expected = np.stack([grey, grey, grey, np.full_like(grey, 255)][:channels], axis=-1)
        assert np.array_equal(pixels[place], expected)
    if channels == 1:
        luma = rgba[..., :3] @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
        assert np.abs(pixels[1:3, ..., 0] - luma).max() < 1
    else:
        assert np.array_equal(pixels[1, ..., :3], rgba[..., :3])
        assert np.array_equal(pixels[2], rgba[..., :channels])
    assert [open_picture(str(folder / f"{name}.png"), channels)[1] for name in "abcde"] == [
        True,
        *[False] * 2,
        True,
        False,
    ]
    assert describe(dataset).endswith({1: ", grey", 3: "no flip", 4: ", RGBA"}[channels])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_npz_has_the_channels_asked_for(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(256, size=(2, SIZE, SIZE, channels), dtype=np.uint8)
    path = str(tmp_path / "x.npz")
    np.savez(path, arr_0=pixels)
    images, labels = read_npz(path)
    assert np.array_equal(images, pixels) and labels is None
    dataset = Images(path, SIZE, random_flip=False, image_channels=channels)
    assert np.array_equal(np.round((dataset[1][0].numpy() + 1) * 127.5), pixels[1].transpose(2, 0, 1))
    message = refusal(Images, path, SIZE, image_channels=4 if channels == 3 else 3)
    assert str(list(pixels.shape)) in message and "--image_channels" in message


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("random_crop", [False, True])
def test_crops_and_batches_of_other_channels(tmp_path, channels, random_crop):
    pixels = np.random.default_rng(0).integers(256, size=(3, 11, 9, channels), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=pixels)
    told = dict(data_dir=tmp_path / "x.npz", batch_size=3, random_crop=random_crop, image_channels=channels)
    assert read(1, **told)[0][0].shape == (3, channels, SIZE, SIZE)
    images, extra = next(with_low_res(stream_of(image_size=8, **told), SIZE))
    assert images.shape == (3, channels, 8, 8) and extra["low_res"].shape == (3, channels, SIZE, SIZE)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(seven):
    (Path(seven) / "zz_9.png").symlink_to("nowhere.png")
    dataset = Images(seven, SIZE, skip_bad=True)
    assert dataset.facts()["images"] == 8
    batch, _ = dataset.batch([(7, 0)])
    assert len(batch) == 1
    with pytest.raises(UserError, match=r"zz_9.png cannot be read as an image \(.*No such file.*--skip_bad True"):
        Images(seven, SIZE)[7]
