"""A Frechet distance of the network as it is being trained, from few samples: to see it fall, not to publish it."""

from dataclasses import dataclass, replace
from functools import partial

from guided_diffusion import conditioning, logger
from guided_diffusion.flags import IMAGES, FlagGroup, at_least, flag
from guided_diffusion.generate import preview_sampler
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags

from .activations import activations_of
from .batches import ImageSet, images_of_dataset, some_of
from .features import FeatureFlags
from .fid import frechet_distance

# images of the data that samples are compared with, at most
REFERENCE = 10000
BATCH = 64


@dataclass
class EvalFlags(FlagGroup):
    """The Frechet distance in training."""

    eval_interval: int = flag(
        0, "Steps between Frechet distances of moving-average samples from the data; 0 has none.", legal=at_least(0)
    )
    eval_samples: int = flag(1000, "Number of those samples.", legal=at_least(2, IMAGES))


def scorer(parsed):
    """An `after_step` of a Loop: it logs `frechet_distance` every --eval_interval steps, in a row of its step.

    Samples are those of `preview_sampler`, by the first moving average, with classes in turn; they are compared with
    the centre crops of at most REFERENCE images of the data.

    :param parsed: flags of image_train.py.
    :return: None where --eval_interval is 0.
    """
    flags, unet = parsed[EvalFlags], parsed[UNetFlags]
    if not flags.eval_interval:
        return None
    still, size = replace(parsed[DataFlags], random_crop=False, random_flip=False), unet.image_size
    data = still.dataset(size, False, None, image_channels=unet.image_channels)
    extractor = parsed[FeatureFlags].create()
    real = images_of_dataset(data, "data_dir", some_of(len(data), REFERENCE))
    reference = activations_of(real, extractor, BATCH, keep=False)

    def after_step(loop):
        if loop.step % flags.eval_interval:
            return False
        batches = partial(_samples, parsed, loop.model, loop.objective.sampled_by)
        count, channels = flags.eval_samples, unet.image_channels
        samples = ImageSet("eval_samples", "", "", count, (size, size), batches, [], channels=channels)
        with loop.aside(), loop.ema_weights():
            loop.model.eval()
            found = activations_of(samples, extractor, BATCH, keep=False)
            loop.model.train()
        if found is not None:
            logger.logkv("frechet_distance", frechet_distance(found.moments, reference.moments))
        return True

    return after_step


def _samples(parsed, model, sampler, batch_size, rank, size):
    total = parsed[EvalFlags].eval_samples
    told = conditioning.of_training(parsed).shown(total, None, None)
    for first in range(rank * batch_size, total, size * batch_size):
        count = min(batch_size, total - first)
        cond = {name: value[first : first + count] for name, value in told.items()}
        sample = preview_sampler(parsed[DiffusionFlags], count, cond, sampler=sampler, values=parsed.values())
        yield first, sample(model, first)
