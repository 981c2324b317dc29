"""The published dataset and its stream: the same images in the same order as a DataLoader with one worker gives."""

import itertools
import math
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from processes import mpirun, needs_mpirun
from torch.utils.data import DataLoader, Dataset

from guided_diffusion import image_datasets
from guided_diffusion.errors import UserError
from guided_diffusion.image_datasets import (
    ImageDataset,
    _list_image_files_recursively,
    center_crop_arr,
    load_data,
    random_crop_arr,
)

SIZE = 8


@pytest.fixture
def folder(tmp_path):
    """Eleven pictures of classes x, y and z in folders whose order by entries is not that by paths."""
    rng = np.random.default_rng(0)
    for i in range(11):
        place = tmp_path / "data" / ("b", "b-1", "")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(12 + i, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{'xyz'[i % 2 + i // 8]}_{i}.png")
    return str(tmp_path / "data")


def listed(folder):
    """Entries by name, sub-folders in their place."""
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}"
        yield from listed(path) if os.path.isdir(path) else [path]


class Plain(Dataset):
    """What the published dataset gives, written with Pillow and Python's random numbers alone."""

    def __init__(self, paths, crop=False, flip=True):
        self.paths, self.crop, self.flip = paths, crop, flip
        names = sorted({os.path.basename(path).split("_")[0] for path in paths})
        self.labels = [names.index(os.path.basename(path).split("_")[0]) for path in paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        picture = Image.open(self.paths[index]).convert("RGB")
        pixels = plain_crop(picture) if self.crop else center_crop_arr(picture, SIZE)
        if self.flip and random.random() < 0.5:
            pixels = np.fliplr(pixels)
        return (pixels / np.float32(127.5) - 1).astype(np.float32).transpose(2, 0, 1), self.labels[index]


def plain_crop(picture, size=SIZE):
    """The random crop in Python's random numbers: the smaller side, then top, then left."""
    side = random.randint(size, math.ceil(size / 0.8))
    width, height = picture.size
    while min(width, height) >= 2 * side:
        width, height = width // 2, height // 2
        picture = picture.resize((width, height), Image.BOX)
    scale = side / min(width, height)
    pixels = np.asarray(picture.resize((round(width * scale), round(height * scale)), Image.BICUBIC))
    top = random.randint(0, pixels.shape[0] - size)
    left = random.randint(0, pixels.shape[1] - size)
    return pixels[top : top + size, left : left + size]


def published(dataset, batch_size, deterministic):
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=not deterministic, num_workers=1, drop_last=True)
    while True:
        yield from loader


@pytest.mark.parametrize("batch_size", [1, 3, 11])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("crop, flip", [(False, True), (True, True), (True, False), (False, False)])
def test_the_stream_under_a_global_seed_is_the_published_one(folder, batch_size, deterministic, crop, flip):
    """So are the numbers that the program itself draws between batches."""
    torch.manual_seed(5)
    plain = published(Plain(list(listed(folder)), crop, flip), batch_size, deterministic)
    expected = [(*next(plain), torch.rand(1)) for _ in range(26 // batch_size)]
    torch.manual_seed(5)
    told = dict(deterministic=deterministic, random_crop=crop, random_flip=flip)
    stream = load_data(data_dir=folder, batch_size=batch_size, image_size=SIZE, class_cond=True, **told)
    for images, labels, drawn in expected:
        batch, extra = next(stream)
        assert batch.dtype is torch.float32 and extra["y"].dtype is torch.int64
        assert torch.equal(batch, images) and torch.equal(extra["y"], labels) and torch.equal(torch.rand(1), drawn)


def test_the_stream_follows_the_seed_alone(folder):
    def first(seed):
        torch.manual_seed(seed)
        random.seed()
        np.random.seed()
        return [b for b, _ in itertools.islice(load_data(data_dir=folder, batch_size=4, image_size=SIZE), 4)]

    assert all(torch.equal(a, b) for a, b in zip(first(1), first(1)))
    assert not all(torch.equal(a, b) for a, b in zip(first(1), first(2)))


def test_without_classes_there_are_none(folder):
    assert next(load_data(data_dir=folder, batch_size=2, image_size=SIZE))[1] == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_follows_the_seed_of_python(seed):
    picture = Image.fromarray(np.random.default_rng(seed).integers(256, size=(21, 37, 3), dtype=np.uint8))
    random.seed(seed)
    expected = [plain_crop(picture) for _ in range(5)]
    random.seed(seed)
    assert all(np.array_equal(random_crop_arr(picture, SIZE), crop) for crop in expected)
    again = random.Random(seed)
    assert all(np.array_equal(random_crop_arr(picture, SIZE, rng=again), crop) for crop in expected)


@pytest.mark.parametrize("fractions", [(0.5, 1.0), (0.8, 0.9), (1.0, 1.0)])
def test_a_crop_keeps_its_fractions(fractions):
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    random.seed(0)
    state = random.getstate()
    assert random_crop_arr(picture, 16, *fractions).shape == (16, 16, 3)
    random.setstate(state)
    side = random.randint(math.ceil(16 / fractions[1]), math.ceil(16 / fractions[0]))
    assert [random.randint(0, side - 16) for _ in range(2)] and random.getstate() != state


# ------------------------------------------------------------------ the dataset itself


def test_positional_arguments_and_attributes(folder):
    paths = list(listed(folder))
    dataset = ImageDataset(SIZE, paths, list(range(11)), 1, 3, True, False)
    assert (dataset.resolution, dataset.random_crop, dataset.random_flip) == (SIZE, True, False)
    assert dataset.local_images == paths[1::3] and dataset.local_classes == [1, 4, 7, 10] and len(dataset) == 4
    assert ImageDataset(SIZE, paths).local_classes is None


@pytest.mark.parametrize("crop", [False, True])
def test_an_item_follows_the_seed_of_python(folder, crop):
    paths = list(listed(folder))
    plain, dataset = Plain(paths, crop), ImageDataset(SIZE, paths, classes=Plain(paths).labels, random_crop=crop)
    random.seed(2)
    expected = [plain[i] for i in range(11)]
    random.seed(2)
    for i, (image, label) in enumerate(expected):
        pixels, extra = dataset[i]
        assert isinstance(pixels, np.ndarray) and pixels.dtype == np.float32 and pixels.shape == (3, SIZE, SIZE)
        assert np.array_equal(pixels, image) and extra["y"].dtype == np.int64 and extra["y"] == label


def test_a_subclass_in_a_loader_of_ones_own(folder):
    class Indexed(ImageDataset):
        def __getitem__(self, idx):
            pixels, extra = super().__getitem__(idx)
            return pixels, {**extra, "index": idx}

    paths = _list_image_files_recursively(folder)
    loader = DataLoader(Indexed(SIZE, paths, random_flip=False), batch_size=4, num_workers=1)
    batches = list(loader)
    assert [len(pixels) for pixels, _ in batches] == [4, 4, 3]
    assert torch.cat([extra["index"] for _, extra in batches]).tolist() == list(range(11))


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_share_the_files_out(folder, shards):
    paths = list(listed(folder))
    parts = [ImageDataset(SIZE, paths, shard=i, num_shards=shards).local_images for i in range(shards)]
    assert sorted(itertools.chain(*parts)) == sorted(paths) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_files_are_listed_in_the_published_order(tmp_path):
    names = ["b/1.PNG", "b/a/2.jpeg", "b-1/3.webp", "c.gif", "a.jpg", "B.png"]
    for name in [*names, "d.bmp", "e.txt", "png", "empty/f.txt"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    expected = ["B.png", "a.jpg", "b/1.PNG", "b/a/2.jpeg", "b-1/3.webp", "c.gif"]
    assert _list_image_files_recursively(str(tmp_path)) == [str(tmp_path / name) for name in expected]
    assert _list_image_files_recursively(str(tmp_path / "empty")) == []


# ------------------------------------------------------------------ data that cannot be used, or barely


def test_a_set_smaller_than_a_batch_counts_several_times(folder):
    images = [b for b, _ in itertools.islice(load_data(data_dir=folder, batch_size=33, image_size=SIZE), 2)]
    for batch in images:
        assert batch.shape == (33, 3, SIZE, SIZE)


@pytest.mark.parametrize("zipped", [False, True])
def test_archives_are_read_too(folder, tmp_path, zipped):
    if zipped:
        import shutil

        path = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    else:
        path = str(tmp_path / "packed.npz")
        pixels = np.stack([center_crop_arr(Image.open(p), SIZE) for p in listed(folder)])
        np.savez(path, arr_0=pixels, arr_1=np.array(Plain(list(listed(folder))).labels))
    told = dict(batch_size=11, image_size=SIZE, class_cond=True, deterministic=True, random_flip=False)
    batch, extra = next(load_data(data_dir=path, **told))
    own, labels = next(load_data(data_dir=folder, **told))
    assert sorted(extra["y"].tolist()) == sorted(labels["y"].tolist())
    assert sorted(x.sum().item() for x in batch) == pytest.approx(sorted(x.sum().item() for x in own), abs=1e-4)


@pytest.mark.parametrize("name, random_crop", [("center_crop_arr", False), ("random_crop_arr", True)])
def test_a_crop_that_a_client_puts_into_the_module_is_taken(folder, monkeypatch, name, random_crop):
    paths = list(listed(folder))
    monkeypatch.setattr(image_datasets, name, lambda picture, size: np.full((size, size, 3), 51, np.uint8))
    pixels, _ = ImageDataset(SIZE, paths, random_crop=random_crop)[0]
    assert pixels.shape == (3, SIZE, SIZE) and np.allclose(pixels, 51 / 127.5 - 1)


def test_folders_are_classes_where_names_have_none(tmp_path):
    for i, name in enumerate(["dog/1.png", "cat/2.png", "cat/3.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((SIZE, SIZE, 3), i, np.uint8)).save(tmp_path / name)
    told = dict(batch_size=3, image_size=SIZE, class_cond=True, deterministic=True)
    assert next(load_data(data_dir=str(tmp_path), **told))[1]["y"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "told, word",
    [
        ({"data_dir": ""}, "--data_dir"),
        ({"batch_size": 0}, "--batch_size"),
        ({"image_size": 0}, "--image_size"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(folder, told, word):
    with pytest.raises(UserError, match=word) as caught:
        load_data(**{"data_dir": folder, "batch_size": 1, "image_size": SIZE, **told})
    assert "\n" not in str(caught.value) and isinstance(caught.value, ValueError)


def test_a_broken_image_is_named(folder):
    paths = list(listed(folder))
    with open(paths[0], "wb") as file:
        file.write(b"broken")
    with pytest.raises(UserError, match=os.path.basename(paths[0])):
        next(load_data(data_dir=folder, batch_size=11, image_size=SIZE))


@needs_mpirun
def test_ranks_have_their_shards(folder, tmp_path):
    done = mpirun(2, "published_data.py", folder, tmp_path, SIZE)
    assert done.returncode == 0, done.stderr
    paths = list(listed(folder))
    for rank in range(2):
        plain = Plain(paths, flip=False)
        mine = [plain[i][0] for i in range(rank, 11, 2)]
        seen = np.load(tmp_path / f"{rank}.npz")["arr_0"]
        assert np.array_equal(seen, np.stack(mine[:5]))


@pytest.mark.parametrize("way", ["class in the module", "method of the class"])
@pytest.mark.parametrize("random_crop", [False, True])
def test_load_data_reads_by_what_a_client_overrides(random_crop, way, folder, monkeypatch):
    own = ImageDataset.__getitem__

    def negative(self, index):
        pixels, extra = own(self, index)
        return -pixels, extra

    def first():
        torch.manual_seed(0)
        return next(load_data(data_dir=folder, batch_size=4, image_size=SIZE, random_crop=random_crop))[0]

    expected = -first()
    if way == "method of the class":
        monkeypatch.setattr(ImageDataset, "__getitem__", negative)
    else:
        monkeypatch.setattr(image_datasets, "ImageDataset", type("Own", (ImageDataset,), {"__getitem__": negative}))
    assert torch.equal(first(), expected)
