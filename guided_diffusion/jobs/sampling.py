"""A sampling job: it may be killed, stopped, shared among ranks and machines, and ends with the same file."""

import itertools
import json
import re
from dataclasses import dataclass

import torch

from .. import dist_util, files, kernels, logger
from ..errors import UserError
from ..flags import FlagGroup, flag
from ..generate import RngFlags, SampleFlags
from ..image_arrays import read_arrays
from ..image_labels import of_text
from ..images import save_pngs
from ..networks import DIRECT, compute_by, computing_by, described
from . import folder_lock, interruption, launch, progress, slow_steps, trial
from .sample_store import SampleStore


@dataclass
class ShardFlags(FlagGroup):
    """What a job makes."""

    shard: str = flag(
        "", "i/n, from 1/n to n/n: make every n-th batch alone; the last job to finish writes the npz.", idle=True
    )

    save_png: bool = flag(
        False, "Also write each image as a PNG, into a folder beside the npz that is called like it.", idle=True
    )

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.place[0] <= self.place[1]:
            raise UserError(f"--shard is {self.shard!r}; expected i/n with i from 1 to n, such as 3/8")

    @property
    def place(self):
        """(i, n); (1, 1) for a job that makes all, (0, 0) for no such text."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard or "1/1", re.ASCII)
        return tuple(map(int, found.groups())) if found else (0, 0)


def run(parsed, process, network, make_batch, name=None):
    """Announce the flags, sample what is not there yet, save and report: the end of every sampling script.

    Each batch is a chunk of a SampleStore, saved before the next begins. The ranks take the missing ones in turn. A run
    with --rng published makes all images or none: they come from one stream.

    :param parsed: the resolved Parsed flags.
    :param process: the Process, whose methods report at the end.
    :param network: that it samples from.
    :param make_batch: `indices -> {"arr_0": uint8 [n, H, W, C]}`, with labels as "arr_1"; see `as_arrays`.
    :param name: of the npz; default `samples_NxHxWxC.npz`.
    :raises UserError: if another job is at work in the output folder, or it was begun with other settings.
    :raises SystemExit: on SIGTERM or Ctrl-C, after the batches in hand.
    """
    out_dir, (part, parts) = logger.get_dir(), parsed[ShardFlags].place
    if parts > 1 and parsed[RngFlags].published:
        raise UserError(f"--shard {part}/{parts} contradicts --rng published, whose images come from one stream")
    if parsed[launch.RunFlags].dry_run:
        launch.announce(parsed)
        _rehearse(parsed[SampleFlags].batch_size, process, network, make_batch)
        return
    stem, names = name.removesuffix(".npz") if name else "samples", of_text(parsed.values().get("class_names", ""))
    store = SampleStore(out_dir, stem, names)
    then = (
        f"{store.folder} has to be deleted to begin anew"
        if parsed[RngFlags].published
        else "the same command continues"
    )
    try:
        with folder_lock.locked(out_dir, f"{part}-of-{parts}" if parts > 1 else ""):
            settings = _settings(parsed)
            _follow(store.begin(settings, parts == 1, parsed.defaults()), settings)
            launch.announce(parsed)
            _make(store, parsed, process, make_batch, name, then)
    except OSError as error:
        raise UserError(
            f"{error.filename or out_dir}: {error.strerror or error}; what is finished is kept, and {then}"
        ) from error


def _rehearse(size, process, network, make_batch):
    """Take the first step of a batch, and log what it takes."""
    trial.count(network)
    records = process.sample_records
    process.sample_records = lambda *args: itertools.islice(records(*args), 1)
    trial.tried(lambda: make_batch(range(size)), size, len(process.grid))


def _settings(parsed):
    """What decides the images of a run, and what may round them."""
    decisive, read = {k: v for k, v in parsed.values().items() if k not in parsed.marked("idle")}, {}
    if dist_util.is_main():
        named = sorted(k for k in parsed.marked("content") if decisive[k])
        read = {k: {"path": decisive[k], "sha256": files.sha256(decisive[k])} for k in named}
        decisive |= {k: f"sha256 {entry['sha256'][:16]}" for k, entry in read.items()}
    rounding = {"device": dist_util.device_name(), "torch": str(torch.__version__)}
    if dist_util.dev().type == "cpu":
        rounding["kernels"] = kernels.instructions()
    return {
        "decisive": decisive,
        "files": read,
        "threads": torch.get_num_threads(),
        "winograd": computing_by() if dist_util.dev().type == "cpu" else DIRECT,
        "rounding": rounding,
    }


def _follow(begun, settings):
    """Compute as the first run of the folder did, in as many threads; where that is not enough for its bytes, warn."""
    if dist_util.dev().type == "cpu":
        if begun["threads"] != torch.get_num_threads():
            torch.set_num_threads(begun["threads"])
            logger.log(f"threads per rank: {begun['threads']}, as this folder was begun")
        # a folder that says nothing of it is older than there was a choice
        algorithm = begun.get("winograd", DIRECT)
        if algorithm != computing_by():
            compute_by(algorithm)
            logger.log(f"{described(algorithm)}, as this folder was begun")
    for name, value in settings["rounding"].items():
        # a folder that says nothing of one is older than it was asked
        if begun["rounding"].get(name, value) != value:
            logger.warn(f"begun with {name} {begun['rounding'][name]}, now {value}: images may differ by a rounding")


def _make(store, parsed, process, make_batch, name, then):
    flags, (part, parts) = parsed[SampleFlags], parsed[ShardFlags].place
    chunks = flags.batches
    path = dist_util.broadcast_object(store.finished(flags.num_samples) if dist_util.is_main() else None)
    if path:
        logger.log(f"{path} is complete: nothing to do")
        _save_pngs(parsed, path)
        return
    log_grid(process)
    mine = chunks[part - 1 :: parts]
    missing = store.missing(mine)
    if parsed[RngFlags].published and 0 < len(missing) < len(mine):
        raise UserError(
            f"{store.folder} holds some images of this run, and --rng published cannot go on in the middle of its "
            "stream: delete it to begin anew"
        )
    fill(store, missing, sum(map(len, mine)), make_batch, then)
    log_calls(process)
    add_up(process)
    lines = process.report()
    if lines and len(missing) < len(chunks):
        logger.log(f"of the {sum(map(len, missing))} images that this run made:")
    for line in lines:
        logger.log(line)
    failed = None
    if dist_util.is_main():
        failed = _finish(store, chunks, mine, name, _suspects(parsed, process))
        _save_pngs(parsed, None if failed else store.finished(flags.num_samples))
    failed = dist_util.broadcast_object(failed)
    if failed:
        raise UserError(failed)


def _save_pngs(parsed, path):
    """Write each image of a finished npz as a PNG where --save_png says so, on rank 0.

    :param path: None where it is not finished.
    """
    if parsed[ShardFlags].save_png and path and dist_util.is_main():
        folder = path.removesuffix(".npz")
        save_pngs(folder, *read_arrays(path, "out_dir"))
        logger.log(f"saved each image in {folder}")


def add_up(process):
    """Let what the methods of a process counted be that of all ranks, which call this together.

    A rank that had no image to make has counted nothing, and takes part all the same.
    """
    counted = dist_util.gather_object({name: tally.values.cpu() for name, tally in process.tallies.items()})
    for tally in process.tallies.values():
        tally.values = torch.zeros_like(tally.values)
    for of_rank in dist_util.broadcast_object(counted):
        for name, values in of_rank.items():
            total = process.tally(name, *values.shape)
            total.values = total.values.cpu() + values


def fill(store, missing, total, make_batch, then, name=""):
    """Make and save the missing chunks of a SampleStore, the ranks in step.

    :param total: of the images of this job, old and new.
    :param make_batch: `indices -> {name: array}`.
    :param then: how an interrupted job goes on.
    :param name: of the job, where a run has several.
    """
    rank, size = dist_util.rank(), dist_util.world_size()
    done = total - sum(map(len, missing))
    if done:
        logger.log(f"{done} of {total} images are there already")
    with (
        interruption.awaited() as asked,
        progress.shown(total, done, "image", name) as add,
        slow_steps.told(logger.log, unit="batch") as doing,
    ):
        for first in range(0, len(missing), size):
            turn = missing[first : first + size]
            doing("its images", step=first // size + 1)
            for chunk in turn[rank : rank + 1]:
                store.save(chunk, make_batch(chunk))
            doing("those of the other ranks")
            number = asked()
            add(sum(map(len, turn)))
            if number:
                kept = done + sum(map(len, missing[: first + size]))
                interruption.stop(number, f"{kept} of {total} images are kept, and {then}")


def _finish(store, chunks, mine, name, suspects):
    """Write the npz, unless other shards still have to add to it or were faster.

    :param mine: the chunks of this job, which has just seen them whole.
    :param suspects: sentences on what may have thrown images beyond all numbers.
    :return: what is wrong, where there is none at the end; else None.
    """
    if not store.absent(chunks):
        if bad := store.not_finite(chunks):
            return _not_finite(bad, chunks[-1].stop, store.keep_finite(chunks, bad), suspects)
        with folder_lock.claimed(*files.split(store.folder)) as other:
            if other:
                logger.log(f"{other} is writing the npz")
                return None
            try:
                for path in store.assemble(chunks, name):
                    logger.log(f"saved {path}")
                return None
            except FileNotFoundError:  # another shard has done it and deleted the chunks
                pass
    path, absent = store.finished(chunks[-1].stop), store.absent(chunks)
    if path:
        logger.log(f"saved {path}, by another shard")
    elif lost := sum(map(len, store.absent(mine))):
        return f"{lost} images have vanished from {store.folder} meanwhile; the same command makes them again"
    else:
        logger.log(f"{sum(map(len, absent))} images of other shards are missing: the last to finish writes the npz")
    return None


def _suspects(parsed, process):
    sixteen = ["--use_bf16 True reaches further than --use_fp16 True"] if parsed.values().get("use_fp16") else []
    return [*sixteen, *process.suspects()]


def _not_finite(bad, count, path, suspects):
    """The sentence that ends a run with images {index: step} that are not finite.

    :param path: of the others; None where there are none.
    """
    kept = f"{path} has the other {count - len(bad)}" if path else "so no npz is written"
    said = f"{len(bad)} of {count} images are not finite numbers, the first of them from step {min(bad.values())} on"
    return "; ".join([said, kept, *suspects])


def log_grid(process):
    """Print the timesteps that sampling visits, and save all of them as grid.json in the output folder, on rank 0."""
    times = [*reversed(process.grid), -1]
    if dist_util.is_main():
        shown = times if len(times) <= 60 else [*times[:5], "...", *times[-5:]]
        logger.log(f"{len(times) - 1} steps by way of the timesteps: " + " ".join(map(str, shown)))
        files.write_text(files.join(logger.get_dir(), "grid.json"), json.dumps(times) + "\n")


def log_calls(process, images=None):
    """Print how often the network was asked for an image, over all ranks: images are compared at equal calls.

    :param images: of all ranks; by default those whose sampling was begun.
    """
    counts = torch.tensor([process.network_calls, process.images_begun], dtype=torch.int64)
    calls, begun = dist_util.all_reduce_sum(counts.to(dist_util.dev())).tolist()
    images = begun if images is None else images
    if images and dist_util.is_main():
        logger.log(f"network calls: {calls / images:g} for each of {images:g} images")
