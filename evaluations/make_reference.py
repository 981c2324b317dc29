"""Make a reference for evaluator.py of one's own data, cropped and resized as image_train.py does.

python evaluations/make_reference.py data/photos --image_size 64 --out photos64.npz
mpirun -n 2 python evaluations/make_reference.py data/photos.zip --image_size 64 --out photos64.npz

The npz has the statistics of all images (mu and sigma of pool_3, mu_s and sigma_s of the spatial features) and some
of the images (arr_0) for precision and recall; guided-diffusion's evaluator reads it too.
"""

from dataclasses import dataclass

import numpy as np

from evaluations.activations import activations_of
from evaluations.batches import images_of_dataset, some_of
from evaluations.features import FeatureFlags
from guided_diffusion import files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.flags import IMAGES, SIDE, WIDTH, FlagGroup, at_least, flag
from guided_diffusion.image_datasets import Images, describe
from guided_diffusion.jobs import launch
from guided_diffusion.networks.levels import image_channels_flag


@dataclass
class ReferenceFlags(FlagGroup):
    """The reference."""

    data_dir: str = flag("", "Folder of images, searched with its sub-folders, or a .zip or .npz file.")
    image_size: int = flag(64, "Height and width of the images in pixels.", legal=at_least(1, SIDE))
    image_channels: int = image_channels_flag()
    out: str = flag("", "The npz to write.")
    num_images: int = flag(
        10000, "Images to keep for precision and recall, drawn at random.", legal=at_least(1, IMAGES)
    )
    batch_size: int = flag(64, "Images computed at once on a rank.", legal=at_least(1, WIDTH))
    skip_bad: bool = flag(False, "Skip unreadable images, instead of stopping.")
    seed: int = flag(0, "Decides which images are kept.", legal=at_least(0))

    def __post_init__(self):
        super().__post_init__()
        if not self.out.endswith(".npz"):
            raise UserError(f"--out is {self.out!r}; expected the path of an .npz file to write")


GROUPS = [ReferenceFlags, FeatureFlags]
# the keys that are written are of Inception features
OVERRIDES = {"features": None}


def main(parsed):
    flags = parsed[ReferenceFlags]
    data = Images(
        flags.data_dir,
        flags.image_size,
        random_flip=False,
        skip_bad=flags.skip_bad,
        image_channels=flags.image_channels,
    )
    if len(data) < 2:
        raise UserError(f"--data_dir {flags.data_dir} has one image; expected at least 2, for a covariance")
    extractor = parsed[FeatureFlags].create()
    if not launch.announce(parsed, "reference_flags.json"):
        return
    logger.log(describe(data))
    found = activations_of(images_of_dataset(data, "data_dir", range(len(data))), extractor, flags.batch_size, False)
    if found is None:
        return
    kept = images_of_dataset(data, "data_dir", some_of(len(data), flags.num_images, flags.seed))
    arrays = {"arr_0": np.concatenate([images for _, images in kept.batches(flags.batch_size, 0, 1)])}
    for mean, covariance, moments in (("mu", "sigma", found.moments), ("mu_s", "sigma_s", found.spatial)):
        arrays |= {mean: moments.mean.numpy(), covariance: moments.covariance.numpy()}
    files.write_npz(flags.out, arrays)
    logger.log(f"saved {flags.out}: statistics of {len(data):,} images, and {kept.count:,} of them")


if __name__ == "__main__":
    launch.run("make_reference", __doc__, GROUPS, main, OVERRIDES, positional=("data_dir",))
