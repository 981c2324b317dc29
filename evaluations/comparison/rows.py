"""Rows of a comparison: made by sampling, and kept on disk, so that one that was stopped goes on: FOLDER/KEY.npz.

The key is a digest of all that decides a row: other settings find nothing, and no row is taken for another.
"""

import dataclasses
import hashlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from evaluations.activations import activations_of
from evaluations.batches import open_images
from evaluations.classifier_accuracy import predictions
from evaluations.features import Extractor, FeatureFlags, with_channels
from evaluations.fid import Moments, frechet_distance, moments_of
from evaluations.precision_recall import NEIGHBOURS, precision_recall
from guided_diffusion import adapters, checkpoints, conditioning, dist_util, files, flags, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.conditioning.classes import class_count, class_names
from guided_diffusion.errors import UserError
from guided_diffusion.generate import IndexedNoise, SampleFlags, on_device, watched_images
from guided_diffusion.image_labels import of_text
from guided_diffusion.images import to_uint8
from guided_diffusion.jobs.sampling import add_up
from guided_diffusion.networks import UNetFlags

from .plan import Budget
from .settings import CompareFlags


@dataclass
class Row:
    """What one sampler gave with one budget.

    :ivar budget: what all samplers of its column spend, such as "10 steps" or (at most) "10 calls".
    :ivar steps: that it took.
    :ivar distances: Frechet distance of each repeat, at least 2; repeats of the same place have the same noise.
    :ivar calls: network evaluations per image.
    :ivar seconds: of one process per image, without the features.
    :ivar findings: {column: number, or None where it does not apply} of what its methods found.
    :ivar images: uint8 [n, H, W, C] to show, the same indices in every row.
    :ivar scores: {name: number of each repeat} of further scores, the same names in every row.
    """

    name: str
    budget: str
    steps: int
    distances: list
    calls: float
    seconds: float
    findings: dict
    images: np.ndarray
    scores: dict = dataclasses.field(default_factory=dict)


class Sampler(NamedTuple):
    """A sampler with one budget.

    :ivar name: of its setting.
    :ivar budget: its Budget.
    :ivar parsed: its Parsed flags.
    """

    name: str
    budget: Budget
    parsed: flags.Parsed


class Target(NamedTuple):
    """What samples are compared with, and how.

    :ivar size: (height, width) of the real images.
    :ivar extract: the Extractor of the features.
    :ivar moments: of the real images' features; None on ranks other than 0.
    :ivar compare: CompareFlags.
    :ivar features: of the real images, [N, D], with --precision_recall True on rank 0.
    :ivar judge: the classifier of --judge, or None.
    :ivar judge_flags: {flag: value} of it.
    """

    size: tuple
    extract: Extractor
    moments: Moments | None
    compare: CompareFlags
    features: torch.Tensor | None = None
    judge: torch.nn.Module | None = None
    judge_flags: dict | None = None


def read_target(parsed):
    """The Target of a command line."""
    compare = parsed[CompareFlags]
    images = open_images(compare.reference, "reference")
    if images.count < 2:
        raise UserError(f"--reference {images.path} holds {images.count} images; a Frechet distance needs at least 2")
    fewest = min(images.count, parsed[SampleFlags].num_samples)
    if compare.precision_recall and fewest <= NEIGHBOURS:
        raise UserError(f"--precision_recall True needs more than {NEIGHBOURS} images in each set; here are {fewest}")
    judge = known = None
    if compare.judge:
        judge, _, known = checkpoints.open_network(compare.judge, "judge", "classifier")
        size = known["image_size"]
        if images.size != (size, size):
            real = "x".join(map(str, images.size))
            raise UserError(f"--judge {compare.judge} takes images of {size}x{size}; --reference has {real}")
    extract = parsed[FeatureFlags].create()
    found = activations_of(images, extract, parsed[SampleFlags].batch_size, keep=compare.precision_recall)
    if found is None:
        return Target(images.size, extract, None, compare, judge=judge, judge_flags=known)
    return Target(images.size, extract, found.moments, compare, found.features, judge, known)


# -- making -------------------------------------------------------------------------------------------


def finished_row(sampler, target):
    """The Row of a Sampler, on every rank: from the output folder where it is there, else made and kept there."""
    folder, key, row = files.join(logger.get_dir(), "rows"), None, None
    if dist_util.is_main():
        key = key_of(decisive(sampler, target))
        row = load(folder, key)
    row = _on_all(row)
    if row is not None:
        logger.log(f"{sampler.name}, {sampler.budget}: taken from {folder}")
        return row
    row = _on_all(made_row(sampler, target))
    if dist_util.is_main():
        save(folder, key, row)
    return row


def _on_all(row):
    """The Row of rank 0, or None, on all ranks."""
    told = dist_util.broadcast_object(row and {f.name: getattr(row, f.name) for f in dataclasses.fields(row)})
    return told and Row(**told)


