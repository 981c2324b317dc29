"""Data sets that are written as they are read: as PNG files, as an .npz, or as one array.

Whoever kills the command runs it again, and it goes on to the same bytes.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm
from writer import parser, refuse_others, say, up_to

from guided_diffusion import files, image_labels
from guided_diffusion.errors import UserError
from guided_diffusion.flags import THREADS
from guided_diffusion.image_files import open_picture
from guided_diffusion.image_stream import at_least_or_refuse
from guided_diffusion.images import as_picture, save_grid
from guided_diffusion.jobs.folder_lock import locked

BATCH = 2**24  # bytes of a piece of the array
PREVIEW = 64  # images at most


@dataclass
class Source:
    """Images that are read as they are written.

    :ivar count: N.
    :ivar read: `read(start)` yields those from that place on, each uint8 [H, W, C] of one size.
    :ivar shape: (H, W, C).
    :ivar labels: the class of each, integers [N], or None.
    :ivar classes: the name of each label.
    """

    count: int
    read: Callable
    shape: tuple
    labels: np.ndarray | None = None
    classes: tuple = ()


class _Pictures:
    """PNG files `<class>_<index>.png`, each there as a whole or not at all."""

    def __init__(self, target, source, labels, words, digits):
        digits = max(digits, len(str(source.count - 1)))
        prefixes = [""] * source.count if labels is None else [f"{words[label]}_" for label in labels]
        self.path, self.names = target, [f"{prefix}{i:0{digits}d}.png" for i, prefix in enumerate(prefixes)]
        self.count, self.image, self.size = source.count, math.prod(source.shape), source.shape[:2]

    def begun(self):
        """How many images are there, from the first on."""
        there = set(os.listdir(self.path)) if os.path.isdir(self.path) else ()
        return next((i for i, name in enumerate(self.names) if name not in there), len(self.names))

    def missing(self, begun):
        """Bytes that the others take at most."""
        return (self.count - begun) * self.image

    @contextlib.contextmanager
    def opened(self, begun):
        """In the with-block images can be appended, from that place on, and read."""
        os.makedirs(self.path, exist_ok=True)
        refuse_others(self.path, self.names, self.size)
        yield

    def is_whole(self):
        return os.path.isdir(self.path) and set(self.names) <= set(os.listdir(self.path))

    def append(self, place, image):
        unfinished = os.path.join(self.path, ".unfinished.png")  # hidden, so that no reader takes it
        as_picture(image).save(unfinished)
        os.replace(unfinished, os.path.join(self.path, self.names[place]))

    def at(self, place):
        return np.asarray(open_picture(os.path.join(self.path, self.names[place]))[0])

    def finish(self):
        pass


class _Array:
    """The images as an .npy file, which has another name until they are all there; methods as of _Pictures."""

    def __init__(self, target, source, *_):
        self.path, self.unfinished = f"{target}.npy", f"{target}.unfinished"
        self.count, self.shape, self.image = source.count, source.shape, math.prod(source.shape)
        header = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(header, described)
        self.header, self.start = header.getvalue(), header.tell()

    def begun(self):
        there = os.path.getsize(self.unfinished) if os.path.exists(self.unfinished) else 0
        return max(there - self.start, 0) // self.image

    def missing(self, begun):
        return (self.count - begun) * self.image

    @contextlib.contextmanager
    def opened(self, begun):
        with open(self.unfinished, "r+b" if begun else "w+b") as self.file:
            self.file.write(self.header)
            self.file.truncate(self.start + begun * self.image)
            yield
            self.file.flush()
            os.fsync(self.file.fileno())

    def is_whole(self):
        return os.path.exists(self.path) and not os.path.exists(self.unfinished)

    def append(self, place, image):
        self.file.seek(self.start + place * self.image)
        self.file.write(image.tobytes())

    def at(self, place):
        self.file.seek(self.start + place * self.image)
        return np.frombuffer(self.file.read(self.image), np.uint8).reshape(self.shape)

    def finish(self):
        os.replace(self.unfinished, self.path)


class _Archive(_Array):
    """The images with their labels and the names of these, as an .npz that is made of an unfinished _Array."""

    def __init__(self, target, source, labels, words, digits):
        super().__init__(target, source)
        self.path, self.labels = f"{target}.npz", labels
        self.names = np.array(source.classes)

    def missing(self, begun):
        return super().missing(begun) + self.count * self.image

    def finish(self):
        members = {"arr_0": (np.dtype(np.uint8), (self.count, *self.shape), self._pieces())}
        if self.labels is not None:
            members |= {"arr_1": (self.labels.dtype, self.labels.shape, [self.labels])}
            members |= {"classes": (self.names.dtype, self.names.shape, [self.names])}
        files.stream_npz(self.path, members)
        os.remove(self.unfinished)

    def _pieces(self):
        with open(self.unfinished, "rb") as file:
            file.seek(self.start)
            while piece := file.read(BATCH):
                yield np.frombuffer(piece, np.uint8)


FORMATS = {"npz": _Archive, "npy": _Array, "png": _Pictures}


def convert(open_source, args, digits=5):
    """Write the Source `open_source(args)`, and say where, with a count, a preview and a checksum; errors as of `say`.

    `<out_dir>.json` says what is written and by which flags; a run that was stopped goes on from there, and one
    with other flags is refused. The checksum is of all pixels in order and then all labels as int64, whatever the
    format.

    :param args: of `source_parser`.
    :param digits: of the numbers in file names, at least.
    """

    def written(args):
        for flag, least in (("num_workers", 0), ("image_size", 1)):
            at_least_or_refuse(f"--{flag}", getattr(args, flag, least), least)
        target = os.path.abspath(args.out_dir)
        source = open_source(args)
        if source.count < 1:
            raise UserError(f"--data_dir {args.data_dir} has no image of what was asked for, expected at least one")
        files.make_folder(os.path.dirname(target))
        with locked(os.path.dirname(target), os.path.basename(target)):
            return _write(source, target, args, digits)

    say(written, args, "stopped: the same command goes on from here")


def _write(source, target, args, digits):
    """What `convert` says."""
    for name in os.listdir(os.path.dirname(target)):
        if re.fullmatch(re.escape(os.path.basename(target)) + r"(_preview)?\.\w+" + files.TEMPORARY, name):
            os.remove(os.path.join(os.path.dirname(target), name))  # of a run that was killed
    labels, words = _numbered(source)
    out = FORMATS[args.format](target, source, labels, words, digits)
    flags = {k: v for k, v in vars(args).items() if k not in ("out_dir", "num_workers")}
    plan = {"flags": flags | {"data_dir": os.path.abspath(args.data_dir)}, "images": source.count}
    plan |= {"shape": list(source.shape), "classes": list(source.classes)}
    record = f"{target}.json"
    before = _before(record, out, plan)
    if "sha256" not in before or not out.is_whole():
        begun = out.begun() if before else 0
        missing = out.missing(begun)
        free = shutil.disk_usage(os.path.dirname(target)).free
        if missing > free:
            raise UserError(
                f"--out_dir {args.out_dir} needs {missing / 1e9:,.3f} GB for {source.count:,} images, "
                f"and its disk has {free / 1e9:,.3f} GB free"
            )
        with out.opened(begun):
            _record(record, plan)
            digest = _stream(source, out, begun)
            _preview(target, source, out, labels)
        if labels is not None:
            digest.update(labels.tobytes())
        before = plan | {"sha256": digest.hexdigest()}
        _record(record, before)
        out.finish()
    height, width, _ = source.shape
    told = f" in {len(words)} class{'es' if len(words) > 1 else ''}: {image_labels.shown(words)}" if words else ""
    return (
        f"wrote {source.count:,} images of {height}x{width} to {out.path}{told}\n"
        f"preview {target}_preview.png\n"
        f"sha256 {before['sha256']} (pixels and labels)"
    )


def _record(path, content):
    files.write_text(path, json.dumps(content, indent=1) + "\n")


def _before(record, out, plan):
    """What the file of an earlier run says; {} without one.

    :raises UserError: if that run wrote something else.
    """
    if not os.path.exists(record):
        there = os.path.isfile(out.path) or (isinstance(out, _Pictures) and out.begun())
        if there:
            raise UserError(f"--out_dir would replace {out.path}, expected a name that is free")
        return {}
    found = files.read_json(record, "what an earlier run wrote here")
    found = found if isinstance(found, dict) else {}
    if differing := [name for name in plan["flags"] if found.get("flags", {}).get(name) != plan["flags"][name]]:
        was = found.get("flags", {}).get(differing[0], "another")
        raise UserError(
            f"--out_dir: {record} is of a run with --{differing[0]} {was}, not {plan['flags'][differing[0]]}; "
            f"expected a name that is free"
        )
    if any(found.get(name) != plan[name] for name in plan):
        raise UserError(f"--data_dir has changed since {record} was written; expected the same, or another --out_dir")
    return found


def _numbered(source):
    """(labels int64 [N] or None, what the classes are called in names of files), in the order that readers give them.

    The source's classes are brought into that order too.
    """
    if source.labels is None:
        return None, []
    words = [re.sub(r"[\W_]+", "-", name) for name in source.classes]
    if len(set(words)) < len(words):
        twice = [name for name, word in zip(source.classes, words) if words.count(word) > 1]
        raise UserError(f"--data_dir has the classes {twice[0]} and {twice[1]}, expected letters and digits to differ")
    ordered, numbers = image_labels.numbered(words)
    source.classes = tuple(source.classes[words.index(word)] for word in ordered)
    return numbers[np.asarray(source.labels)], ordered


def _stream(source, out, begun):
    """Write the images from place `begun` on; returns the digest of all pixels."""
    digest = hashlib.sha256()
    with tqdm(total=source.count, unit=" images", disable=None) as bar:
        for place in range(begun):
            digest.update(out.at(place).tobytes())
            bar.update()
        place = begun
        for place, image in enumerate(source.read(begun), begun + 1):
            digest.update(np.ascontiguousarray(image))
            out.append(place - 1, image)
            bar.update()
    if place != source.count:
        raise UserError(f"--data_dir ended after {place:,} images, expected {source.count:,}")
    return digest


def _preview(target, source, out, labels):
    """A picture of images from all of the set, with their classes below them."""
    places = np.unique(np.linspace(0, source.count - 1, PREVIEW).round().astype(int))
    captions = [source.classes[labels[place]] for place in places] if len(source.classes) > 1 else None
    save_grid(f"{target}_preview.png", np.stack([out.at(place) for place in places]), captions=captions)


def source_parser(description, data_dir, **told):
    """The flags of what `convert` writes: those of `parser`, --data_dir, --format and --num_workers.

    :param data_dir: what it is, in words.
    :param told: arguments of `parser`.
    """
    p = parser(description, **told)
    p.add_argument("--data_dir", required=True, help=data_dir)
    p.add_argument(
        "--format",
        choices=FORMATS,
        default="npz",
        help="npz: images, labels and names in <out_dir>.npz, which training maps into memory; npy: the images alone, "
        "likewise; png: files <class>_<index>.png in <out_dir>",
    )
    p.add_argument("--num_workers", type=up_to(THREADS), default=4, help="threads that decode")
    return p
