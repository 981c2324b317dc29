"""ImageNet downsampled to 32 or 64 pixels (Chrabaszcz et al. 2017), from its npz batches, with 1,000 classes.

    python datasets/imagenet_downsampled.py --data_dir Imagenet64_train --out_dir data/imagenet64 --image_size 64

The folder holds train_data_batch_1.npz to train_data_batch_10.npz, or val_data.npz for `--split val`; both parts of
the 64-pixel download belong in one folder. Its labels 1 to 1000 follow ILSVRC2012's development kit, not the sorted
WordNet ids by which the published checkpoints number classes: `--class_map map_clsloc.txt`, which lies beside the
download, names the classes by their ids, and training then numbers them as those checkpoints do.
"""

import contextlib
import os
import re
import zipfile

import numpy as np
import sources

from guided_diffusion import files
from guided_diffusion.errors import UserError

BATCHES = {"train": [f"train_data_batch_{i}.npz" for i in range(1, 11)], "val": ["val_data.npz"]}
ROWS = 1024  # images of a read


def open_source(args):
    """The Source of the images of a split in the order of the batches."""
    if not os.path.isdir(args.data_dir):
        raise UserError(f"--data_dir {args.data_dir} is no folder, expected that of {BATCHES[args.split][0]}")
    paths = [os.path.join(args.data_dir, name) for name in BATCHES[args.split]]
    labels = [labels_of(path, args.image_size) for path in paths]
    ends = np.cumsum([len(part) for part in labels])

    def read(start):
        for path, part, end in zip(paths, labels, ends):
            if start < end:
                for rows in _rows(path, "data", max(start - (end - len(part)), 0)):
                    yield from rows.reshape(-1, 3, args.image_size, args.image_size).transpose(0, 2, 3, 1)

    classes = class_map(args.class_map) if args.class_map else tuple(str(i) for i in range(1000))
    shape = (args.image_size, args.image_size, 3)
    return sources.Source(int(ends[-1]), read, shape, np.concatenate(labels), classes)


def labels_of(path, size):
    """The labels 0..999 [n] of a batch, whose images are found to be of that size.

    :raises UserError: if it is not there, is damaged, or holds something else.
    """
    with _opened(path) as archive:
        (shape, dtype), (count, kind) = (_header(archive, name)[:2] for name in ("data", "labels"))
        if dtype != np.uint8 or len(shape) != 2 or shape[1] != 3 * size * size:
            side = round((shape[-1] / 3) ** 0.5) if shape else 0
            raise UserError(
                f"--data_dir: {path} holds {dtype} {list(shape)}, expected uint8 [n, {3 * size * size}] for "
                f"--image_size {size}{f'; it is of {side} pixels' if shape[1:] == (3 * side * side,) else ''}"
            )
        if kind.kind not in "iu" or count != shape[:1]:
            raise UserError(f"--data_dir: {path} has labels {kind} {list(count)}, expected integers [{shape[0]}]")
    labels = np.concatenate([*_rows(path, "labels"), np.zeros(0, kind)]).astype(np.int64)
    if not ((labels >= 1) & (labels <= 1000)).all():
        raise UserError(f"--data_dir: {path} has labels {labels.min()} to {labels.max()}, expected 1 to 1000")
    return labels - 1


def _rows(path, name, start=0):
    """An array of an npz from a place on, in pieces of its first axis."""
    with _opened(path) as archive:
        shape, dtype, offset = _header(archive, name)
        row = dtype.itemsize * int(np.prod(shape[1:]))
        with archive.open(name + ".npy") as member:
            member.seek(offset + start * row)
            for place in range(start, shape[0], ROWS):
                count = min(ROWS, shape[0] - place)
                content = member.read(count * row)
                if len(content) < count * row:
                    raise EOFError(f"{name} ends early")
                yield np.frombuffer(content, dtype).reshape(count, *shape[1:])


def _header(archive, name):
    """(shape, dtype, bytes before the content) of an array of an npz."""
    with archive.open(name + ".npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if fortran or dtype.hasobject:
            raise ValueError(f"{name} is no plain array in C order")
        return shape, dtype, member.tell()


@contextlib.contextmanager
def _opened(path):
    """The zipfile.ZipFile of a batch, of which anything that is damaged is a UserError."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(files.open_read(path))))
        except FileNotFoundError:
            raise UserError(f"--data_dir: {path} is not there, expected it beside the other batches") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"--data_dir: {path} is no whole .npz file ({error})") from error
        try:
            yield archive
        except UserError:
            raise
        except (OSError, EOFError, LookupError, *files.NPZ_DAMAGE) as error:
            raise UserError(f"--data_dir: {path} is no batch of ImageNet, or damaged ({error})") from error


def class_map(path):
    """The WordNet ids of the labels 1 to 1000.

    :param path: of map_clsloc.txt, with lines such as `n02119789 1 kit_fox`.
    """
    found = dict(re.findall(r"^(n\d{8}) +(\d+)\b", files.read_text(path), re.M))
    ids = {int(number): name for name, number in found.items()}
    if sorted(ids) != list(range(1, 1001)):
        raise UserError(
            f"--class_map {path} has {len(ids):,} classes, expected a line `n02119789 1 kit_fox` for each 1-1000"
        )
    return tuple(ids[number] for number in range(1, 1001))


def main(argv=None):
    parser = sources.source_parser(
        "Write downsampled ImageNet.",
        "folder of the npz batches",
        out_dir="data/imagenet64",
        image_size=64,
        splits=list(BATCHES),
    )
    parser.add_argument("--class_map", default="", help="map_clsloc.txt, for classes that are WordNet ids")
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
