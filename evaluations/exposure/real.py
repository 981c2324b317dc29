"""The real images that exposure bias is measured with."""

import dataclasses
import hashlib

import numpy as np
import torch

from evaluations.batches import open_images
from guided_diffusion import dist_util
from guided_diffusion.adapters import pair_of
from guided_diffusion.conditioning.classes import class_count
from guided_diffusion.errors import UserError
from guided_diffusion.generate import SampleFlags, dataset_in_order, on_device
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.image_files import open_picture
from guided_diffusion.images import MODES, to_uint8
from guided_diffusion.methods.time_shift import pixel_variance
from guided_diffusion.networks import UNetFlags

from .sums import FEWEST
from .walks import Gaussian

# images that tell mean and covariance of the data, at most, and values of them
GAUSSIAN_OF, GAUSSIAN_VALUES = 2000, 2**26


class RealImages:
    """Some of the images of a data set, drawn at random by a seed, so that fewer are the first of more.

    :param dataset: Images, not augmented.
    :param count: how many are asked for.
    :param seed: of the draw.
    :param encode: from images to what the network denoises.
    :ivar count: how many there are.
    :ivar data_variance: mean over the images of the unbiased variance of their values, as the network has them.
    :ivar digest: of their pixels and classes, and of the images behind `gaussian`.
    :ivar gaussian: the Gaussian of the data set, by so many of its images, these first.
    :raises UserError: for a file among these that would be resized, or has other channels than the network.
    """

    def __init__(self, dataset, count, seed, encode):
        self.dataset = dataset
        self.encode = encode
        self.order = np.random.default_rng(seed).permutation(len(dataset))
        self.count = min(count, len(dataset))
        digest, encoded, variance = hashlib.sha256(), [], 0.0
        most = max(2, min(GAUSSIAN_OF, len(dataset)))
        for index in range(max(most, self.count)):
            self.expect_own(self.order[index])
            image, cond = self._read([index])
            digest.update(to_uint8(image, rounded=True).tobytes())
            digest.update(str({name: value.tolist() for name, value in cond.items()}).encode())
            x = self.encode(image.to(dist_util.dev()))
            if index < self.count:
                variance += float(pixel_variance(x)) / self.count
            most = max(2, min(most, GAUSSIAN_VALUES // x.numel()))
            if index < most:
                encoded.append(x.cpu())
            elif index + 1 >= self.count:
                break
        self.digest, self.data_variance = digest.hexdigest(), variance
        self.gaussian = Gaussian(torch.cat(encoded))

    def expect_own(self, place):
        """Validate that a file of the data set is not resized, and loses no colours; an npz has one shape."""
        source, side, channels = self.dataset.images[place], self.dataset.image_size, self.dataset.image_channels
        if not isinstance(source, str):
            return
        picture, grey = open_picture(source)
        shape, own = (*picture.size[::-1], 1 if grey else 3), (side, side, channels)
        if shape[:2] != own[:2] or (channels == 1 and not grey):
            raise UserError(f"{source} is {_shown(shape)}; --model_path makes images of {_shown(own)}")

    def _read(self, indices):
        return torch.utils.data.default_collate([self.dataset[int(self.order[index])] for index in indices])

    def batch(self, indices):
        """(x [n, C, H, W], {name: tensor [n]} of what the network is told), on this rank's device."""
        image, cond = self._read(indices)
        return self.encode(image.to(dist_util.dev())), on_device(cond)


def open_real(parsed, network, flags=None):
    """The RealImages of --data_dir for a network and what guides it; they are not resized.

    :param parsed: resolved Parsed flags of a sampler.
    :param flags: DataFlags, where those have none.
    :raises UserError: for too few images, and for images of another size or number of channels than the network's.
    """
    flags, unet, sampling = flags or parsed[DataFlags], parsed[UNetFlags], parsed[SampleFlags]
    # a classifier is told classes, even where its network is not
    unet = dataclasses.replace(unet, class_cond=class_count(parsed) is not None)
    if sampling.num_samples < FEWEST:
        raise UserError(f"--num_samples is {sampling.num_samples}; a standard error needs at least {FEWEST} images")
    dataset, sampling = dataset_in_order(flags, unet, sampling)
    found, own = open_images(flags.data_dir, "data_dir"), (unet.image_size, unet.image_size, unet.image_channels)
    # transparency, which files may lack, is added to what they have
    added = found.kind != "npz" and unet.image_channels == 4
    shape = (*found.size, unet.image_channels if added else found.channels)
    if shape != own:
        raise UserError(
            f"--data_dir {flags.data_dir} has images of {_shown(shape)}; --model_path makes images of {_shown(own)}"
        )
    if len(dataset) < FEWEST:
        raise UserError(
            f"--data_dir {flags.data_dir} has {len(dataset)} images; a standard error needs at least {FEWEST} images"
        )
    return RealImages(dataset, sampling.num_samples, sampling.seed, pair_of(network).encode)


def _shown(shape):
    height, width, channels = shape
    return f"{height}x{width} {MODES.get(channels, f'with {channels} channels')}"
