"""The published stream of images, `load_data` of `ImageDataset`, which draws from the global generators.

The stream of this project's scripts, and what both read, have their own modules; their names are importable from here.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, Dataset, RandomSampler, SequentialSampler, default_collate

from . import dist_util, files
from .crops import center_crop_arr, mirrored, random_crop_arr
from .errors import UserError
from .image_files import is_hidden, open_picture
from .image_stream import DataFlags, Images, at_least_or_refuse, batches, describe, read_ahead  # noqa: F401 (likewise)
from .images import as_picture

# beside "bmp" of EXTENSIONS, which the published package passes by
PUBLISHED_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp")


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
    at_least_or_refuse("--batch_size", batch_size, 1)
    images, classes = published_order(str(data_dir or ""), image_size, class_cond)
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


def published_order(data_dir, image_size, class_cond):
    """(the images in the order of `_list_image_files_recursively`, their classes or None)."""
    found = Images(data_dir, image_size)
    if isinstance(found.images, np.ndarray):
        return found.images, Images(data_dir, image_size, class_cond=True).labels if class_cond else None
    listed = _list_image_files_recursively(data_dir) if files.is_folder(data_dir) else found.images
    if not class_cond:
        return listed, None
    names = [files.split(path)[1] for path in listed]
    if all("_" in name for name in names):
        _, classes = np.unique([name.split("_")[0] for name in names], return_inverse=True)
        return listed, classes
    found = Images(data_dir, image_size, class_cond=True)
    class_of = dict(zip(found.images, found.labels))
    return listed, [class_of[path] for path in listed]


def _published_batches(dataset, batch_size, deterministic):
    # a set smaller than a batch, which the published function asks for one forever, counts several times
    places = range(len(dataset)) if len(dataset) >= batch_size else np.resize(range(len(dataset)), batch_size)
    order = SequentialSampler(places) if deterministic else RandomSampler(places)
    while True:
        dataset.rng = random.Random(int(torch.empty((), dtype=torch.int64).random_()))

        def read(numbers):
            return default_collate([dataset[places[n]] for n in numbers])

        # one thread, since the order of reading decides the draws
        yield from read_ahead(read, iter(list(BatchSampler(order, batch_size, drop_last=True))), 1)


def load_superres_data(*, large_size, small_size, **kwargs):
    """Like `load_data` at `large_size`, with extra["low_res"]: the same images shrunk by area.

    :param kwargs: those of `load_data`.
    :return: as of `load_data`; `low_res` is float32 [batch_size, 3, small_size, small_size] in [-1, 1].
    :raises UserError: as `load_data`, and for a small size that is none or above the large one.
    """
    at_least_or_refuse("--small_size", small_size, 1)
    if small_size > large_size:
        raise UserError(f"--small_size is {small_size}, expected at most --large_size, which is {large_size}")
    return with_low_res(load_data(image_size=large_size, **kwargs), small_size)


def with_low_res(data, small_size):
    """The stream `data` of (images, extra) with extra["low_res"], the images shrunk by area."""
    for images, extra in data:
        yield images, {"low_res": F.interpolate(images, small_size, mode="area"), **extra}


def _list_image_files_recursively(data_dir):
    """Paths of the images in a folder and its sub-folders, in the published order, by the published extensions.

    Entries are sorted by name in each folder, and a sub-folder's images stand in its place. For a folder in any place
    blobfile reads. `list_image_files` sorts whole paths, and knows .bmp too.
    """
    found = []
    for name, is_folder in sorted(files.entries(data_dir)):
        if is_hidden(name):
            continue
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
        # by the names of this module, which clients replace
        if self.random_crop:
            own = {} if self.rng is None else {"rng": self.rng}
            pixels = random_crop_arr(picture, self.resolution, **own)
        else:
            pixels = center_crop_arr(picture, self.resolution)
        if self.random_flip:
            pixels = mirrored(pixels, self.rng or random)
        extra = {} if self.local_classes is None else {"y": np.array(self.local_classes[idx], dtype=np.int64)}
        return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1, extra
