"""A trial of samplers: images of each from the same noise, and their Frechet distance from the real ones.

Standard errors are those of leaving out one block of the images after the other; for a gain, of both samplers at once,
so that what the noise does to both alike is not in it.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch

from evaluations.activations import activations_of
from evaluations.batches import images_of_dataset
from evaluations.comparison.rows import digest_of_code, key_of, named_files
from evaluations.fid import frechet_distance, moments_of
from guided_diffusion import checkpoints, dist_util, files, logger, process
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.generate import IndexedNoise, SampleFlags, batches_of, on_device, watched_images
from guided_diffusion.images import to_uint8
from guided_diffusion.jobs.sample_store import SampleStore
from guided_diffusion.jobs.sampling import fill
from guided_diffusion.methods.method import jackknife

from .sampler import rounding
from .sums import THEN

BLOCKS = 20
FEWEST = 2 * BLOCKS


class Trial(NamedTuple):
    """What a sampler's images are like.

    :ivar distance: Frechet distance of their features from those of the real images.
    :ivar error: its standard error.
    :ivar gain: how far it is below that of the first sampler.
    :ivar gain_error: the standard error of that, on the same noise.
    """

    distance: float
    error: float
    gain: float
    gain_error: float


def tried(samplers, network, dataset, extract, count):
    """The Trials of samplers, on every rank; the first is what the others are compared with.

    :param samplers: (name, resolved Parsed flags) of each, of the same network.
    :param dataset: Images, all of which are the reference; a network with classes is told theirs, in turn.
    :param extract: the Extractor of the features.
    :param count: images of each.
    """
    _, parsed = samplers[0]
    sampling = parsed[SampleFlags]
    reference = images_of_dataset(dataset, "data_dir", range(len(dataset)))
    found = activations_of(reference, extract, sampling.batch_size, keep=False)
    trials, first = [], None
    for name, parsed in samplers:
        features = _features(name, parsed, network, dataset, extract, count)
        if dist_util.is_main():
            distances = leaving_out(features, found.moments)
            first = distances if first is None else first
            gains = first - distances
            trials.append(Trial(*map(float, (distances[0], jackknife(distances[1:]), gains[0], jackknife(gains[1:])))))
    return [Trial(*each) for each in dist_util.broadcast_object([list(trial) for trial in trials])]


def leaving_out(features, reference):
    """Frechet distances [1 + BLOCKS] of features [N, D]: of all of them, and without one block of them each.

    :param reference: Moments.
    """
    block = np.arange(len(features)) * BLOCKS // len(features)
    kept = [torch.from_numpy(features), *(torch.from_numpy(features[block != i]) for i in range(BLOCKS))]
    return np.array([frechet_distance(moments_of(part.to(reference.mean)), reference) for part in kept])


def _features(name, parsed, network, dataset, extract, count):
    """The features [count, D] of a sampler's images on rank 0, None on others; what is made already is read."""
    sampling, made = parsed[SampleFlags], process.of_flags(parsed)
    order = np.random.default_rng(sampling.seed).permutation(len(dataset))

    def make_batch(indices):
        told = torch.utils.data.default_collate([dataset[int(order[i % len(order)])][1] for i in indices])
        x, bad_from = watched_images(made, network, IndexedNoise(sampling.seed, indices), on_device(told))
        if bad := int((bad_from > 0).sum()):
            raise UserError(f"{name}: {bad} of {len(x)} images are not finite numbers")
        return {"features": extract(to_uint8(x)).pool.cpu().numpy()}

    key = dist_util.is_main() and key_of(
        {
            "flags": {k: v for k, v in parsed.values().items() if k not in parsed.marked("idle")},
            "files": named_files(parsed),
            "model": checkpoints.read_flags(parsed[CheckpointFlags].model_path),
            "classes": hashlib.sha256(
                str(dataset.labels if dataset.labels is None else list(dataset.labels)).encode()
            ).hexdigest(),
            "features": extract.facts,
            "code": digest_of_code(),
            "rounding": rounding(),
        }
    )
    store = SampleStore(files.join(logger.get_dir(), "tried"), dist_util.broadcast_object(key))
    store.prepare()
    chunks = batches_of(count, sampling.batch_size)
    fill(store, store.missing(chunks), count, make_batch, THEN, name)
    if not dist_util.is_main():
        return None
    return np.concatenate([store.whole(chunk)["features"] for chunk in chunks])
