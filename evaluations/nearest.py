"""The training image nearest to each sample, and whether samples lie nearer to training images than new data do.

python evaluations/nearest.py models/emoji32_reference.npz runs/emoji
mpirun -n 2 python evaluations/nearest.py data/photos runs/samples --by features --features classifier:classifier.pt

A network that has learnt its training images by heart draws samples that lie nearer to them than images of the same
data that it never saw. Among all pairs of a sample and a held-out image, `nearer` is the share in which the sample is
the one nearer to its nearest training image: 0.5 without memory, 1 if all are copies (the statistic of Meehan et al.
2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models", arXiv:2004.05675, section 3.1, over all of
space as one cell). Its standard error is that of no difference. Distances are root mean squares: of the differences of
pixels in grey levels, or of features.
"""

import csv
import io
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from evaluations.activations import activations_of
from evaluations.batches import open_images
from evaluations.distances import fp32
from evaluations.features import FeatureFlags, Features, with_channels
from guided_diffusion import dist_util, files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.flags import WIDTH, FlagGroup, at_least, flag, flags_of
from guided_diffusion.images import as_picture, save_grid
from guided_diffusion.jobs import launch

COLUMNS = ["set", "image", "nearest", "distance"]
QUANTILES = (0.05, 0.5, 0.95)
# pairs side by side in the picture
PAIRS = 8


@dataclass
class NearestFlags(FlagGroup):
    """The images."""

    train: str = flag("", "Training images: an npz with arr_0, or a folder or zip of images.", essential="train")
    samples: str = flag(
        "", "Images to be looked for, likewise, or the output folder of a sampling script.", essential="samples"
    )
    held_out: str = flag(
        "", "Images of the same data that were not trained on, to compare with; empty for none.", essential="held_out"
    )
    by: str = flag("pixels", "Distances of pixels, or of --features.", choices=("pixels", "features"), essential="by")
    shown: int = flag(64, "Samples in the picture, each beside its training image.", legal=at_least(1, WIDTH))
    batch_size: int = flag(64, "Images computed at once on a rank.", legal=at_least(1, WIDTH))


GROUPS = [NearestFlags, FeatureFlags]


def pixels_of(channels):
    """`uint8 [n, H, W, C] -> Features` that are the pixels, of so many channels."""

    def extract(images):
        images = with_channels(torch.as_tensor(images), channels, "--train")
        return Features(images.flatten(1).float())

    return extract


def nearest(train, queries, extract, batch_size):
    """(indices int64 [Q], root mean square distances float64 [Q]) of the nearest images of a set, on every rank.

    The first of equally near ones is taken. Every rank calls this; memory does not depend on the size of the set.

    :param train: ImageSet.
    :param queries: features [Q, D].
    :param extract: `uint8 [n, H, W, C] -> Features`.
    """
    index = torch.zeros(len(queries), dtype=torch.long)
    least = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    for start, images in train.batches(batch_size, dist_util.rank(), dist_util.world_size()):
        pool = extract(images).pool.float().cpu()
        chosen = fp32(queries, pool).argmin(dim=1)
        # the quick distances lose what is nearly equal
        exact = (queries.double() - pool[chosen].double()).square().mean(dim=1)
        closer = exact < least
        index[closer], least[closer] = start + chosen[closer], exact[closer]
    parts = dist_util.gather_object((index.numpy(), least.numpy()))
    if dist_util.is_main():
        indices, squares = (np.stack(each) for each in zip(*parts))
        best = np.lexsort((indices, squares), axis=0)[0]
        parts = indices[best, range(len(best))], np.sqrt(squares[best, range(len(best))])
    return dist_util.broadcast_object(parts)


def share_nearer(samples, held_out):
    """(the share of pairs in which a sample has the smaller distance, its standard error if there is no difference).

    :param samples: distances [N]; of equal ones half counts.
    :param held_out: distances [M].
    """
    n, m = len(samples), len(held_out)
    ranks = rankdata(np.concatenate([samples, held_out]))
    return 1 - (ranks[:n].sum() - n * (n + 1) / 2) / (n * m), np.sqrt((n + m + 1) / (12 * n * m))


