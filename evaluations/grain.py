"""How grainy images are, and how coloured: a table of sets, of which the real images may be the first.

python evaluations/grain.py models/emoji32_reference.npz runs/emoji

`laplacian` is the mean absolute difference between four times a pixel and its four neighbours, in grey levels; noise
left in images raises it, blur lowers it. `colours` are the means of the channels, and `contrast` is the standard
deviation of all pixels of an image. Each is a mean over images, with its standard error.
"""

from dataclasses import dataclass

import numpy as np

from evaluations.batches import open_images
from guided_diffusion import logger
from guided_diffusion.errors import UserError
from guided_diffusion.flags import WIDTH, FlagGroup, at_least, flag, words_of
from guided_diffusion.jobs import launch


@dataclass
class GrainFlags(FlagGroup):
    """The images."""

    samples: str = flag(
        "", "An npz with arr_0, a folder or zip of images, or the folder of a sampling run.", essential="samples"
    )
    more_samples: str = flag("", "Further sets: paths with spaces between, quoted as in a shell.", many=True)
    batch_size: int = flag(64, "Images looked at at once.", legal=at_least(1, WIDTH), essential="batch_size")


GROUPS = [GrainFlags]


def measured(images):
    """float64 [N, 2 + C] of uint8 images [N, H, W, C], of at least 3 by 3: laplacian, contrast, colours."""
    x = images.astype(np.float64)
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    grain = np.abs(4 * x[:, 1:-1, 1:-1] - around).mean(axis=(1, 2, 3))
    return np.column_stack([grain, x.std(axis=(1, 2, 3)), x.mean(axis=(1, 2))])


def joined(parts):
    """One array of several of `measured`; a grey level counts for each of three colours where others have those."""
    colours = max(part.shape[1] for part in parts) - 2
    return np.concatenate([np.column_stack([part[:, :2], part[:, 2:] + np.zeros(colours)]) for part in parts])


def shown(values):
    """Means and standard errors of `measured`, as cells of a table."""
    mean = values.mean(axis=0)
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full_like(mean, np.nan)
    cells = [f"{m:.2f} +- {e:.2f}" for m, e in zip(mean, error)]
    return [*cells[:2], ", ".join(cells[2:])]


def main(parsed):
    flags = parsed[GrainFlags]
    more = words_of(flags.more_samples, "more_samples")
    paths = [flags.samples, *more]
    sets = [open_images(flags.samples, "samples"), *(open_images(path, "more_samples") for path in more)]
    for images in sets:
        if not images.count or min(images.size) < 3:
            raise UserError(f"--{images.flag} {images.path} holds no images of at least 3x3; expected images")
    if not launch.announce(parsed, "grain_flags.json"):
        return
    lines = ["| images | number | laplacian | contrast | colours |", "| --- | ---: | ---: | ---: | --- |"]
    for path, images in zip(paths, sets):
        found = joined([measured(batch) for _, batch in images.batches(flags.batch_size, 0, 1)])
        lines.append(f"| {path} | {images.count:,} | " + " | ".join(shown(found)) + " |")
    logger.log("\n".join(["", *lines]))


if __name__ == "__main__":
    launch.run("grain", __doc__, GROUPS, launch.alone(main), positional=("samples", "more_samples"))
