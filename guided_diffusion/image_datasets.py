"""Images from a folder, a .zip or an .npz file, as an endless stream of training batches.

The scripts' stream, `batches` of `Images`, is one long list of draws: a permutation of all images for epoch 0, another
for epoch 1, and so on. Rank r of `size` takes the draws r, r + size, r + 2 * size, ... Over all ranks every image
is drawn exactly once per epoch, however few images there are; and a batch depends on nothing but the
seed, the shard and its own number, so a run that resumes asks for `start`.

The published stream, `load_data` of `ImageDataset`, draws from the global generators of torch and Python.
"""

import itertools
import math
import os
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import BatchSampler, Dataset, RandomSampler, SequentialSampler, default_collate

from . import dist_util, files
from .errors import UserError
from .flags import FlagGroup, at_least, flag
from .image_files import ZIP, list_image_files, open_picture, read_npz
from .images import as_picture

# beside "bmp" of EXTENSIONS, which the published package passes by
PUBLISHED_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp")

CLASS_SOURCES = ("auto", "prefix", "folder")


@dataclass
class DataFlags(FlagGroup):
    """The training images."""

    data_dir: str = flag("", "Folder of images, searched with its sub-folders, or a .zip or .npz file.")
    class_source: str = flag(
        "auto",
        "Where classes are read from: sub-folders, or file-name prefixes.",
        CLASS_SOURCES,
        lasting=True,
        needs="class_cond",
    )
    random_crop: bool = flag(False, "Crop at random places and sizes, instead of the centre.", lasting=True)
    random_flip: bool = flag(True, "Mirror half of the images.", lasting=True)
    skip_bad: bool = flag(False, "Skip unreadable images and count them, instead of stopping.")
    num_workers: int = flag(1, "Threads that read ahead; 0 reads when asked.", legal=at_least(0))

    def dataset(self, image_size, class_cond, num_classes, seed=0, image_channels=3):
        """The Images of these flags."""
        return Images(
            self.data_dir,
            image_size,
            class_cond=class_cond,
            class_source=self.class_source,
            num_classes=num_classes,
            random_crop=self.random_crop,
            random_flip=self.random_flip,
            skip_bad=self.skip_bad,
            seed=seed,
            image_channels=image_channels,
        )


def load_data(
    *,
    data_dir,
    batch_size,
    image_size,
    class_cond=False,
    deterministic=False,
    random_crop=False,
    random_flip=True,
):
    """The published stream of this rank's batches, without end.

    Each epoch is a permutation of the rank's images, whose last batch is left out where it is not full. It takes a
    number from torch's global generator that seeds crops and flips, and one for the permutation: the draws of the
    published function, which reads in a torch DataLoader with one worker. The data are validated here and now.

    :param data_dir: a folder of images, searched with its sub-folders, or a .zip or .npz file; see `Images`.
    :param class_cond: whether there are classes: the part of a file's name before its first "_" or, where a name has
        none, the first sub-folder; arr_1 of an npz. Their sorted names become 0, 1, ...
    :param deterministic: keep the order of the files.
    :param random_crop: ADM's random crop instead of its centre crop.
    :param random_flip: mirror an image with probability 1/2.
    :return: a generator of (images, extra): float32 [batch_size, 3, image_size, image_size] in [-1, 1], and {} or, with
        class_cond, {"y": int64 [batch_size]}.
    :raises UserError: for data that cannot be used.
    """
    _at_least("--batch_size", batch_size, 1)
    images, classes = _published_order(str(data_dir or ""), image_size, class_cond)
    dataset = ImageDataset(
        image_size,
        images,
        classes,
        shard=dist_util.rank(),
        num_shards=dist_util.world_size(),
        random_crop=random_crop,
        random_flip=random_flip,
    )
    if not len(dataset):
        raise UserError(f"--data_dir {data_dir} has {len(images)} images, expected one for each of the ranks at least")
    return _published_batches(dataset, batch_size, deterministic)


