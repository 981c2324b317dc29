"""Images from a folder, a .zip or a file of arrays, as an endless stream of training batches.

The stream, `batches` of `Images`, is one long list of draws: a permutation of all images for epoch 0, another
for epoch 1, and so on. Rank r of `size` takes the draws r, r + size, r + 2 * size, ... Over all ranks every image
is drawn exactly once per epoch, however few images there are; and a batch depends on nothing but the
seed, the shard and its own number, so a run that resumes asks for `start`.
"""

import hashlib
import itertools
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from . import dist_util, files, image_labels, logger
from .crops import augmented
from .errors import UserError
from .flags import THREADS, FlagGroup, at_least, flag
from .image_arrays import checksums, read_arrays
from .image_files import (
    EXTENSIONS,
    TRAITS,
    find_images,
    kind_of,
    open_picture,
    said_of_passed,
    size_in_bytes,
    traits_of,
)
from .images import as_picture

# files of which `report` says what is lost in reading, at most
LOOKED_AT = {"local": 1000, "remote": 16}


@dataclass
class DataFlags(FlagGroup):
    """The training images."""

    data_dir: str = flag(
        "",
        f"Folder of images ({', '.join(EXTENSIONS)}), searched with its sub-folders, or a .zip, .npz or .npy file.",
        essential="data_dir",
    )
    class_source: str = flag(
        "auto",
        "Where classes are read from: sub-folders, or file-name prefixes.",
        image_labels.SOURCES,
        lasting=True,
        needs="class_cond",
    )
    random_crop: bool = flag(False, "Crop at random places and sizes, instead of the centre.", lasting=True)
    random_flip: bool = flag(True, "Mirror half of the images.", lasting=True)
    exif: bool = flag(False, "Turn photographs upright, as their EXIF orientation says.", lasting=True)
    background: str = flag(
        "", "Colour behind transparent places, such as white or #808080; empty shows their hidden colour.", lasting=True
    )
    skip_bad: bool = flag(False, "Skip unreadable images and count them, instead of stopping.")
    num_workers: int = flag(1, "Threads that read ahead; 0 reads when asked.", legal=at_least(0, THREADS))

    def __post_init__(self):
        super().__post_init__()
        if self.background:
            colour(self.background)

    def dataset(self, image_size, class_cond, num_classes, seed=0, image_channels=3, **classes):
        """The Images of these flags; `classes` are its arguments `known`, `more` and `numbers`."""
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
            exif=self.exif,
            background=self.background,
            **classes,
        )


def colour(text):
    """The (red, green, blue) of a --background.

    :raises UserError: if it is no colour.
    """
    from PIL import ImageColor

    try:
        found = ImageColor.getrgb(text)
    except ValueError:
        found = ()
    if not found or max(found) > 255 or found[3:] not in ((), (255,)):
        raise UserError(f"--background is {text!r}, expected an opaque colour such as white or #808080")
    return found[:3]