def report(found):
    """The lines of the log, of {name of a set: distances [N]}."""
    for name, distances in found.items():
        numbers = ", ".join(f"{100 * q:g} %: {v:.4g}" for q, v in zip(QUANTILES, np.quantile(distances, QUANTILES)))
        yield f"{name} to the nearest training image: {numbers} of {len(distances):,}; smallest {min(distances):.4g}"
    if len(found) > 1:
        share, error = share_nearer(*found.values())
        yield f"nearer: {share:.3f} of pairs have the sample nearer than the held-out one; 0.5 +- {error:.3f} if alike"


def main(parsed):
    settings = parsed[NearestFlags]
    named = {"train": settings.train, "samples": settings.samples}
    named |= {"held_out": settings.held_out} if settings.held_out else {}
    sets = {name: open_images(path, name) for name, path in named.items()}
    train = sets.pop("train")
    for images in (train, *sets.values()):
        if not images.count:
            raise UserError(f"--{images.flag} {images.path} has statistics and no images; expected images")
        shape, expected = ((*one.size, one.channels) for one in (images, train))
        alike = shape[:2] == expected[:2] and (shape == expected or 4 not in (shape[2], expected[2]))
        if settings.by == "pixels" and not alike:
            given, wanted = ("x".join(map(str, one)) for one in (shape, expected))
            raise UserError(
                f"--{images.flag} {images.path} has images of {given}; expected {wanted}, as --train has, "
                "or --by features"
            )
    channels = max(images.channels for images in (train, *sets.values()))
    extract = pixels_of(channels)
    if settings.by == "features":
        extract = parsed[FeatureFlags].create()
        for images in (train, *sets.values()):
            extract.dimensions(images)  # which refuses what the network does not take
    elif unread := sorted({field.name for field in flags_of(FeatureFlags)} & parsed.given):
        raise UserError(f"--{unread[0]} does nothing with --by pixels; expected --by features")
    if not launch.announce(parsed, "nearest_flags.json"):
        return
    lines, found = [COLUMNS], {}
    for name, images in sets.items():
        of_set = activations_of(images, extract, settings.batch_size)
        queries = torch.from_numpy(dist_util.broadcast_object(of_set and of_set.features.numpy()))
        indices, distances = nearest(train, queries, extract, settings.batch_size)
        found[name] = distances
        lines += [[name, i, int(j), f"{d:.6g}"] for i, (j, d) in enumerate(zip(indices, distances))]
        if name == "samples":
            nearest_to_samples = indices
    if not dist_util.is_main():
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    files.write_text(files.join(logger.get_dir(), "nearest.csv"), text.getvalue())
    shown = range(min(settings.shown, sets["samples"].count))
    chosen = picked(train, nearest_to_samples[list(shown)], channels, settings.batch_size)
    drawn = picked(sets["samples"], shown, channels, settings.batch_size)
    height, width = drawn[0].shape[:2]
    chosen = [np.reshape(as_picture(image).resize((width, height)), drawn[0].shape) for image in chosen]
    pairs = [image for pair in zip(drawn, chosen) for image in pair]
    captions = [caption for d in found["samples"][list(shown)] for caption in ("", f"{d:.3g}")]
    save_grid(files.join(logger.get_dir(), "nearest.png"), np.stack(pairs), 2 * PAIRS, captions)
    if known := int((found.get("held_out", np.ones(1)) == 0).sum()):
        logger.warn(f"{known} images of --held_out {settings.held_out} are those of --train; expected others")
    for line in report(found):
        logger.log(line)
    logger.log(f"saved nearest.csv and nearest.png, each sample beside its training image, in {logger.get_dir()}")


def picked(images, indices, channels, batch_size):
    """The images uint8 [H, W, channels] of an ImageSet at some indices, in their order."""
    wanted, found = {int(i) for i in indices}, {}
    for start, batch in images.batches(batch_size, 0, 1):
        found |= {start + i: image for i, image in enumerate(batch) if start + i in wanted}
    return [np.broadcast_to(found[int(i)], (*found[int(i)].shape[:2], channels)) for i in indices]


if __name__ == "__main__":
    launch.run("nearest", __doc__, GROUPS, launch.alone(main), positional=("train", "samples"))