def _published_order(data_dir, image_size, class_cond):
    """(the images in the order of `_list_image_files_recursively`, their classes or None)."""
    found = Images(data_dir, image_size, class_cond=class_cond)
    classes = found.labels
    if isinstance(found.images, np.ndarray):
        return found.images, classes
    listed = found.images if data_dir.endswith(ZIP) else _list_image_files_recursively(data_dir)
    if class_cond:
        names = [files.split(path)[1] for path in listed]
        if all("_" in name for name in names):
            _, classes = np.unique([name.split("_")[0] for name in names], return_inverse=True)
        else:
            class_of = dict(zip(found.images, found.labels))
            classes = [class_of[path] for path in listed]
    return listed, classes


def _published_batches(dataset, batch_size, deterministic):
    # a set smaller than a batch, which the published function asks for one forever, counts several times
    places = range(len(dataset)) if len(dataset) >= batch_size else np.resize(range(len(dataset)), batch_size)
    order = SequentialSampler(places) if deterministic else RandomSampler(places)
    while True:
        dataset.rng = random.Random(int(torch.empty((), dtype=torch.int64).random_()))

        def read(numbers):
            return default_collate([dataset[places[n]] for n in numbers])

        # one thread, since the order of reading decides the draws
        yield from _read_ahead(read, iter(list(BatchSampler(order, batch_size, drop_last=True))), 1)


def load_superres_data(*, large_size, small_size, **kwargs):
    """Like `load_data` at `large_size`, with extra["low_res"]: the same images shrunk by area.

    :param kwargs: those of `load_data`.
    :return: as of `load_data`; `low_res` is float32 [batch_size, 3, small_size, small_size] in [-1, 1].
    :raises UserError: as `load_data`, and for a small size that is none or above the large one.
    """
    _at_least("--small_size", small_size, 1)
    if small_size > large_size:
        raise UserError(f"--small_size is {small_size}, expected at most --large_size, which is {large_size}")
    return with_low_res(load_data(image_size=large_size, **kwargs), small_size)


def with_low_res(data, small_size):
    """The stream `data` of (images, extra) with extra["low_res"], the images shrunk by area."""
    for images, extra in data:
        yield images, {"low_res": F.interpolate(images, small_size, mode="area"), **extra}


def batches(dataset, batch_size, *, deterministic=False, rank=0, size=1, num_workers=1, start=0):
    """The endless stream of one rank's batches from Images: (images, extra) as of `load_data`, of its channels.

    :param batch_size: images of a batch.
    :param deterministic: keep the order of the files instead of a fresh permutation each epoch.
    :param rank: this shard.
    :param size: the number of shards.
    :param num_workers: threads that read ahead; 0 reads when asked. The batches are the same for any number.
    :param start: the number of the first batch; those before it are not read.
    :raises UserError: for a batch size or a number of threads that is none.
    """
    _at_least("--batch_size", batch_size, 1)
    _at_least("--num_workers", num_workers, 0)

    def read(number):
        draws = (np.arange(batch_size) + number * batch_size) * size + rank
        return default_collate([dataset[_place(dataset, draw, deterministic)] for draw in draws])

    return _read_ahead(read, itertools.count(start), num_workers)


def _place(dataset, draw, deterministic):
    """(index, epoch) of a draw, counted from the start of the run over all ranks."""
    epoch, position = divmod(int(draw), len(dataset))
    if deterministic:
        return position, epoch
    return int(_permutation(len(dataset), dataset.seed, epoch)[position]), epoch


