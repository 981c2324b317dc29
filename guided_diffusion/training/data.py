"""The stream of a training run's images."""

from .. import dist_util, logger
from ..checkpoints import resume
from ..image_datasets import batches, describe


def training_data(data_flags, flags, image_size, class_cond=False, num_classes=None, start=None, image_channels=3):
    """This rank's endless stream of (batch [N, C, H, W], {"y": [N]} if class_cond), validated before it starts.

    :param data_flags: DataFlags.
    :param flags: TrainFlags.
    :param start: the number of the first batch; default that after the images its checkpoint has seen.
    """
    dataset = data_flags.dataset(image_size, class_cond, num_classes, flags.seed, image_channels)
    logger.log(describe(dataset))
    dataset.on_skip = lambda error: logger.warn(f"skipped {dataset.num_skipped} so far: {error}")
    return batches(
        dataset,
        flags.batch_size,
        rank=dist_util.rank(),
        size=dist_util.world_size(),
        num_workers=data_flags.num_workers,
        start=_next_batch(flags) if start is None else start,
    )


def first_batch(data_flags, flags, image_size, class_cond=False, num_classes=None, image_channels=3):
    """(batch, extra) of this rank's first step, wherever the run goes on."""
    dataset = data_flags.dataset(image_size, class_cond, num_classes, flags.seed, image_channels)
    place = {"rank": dist_util.rank(), "size": dist_util.world_size(), "num_workers": 0}
    return next(batches(dataset, flags.batch_size, **place))


def _next_batch(flags):
    state = resume.read_state(flags.resume_checkpoint) if flags.resume_checkpoint else None
    if state is None:
        return flags.first_step()
    return state["samples"] // (flags.batch_size * dist_util.world_size())
