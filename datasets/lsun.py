"""LSUN from the lmdb database of a category, such as tower_train_lmdb; needs lmdb (pip install lmdb).

    python datasets/lsun.py --data_dir tower_train_lmdb --out_dir data/lsun_tower64 --image_size 64 --resize fork

fork: the picture is averaged down to --image_size and its middle square kept, as ADM-ES does for LSUN tower 64.
adm: the same to 256 pixels, as ADM's lsun_bedroom.py and DDPM-IP do, and from there as ADM's training scales it.

At 256 pixels both are the same.
"""

import io
import itertools
import os

import pictures
import sources
from PIL import Image

from guided_diffusion.crops import center_crop_arr
from guided_diffusion.errors import UserError
from guided_diffusion.image_stream import read_ahead

RESIZES = {
    "adm": lambda picture, size: center_crop_arr(Image.fromarray(pictures.boxed(picture, 256)), size),
    "fork": pictures.boxed,
}


def open_source(args):
    """The Source of the pictures in the order of their keys."""
    with _opened(args.data_dir) as database, database.begin() as transaction:
        count = transaction.stat()["entries"]

    def pixels(item):
        key, content = item
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return RESIZES[args.resize](picture.convert("RGB"), args.image_size)
        except Exception as error:  # Pillow's decoders raise almost any type on damaged data
            raise UserError(f"--data_dir {args.data_dir}: {key!r} cannot be read as an image ({error})") from error

    def read(start):
        with _opened(args.data_dir) as database, database.begin() as transaction, transaction.cursor() as cursor:
            keys = itertools.islice(cursor.iternext(keys=True, values=False), start, None)
            yield from read_ahead(pixels, ((key, transaction.get(key)) for key in keys), args.num_workers)

    shape = (args.image_size, args.image_size, 3)
    return sources.Source(count, read, shape)


def _opened(path):
    """The database of a folder.

    :raises UserError: if there is none, or it is shorter than it says; reading that would end the process.
    """
    if not os.path.isfile(os.path.join(path, "data.mdb")):
        raise UserError(f"--data_dir {path} has no data.mdb, expected an unzipped folder such as tower_train_lmdb")
    try:
        import lmdb
    except ImportError:
        raise UserError(f"--data_dir {path} is an lmdb database, which needs: pip install lmdb") from None
    try:
        database = lmdb.open(path, readonly=True, lock=False, readahead=False)
        needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    except lmdb.Error as error:
        raise UserError(f"--data_dir {path} is no lmdb database ({error})") from error
    there = os.path.getsize(os.path.join(path, "data.mdb"))
    if there < needed:
        raise UserError(f"--data_dir {path} is cut off: data.mdb has {there:,} bytes, expected {needed:,}")
    return database


def main(argv=None):
    parser = sources.source_parser(
        "Write a category of LSUN.",
        "unzipped folder of the lmdb database",
        out_dir="data/lsun_tower64",
        image_size=64,
    )
    parser.add_argument("--resize", choices=RESIZES, default="fork", help="of ADM-ES (fork), or of ADM and DDPM-IP")
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