@lru_cache(maxsize=4)
def _permutation(length, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(length)


def _read_ahead(read, numbers, num_workers):
    """Yield read(n) for each n, in order, with two reads per worker under way.

    Threads, because Pillow lets go of the interpreter lock while it decodes and scales: no process to
    fork under MPI or CUDA, to lose to a signal while the trainer saves, or to bury an error message.
    """
    if num_workers == 0:
        yield from map(read, numbers)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        ahead = deque(pool.submit(read, n) for n in itertools.islice(numbers, 2 * num_workers))
        for number in numbers:
            yield ahead.popleft().result()
            ahead.append(pool.submit(read, number))
        while ahead:
            yield ahead.popleft().result()


def _list_image_files_recursively(data_dir):
    """Paths of the images in a folder and its sub-folders, in the published order, by the published extensions.

    Entries are sorted by name in each folder, and a sub-folder's images stand in its place. For a folder in any place
    blobfile reads. `list_image_files` sorts whole paths, and knows .bmp too.
    """
    found = []
    for name, is_folder in sorted(files.entries(data_dir)):
        path = files.join(data_dir, name)
        if is_folder:
            found += _list_image_files_recursively(path)
        elif name.lower().endswith(PUBLISHED_ENDINGS):
            found.append(path)
    return found


class ImageDataset(Dataset):
    """The published dataset: image files of one shard, as arrays.

    dataset[index] is (float32 array [3, resolution, resolution] in [-1, 1], {} or {"y": int64 array []}). Crops and
    flips are drawn from Python's global generator.

    :param resolution: height and width in pixels of what comes out.
    :param image_paths: files, of any kind that `open_picture` reads; or uint8 arrays [H, W, 3].
    :param classes: the class of each, or None.
    :param shard: takes every `num_shards`-th image from this one on.
    :param random_crop: ADM's random crop instead of its centre crop.
    :param random_flip: mirror an image with probability 1/2.
    :ivar local_images: the images of the shard.
    :ivar local_classes: their classes, or None.
    :ivar rng: a `random.Random` to draw from in place of the global generator, or None.
    :raises UserError: in asking for an image that cannot be read.
    """

    rng = None

    def __init__(
        self,
        resolution,
        image_paths,
        classes=None,
        shard=0,
        num_shards=1,
        random_crop=False,
        random_flip=True,
    ):
        super().__init__()
        self.resolution = resolution
        self.local_images = image_paths[shard::num_shards]
        self.local_classes = None if classes is None else classes[shard::num_shards]
        self.random_crop = random_crop
        self.random_flip = random_flip

    def __len__(self):
        return len(self.local_images)

    def __getitem__(self, idx):
        source = self.local_images[idx]
        picture = as_picture(source) if isinstance(source, np.ndarray) else open_picture(source, 3)[0]
        pixels = _augmented(picture, self.resolution, self.random_crop, self.random_flip, self.rng or random)
        extra = {} if self.local_classes is None else {"y": np.array(self.local_classes[idx], dtype=np.int64)}
        return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1, extra


def _augmented(picture, size, random_crop, random_flip, rng):
    """Pixels of a crop, mirrored or not; `rng` as of `random_crop_arr`."""
    pixels = random_crop_arr(picture, size, rng=rng) if random_crop else center_crop_arr(picture, size)
    return pixels[:, ::-1] if random_flip and rng.random() < 0.5 else pixels


class Images(Dataset):
    """Images of one size, with their classes where `class_cond` asks for them.

    dataset[index] or dataset[index, epoch] is (float32 tensor [image_channels, image_size, image_size] in [-1, 1],
    {} or {"y": int}).

    :param data_dir: a folder, searched with its sub-folders, in any place blobfile reads; a .zip of one; or an .npz
        file with arr_0 uint8 [N, H, W, image_channels] and, for classes, arr_1 integer [N].
    :param image_size: height and width in pixels of what comes out.
    :param class_cond: whether there are classes.
    :param class_source: where a folder keeps its classes. "folder": the first sub-folder below data_dir; "prefix": the
        file name up to its first "_"; "auto": "folder" if every image lies in a sub-folder, else "prefix". Their sorted
        names become 0, 1, ...
    :param num_classes: classes the model has; a label outside 0..num_classes-1 is refused.
    :param random_crop: ADM's random crop instead of its centre crop.
    :param random_flip: mirror an image with probability 1/2.
    :param skip_bad: in place of an unreadable image, use the one after it.
    :param seed: with the epoch and the index, decides crop and flip.
    :param image_channels: 1, 3 or 4: files become grey, RGB or RGBA; see `open_picture`.
    :ivar class_names: a list, None without class_cond.
    :ivar num_skipped: the number of distinct unreadable images met so far.
    :ivar on_skip: called with the error of each.
    :raises UserError: for data that cannot be used.
    """

    def __init__(
        self,
        data_dir,
        image_size,
        *,
        class_cond=False,
        class_source="auto",
        num_classes=None,
        random_crop=False,
        random_flip=True,
        skip_bad=False,
        seed=0,
        image_channels=3,
    ):
        _at_least("--image_size", image_size, 1)
        _at_least("--seed", seed, 0)
        if not data_dir:
            raise UserError("--data_dir is not given; it expects a folder of images, or a .zip or .npz file")
        self.data_dir, self.image_size, self.seed = str(data_dir), image_size, seed
        self.random_crop, self.random_flip, self.skip_bad = random_crop, random_flip, skip_bad
        self.image_channels = image_channels
        self.labels = self.class_names = self.class_source = None

        if self.data_dir.lower().endswith(".npz"):
            self.images, labels = read_npz(self.data_dir, channels=image_channels)
            if class_cond:
                self.class_source = "arr_1"
                self.labels, self.class_names = _npz_classes(self.data_dir, labels, len(self.images))
        else:
            self.images = list_image_files(self.data_dir)
            if class_cond:
                self.class_source, names = _names_of_classes(self.data_dir, self.images, class_source)
                self.class_names, self.labels = np.unique(names, return_inverse=True)
                self.class_names = self.class_names.tolist()
        if class_cond and num_classes is not None:
            self._check_classes(num_classes)
        self._bad = np.zeros(len(self.images), dtype=bool)
        self.on_skip = lambda error: None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        # The 1 keeps the first image apart from the permutation, whose key is (seed, epoch).
        rng = np.random.default_rng([self.seed, epoch, 1 + index])
        index, picture = self._readable(index)
        pixels = _augmented(picture, self.image_size, self.random_crop, self.random_flip, rng)
        pixels = pixels.reshape(self.image_size, self.image_size, self.image_channels)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)
        return image, {} if self.labels is None else {"y": int(self.labels[index])}

    @property
    def num_skipped(self):
        return int(self._bad.sum())

    def _readable(self, index):
        """(index, picture) of the first readable image from `index` on."""
        if not self.skip_bad:
            return index, self._picture(index)
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            if self._bad[candidate]:
                continue
            try:
                return candidate, self._picture(candidate)
            except UserError as error:
                self._bad[candidate] = True
                self.on_skip(error)
        raise UserError(f"--data_dir {self.data_dir}: none of its {len(self)} images can be read")

    def _picture(self, index):
        source = self.images[index]
        if isinstance(source, np.ndarray):
            return as_picture(source)
        try:
            return open_picture(source, self.image_channels)[0]
        except UserError as error:
            raise UserError(f"{error}; mend or remove it, or pass --skip_bad True") from error

    def _check_classes(self, num_classes):
        if len(self.class_names) > num_classes:
            found = (
                f"labels up to {len(self.class_names) - 1}"
                if self.class_source == "arr_1"
                else f"{len(self.class_names)} classes"
            )
            raise UserError(
                f"--num_classes is {num_classes}, but --data_dir {self.data_dir} has {found}; "
                f"expected labels in 0..{num_classes - 1}"
            )