class Images(Dataset):
    """Images of one size, with their classes where `class_cond` asks for them.

    dataset[index] or dataset[index, epoch] is (float32 tensor [image_channels, image_size, image_size] in [-1, 1],
    {} or {"y": int}).

    :param data_dir: a folder, searched with its sub-folders, in any place blobfile reads; a .zip of one; an .npz file
        with arr_0 uint8 [N, H, W, image_channels] and, for classes, arr_1 integer [N] and perhaps `classes`, their
        names; or an .npy file of such an array.
    :param image_size: height and width in pixels of what comes out.
    :param class_cond: whether there are classes.
    :param class_source: where a folder keeps its classes; see `image_labels.names_of_files`.
    :param num_classes: classes the model has; a label outside 0..num_classes-1 is refused. None takes any.
    :param random_crop: ADM's random crop instead of its centre crop.
    :param random_flip: mirror an image with probability 1/2.
    :param skip_bad: in place of an unreadable image, use the one after it.
    :param seed: with the epoch and the index, decides crop and flip.
    :param image_channels: 1, 3 or 4: files become grey, RGB or RGBA; see `open_picture`.
    :param exif: see `open_picture`; so is `background`.
    :param known: names of the model's classes, by their numbers: names of the data mean these. Without them the names
        become 0, 1, ... in their order, which is that of numbers where all are whole numbers.
    :param more: whether the data may have other classes too, which follow the known ones.
    :param numbers: where nothing is known, names that are numbers below num_classes mean these.
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
        exif=False,
        background="",
        known=(),
        more=False,
        numbers=False,
    ):
        at_least_or_refuse("--image_size", image_size, 1)
        at_least_or_refuse("--seed", seed, 0)
        if not data_dir:
            raise UserError("--data_dir is not given; it expects a folder of images, or a .zip or .npz file")
        self.data_dir, self.image_size, self.seed = str(data_dir), image_size, seed
        self.random_crop, self.random_flip, self.skip_bad = random_crop, random_flip, skip_bad
        self.image_channels, self.exif, self.background = image_channels, exif, background
        self.labels = self.class_names = self.class_source = None
        self.num_classes, self.passed, names = num_classes, Counter(), None

        if kind_of(self.data_dir) == "array":
            self.images, labels, named = read_arrays(self.data_dir, channels=image_channels)
            if class_cond:
                self.class_source = "arr_1"
                labels, own = image_labels.labels_of_array(self.data_dir, labels, named, len(self.images))
                if named is None:
                    self.labels, self.class_names = labels, [*known, *own[len(known) :]]
                else:
                    names = np.array(own)[labels].tolist()
        else:
            found = find_images(self.data_dir)
            self.images, self.passed = found.paths, found.passed
            if class_cond:
                self.class_source, names = image_labels.names_of_files(self.data_dir, self.images, class_source)
        if names is not None:
            count = num_classes if numbers else None
            self.class_names, self.labels = image_labels.numbered(
                names, known, more, count, f"--data_dir {self.data_dir}"
            )
        if class_cond and num_classes is not None:
            self._check_classes(num_classes)
        self._bad = np.zeros(len(self.images), dtype=bool)
        self.on_skip = lambda error: None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        images, extra = self.batch([key if isinstance(key, tuple) else (key, 0)])
        return images[0], {name: int(values[0]) for name, values in extra.items()}

    def batch(self, places):
        """Several images at once.

        :param places: (index, epoch) of each.
        :return: (float32 [N, image_channels, image_size, image_size] in [-1, 1], {} or {"y": int64 [N]}).
        """
        size = self.image_size
        pixels = np.empty((len(places), size, size, self.image_channels), np.uint8)
        labels = np.empty(len(places), np.int64)
        for row, (index, epoch) in enumerate(places):
            index = self._draw(index, epoch, pixels[row])
            labels[row] = 0 if self.labels is None else self.labels[index]
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return images.div_(127.5).sub_(1), {} if self.labels is None else {"y": torch.from_numpy(labels)}

    def _draw(self, index, epoch, out):
        """Write an image, cropped and perhaps mirrored, to `out`; returns the index of the one it is."""
        if isinstance(self.images, np.ndarray) and out.shape == self.images.shape[1:] and not self.random_crop:
            mirrored = self.random_flip and self._rng(index, epoch).random() < 0.5
            out[:] = self.images[index, :, ::-1] if mirrored else self.images[index]
            return index
        rng = self._rng(index, epoch) if self.random_crop or self.random_flip else None
        index, picture = self._readable(index)
        out[:] = augmented(picture, self.image_size, self.random_crop, self.random_flip, rng).reshape(out.shape)
        return index

    def _rng(self, index, epoch):
        # The 1 keeps the first image apart from the permutation, whose key is (seed, epoch).
        return np.random.default_rng([self.seed, epoch, 1 + index])

    @property
    def num_skipped(self):
        return int(self._bad.sum())

    def facts(self):
        """What tells these data from others, to be kept with a run: {"images": N, "digest": text of 16 characters}.

        The digest is of names and sizes of files, or of the checksums of arrays.
        """
        if isinstance(self.images, np.ndarray):
            content = checksums(self.data_dir)
        else:
            root = len(self.data_dir.rstrip("/"))
            # to ask for each size would take long over a network
            sizes = [0 if files.is_remote(path) else size_in_bytes(path) for path in self.images]
            content = "\n".join(f"{path[root:]} {size}" for path, size in zip(self.images, sizes))
        return {"images": len(self), "digest": hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]}

    def remarks(self):
        """Sentences on what of the data is not used, or not as it looks."""
        if self.passed:
            yield said_of_passed(self.passed)
        if self.class_names is not None:
            there = set(self.labels.tolist())
            empty = [name for number, name in enumerate(self.class_names) if number not in there]
            if empty:
                shown = image_labels.shown(empty)
                yield f"no image of {len(empty)} of the {len(self.class_names)} classes: {shown}"
            if self.num_classes is not None and self.num_classes > len(self.class_names) > 0:
                yield (
                    f"--num_classes is {self.num_classes}, of which the data have {len(self.class_names)}: "
                    "there is nothing of the others"
                )
        if isinstance(self.images, np.ndarray):
            if min(self.images.shape[1:3]) < self.image_size:
                yield f"{len(self):,} of {len(self):,} images {TRAITS['tiny']}"
            return
        limit = LOOKED_AT["remote" if files.is_remote(self.data_dir) else "local"]
        places = np.unique(np.linspace(0, len(self) - 1, min(limit, len(self))).astype(int))
        counts = Counter(trait for place in places for trait in self._traits(self.images[place]))
        of = f"{len(places):,} images" + (" looked at" if len(places) < len(self) else "")
        settled = {"turned": self.exif, "transparent": self.background}
        for trait, words in TRAITS.items():
            if counts[trait] and not settled.get(trait):
                yield f"{counts[trait]:,} of {of} {words}"

    def _traits(self, path):
        try:
            return traits_of(path, self.image_size, self.image_channels)
        except UserError:  # which is said when it is read
            return ()

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
            return open_picture(source, self.image_channels, self.exif, self.background)[0]
        except UserError as error:
            if self.skip_bad:
                raise
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
    shown = image_labels.mapping(names)
    return f"{len(names)} class{'es' * (len(names) > 1)} from {source[dataset.class_source]} ({shown})"


def report(dataset):
    """Log `describe` of Images, and warn of their remarks."""
    logger.log(describe(dataset))
    for remark in dataset.remarks():
        logger.warn(f"{dataset.data_dir}: {remark}")


def batches(dataset, batch_size, *, deterministic=False, rank=0, size=1, num_workers=1, start=0):
    """The endless stream of one rank's batches from Images, as of `Images.batch`.

    :param batch_size: images of a batch.
    :param deterministic: keep the order of the files instead of a fresh permutation each epoch.
    :param rank: this shard.
    :param size: the number of shards.
    :param num_workers: threads that read ahead; 0 reads when asked. The batches are the same for any number.
    :param start: the number of the first batch; those before it are not read.
    :raises UserError: for a batch size or a number of threads that is none.
    """
    at_least_or_refuse("--batch_size", batch_size, 1)
    at_least_or_refuse("--num_workers", num_workers, 0)

    pinned = dist_util.dev().type == "cuda"

    def read(number):
        draws = (np.arange(batch_size) + number * batch_size) * size + rank
        images, extra = dataset.batch([_place(dataset, draw, deterministic) for draw in draws])
        return (images.pin_memory() if pinned else images), extra

    return read_ahead(read, itertools.count(start), num_workers)


def _place(dataset, draw, deterministic):
    """(index, epoch) of a draw, counted from the start of the run over all ranks."""
    epoch, position = divmod(int(draw), len(dataset))
    if deterministic:
        return position, epoch
    return int(_permutation(len(dataset), dataset.seed, epoch)[position]), epoch


@lru_cache(maxsize=4)
def _permutation(length, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(length)


def read_ahead(read, numbers, num_workers):
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


def at_least_or_refuse(flag, value, least):
    """:raises UserError: for a number that is too small."""
    if value < least:
        raise UserError(f"{flag} is {value}, expected at least {least}")
