"""Sets of files that are complete or not there: a manifest with sizes and checksums is written last.

The set of step 10000 is complete once `manifest010000.json` lies in its folder.
"""

import contextlib
import hashlib
import json
import math
import re
import time

from .. import files
from ..errors import UserError


def path_of(folder, step):
    """Where the manifest of a step lies."""
    return files.join(folder, f"manifest{step:06d}.json")


def write(folder, step, parts, run):
    """Write the files of a step and then its manifest; on any failure none of them stays.

    :param parts: (file name, content as bytes) in turn; asked for one by one.
    :param run: the name of the run they belong to, for `prune`.
    """
    forget(folder, step)
    listed = {}
    try:
        for name, data in parts:
            listed[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files.write_bytes(files.join(folder, name), data)
        content = {"step": step, "saved": time.time(), "order": _next_order(folder), "run": run, "files": listed}
        files.write_text(path_of(folder, step), json.dumps(content, indent=1) + "\n")
    except BaseException:
        _remove(folder, listed)
        raise


def steps(folder):
    """The steps that have a manifest in a folder, the last written first, whatever the clock did meanwhile."""
    return sorted(_steps(folder), key=lambda step: _age(folder, step), reverse=True)


def _steps(folder):
    found = (re.fullmatch(r"manifest(\d+)\.json", name, re.ASCII) for name, _ in files.entries(folder))
    return [int(match[1]) for match in found if match]


def _age(folder, step):
    try:
        content = read(folder, step)
    except UserError:  # first, so that whoever looks for a whole one meets it and says so
        return math.inf, math.inf, step
    return content.get("order", 0), content["saved"], step


def _next_order(folder):
    """One more than that of any manifest in a folder."""
    orders = (_age(folder, step)[0] for step in _steps(folder))
    return 1 + max((order for order in orders if order < math.inf), default=0)


def read(folder, step):
    """The manifest of a step.

    :return: {"step": int, "saved": seconds, "order": int, "run": text, "files": {name: {"size": int, "sha256": text}}};
        `order` counts the sets that were written to the folder. One that was written before there were orders, or names
        of runs, has none.
    :raises UserError: if it is damaged, or names a file outside the folder.
    """
    path = path_of(folder, step)
    try:
        content = files.read_json(path, "the sizes and checksums of a checkpoint's files")
    except UserError:
        content = None
    if not _is_manifest(content):
        raise UserError(f"{path} is damaged; expected the sizes and checksums of a checkpoint's files")
    for name in content["files"]:
        if files.split(name)[1] != name or name in ("", ".", "..") or "\\" in name:
            raise UserError(f"{path} names {name!r}; expected names of files beside it")
    return content


def run_of(folder, step):
    """The name of the run that a set belongs to; None where its manifest does not say it."""
    with contextlib.suppress(UserError):
        return read(folder, step).get("run")
    return None


def _is_manifest(content):
    """Whether what a JSON file holds has the entries of a manifest, each of its type."""
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return False
    numbers = isinstance(content.get("saved"), int | float) and isinstance(content.get("order", 0), int)
    return numbers and all(map(_is_entry, content["files"].values()))


def _is_entry(entry):
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)


def check(folder, step):
    """Compare the files of a step with its manifest.

    :raises UserError: naming the first file that is missing, truncated or altered.
    """
    for name, entry in read(folder, step)["files"].items():
        _compare(files.join(folder, name), entry)


def _compare(path, entry):
    try:
        size = files.size(path)
        if size != entry["size"]:
            raise UserError(
                f"{path} has {size} bytes and its manifest says {entry['size']}: it is truncated or altered"
            )
        altered = files.sha256(path) != entry["sha256"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); its manifest lists it") from error
    if altered:
        raise UserError(f"{path} is damaged: its checksum is not that of its manifest")


def check_listed(path):
    """Compare a file with the manifest beside it that lists it, if one does.

    :raises UserError: if it is truncated or altered.
    """
    folder, name = files.split(files.target(path))
    step = re.search(r"(\d+)\.(pt|json)$", name, re.ASCII)
    if step and files.exists(path) and files.exists(path_of(folder, int(step[1]))):
        entry = read(folder, int(step[1]))["files"].get(name)
        if entry:
            _compare(files.join(folder, name), entry)


def forget(folder, step):
    """Take the manifest of a step away, so that its files are no complete set any more."""
    if files.exists(path_of(folder, step)):
        files.remove(path_of(folder, step))


def prune(folder, keep, run):
    """Delete all complete sets of a run but the `keep` newest; those of others, and files not listed, stay."""
    listed = {}
    for step in steps(folder):
        with contextlib.suppress(UserError):  # a damaged manifest makes no complete set
            content = read(folder, step)
            if content.get("run") == run:
                listed[step] = content["files"]
    for step in list(listed)[keep:]:
        _remove(folder, listed[step])
        forget(folder, step)  # last, so that what a kill leaves is deleted the next time


def _remove(folder, names):
    for name in names:
        with contextlib.suppress(OSError):
            files.remove(files.join(folder, name))
