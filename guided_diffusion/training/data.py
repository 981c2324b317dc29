"""The stream of a training run's images."""

import dataclasses

from .. import dist_util, files, image_labels, logger
from ..checkpoints import read_flags, resume
from ..errors import told_of
from ..image_datasets import DataFlags, batches
from ..image_stream import report
from .flags import TrainFlags

# what lies beside a checkpoint of the data it was trained on; see Images.facts
FACTS = "data"
# and of the files that flags name and that a run reads anew whenever it goes on: {flag: digest}
FILES = "files"


def training_images(parsed, network):
    """The Images of a training run, and its flags with the number and the names of their classes.

    The number of classes is that of the data, unless a flag or a checkpoint says it; where a checkpoint knows names of
    classes, names of the data mean these.

    :param parsed: the resolved Parsed flags.
    :param network: the Network that is trained.
    :return: (Images, Parsed).
    :raises UserError: for data that cannot be used, or other classes than those of --resume_checkpoint.
    """
    flags, values = parsed[TrainFlags], parsed.values()
    labelled = values.get("class_cond", "num_classes" in values)  # a classifier has but the second
    counted = "num_classes" in parsed.given or flags.resume_checkpoint
    known, count = image_labels.of_text(values.get("class_names", "")), values.get("num_classes") if counted else None
    told = (values[network.size_flag], labelled, count, flags.seed, values["image_channels"])
    dataset = parsed[DataFlags].dataset(*told, known=known, more=bool(flags.init_from))
    if flags.resume_checkpoint and not known and dataset.class_source in ("folder", "prefix"):
        # a run that was begun before classes had names had them in the order of text
        dataset = parsed[DataFlags].dataset(*told, known=sorted(dataset.class_names))
    if labelled:
        if not counted:
            kept = values["num_classes"] if flags.init_from and _has_classes(flags.init_from) else 0
            dataset.num_classes = max(kept, len(dataset.class_names))
        names = image_labels.as_text(dataset.class_names)
        parsed = parsed.with_values({"num_classes": dataset.num_classes, "class_names": names})
    report(dataset)
    if flags.resume_checkpoint:
        then = read_flags(flags.resume_checkpoint)
        _compare(dataset, then.get(FACTS))
        _compare_files(parsed, then.get(FILES))
    return dataset, parsed


def _has_classes(path):
    """Whether a checkpoint is of a network with classes; True where no flags beside it say."""
    return read_flags(path).get("class_cond", True)


def _compare(dataset, then):
    """Warn of a resumed run whose images are not those of its checkpoint."""
    if not isinstance(then, dict) or then == (now := dataset.facts()):
        return
    other = f"{now['images']:,} images, and it had {then.get('images')}"
    what = "as many images as it had, but not the same" if now["images"] == then.get("images") else other
    logger.warn(f"--data_dir {dataset.data_dir} is not what --resume_checkpoint was trained on: {what}")


def _named_files(parsed):
    """{flag: digest} of the files whose content decides what is trained; some are named as kind:PATH."""
    found = {}
    for name in sorted(parsed.marked("content")):
        value = parsed.values()[name]
        path = value if files.exists(value) else value.partition(":")[2]
        if files.exists(path):
            found[name] = files.sha256(path)[:16]
    return found


def _compare_files(parsed, then):
    """Warn, on rank 0, of a resumed run that reads another file than its checkpoint was trained with."""
    if not isinstance(then, dict) or not dist_util.is_main():
        return
    for name, digest in _named_files(parsed).items():
        if name in then and then[name] != digest:
            logger.warn(
                f"--{name} {parsed.values()[name]} is not what --resume_checkpoint was trained with: it has other "
                "content, and the run goes on with that"
            )


def with_facts(parsed, dataset):
    """What lies beside a checkpoint: {flag: value}, and on rank 0, which writes it, what tells its data from others."""
    if not dist_util.is_main():
        return parsed.values()
    named = _named_files(parsed)
    return parsed.values() | {FACTS: dataset.facts()} | ({FILES: named} if named else {})


def held_out_data(parsed, data_dir, start, size_flag="image_size"):
    """The stream of held-out images, neither mirrored nor cropped at random, with the classes of resolved flags.

    :param start: the number of the first batch.
    """
    values = parsed.values()
    still = dataclasses.replace(parsed[DataFlags], data_dir=data_dir, random_flip=False, random_crop=False)
    known = image_labels.of_text(values.get("class_names", ""))
    size, channels = values[size_flag], values["image_channels"]
    with told_of("val_data_dir", "data_dir"):
        dataset = still.dataset(size, True, values["num_classes"], parsed[TrainFlags].seed, channels, known=known)
    report(dataset)
    return stream(dataset, parsed, start)


def stream(dataset, parsed, start=0):
    """This rank's endless stream of batches of Images, from the one of that number on."""
    dataset.on_skip = lambda error: logger.warn(f"skipped {dataset.num_skipped} so far: {error}")
    return batches(
        dataset,
        parsed[TrainFlags].batch_size,
        rank=dist_util.rank(),
        size=dist_util.world_size(),
        num_workers=parsed[DataFlags].num_workers,
        start=start,
    )


def first_batch(dataset, parsed):
    """(batch, extra) of this rank's first step, wherever the run goes on."""
    place = {"rank": dist_util.rank(), "size": dist_util.world_size(), "num_workers": 0}
    return next(batches(dataset, parsed[TrainFlags].batch_size, **place))


def next_batch(flags):
    """The number of a run's first batch: that after the images its checkpoint has seen."""
    state = resume.read_state(flags.resume_checkpoint) if flags.resume_checkpoint else None
    if state is None:
        return flags.first_step()
    return state["samples"] // (flags.batch_size * dist_util.world_size())
