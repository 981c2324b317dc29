"""Images to be scored, read in parts: memory does not depend on their number."""

import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from guided_diffusion import files, image_labels, logger
from guided_diffusion.errors import UserError
from guided_diffusion.image_datasets import Images
from guided_diffusion.image_files import is_zip, kind_of, list_image_files, open_picture
from guided_diffusion.images import to_uint8
from guided_diffusion.jobs import sample_store

from .fid import Moments

# keys of stored statistics: of the features, and of the spatial features
STATISTICS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# the same of other features than Inception's, and the Extractor.identity of their network
OTHER_STATISTICS = ("features_mu", "features_sigma", "features_network")
# what rounding may do to a covariance, as shares of its largest number and, in float16, of its largest eigenvalue
ASYMMETRY, NEGATIVE = 1e-6, 1e-3


@dataclass
class ImageSet:
    """Images of one size in one place.

    :ivar flag: that names the place.
    :ivar path: of what holds them.
    :ivar kind: "npz", "zip" or "folder".
    :ivar count: number of images; 0 where there are only statistics.
    :ivar size: (height, width), None without images.
    :ivar batches: `(batch_size, rank, size) -> iterator` of (first index, uint8 [n, H, W, C]): the batches of
        consecutive images that are the rank's. They are dealt to the ranks in turn, so that one holds the same images
        on any number of ranks. A grey image has its channel three times if it shares its batch with coloured ones.
        The iterator raises UserError for an image that cannot be read or has another size than the first.
    :ivar files: paths of the files that hold the images.
    :ivar statistics: {"features": Moments, "spatial": Moments} of Inception, and {identity of another network: Moments}
        of its features, as far as they are stored.
    :ivar run: settings of the run that made the images, as of `sample_store.origin`; {} where they are not known.
    :ivar channels: of the first image: 1 for grey, 3, or 4 where there is a fourth.
    :ivar labels: int [count] of their classes, as arr_1 of an npz or names of files have them, else None.
    """

    flag: str
    path: str
    kind: str
    count: int
    size: tuple | None
    batches: Callable
    files: list
    statistics: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    channels: int = 3
    labels: np.ndarray | None = None


def open_images(path, flag):
    """The ImageSet that --`flag` names.

    :param path: an npz with arr_0 (uint8 [N, H, W, C] of 1, 3 or 4 channels, or [N, H, W]), with stored statistics (mu,
        sigma, mu_s, sigma_s) or both; a folder or zip of images, whose transparency is dropped; or the output folder
        of a sampling script.
    :raises UserError: for anything else.
    """
    if not path:
        raise UserError(f"--{flag} is not given; expected an npz or a folder of images")
    if is_zip(path) or (files.is_folder(path) and not files.exists(files.join(path, "flags.json"))):
        return _open_folder(path, flag)
    if files.is_folder(path):
        path = _samples_of(path, flag)
    else:
        kind_of(path, flag)  # which says what is no array
    return _open_npz(path, flag)


def _samples_of(folder, flag):
    """The npz that a sampling script wrote to its output folder."""
    found = sorted(name for name, _ in files.entries(folder) if name.endswith(".npz"))
    if len(found) != 1:
        shown = ", ".join(found) or "none"
        raise UserError(
            f"--{flag} {folder} is the folder of a run and holds {len(found)} npz ({shown}); expected one, or its path"
        )
    return files.join(folder, found[0])


# -- npz ---------------------------------------------------------------------------------------------


@contextmanager
def _told_as_damage(path, flag):
    try:
        yield
    except files.NPZ_DAMAGE as error:
        raise UserError(f"--{flag} {path} is damaged or no npz of plain arrays ({_reason(error, path)})") from error


def _reason(error, path):
    text = str(error).strip("'\"").split("\n")[0]
    with files.open_read(path) as file:
        begun = file.read(2) == b"PK"
    if not text or (begun and text == "File is not a zip file"):  # its directory, at the end, is not there
        return "it ends too soon"
    # numpy's advice about foreign bytes is to unpickle them
    return "it is no archive" if "pickle" in text else text


def _open_npz(path, flag):
    with _told_as_damage(path, flag), files.open_read(path) as file:
        npz = np.load(file, allow_pickle=False)
        if isinstance(npz, np.ndarray):
            raise ValueError("it is a single array")
        names = npz.files
        known = {*sum(STATISTICS.values(), ()), *OTHER_STATISTICS, "arr_1"}
        stored = {key: npz[key] for key in names if key in known}
    statistics = {
        name: _moments(stored[mu], stored[sigma], f"--{flag} {path}: {mu} and {sigma}")
        for name, (mu, sigma) in STATISTICS.items()
        if mu in stored and sigma in stored
    }
    if stored.keys() >= set(OTHER_STATISTICS):
        mu, sigma, network = OTHER_STATISTICS
        what = f"--{flag} {path}: {mu} and {sigma}"
        statistics[str(stored[network])] = _moments(stored[mu], stored[sigma], what)
    if "arr_0" not in names:
        if "features" not in statistics:
            shown = ", ".join(names) or "nothing"
            raise UserError(f"--{flag} {path} holds {shown}; expected images under arr_0, or statistics mu and sigma")
        return ImageSet(flag, path, "npz", 0, None, lambda *_: iter(()), [path], statistics)
    with _told_as_damage(path, flag), _array(path) as (shape, dtype, fortran, _):
        pass
    channels = shape[3] if len(shape) == 4 else 1
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or channels not in (1, 3, 4) or min(shape) < 1:
        order = " in Fortran order" if fortran else ""
        raise UserError(
            f"--{flag} {path}: arr_0 is {dtype} {list(shape)}{order}, expected at least one image as uint8 [N, H, W, 3]"
        )
    batches, run = partial(_npz_batches, path, flag, shape), sample_store.origin(path)
    labels = stored.get("arr_1")
    if labels is not None and (labels.shape != shape[:1] or labels.dtype.kind not in "iu"):
        labels = None
    return ImageSet(flag, path, "npz", shape[0], shape[1:3], batches, [path], statistics, run, channels, labels)