def describe(dataset):
    """One line for the start of a run: count, place, classes and crop rule of Images, and what is no RGB."""
    size = dataset.image_size
    parts = [
        f"{len(dataset):,} images from {dataset.data_dir}",
        _describe_classes(dataset),
        f"{'random' if dataset.random_crop else 'centre'} crop to {size}x{size}",
        "random flip" if dataset.random_flip else "no flip",
    ]
    if dataset.image_channels != 3:
        parts.append({1: "grey", 4: "RGBA"}[dataset.image_channels])
    return ", ".join(parts)


def _describe_classes(dataset):
    names = dataset.class_names
    if names is None:
        return "no classes"
    source = {"prefix": "file-name prefixes", "folder": "sub-folders", "arr_1": "arr_1"}
    shown = " ".join(names if len(names) <= 10 else [*names[:3], "...", names[-1]])
    return f"{len(names)} class{'es' * (len(names) > 1)} from {source[dataset.class_source]} ({shown})"


def _names_of_classes(data_dir, paths, class_source):
    """(the rule that was used, the class name of each path)."""
    if class_source not in CLASS_SOURCES:
        raise UserError(f"--class_source is {class_source}, expected one of {', '.join(CLASS_SOURCES)}")
    root = data_dir.rstrip("/" + os.sep)
    parts = [path[len(root) :].replace(os.sep, "/").strip("/").split("/") for path in paths]
    if class_source == "auto":
        class_source = "folder" if all(len(p) > 1 for p in parts) else "prefix"
    if class_source == "folder":
        _all_or_refuse(paths, (len(p) > 1 for p in parts), "to lie in the sub-folder of its class")
        return "folder", [p[0] for p in parts]
    _all_or_refuse(paths, ("_" in p[-1] for p in parts), 'to be called <class>_<anything>, with a "_"')
    return "prefix", [p[-1].split("_")[0] for p in parts]


