"""The images of a run on disk, from the first finished ones to the npz.

A run is cut into chunks of consecutive images. `OUT_DIR/STEM.chunks/` holds

    settings.json                      what decides the images, as the run was begun
    images_00000016_00000031.chunk     images 16 to 31, finished: the SHA-256 of an npz, and the npz, with the images
                                       as `arr_0` and their labels, if any, as `arr_1`
    finished_100.json                  the npz that 100 images became, its size and its SHA-256
    not_finite_00000016_00000031.json  those of images 16 to 31 that are not finite numbers: {index: the step, from 1,
                                       after which they have not been}

A chunk is complete or not there. Once all chunks have become the npz they are deleted, unless a larger run of the
folder needs them; the other two files stay.
"""

import contextlib
import hashlib
import io
import json
import re
import time

import numpy as np

from .. import dist_util, files, logger
from ..errors import UserError
from ..images import save_grid

DIGEST = hashlib.sha256().digest_size
PICTURED = 100  # images of the picture beside the npz


class SampleStore:
    """The chunks in a folder of output, and what becomes of them.

    :param out_dir: local, or any address blobfile writes.
    :param stem: tells apart the runs that may share that folder.
    :param classes: names of the classes, by their numbers, to lie beside the npz and stand in the picture.
    """

    def __init__(self, out_dir, stem, classes=()):
        self.out_dir = out_dir
        self.classes = list(classes)
        self.stem = stem
        self.folder = files.join(out_dir, f"{stem}.chunks")

    def prepare(self):
        """Make the folder of a run without settings; every rank calls it, of the one job that is at work in it."""
        if dist_util.is_main():
            files.make_folder(self.folder)
            files.remove_unfinished(self.folder, time.time())
        dist_util.barrier()

    def begin(self, settings, alone, defaults=None):
        """Begin a run, or go on with one of the same settings; every rank has to call it.

        :param settings: as of `read_settings`. Those under "decisive" have to be the same in all runs of the folder;
            the others are only kept.
        :param alone: no other job can be at work in the folder; settings that made no image yet are then replaced.
        :param defaults: {flag: default}; a flag that is newer than the folder counts as being at its default there.
        :return: the settings the folder was begun with.
        :raises UserError: on every rank, naming the decisive settings that differ.
        """
        answer = self._begin(settings, alone, defaults or {}) if dist_util.is_main() else None
        saved, refusal = dist_util.broadcast_object(answer)
        if refusal:
            raise UserError(refusal)
        return saved

    def _begin(self, settings, alone, defaults):
        files.make_folder(self.folder)
        if alone:
            files.remove_unfinished(self.folder, time.time())
        path = files.join(self.folder, "settings.json")
        if not files.exists(path) or (alone and not self._names(("images_", "finished_"))):
            files.write_text(path, json.dumps(settings, indent=1) + "\n")
            return settings, None
        try:
            saved = read_settings(self.folder)
        except UserError as error:
            return None, str(error)
        now = settings["decisive"]
        before = {name: defaults[name] for name in now if name in defaults} | saved["decisive"]
        differing = [
            f"--{name} is {_shown(name, now)}, there it is {_shown(name, before)}"
            for name in sorted(before.keys() | now.keys())
            if name not in before or name not in now or before[name] != now[name]
        ]
        if not differing:
            return saved, None
        return None, (
            f"{self.out_dir} was begun with other settings ({'; '.join(differing)}): give another --out_dir, or delete "
            f"{self.folder} to begin anew"
        )

    def missing(self, chunks):
        """Those of `chunks` (ranges of indices) that are not there whole; every rank calls it and reads its share."""
        there = self._names(("images_",))
        share = chunks[dist_util.rank() :: dist_util.world_size()]
        mine = [c.start for c in share if _name(c) not in there or self._read(c) is None]
        everywhere = dist_util.gather_object(mine)
        starts = dist_util.broadcast_object(everywhere and {start for part in everywhere for start in part})
        return [c for c in chunks if c.start in starts]

    def absent(self, chunks):
        """Those of `chunks` that are not there, without a look inside."""
        there = self._names(("images_",))
        return [c for c in chunks if _name(c) not in there]

    def save(self, chunk, arrays):
        """Keep the {name: array [n, ...]} of a chunk, on disk when this returns.

        :param arrays: "bad_from", where it is there, says which are not finite; see `generate.watched_images`.
        """
        arrays = dict(arrays)
        bad = {i: int(step) for i, step in zip(chunk, arrays.pop("bad_from", ())) if step}
        note = files.join(self.folder, _note(chunk))
        if bad:
            files.write_text(note, json.dumps(bad) + "\n")
        elif files.exists(note):
            files.remove(note)
        content = io.BytesIO()
        np.savez(content, **arrays)
        digest = hashlib.sha256(content.getbuffer()).digest()
        files.write_bytes(files.join(self.folder, _name(chunk)), digest + content.getbuffer())

    def _read(self, chunk):
        """The {name: array} of a chunk, or None where the file is damaged."""
        path = files.join(self.folder, _name(chunk))
        content = files.read_bytes(path)
        digest, content = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            logger.warn(f"{path} is damaged")
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as npz:
            return {name: npz[name] for name in npz.files}

    def assemble(self, chunks, name=None):
        """Join all chunks of a run, one at a time, and delete them: an npz and a PNG of its first images.

        :param name: of the npz; default `samples_NxHxWxC.npz`.
        :return: the paths of both.
        :raises UserError: if a chunk turns out to be damaged; it is deleted.
        :raises FileNotFoundError: if a chunk is not there.
        """
        first, count = self.whole(chunks[0]), chunks[-1].stop
        shape = (count, *first["arr_0"].shape[1:])
        name = name or f"samples_{'x'.join(map(str, shape))}.npz"
        path = files.join(self.out_dir, name)
        members = {
            key: (array.dtype, (count, *array.shape[1:]), self._parts(chunks, key)) for key, array in first.items()
        }
        named = "arr_1" in first and self.classes
        if named:
            files.write_text(path.removesuffix(".npz") + ".json", json.dumps({"classes": self.classes}) + "\n")
        files.stream_npz(path, members)
        pictured = [self.whole(chunk) for chunk in chunks if chunk.start < PICTURED]
        images = np.concatenate([part["arr_0"] for part in pictured])[:PICTURED]
        labels = np.concatenate([part["arr_1"] for part in pictured])[:PICTURED] if named else ()
        picture = path.removesuffix(".npz") + ".png"
        save_grid(picture, images, captions=list(map(self._name_of, labels)) if named else None)
        record = {"file": name, "size": files.size(path), "sha256": files.sha256(path)}
        files.write_text(self._record(count), json.dumps(record) + "\n")
        self._clean(name, count)
        return path, picture

    def _name_of(self, label):
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def not_finite(self, chunks):
        """{index: the step, from 1, after which it has not been finite} of the images of these chunks."""
        there, found = self._names(("not_finite_",)), {}
        for chunk in chunks:
            if _note(chunk) in there:
                with contextlib.suppress(UserError, ValueError, AttributeError, TypeError):
                    saved = files.read_json(files.join(self.folder, _note(chunk)), "numbers of images")
                    found |= {int(i): int(step) for i, step in saved.items()}
        return found

    def keep_finite(self, chunks, bad):
        """Join the images of a run but those of the indices `bad`, as `STEM_finite_NxHxWxC.npz`; its chunks stay.

        :return: the path, whose `indices` say which images it has; None where there are none.
        """
        left = [i for chunk in chunks for i in chunk if i not in bad]
        if not left:
            return None
        first = self.whole(chunks[0])
        shape = (len(left), *first["arr_0"].shape[1:])
        path = files.join(self.out_dir, f"{self.stem}_finite_{'x'.join(map(str, shape))}.npz")

        def parts(key):
            for chunk in chunks:
                yield self.whole(chunk)[key][[i not in bad for i in chunk]]

        members = {key: (array.dtype, (len(left), *array.shape[1:]), parts(key)) for key, array in first.items()}
        files.stream_npz(path, members | {"indices": (np.dtype(np.int64), (len(left),), [np.array(left)])})
        return path

    def _parts(self, chunks, key):
        return (self.whole(chunk)[key] for chunk in chunks)

    def whole(self, chunk):
        """The {name: array [n, ...]} of a chunk.

        :raises UserError: if it is damaged; it is deleted.
        """
        arrays = self._read(chunk)
        if arrays is None:
            path = files.join(self.folder, _name(chunk))
            files.remove(path)
            raise UserError(f"{path} is damaged and was deleted; the same command makes its images again")
        return arrays

    def finished(self, count):
        """The path of the npz of `count` images if it is there as it was assembled, else None; warns of a change."""
        record = _read_record(self._record(count))
        if not record:
            return None
        path = files.join(self.out_dir, record["file"])
        if not files.exists(path):
            return None
        if not _is_recorded(path, record):
            logger.warn(f"{path} is not as it was assembled: its size or SHA-256 is another than its run recorded")
            return None
        self._clean(record["file"], count)
        return path

    def _record(self, count):
        return files.join(self.folder, f"finished_{count}.json")

    def _clean(self, name, count):
        """Delete chunks, and what killed processes left unfinished of them and of the npz `name` of `count` images.

        The chunks stay where there are some of a larger run, which needs them too.
        """
        chunks = self._names(("images_",))
        unfinished = re.compile(re.escape(name) + files.TEMPORARY)
        doomed = [
            (self.out_dir, n) for n, folder in files.entries(self.out_dir) if not folder and unfinished.fullmatch(n)
        ]
        if all(_last(n) < count for n in chunks):
            doomed += [(self.folder, n) for n in chunks]
        for folder, name in doomed:
            with contextlib.suppress(FileNotFoundError):  # another shard is cleaning as well
                files.remove(files.join(folder, name))

    def _names(self, starts):
        """Names of a run's files that begin so, of unfinished ones too; what others put here is none."""
        own = re.compile(
            rf"(images_\d+_\d+\.chunk|not_finite_\d+_\d+\.json|finished_\d+\.json)({files.TEMPORARY})?", re.A
        )
        return {name for name, _ in files.entries(self.folder) if name.startswith(starts) and own.fullmatch(name)}


