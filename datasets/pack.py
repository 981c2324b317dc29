"""A folder, zip or npz of images as one array, cropped and scaled once, which training reads without decoding.

    python datasets/pack.py --data_dir photos --out_dir data/photos64 --image_size 64
    python scripts/image_train.py --data_dir data/photos64.npz --image_size 64 --class_cond True
    python datasets/pack.py --data_dir samples.npz --out_dir pngs --png

Images are centre-cropped as in training. Where classes are found, by sub-folders or file-name prefixes, the .npz has
them and their names; --labels expects them. With --png an .npz becomes a PNG for each image; at their own --image_size
these become the same array again, in the order of the numbers that their names end in.
"""

import itertools
import os
import re
import sys
import time

import numpy as np
import writer

from guided_diffusion import files
from guided_diffusion.errors import UserError
from guided_diffusion.flags import whole
from guided_diffusion.image_arrays import read_arrays
from guided_diffusion.image_labels import expect_labels
from guided_diffusion.image_stream import Images
from guided_diffusion.images import names_of_pngs, save_pngs

BATCH = 256


def unpack(args):
    """Write each image of an .npz as a PNG into `<out_dir>`; returns the line that says so."""
    images, labels, names = read_arrays(args.data_dir)
    if labels is not None:
        expect_labels(labels, len(images), f"--data_dir {args.data_dir}")
    files.make_folder(args.out_dir)
    files.remove_unfinished(args.out_dir, time.time())
    writer.refuse_others(args.out_dir, names_of_pngs(len(images), labels, names), images.shape[1:3])
    save_pngs(args.out_dir, images, labels, names)
    return f"wrote {len(images):,} images of {images.shape[1]}x{images.shape[2]} to {os.path.abspath(args.out_dir)}"


def numbered(paths):
    """The order of files by the numbers that their names end in; as they are, where not all have one of their own."""
    numbers = [re.search(r"(?:^|[_/])(\d+)\.\w+$", str(path)) for path in paths]
    values = [int(found[1]) for found in numbers if found]
    return sorted(range(len(paths)), key=values.__getitem__) if len(set(values)) == len(paths) else range(len(paths))


def pack(args):
    """Write `<out_dir>.npz` as `writer.write_images` does, in parts; returns the line that says so."""
    told = {"class_source": args.class_source, "exif": args.exif, "background": args.background}
    told |= {"random_flip": False, "image_channels": args.image_channels, "skip_bad": args.skip_bad}
    data = Images(args.data_dir, args.image_size, class_cond=args.labels, **told)
    for remark in data.remarks():
        print(f"{args.data_dir}: {remark}")
    order = range(len(data)) if isinstance(data.images, np.ndarray) else numbered(data.images)
    path = os.path.abspath(args.out_dir) + ".npz"
    if files.is_same(path, args.data_dir):
        raise UserError(f"--out_dir {args.out_dir} would replace --data_dir {args.data_dir}, expected another")
    images = parts(data, order)
    first = next(images)
    writer.refuse_another(path, first)
    members = {"arr_0": (first.dtype, (len(data), *first.shape[1:]), itertools.chain([first], images))}
    if args.labels:
        names = np.array(data.class_names)
        members |= {"arr_1": (data.labels.dtype, data.labels.shape, [data.labels[list(order)]])}
        members |= {"classes": (names.dtype, names.shape, [names])}
    files.make_folder(os.path.dirname(path))
    writer.sweep(path)
    files.stream_npz(path, members)
    skipped = f", {data.num_skipped} that cannot be read replaced by others" if data.num_skipped else ""
    return f"wrote {len(data):,} images of {args.image_size}x{args.image_size} to {path}{skipped}"


def parts(data, order):
    """The images as uint8 [n, H, W, C], in turn, by their indices `order`."""
    for start in range(0, len(data), BATCH):
        images, _ = data.batch([(i, 0) for i in order[start : start + BATCH]])
        yield ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def main(argv=None):
    parser = writer.parser("Write images as one array beside --out_dir.", out_dir="data/packed", image_size=64)
    parser.add_argument("--data_dir", required=True, help="folder of images, or a .zip or .npz file")
    parser.add_argument("--labels", action="store_true", help="keep the classes")
    parser.add_argument("--class_source", default="auto", help="auto, prefix or folder: where classes are read from")
    parser.add_argument("--image_channels", type=whole, choices=(1, 3, 4), default=3, help="grey, RGB or RGBA")
    parser.add_argument("--exif", action="store_true", help="turn photographs upright, as their EXIF says")
    parser.add_argument("--background", default="", help="colour behind transparent places")
    parser.add_argument("--skip_bad", action="store_true", help="replace unreadable images, and count them")
    parser.add_argument("--png", action="store_true", help="write the images of an .npz as PNG files")
    args = parser.parse_args(argv)
    if args.png and any(word.startswith("--image_size") for word in argv or sys.argv[1:]):
        parser.error("--image_size has no meaning with --png, which writes images as they are; leave it out")
    writer.say(unpack if args.png else pack, args)


if __name__ == "__main__":
    main()