def _all_or_refuse(paths, fine, expected):
    for path, ok in zip(paths, fine):
        if not ok:
            raise UserError(f"--class_cond is True, but {path} names no class; expected it {expected}")


def _npz_classes(path, labels, count):
    """(int64 labels [N], class names) from arr_1."""
    if labels is None:
        raise UserError(f"--class_cond is True, but --data_dir {path} has no arr_1 with the labels")
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(f"--data_dir {path}: arr_1 is {labels.dtype} {list(labels.shape)}, expected integers [{count}]")
    if labels.min() < 0:
        raise UserError(
            f"--data_dir {path}: arr_1 has the label {labels.min()}, expected labels in 0..n-1 where n is --num_classes"
        )
    return labels.astype(np.int64), [str(n) for n in range(int(labels.max()) + 1)]


def center_crop_arr(pil_image, image_size):
    """ADM's centre crop: shrink until the smaller side is `image_size`, then keep the middle square.

    :return: uint8 [image_size, image_size, C], without the last axis for a grey image.
    """
    pixels = _scale_smaller_side(pil_image, image_size)
    top, left = ((side - image_size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(pil_image, image_size, min_crop_frac=0.8, max_crop_frac=1.0, rng=random):
    """ADM's random crop: a square that spans between the two fractions of the smaller side.

    :param rng: a `random.Random`, by default Python's global one, or a numpy Generator.
    :return: as of `center_crop_arr`.
    """
    below = rng.integers if isinstance(rng, np.random.Generator) else rng.randrange
    smallest, largest = (math.ceil(image_size / frac) for frac in (max_crop_frac, min_crop_frac))
    pixels = _scale_smaller_side(pil_image, smallest + int(below(largest - smallest + 1)))
    top, left = (int(below(side - image_size + 1)) for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def _scale_smaller_side(pil_image, target):
    """Pixels of the image, scaled so that its smaller side is `target`.

    Halving by box first, as often as it goes, keeps the bicubic step below a factor of two, where it
    does not alias.
    """
    while min(pil_image.size) >= 2 * target:
        pil_image = pil_image.resize([side // 2 for side in pil_image.size], Image.Resampling.BOX)
    scale = target / min(pil_image.size)
    size = [round(side * scale) for side in pil_image.size]
    return np.asarray(pil_image.resize(size, Image.Resampling.BICUBIC))


def _at_least(flag, value, least):
    if value < least:
        raise UserError(f"{flag} is {value}, expected at least {least}")