def _moments(mean, covariance, what):
    """The Moments of stored statistics.

    :param what: names them, for errors.
    :raises UserError: if they are not those of any features.
    """
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
        raise UserError(f"{what} have shapes {list(mean.shape)} and {list(covariance.shape)}, expected [D] and [D, D]")
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise UserError(f"{what} are {mean.dtype} and {covariance.dtype}, expected real numbers")
    mean, covariance = (torch.from_numpy(np.asarray(part, np.float64)) for part in (mean, covariance))
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{what} are not finite")
    if (covariance - covariance.T).abs().max() > ASYMMETRY * covariance.abs().max():
        raise UserError(f"{what}: the second is no covariance, as it is not symmetric")
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -NEGATIVE * values.abs().max():
        raise UserError(f"{what}: the second is no covariance, as it has the eigenvalue {values[0]:.3g}")
    return Moments(mean, covariance)


@contextmanager
def _array(path):
    """(shape, dtype, whether in Fortran order, a file at its first number) of arr_0."""
    with files.open_read(path) as file, zipfile.ZipFile(file) as archive, archive.open("arr_0.npy") as member:
        major, _ = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        yield shape, dtype, fortran and len(shape) > 1, member


def _npz_batches(path, flag, shape, batch_size, rank, size):
    each = int(np.prod(shape[1:]))
    with _told_as_damage(path, flag), _array(path) as (*_, member):
        for start in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - start)
            data = member.read(count * each)
            if len(data) < count * each:
                raise EOFError(f"arr_0 ends after {start + len(data) // each} of {shape[0]} images")
            if start // batch_size % size == rank:
                yield start, np.frombuffer(data, np.uint8).reshape(count, *shape[1:3], -1).copy()


def images_of_array(array, flag):
    """The ImageSet of an array in memory.

    :param array: uint8 [N, H, W, C] of 1, 3 or 4 channels, or [N, H, W].
    :param flag: that stands for it, for errors.
    :raises UserError: for any other.
    """
    array = np.asarray(array)
    channels = array.shape[3] if array.ndim == 4 else 1
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or channels not in (1, 3, 4) or 0 in array.shape:
        raise UserError(
            f"--{flag} is an array of {array.dtype} {list(array.shape)}; expected images as uint8 [N, H, W, 3]"
        )
    batches = partial(_array_batches, array.reshape(*array.shape[:3], channels))
    return ImageSet(flag, "an array", "array", len(array), array.shape[1:3], batches, [], channels=channels)


def _array_batches(array, batch_size, rank, size):
    for start in range(rank * batch_size, len(array), size * batch_size):
        yield start, array[start : start + batch_size]


# -- folders -----------------------------------------------------------------------------------------


def _open_folder(path, flag):
    paths = list_image_files(path, flag)
    first, grey = open_picture(paths[0])
    size = first.size[::-1]
    for remark in Images(path, min(size)).remarks():
        logger.warn(f"--{flag} {path}: {remark}" + (" (of make_reference.py)" if " --" in remark else ""))
    batches = partial(_folder_batches, path, flag, paths, size)
    kind, kept = ("zip", [path]) if is_zip(path) else ("folder", paths)
    labels, channels = _labels_of_names(path, paths), 1 if grey else 3
    return ImageSet(flag, path, kind, len(paths), size, batches, kept, channels=channels, labels=labels)


def _labels_of_names(folder, paths):
    """The classes int [N] that names tell as for training; None where they do not, or tell each apart."""
    try:
        _, names = image_labels.names_of_files(folder, paths)
    except UserError:
        return None
    kinds, labels = np.unique(names, return_inverse=True)
    return labels if 1 < len(kinds) <= len(paths) / 2 else None


def _folder_batches(folder, flag, paths, image_size, batch_size, rank, size):
    for start in range(rank * batch_size, len(paths), size * batch_size):
        part = paths[start : start + batch_size]
        opened = [open_picture(path) for path in part]
        channels = 1 if all(grey for _, grey in opened) else 3
        images = [np.asarray(image)[..., :channels] for image, _ in opened]
        for path, image in zip(part, images):
            if image.shape[:2] != image_size:
                (height, width), (other_height, other_width) = image_size, image.shape[:2]
                raise UserError(
                    f"--{flag} {folder} mixes sizes: {paths[0]} is {height}x{width} and {path} {other_height}x"
                    f"{other_width}; expected one size, as make_reference.py --image_size makes it"
                )
        yield start, np.stack(images)


# -- training data -----------------------------------------------------------------------------------


def images_of_dataset(dataset, flag, indices):
    """The ImageSet of some images of Images, cropped and resized as training has them.

    :param flag: that names the data.
    :param indices: of the images, in the order they come.
    """
    size = (dataset.image_size, dataset.image_size)
    batches = partial(_dataset_batches, dataset, indices)
    return ImageSet(flag, dataset.data_dir, "folder", len(indices), size, batches, [], channels=dataset.image_channels)


def _dataset_batches(dataset, indices, batch_size, rank, size):
    for start in range(rank * batch_size, len(indices), size * batch_size):
        images = torch.stack([dataset[int(index)][0] for index in indices[start : start + batch_size]])
        yield start, to_uint8(images, rounded=True)


def some_of(count, limit, seed=0):
    """At most `limit` of the indices 0..count-1, drawn at random, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])
