"""The real images that exposure bias is measured with."""

import dataclasses
import hashlib

import numpy as np
import torch

from evaluations.batches import open_images
from guided_diffusion import dist_util, logger
from guided_diffusion.errors import UserError
from guided_diffusion.image_datasets import describe
from guided_diffusion.image_files import open_picture
from guided_diffusion.images import MODES, to_uint8
from guided_diffusion.methods.time_shift import pixel_variance

from .sums import FEWEST
from .walks import Gaussian

# images that tell mean and covariance of the data, at most, and values of them
GAUSSIAN_OF, GAUSSIAN_VALUES = 2000, 2**26


class RealImages:
    """Some of the images of a data set, drawn at random by a seed, so that fewer are the first of more.

    :param dataset: Images, not augmented.
    :param count: how many are asked for.
    :param seed: of the draw.
    :ivar count: how many there are.
    :ivar data_variance: mean over the images of the unbiased variance of their values in [-1, 1].
    :ivar digest: of their pixels and classes.
    :ivar gaussian: the Gaussian of the data set, by so many of its images, these first.
    """

    def __init__(self, dataset, count, seed):
        self.dataset = dataset
        order = np.random.default_rng(seed).permutation(len(dataset))
        self.order = order[:count]
        self.count = len(self.order)
        digest, variance = hashlib.sha256(), 0.0
        for index in range(self.count):
            self._refuse_another_size(dataset.images[self.order[index]])
            image, cond = self._read([index])
            variance += float(pixel_variance(image)) / self.count
            digest.update(to_uint8(image + 1 / 255).tobytes())
            digest.update(str({name: value.tolist() for name, value in cond.items()}).encode())
        self.digest, self.data_variance = digest.hexdigest(), variance
        most = min(GAUSSIAN_OF, GAUSSIAN_VALUES // image.numel())
        self.gaussian = Gaussian(torch.stack([dataset[int(index)][0] for index in order[:most]]))

    def _refuse_another_size(self, source):
        """Validate that a file is not resized; the images of an npz have one size."""
        side = self.dataset.image_size
        if isinstance(source, str) and (size := open_picture(source)[0].size) != (side, side):
            raise UserError(f"{source} is {size[1]}x{size[0]}; --model_path makes images of {side}x{side}")

    def _read(self, indices):
        return torch.utils.data.default_collate([self.dataset[int(self.order[index])] for index in indices])

    def batch(self, indices):
        """(images [n, C, H, W] in [-1, 1], {name: tensor [n]} of what the network is told), on this rank's device."""
        image, cond = self._read(indices)
        return image.to(dist_util.dev()), {name: value.to(dist_util.dev()) for name, value in cond.items()}


def open_real(flags, unet, count, seed):
    """The RealImages of --data_dir for a network; they are not resized.

    :param flags: DataFlags.
    :param unet: resolved UNetFlags.
    :param count: --num_samples.
    :raises UserError: for too few images, and for images of another size or number of channels than the network's.
    """
    still = dataclasses.replace(flags, random_flip=False)
    dataset = still.dataset(unet.image_size, unet.class_cond, unet.num_classes, image_channels=unet.image_channels)
    found, own = open_images(flags.data_dir, "data_dir"), (unet.image_size, unet.image_size, unet.image_channels)
    # transparency, which files may lack, is added to what they have
    added = found.kind != "npz" and unet.image_channels == 4
    shape = (*found.size, unet.image_channels if added else found.channels)
    if shape != own:
        raise UserError(
            f"--data_dir {flags.data_dir} has images of {_shown(shape)}; --model_path makes images of {_shown(own)}"
        )
    if min(count, len(dataset)) < FEWEST:
        few = (
            f"--num_samples is {count}" if count < FEWEST else f"--data_dir {flags.data_dir} has {len(dataset)} images"
        )
        raise UserError(f"{few}; a standard error needs at least {FEWEST} images")
    if count > len(dataset):
        logger.warn(f"--num_samples {count} is more than there are: taking all {len(dataset)} images")
    logger.log(describe(dataset))
    return RealImages(dataset, count, seed)


def _shown(shape):
    height, width, channels = shape
    return f"{height}x{width} {MODES.get(channels, f'with {channels} channels')}"
