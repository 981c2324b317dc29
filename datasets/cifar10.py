"""CIFAR-10 from its python batches: the archive, the folder that is in it, or torchvision's folder around that.

    python datasets/cifar10.py --data_dir cifar-10-python.tar.gz --out_dir data/cifar_train --split train

The names of the classes are those of the published script (plane and car, not airplane and automobile).
"""

import io
import os
import pickle
import tarfile
import zlib

import numpy as np
import sources

from guided_diffusion import files
from guided_diffusion.errors import UserError

FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Type:
    """What a pickle calls numpy.dtype: a name, which says nothing but the byte order besides."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        pass


class _Array:
    """What a pickle calls an array: its shape and bytes, of which `value` makes one."""

    def __init__(self, content=None, dtype=None, shape=None, order="C"):
        self.content, self.dtype, self.shape, self.fortran = content, dtype, shape, order != "C"

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.fortran, self.content = state

    def value(self):
        """uint8, of that shape.

        :raises ValueError: for anything else.
        """
        if not isinstance(self.dtype, _Type) or self.dtype.name not in ("u1", b"u1") or self.fortran:
            raise ValueError("an array is not uint8 in C order")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape)


def _bytes(text, encoding):
    if (encoding, type(text)) != ("latin1", str):
        raise pickle.UnpicklingError("it holds an encoding other than latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Lets in arrays, which it makes itself, beside the bytes, str, int, list and dict that need no name.

    The names are those of numpy's pickles of all versions; what stands for them runs nothing.
    """

    KNOWN = {  # noqa: RUF012
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): _bytes,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _Array for core in ("core", "_core")},
    }

    def find_class(self, module, name):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.KNOWN[module, name]


def open_source(args):
    """The Source of the images of a split in the published order."""
    labels = [batch(args.data_dir, name)[1] for name in BATCHES[args.split]]
    ends = np.cumsum([len(part) for part in labels])

    def read(start):
        for name, part, end in zip(BATCHES[args.split], labels, ends):
            if start < end:
                yield from batch(args.data_dir, name)[0][max(start - (end - len(part)), 0) :]

    return sources.Source(int(ends[-1]), read, (32, 32, 3), np.concatenate(labels), CLASSES)


def batch(data_dir, name):
    """(uint8 [n, 32, 32, 3], labels [n]) of one of the files.

    :raises UserError: if it is not there, is damaged, or holds something else.
    """
    where = f"--data_dir {data_dir}: {name}"
    with _opened(data_dir, name) as file:
        try:
            content = _Unpickler(file, encoding="bytes").load()
            content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
            pixels, labels = content["data"].value(), np.array(content["labels"])
        except Exception as error:  # a damaged pickle raises almost any type
            reason = str(error) or type(error).__name__
            raise UserError(f"{where} is no whole batch of CIFAR-10 ({reason})") from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise UserError(f"{where} has data of {list(pixels.shape)}, expected [n, 3072]")
    if labels.dtype.kind != "i" or labels.shape != pixels.shape[:1] or not np.isin(labels, range(10)).all():
        raise UserError(f"{where} has labels that are no {len(pixels)} numbers in 0..9")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _opened(data_dir, name):
    """A file object of a batch, wherever it lies."""
    if not os.path.exists(data_dir):
        raise UserError(f"--data_dir {data_dir} is not there, expected cifar-10-python.tar.gz or {FOLDER}")
    if os.path.isdir(data_dir):
        places = [os.path.join(data_dir, *parts, name) for parts in ((), (FOLDER,))]
        found = [place for place in places if os.path.exists(place)]
        if not found:
            raise UserError(f"--data_dir {data_dir} has no {name}, expected the files of {FOLDER}")
        return files.open_read(found[0])
    try:
        with files.open_read(data_dir) as file, tarfile.open(fileobj=file) as archive:
            return io.BytesIO(archive.extractfile(f"{FOLDER}/{name}").read())
    except KeyError:
        raise UserError(f"--data_dir {data_dir} has no {FOLDER}/{name}, expected cifar-10-python.tar.gz") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(f"--data_dir {data_dir} is no whole .tar.gz ({reason})") from error


def main(argv=None):
    parser = sources.source_parser(
        "Write CIFAR-10.",
        f"cifar-10-python.tar.gz, {FOLDER} or the folder of torchvision that holds it",
        out_dir="data/cifar_train",
        splits=list(BATCHES),
    )
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