def made_row(sampler, target):
    """The Row of a Sampler on rank 0, None on other ranks, which call this together."""
    parsed, network, process = checkpoints.load_diffusion(sampler.parsed)
    sampling, unet, compare = parsed[SampleFlags], parsed[UNetFlags], target.compare
    size = unet.image_size
    if target.size != (size, size):
        real = "x".join(map(str, target.size))
        raise UserError(f"--model_path makes images of {size}x{size}; --reference has {real}")
    if target.judge is not None:
        _expect_judged(parsed, target)
    told = conditioning.of_sampling(parsed)

    def make(work):
        """(features [n, D], images to show, seconds, whether the judge agrees [n] or None) of a batch."""
        repeat, indices = work
        noise = IndexedNoise(sampling.seed + repeat, indices)
        cond = on_device(told.of_indices(noise, indices))
        begin = time.perf_counter()
        x, bad_from = watched_images(process, network, noise, cond)
        made = to_uint8(x)
        seconds = time.perf_counter() - begin
        if bad := int((bad_from > 0).sum()):
            causes = "".join(f"; {cause}" for cause in process.suspects())
            raise UserError(f"{sampler.name}: {bad} of {len(x)} images are not finite numbers{causes}")
        shown = max(0, compare.columns - indices.start) if repeat == 0 else 0
        agree = None
        if target.judge is not None:
            seen = with_channels(torch.as_tensor(made), target.judge.in_channels, "--judge")
            agree = predictions(target.judge, seen, len(made)) == cond["y"].cpu().numpy()
        return target.extract(made).pool.cpu(), made[:shown], seconds, agree

    batches = sampling.batches
    made = dealt([(repeat, batch) for repeat in range(compare.repeats) for batch in batches], make)
    calls = dist_util.gather_object(process.network_calls)
    add_up(process)
    if made is None:
        return None
    features, shown, seconds, agree = zip(*made, strict=True)
    parts = [slice(i, i + len(batches)) for i in range(0, len(made), len(batches))]
    sets, scores = [torch.cat(features[part]) for part in parts], {}
    if target.features is not None:
        pairs = [precision_recall(target.features, each) for each in sets]
        scores |= {name: list(map(float, values)) for name, values in zip(("precision", "recall"), zip(*pairs))}
    if target.judge is not None:
        scores["agreement"] = [float(np.concatenate(agree[part]).mean()) for part in parts]
    count = compare.repeats * sampling.num_samples
    return Row(
        sampler.name,
        str(sampler.budget),
        steps=len(process.grid),
        distances=[frechet_distance(moments_of(each), target.moments) for each in sets],
        calls=sum(calls) / count,
        seconds=sum(seconds) / count,
        findings={column: value for method in process.methods for column, value in method.findings(process).items()},
        images=np.concatenate(shown),
        scores=scores,
    )


def _expect_judged(parsed, target):
    """Validate that the judge takes the images of a sampler, and has their classes."""
    count, judge = class_count(parsed), f"--judge {target.compare.judge}"
    if count is None:
        raise UserError(f"{judge} compares classes; expected a class-conditional network")
    with_channels(torch.empty(1, 1, 1, parsed[UNetFlags].image_channels), target.judge.in_channels, judge)
    own, others = class_names(parsed), of_text(target.judge_flags.get("class_names", ""))
    known = target.judge_flags["num_classes"]
    if count != known or (own and others and tuple(own) != tuple(others)):
        raise UserError(
            f"{judge} knows the classes {', '.join(others) or known}; --model_path makes images of "
            f"{', '.join(own) or count}"
        )


def dealt(items, work):
    """[work(item) for each item] on rank 0, the items dealt to the ranks in turn; None on other ranks."""
    rank, size = dist_util.rank(), dist_util.world_size()
    parts = dist_util.gather_object([work(item) for item in items[rank::size]])
    if parts is None:
        return None
    return [parts[i % size][i // size] for i in range(len(items))]


# -- storage ------------------------------------------------------------------------------------------


def decisive(sampler, target):
    """What decides a row, as JSON can hold it, for rank 0 to call."""
    path, compare = sampler.parsed[CheckpointFlags].model_path, target.compare
    return {
        "row": (sampler.name, str(sampler.budget), compare.repeats, compare.columns, compare.precision_recall),
        "judge": compare.judge and files.sha256(compare.judge),
        "flags": sampler.parsed.values(),
        "files": named_files(sampler.parsed),
        "model": checkpoints.read_flags(path),
        "features": target.extract.facts,
        "reference": [hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in target.moments[:2]],
        "rounding": (dist_util.device_name(), torch.__version__),
        "code": digest_of_code(),
    }


def named_files(parsed):
    """{flag: SHA-256} of the files and folders that the networks of a sampler are read from."""
    paths = {name: path for name, path in parsed.values().items() if name in parsed.marked("content") and path}
    return {name: files.sha256(path) for name, path in sorted(paths.items()) if not adapters.is_held(path)}


def key_of(decisive):
    """The name of a row's file.

    :param decisive: what decides the row.
    """
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def digest_of_code():
    """A digest of the packages that make images and compare them, so that an edited solver makes its rows anew."""
    sources = sorted(Path(files.__file__).parent.rglob("*.py")) + sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def load(folder, key):
    """The Row that was saved under a key; None where there is none, or none that can be read."""
    path = files.join(folder, f"{key}.npz")
    if not files.exists(path):
        return None
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as saved:
            return Row(**json.loads(str(saved["values"])), images=saved["images"])
    except files.NPZ_DAMAGE:
        return None


def save(folder, key, row):
    """Write a Row under its key; the file is there whole or not at all."""
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "images"}
    files.make_folder(folder)
    files.write_npz(files.join(folder, f"{key}.npz"), {"values": np.array(json.dumps(values)), "images": row.images})
