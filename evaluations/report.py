"""What was scored, and everything that decides the numbers, so that two reports can be compared."""

import hashlib
import importlib.metadata
import os
import platform
import re

import numpy
import torch

from guided_diffusion import checkpoints, dist_util, files, logger
from guided_diffusion.errors import UserError

from .metric import counted
from .precision_recall import BLOCK
from .scores import title

# of the samples of published scores
PUBLISHED_COUNT = 50000
# how this project's scripts write samples, in guided_diffusion/images.py
UINT8_RULE = "(x + 1) * 127.5, clamped to 0..255, truncated"


def digest(paths):
    """The sha256, as hexadecimal text, of the file at `paths`; of several, that of their sha256 in turn."""
    each = [files.sha256(path) for path in paths]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def make_room(path, flag, **read):
    """Make the folder of a file that is to be written, before the work that its content takes.

    :param path: of the file; "" for none.
    :param flag: that names it.
    :param read: {flag: path, or paths} of what is read, which is not to be replaced.
    :raises UserError: if the file cannot be written there.
    """
    if not path:
        return
    for name, paths in read.items():
        for other in [paths] if isinstance(paths, str) else paths:
            if files.is_same(path, other):
                raise UserError(f"--{flag} {path} would replace what --{name} reads; expected another path")
    folder = files.split(path)[0] or "."
    if files.is_folder(path):
        raise UserError(f"--{flag} {path} is a folder; expected the path of a file to write")
    try:
        files.make_folder(folder)
    except OSError as error:
        raise UserError(f"--{flag} {path} cannot be written, as {folder} cannot be made ({error.strerror})") from error
    if not files.is_remote(folder) and not os.access(folder, os.W_OK):
        raise UserError(f"--{flag} {path} cannot be written: {folder} does not permit it")


def facts(reference, samples, features, settings):
    """{name: value} of what decides the scores; JSON can hold it.

    :param reference: ImageSet.
    :param samples: ImageSet.
    :param features: {name: value} that describe the network.
    :param settings: {flag: value} of the evaluation.
    """
    return {
        "samples": {**_describe(samples), **_origin(samples)},
        "reference": _describe(reference),
        "features": features,
        "settings": {**settings, "neighbour_block": BLOCK},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": importlib.metadata.version("scipy"),
            "device": dist_util.device_name(),
        },
    }


def _describe(images):
    stored = [name for name, there in (("statistics", images.statistics), ("images", images.count)) if there]
    return {
        "path": images.path,
        "type": f"{images.kind} of {' and '.join(stored)}",
        "count": images.count,
        "size": None if images.size is None else list(images.size),
        "sha256": digest(images.files),
    }


def _origin(images):
    """Of images that a run of this project made: its flags, its checkpoints as it read them, the rule of rounding."""
    if not images.run:
        return {"uint8_rule": "unknown"}
    found = {"uint8_rule": UINT8_RULE, "sampling": images.run["decisive"], "files": images.run["files"]}
    if model := images.run["files"].get("model_path"):
        found["ema_rate"] = _ema_rate(**model)
    return found


def _ema_rate(path, sha256):
    """Of the checkpoint that lay at `path`: by its name, or by what lies beside it if it still is the same."""
    average = re.fullmatch(r"ema_([\d.]+)_(\d+)\.pt", files.split(path)[1])
    if average:
        return average[1]
    same = files.exists(path) and files.sha256(path) == sha256
    return checkpoints.read_flags(path).get("ema_rate", "") if same else ""


def caveats(reference, samples, extract):
    """Sentences on how the images differ from those of published scores, and from what their places say.

    :param extract: the Extractor of the features.
    """
    found = []
    if samples.count != PUBLISHED_COUNT:
        found.append(f"{counted(samples.count, 'sample')}: not comparable with published FID-50k")
    if reference.run and not samples.run:
        found.append(
            "the reference was sampled by a run here, and the samples were not: make sure they are not swapped"
        )
    found += [
        f"--{images.flag}: grey images are repeated to three channels"
        for images in (reference, samples)
        if extract.repeats(images.channels)
    ]
    if reference.count and samples.count and reference.size != samples.size:
        shown = ["x".join(map(str, images.size)) for images in (reference, samples)]
        found.append(f"the reference has images of {shown[0]}, the samples of {shown[1]}")
    return found


def say(report):
    """Print a report: what was scored, the notes, and a line per score as guided-diffusion's evaluator has."""
    for name in ("reference", "samples"):
        about = report[name]
        logger.log(
            f"{name}: {about['path']} ({about['type']}, {about['count']:,} images, sha256 {about['sha256'][:16]})"
        )
    logger.log("features: " + ", ".join(f"{name} {value}" for name, value in report["features"].items()))
    for note in report["notes"]:
        logger.warn(note)
    for name, value in report["scores"].items():
        logger.log(f"{title(name)}: {value:.4g}")
