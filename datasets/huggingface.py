"""A data set of Hugging Face that `datasets` saved to disk, with its classes; needs pyarrow (pip install pyarrow).

    python datasets/huggingface.py --data_dir saved --out_dir data/mine64 --image_size 64 --split train

`load_dataset(...).save_to_disk("saved")` makes the folder. Its Arrow files are read by pyarrow, the library below
`datasets`: they are all that is needed of it, and pyarrow depends on nothing. Pictures are centre-cropped and scaled
as ADM's training does.
"""

import contextlib
import io
import os

import numpy as np
import sources
from PIL import Image

from guided_diffusion import files
from guided_diffusion.crops import center_crop_arr
from guided_diffusion.errors import UserError
from guided_diffusion.image_files import open_picture
from guided_diffusion.image_stream import read_ahead

EXPECTED = "expected a folder that save_to_disk of Hugging Face's datasets made"


def open_source(args):
    """The Source of a split in its order."""
    folder = folder_of(args.data_dir, args.split)
    try:
        features = dict(_json(folder, "dataset_info.json")["features"])
        shards = [os.path.join(folder, shard["filename"]) for shard in _json(folder, "state.json")["_data_files"]]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--data_dir {folder} has a dataset_info.json or state.json of others; {EXPECTED}") from error
    image = column(features, "Image", args.image_column, "image_column")
    label = column(features, "ClassLabel", args.label_column, "label_column")
    if image is None:
        raise UserError(f"--data_dir {folder} has no column of images, expected one; it has {', '.join(features)}")
    labels, classes = None, ()
    if label is None:
        count = sum(len(batch) for path in shards for batch in batches(path, image))
    else:
        classes = tuple(features[label]["names"])
        labels = np.array([n for path in shards for b in batches(path, label) for n in b.to_pylist()], dtype=object)
        wrong = [n for n in labels if not isinstance(n, int) or not 0 <= n < len(classes)]
        if wrong:
            raise UserError(f"--data_dir {folder}: {label} has {wrong[0]}, expected 0 to {len(classes) - 1}")
        labels, count = labels.astype(np.int64), len(labels)

    def pixels(item):
        place, content = item
        if content is None or (content["bytes"] is None and content["path"] is None):
            raise UserError(f"--data_dir {folder}: row {place} has no image, expected one in each")
        if content["bytes"] is None:
            return center_crop_arr(open_picture(content["path"])[0], args.image_size)
        try:
            with Image.open(io.BytesIO(content["bytes"])) as picture:
                return center_crop_arr(picture.convert("RGB"), args.image_size)
        except Exception as error:  # Pillow's decoders raise almost any type on damaged data
            raise UserError(f"--data_dir {folder}: row {place} cannot be read as an image ({error})") from error

    def rows(start):
        place = 0
        for path in shards:
            for batch in batches(path, image):
                for row in range(max(start - place, 0), len(batch)):
                    yield place + row, batch[row].as_py()
                place += len(batch)

    def read(start):
        return read_ahead(pixels, rows(start), args.num_workers)

    return sources.Source(count, read, (args.image_size, args.image_size, 3), labels, classes)


def folder_of(data_dir, split):
    """The folder of a split, or of a data set without splits."""
    if os.path.exists(os.path.join(data_dir, "dataset_dict.json")):
        found = _json(data_dir, "dataset_dict.json")
        splits = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise UserError(f"--data_dir {data_dir} has a dataset_dict.json of others; {EXPECTED}")
        if split not in splits:
            raise UserError(f"--split is {split or 'not given'}, expected one of {', '.join(splits)}")
        return os.path.join(data_dir, split)
    if split:
        raise UserError(f"--split is {split}, but --data_dir {data_dir} has no splits")
    return data_dir


def column(features, kind, name, flag):
    """The name of the column of a kind: the one that is asked for, or the first; None if there is none."""
    there = [key for key, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind]
    if name and name not in there:
        raise UserError(f"--{flag} is {name}, expected a column of {kind}: {', '.join(there) or 'there is none'}")
    return name or next(iter(there), None)


def batches(path, name):
    """A column of an Arrow file in pieces, each memory-mapped."""
    try:
        import pyarrow
    except ImportError:
        raise UserError("--data_dir holds Arrow files, which need: pip install pyarrow") from None
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(pyarrow.ipc.open_stream(stack.enter_context(pyarrow.memory_map(path))))
            for batch in stream:
                yield batch.column(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"--data_dir: {path} is not there, or no whole Arrow file ({error})") from error


def _json(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        raise UserError(f"--data_dir has no {path}; {EXPECTED}")
    return files.read_json(path, EXPECTED)


def main(argv=None):
    parser = sources.source_parser(
        "Write a saved data set of Hugging Face.",
        "folder that save_to_disk made",
        out_dir="data/huggingface",
        image_size=64,
    )
    parser.add_argument("--split", default="", help="of a DatasetDict: train, test or what it has")
    parser.add_argument("--image_column", default="", help="default the first of images")
    parser.add_argument("--label_column", default="", help="default the first of classes")
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
