"""Make a reference for evaluator.py of one's own data, cropped and resized as image_train.py does.

python evaluations/make_reference.py data/photos --image_size 64 --out photos64.npz
mpirun -n 2 python evaluations/make_reference.py data/photos.zip --image_size 64 --out photos64.npz

The npz has the statistics of all images (mu and sigma of pool_3, mu_s and sigma_s of the spatial features) and some
of the images (arr_0) for precision and recall; guided-diffusion's evaluator reads it too. With other --features the
statistics are under features_mu and features_sigma, and evaluator.py reads them where its --features are the same.
"""

from dataclasses import dataclass

import numpy as np

from evaluations.activations import activations_of
from evaluations.batches import OTHER_STATISTICS, STATISTICS, images_of_dataset, some_of
from evaluations.features import FeatureFlags
from evaluations.report import make_room
from guided_diffusion import files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.flags import IMAGES, SIDE, WIDTH, FlagGroup, at_least, flag
from guided_diffusion.image_stream import Images, colour, report
from guided_diffusion.jobs import launch
from guided_diffusion.networks.levels import image_channels_flag


@dataclass
class ReferenceFlags(FlagGroup):
    """The reference."""

    data_dir: str = flag(
        "", "Folder of images, searched with its sub-folders, or a .zip or .npz file.", essential="data_dir"
    )
    image_size: int = flag(
        64, "Height and width of the images in pixels.", legal=at_least(1, SIDE), essential="image_size"
    )
    image_channels: int = image_channels_flag()
    out: str = flag("", "The npz to write.", essential="out")
    num_images: int = flag(
        10000,
        "Images to keep for precision and recall, drawn at random.",
        legal=at_least(1, IMAGES),
        essential="num_images",
    )
    batch_size: int = flag(64, "Images computed at once on a rank.", legal=at_least(1, WIDTH), essential="batch_size")
    skip_bad: bool = flag(False, "Skip unreadable images, instead of stopping.")
    exif: bool = flag(False, "Turn photographs upright, as their EXIF orientation says.")
    background: str = flag(
        "", "Colour behind transparent places, such as white or #808080; empty shows their hidden colour."
    )
    seed: int = flag(0, "Decides which images are kept.", legal=at_least(0))

    def __post_init__(self):
        super().__post_init__()
        if not self.out.endswith(".npz"):
            raise UserError(f"--out is {self.out!r}; expected the path of an .npz file to write")
        if self.background:
            colour(self.background)


GROUPS = [ReferenceFlags, FeatureFlags]


def main(parsed):
    flags = parsed[ReferenceFlags]
    make_room(flags.out, "out", data_dir=flags.data_dir)
    data = Images(
        flags.data_dir,
        flags.image_size,
        random_flip=False,
        skip_bad=flags.skip_bad,
        image_channels=flags.image_channels,
        exif=flags.exif,
        background=flags.background,
    )
    if len(data) < 2:
        raise UserError(f"--data_dir {flags.data_dir} has one image; expected at least 2, for a covariance")
    extractor, images = parsed[FeatureFlags].create(), images_of_dataset(data, "data_dir", range(len(data)))
    extractor.dimensions(images)  # which refuses images of another size than the network takes
    if not launch.announce(parsed, "reference_flags.json"):
        return
    report(data)
    found = activations_of(images, extractor, flags.batch_size, False)
    if found is None:
        return
    kept = images_of_dataset(data, "data_dir", some_of(len(data), flags.num_images, flags.seed))
    arrays = {"arr_0": np.concatenate([images for _, images in kept.batches(flags.batch_size, 0, 1)])}
    if extractor.inception:
        pairs = zip(STATISTICS.values(), (found.moments, found.spatial))
    else:
        *names, network = OTHER_STATISTICS
        pairs, arrays[network] = [(names, found.moments)], np.array(extractor.identity)
    for (mean, covariance), moments in pairs:
        arrays |= {mean: moments.mean.numpy(), covariance: moments.covariance.numpy()}
    files.write_npz(flags.out, arrays)
    logger.log(f"saved {flags.out}: statistics of {len(data):,} images, and {kept.count:,} of them")


if __name__ == "__main__":
    launch.run("make_reference", __doc__, GROUPS, launch.alone(main), positional=("data_dir",))