def read_settings(folder):
    """What a run was begun with, from its folder of chunks.

    :return: a dict of "decisive" ({flag: value} of all that decides the images, files by their hash), "files" ({flag:
        {"path": text, "sha256": text}} of the files that do), "threads" (of a rank), "winograd" (the fewest
        channels of a layer that is computed so, 0 for none; not there in older runs) and "rounding" ({"device": text,
        "torch": text} and, on a CPU, "kernels": their instructions, not there in older runs).
    :raises UserError: if they are damaged.
    """
    path = files.join(folder, "settings.json")
    try:
        saved = files.read_json(path, "the settings of a run")
        whole = (
            isinstance(saved["decisive"], dict)
            and all(entry.keys() == {"path", "sha256"} for entry in saved["files"].values())
            and isinstance(saved["threads"], int)
            and saved["threads"] > 0
            and isinstance(saved.get("winograd", 0), int)
            and {"device", "torch"} <= saved["rounding"].keys() <= {"device", "torch", "kernels"}
        )
    except (UserError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged; give another --out_dir, or delete {folder}")
    return saved


def origin(path):
    """The settings (see `read_settings`) of the run that made the npz at `path`; {} if none recorded it as it is.

    :raises UserError: if a run did, and its settings are damaged.
    """
    folder, name = files.split(path)
    for entry, is_folder in files.entries(folder or "."):
        if is_folder and entry.endswith(".chunks"):
            beside = files.join(folder, entry)
            records = [n for n, _ in files.entries(beside) if n.startswith("finished_")]
            for record in filter(None, (_read_record(files.join(beside, n)) for n in records)):
                if record["file"] == name and _is_recorded(path, record):
                    return read_settings(beside)
    return {}


def _read_record(path):
    """What became of a run, {"file": name, "size": bytes, "sha256": text}; None where it is not there or damaged."""
    try:
        record = files.read_json(path, "what became of a run")
        return (
            record if files.split(record["file"])[1] == record["file"] and {"size", "sha256"} < record.keys() else None
        )
    except (FileNotFoundError, UserError, KeyError, TypeError, AttributeError):
        return None


def _is_recorded(path, record):
    return files.size(path) == record["size"] and files.sha256(path) == record["sha256"]


def _name(chunk):
    return f"images_{chunk.start:08d}_{chunk.stop - 1:08d}.chunk"


def _note(chunk):
    return f"not_finite_{chunk.start:08d}_{chunk.stop - 1:08d}.json"


def _last(name):
    return int(re.match(r"images_\d+_(\d+)", name)[1])


def _shown(name, settings):
    return repr(settings[name]) if name in settings else "absent"
