"""What was scored, and everything that decides the numbers, so that two reports can be compared."""

import hashlib
import platform
import re

import numpy
import scipy
import torch

from guided_diffusion import checkpoints, files, logger

from .precision_recall import BLOCK
from .scores import TITLES

# of the samples of published scores
PUBLISHED_COUNT = 50000
# how this project's scripts write samples, in guided_diffusion/images.py
UINT8_RULE = "(x + 1) * 127.5, clamped to 0..255, truncated"
CHUNK = 1 << 20
# flags of a sampling run that decide no pixel
IDLE = ("out_dir", "device", "dry_run", "preset", "override", "num_samples", "batch_size")


def digest(paths):
    """The sha256, as hexadecimal text, of the files at `paths` one after another."""
    total = hashlib.sha256()
    for path in paths:
        with files.open_read(path) as file:
            while part := file.read(CHUNK):
                total.update(part)
    return total.hexdigest()


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
            "scipy": scipy.__version__,
        },
    }


def _describe(images):
    stored = [name for name, there in (("statistics", images.statistics), ("images", images.count)) if there]
    return {
        "path": images.path,
        "type": f"{images.kind} of {' and '.join(stored)}",
        "count": images.count,
        "size": images.size and list(images.size),
        "sha256": digest(images.files),
    }


def _origin(images):
    """Of images that a run of this project made: its flags, the checkpoint and the rule of rounding."""
    if not images.run:
        return {"uint8_rule": "unknown"}
    found = {"uint8_rule": UINT8_RULE, "sampling": {k: v for k, v in images.run.items() if k not in IDLE}}
    path = images.run.get("model_path", "")
    if path:
        average = re.fullmatch(r"ema_([\d.]+)_(\d+)\.pt", files.split(path)[1])
        found["checkpoint"] = {
            "path": path,
            "sha256": digest([path]) if files.exists(path) else "",
            "ema_rate": average[1] if average else checkpoints.read_flags(path).get("ema_rate", ""),
        }
    return found


def caveats(reference, samples):
    """Sentences on how the images differ from those of published scores."""
    found = []
    if samples.count != PUBLISHED_COUNT:
        found.append(f"{samples.count} samples: not comparable with published FID-50k")
    found += [f"--{s.flag}: grey images are repeated to three channels" for s in (reference, samples) if s.grey]
    if reference.count and samples.count and reference.size != samples.size:
        shown = ["x".join(map(str, images.size)) for images in (reference, samples)]
        found.append(f"the reference has images of {shown[0]}, the samples of {shown[1]}")
    return found


def say(report):
    """Print a report: what was scored, the notes, and a line per score as guided-diffusion's evaluator has it."""
    for name in ("reference", "samples"):
        about = report[name]
        logger.log(
            f"{name}: {about['path']} ({about['type']}, {about['count']:,} images, sha256 {about['sha256'][:16]})"
        )
    logger.log("features: " + ", ".join(f"{name} {value}" for name, value in report["features"].items()))
    for note in report["notes"]:
        logger.warn(note)
    for name, value in report["scores"].items():
        logger.log(f"{TITLES[name]}: {value}")
