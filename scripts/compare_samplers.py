"""Compare samplers on the same noise: one picture, and one table of Frechet distances.

mpirun -n 2 python scripts/compare_samplers.py --model_path models/digits16.pt --steps 5,10 \\
    --settings benchmarks/samplers_quick.txt --reference data/digits.npz \\
    --features classifier:models/digits16_classifier.pt

Each line of the settings file is `NAME: flags of image_sample`, on top of those of the command line; lines that begin
with # are remarks. In the flags, {N} stands for the number of steps (--timestep_respacing is {N} unless given, and
has to keep N timesteps), {5:80 10:40} for 80 at 5 steps and 40 at 10, and {shift NAME} for the mean shift that the
time-shift searches of an earlier line chose at that number of steps, as the control of a search needs it.

With --calls 5,10 in place of --steps each sampler takes the most steps that cost no more network calls per image;
{5:80 10:40} then speaks of calls. The same command, run again in its folder, takes the rows that are finished.
"""

import contextlib
import hashlib
import io
import re
import shlex
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import image_sample
import numpy as np
import torch

from evaluations.activations import activations_of
from evaluations.batches import open_images
from evaluations.comparison import rows as row_store
from evaluations.comparison.pictures import Row, csv_text, markdown, mean_and_spread, picture
from evaluations.features import Extractor, FeatureFlags
from evaluations.fid import Moments, frechet_distance, moments_of
from guided_diffusion import checkpoints, dist_util, files, flags, logger
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, at_least, flag, int_list
from guided_diffusion.generate import (
    ClassFlags,
    IndexedNoise,
    SampleFlags,
    chosen_classes,
    labels_of,
    make_images,
)
from guided_diffusion.images import to_uint8
from guided_diffusion.jobs import launch
from guided_diffusion.jobs.sampling_job import ShardFlags
from guided_diffusion.methods.time_shift import ShiftStatistics
from guided_diffusion.networks import UNetFlags
from guided_diffusion.respace import NoSuchGrid
from guided_diffusion.script_util import DiffusionFlags, TimeShiftFlags
from guided_diffusion.solver_flags import SolverFlags


@dataclass
class CompareFlags(FlagGroup):
    """The comparison."""

    settings: str = flag("", "Text file with a line NAME: FLAGS for each sampler.")
    steps: str = flag("10,20", "Numbers of steps, such as 5,10,20.")
    calls: str = flag("", "Network calls per image, such as 5,10,20, in place of --steps.")
    repeats: int = flag(
        3, "Sets of images for each sampler, from the seeds --seed, --seed + 1 and so on.", legal=at_least(2)
    )
    reference: str = flag("", "Real images: an npz with arr_0 (uint8 [N, H, W, 3]) or a folder.")
    columns: int = flag(
        8, "Images of each sampler in the picture, at each number of steps or calls.", legal=at_least(1)
    )


# what a line of the settings file may set, but for COMMON
SAMPLER = [group for group in image_sample.GROUPS if group is not ShardFlags]
COMMON = ("num_samples", "batch_size", "seed", "per_class")
GROUPS = [*SAMPLER, CompareFlags, FeatureFlags]
OVERRIDES = {"num_samples": 500, "batch_size": 50, "per_class": None}

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def read_settings(path):
    """{name: flags as one text} of a settings file; empty lines and lines that begin with # do not count."""
    try:
        lines = files.read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--settings {path} cannot be read: {error}") from error
    settings = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, text = (part.strip() for part in line.partition(":"))
        if not (name and colon):
            raise UserError(f"--settings {path}, line {number} is {line.strip()!r}; expected NAME: FLAGS")
        if "|" in name:
            raise UserError(f"--settings {path}, line {number} has a | in its name, which a table cannot show")
        if name in settings:
            raise UserError(f"--settings {path}, line {number} has the name {name!r} a second time")
        settings[name] = text
    if not settings:
        raise UserError(f"--settings {path} has no line NAME: FLAGS")
    return settings


class Budget(NamedTuple):
    """What all samplers of a column of the table may spend: so many of --steps, or of --calls."""

    count: int
    unit: str

    def __str__(self):
        return f"{self.count} {self.unit}"


def fill_in(text, steps, budget, shifts):
    """The flags of a setting with its placeholders replaced.

    :param shifts: {name: mean shift, or None} of the settings before it, with this Budget.
    """

    def value(match):
        word, _, other = match[1].strip().partition(" ")
        if match[1] == "N":
            return str(steps)
        if word == "shift" and shifts.get(other.strip()) is not None:
            return str(round(shifts[other.strip()]))
        by_budget = dict(part.split(":", 1) for part in match[1].split() if ":" in part)
        if str(budget.count) in by_budget:
            return by_budget[str(budget.count)]
        raise UserError(
            f"{match[0]} says nothing at {budget}; expected {{N}}, {{5:80 10:40}} with all of --{budget.unit}, "
            "or {shift NAME} of a time-shift line above"
        )

    return PLACEHOLDER.sub(value, text)


def words(text):
    """The arguments of a command line, split as a shell does."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{error} in {text!r}") from error


@contextlib.contextmanager
def named(setting):
    """Put the setting's name before a mistake in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"setting {setting!r}: {error}") from error


def parse_setting(name, text, steps, budget, shifts, shared):
    """The Parsed flags of one sampler in `steps` steps.

    :param shared: the Parsed command line.
    :raises UserError: for a mistake in the flags.
    """
    common = {k: v for k, v in shared.values().items() if k in shared.given or k in COMMON}

    def fill(given, known):
        for taken in COMMON:
            if taken in given:
                raise UserError(f"--{taken} is for the command line, since all samplers share it")
        filled = {"timestep_respacing": fill_in(common.get("timestep_respacing", "{N}"), steps, budget, shifts)}
        return {k: v for k, v in common.items() if k in known} | filled

    arguments = words(fill_in(text, steps, budget, shifts))
    if "--help" in arguments or "-h" in arguments:
        raise UserError("--help is for the command line")
    parsed = flags.parse(arguments, SAMPLER, name, fill=fill)
    if "time_shift_constant" in parsed.given and not parsed[TimeShiftFlags].time_shift_constant:
        # the control of a search that moved nothing; the flag's 0 would search
        return unshifted(parsed)
    return parsed


def unshifted(parsed):
    """The same sampler without time shift."""
    return flags.Parsed({**parsed.groups, TimeShiftFlags: TimeShiftFlags()}, parsed.given, parsed.absent)


def dealt(items, work):
    """[work(item) for each item] on rank 0, the items dealt to the ranks in turn; None on other ranks."""
    rank, size = dist_util.rank(), dist_util.world_size()
    parts = dist_util.gather_object([work(item) for item in items[rank::size]])
    return parts and [parts[i % size][i // size] for i in range(len(items))]


class Target(NamedTuple):
    """What samples are compared with.

    :ivar size: (height, width) of the real images.
    :ivar extract: the Extractor of the features.
    :ivar moments: of the real images' features; None on ranks other than 0.
    """

    size: tuple
    extract: Extractor
    moments: Moments | None


def read_target(parsed):
    """The Target of --reference and --features."""
    images = open_images(parsed[CompareFlags].reference, "reference")
    if images.count < 2:
        raise UserError(f"--reference {images.path} holds {images.count} images; a Frechet distance needs at least 2")
    extract = parsed[FeatureFlags].create()
    found = activations_of(images, extract, parsed[SampleFlags].batch_size, keep=False)
    return Target(images.size, extract, found and found.moments)


def sample_setting(name, budget, parsed, target, compare):
    """The Row of one sampler; None on ranks other than 0."""
    parsed, model, diffusion = checkpoints.load_diffusion(parsed)
    sampling, unet, size = parsed[SampleFlags], parsed[UNetFlags], parsed[UNetFlags].image_size
    if target.size != (size, size):
        real = "x".join(map(str, target.size))
        raise UserError(f"--model_path makes images of {size}x{size}; --reference has {real}")
    classes = chosen_classes(parsed[ClassFlags].classes, unet.num_classes)
    seconds = 0.0
    shift = diffusion.time_shift
    if shift is not None:
        shift.observe = ShiftStatistics(diffusion.schedule.num_timesteps, dist_util.dev())
    starts = range(0, sampling.num_samples, sampling.batch_size)
    batches = [range(i, min(i + sampling.batch_size, sampling.num_samples)) for i in starts]

    def make(work):
        nonlocal seconds
        repeat, indices = work
        noise, kwargs = IndexedNoise(sampling.seed + repeat, indices), {}
        if unet.class_cond:
            kwargs["y"] = labels_of(noise, indices, classes, unet.num_classes).to(dist_util.dev())
        begin = time.perf_counter()
        solver, shape = parsed[SolverFlags], (3, size, size)
        images = to_uint8(make_images(diffusion, model, solver, noise, shape, sampling.clip_denoised, kwargs))
        seconds += time.perf_counter() - begin
        shown = max(0, compare.columns - indices.start) if repeat == 0 else 0
        return target.extract(images).pool.cpu(), images[:shown]

    made = dealt([(repeat, batch) for repeat in range(compare.repeats) for batch in batches], make)
    spent = dist_util.gather_object((diffusion.network_calls, seconds))
    if shift is not None:
        dist_util.all_reduce_sum(shift.observe.totals)
    if made is None:
        return None
    repeats = [made[i : i + len(batches)] for i in range(0, len(made), len(batches))]
    sets = [torch.cat([part for part, _ in repeat]) for repeat in repeats]
    calls, seconds = (sum(values) / (compare.repeats * sampling.num_samples) for values in zip(*spent, strict=True))
    searches, moved, at_edge = shift.observe.totals.sum(dim=1).tolist() if shift is not None else (0, 0, 0)
    return Row(
        name,
        str(budget),
        steps=diffusion.num_timesteps,
        distances=[frechet_distance(moments_of(each), target.moments) for each in sets],
        calls=calls,
        seconds=seconds,
        shift=moved / searches if searches else None,
        edge=at_edge / searches if searches and not shift.constant else None,
        images=np.concatenate([images for _, images in repeats[0]]),
    )


def finished_row(name, budget, parsed, target, compare):
    """The Row of one sampler, on every rank: from the output folder where it is there, else made and kept there."""
    folder, key, row = files.join(logger.get_dir(), "rows"), None, None
    if dist_util.is_main():
        key = row_store.key_of(decisive(name, budget, parsed, target, compare))
        row = row_store.load(folder, key)
    row = dist_util.broadcast_object(row)
    if row is not None:
        logger.log(f"{name}, {budget}: taken from {folder}")
    else:
        row = dist_util.broadcast_object(sample_setting(name, budget, parsed, target, compare))
        if dist_util.is_main():
            row_store.save(folder, key, row)
    return row


def decisive(name, budget, parsed, target, compare):
    """What decides a row, for rank 0 to call."""
    path = parsed[CheckpointFlags].model_path
    return {
        "row": (name, str(budget), compare.repeats, compare.columns),
        "flags": parsed.values(),
        "model": (files.sha256(path), checkpoints.read_flags(path)),
        "features": target.extract.facts,
        "reference": [hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in target.moments[:2]],
        "rounding": (dist_util.device_name(), torch.__version__),
        "code": row_store.digest_of_code(),
    }


def budgets(compare, given):
    """The Budgets of --steps or --calls, in the order given.

    :param given: names of the flags of the command line.
    """
    unit = "calls" if compare.calls else "steps"
    if compare.calls and "steps" in given:
        raise UserError(f"--calls {compare.calls} contradicts --steps {compare.steps}; expected one of the two")
    text = getattr(compare, unit)
    counts = int_list(text, unit)
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise UserError(f"--{unit} is {text!r}; expected different numbers of {unit} from 1 on, such as 5,10,20")
    return [Budget(count, unit) for count in counts]


def calls_of(parsed):
    """Network calls per image of a sampler, counted on one small image and a network that predicts zeros."""
    diffusion = checkpoints.process_alone(parsed)
    channels = 6 if diffusion.model_var_type.is_learned else 3

    def zeros(x, t):
        return x.new_zeros(len(x), channels, *x.shape[2:])

    make_images(diffusion, zeros, parsed[SolverFlags], IndexedNoise(0, range(1)), (3, 2, 2))
    return diffusion.network_calls


def steps_within(budget, parse):
    """The most steps that a sampler can take within a Budget.

    :param parse: from a number of steps to the sampler's Parsed flags.
    """
    if budget.unit == "steps":
        return budget.count

    @cache
    def tried(steps):
        """(calls, steps) of the largest grid of at most so many steps."""
        for fewer in range(steps, 0, -1):
            with contextlib.suppress(NoSuchGrid):
                return calls_of(unshifted(parse(fewer))), fewer
        return 0, 0

    def calls(steps):
        return tried(steps)[0]

    # whether a time shift fits the solver is to be asked of the steps that are taken in the end, and it changes the
    # calls of a step only where it moves that across nearly pure noise, or its target to the data
    whole = unshifted(parse(1)).with_values({"timestep_respacing": ""})
    most = min(budget.count, checkpoints.process_alone(whole).num_timesteps)
    if calls(most) <= budget.count:
        return tried(most)[1]
    steps = tried(bisect_right(range(most), budget.count, key=calls) - 1)[1]
    if not steps:
        fewest = next(filter(None, map(calls, range(1, most + 1))))
        raise UserError(f"it takes {fewest} network calls in its shortest form, where --calls has {budget.count}")
    return steps


def plan(settings, columns, shared):
    """{(Budget, name): number of steps}, once every setting is parsed and its process built.

    So a mistake in the last does not wait for the others' images. A process has to have as many steps as are
    planned. A shift that is not measured yet is taken for 1.
    """
    planned = {}
    for budget in columns:
        shifts = {}
        for name, text in settings.items():
            parse = partial(parse_setting, name, text, budget=budget, shifts=shifts, shared=shared)
            with named(name):
                steps = steps_within(budget, parse)
                parsed = parse(steps)
                kept = len(checkpoints.process_alone(parsed).timestep_map)
                if kept != steps:
                    raise UserError(
                        f"--timestep_respacing {parsed[DiffusionFlags].timestep_respacing} keeps {kept} timesteps "
                        f"where --{budget.unit} has {budget.count}; expected {{N}} in it, such as ddim{{N}}"
                    )
            shifts[name] = 1 if parsed[TimeShiftFlags].do_time_shift else None
            planned[budget, name] = steps
    return planned


def main(parsed):
    compare, folder = parsed[CompareFlags], logger.get_dir()
    if not compare.settings:
        raise UserError("--settings is not given; expected a text file with a line NAME: FLAGS for each sampler")
    settings, columns = read_settings(compare.settings), budgets(compare, parsed.given)
    if parsed[SampleFlags].num_samples < 2:
        raise UserError("--num_samples is 1; a Frechet distance needs at least 2")
    planned = plan(settings, columns, parsed)
    if not launch.announce(parsed):
        return
    target = read_target(parsed)
    rows = []
    for budget in columns:
        shifts = {}
        for name, text in settings.items():
            with named(name):
                setting = parse_setting(name, text, planned[budget, name], budget, shifts, parsed)
                row = finished_row(name, budget, setting, target, compare)
            # a search that moved nothing has a control that moves nothing
            shifts[name] = (row.shift or 0) if setting[TimeShiftFlags].do_time_shift else None
            rows.append(row)
            mean, spread = mean_and_spread(row.distances)
            logger.log(f"{name}, {budget}: distance {mean:.2f} +- {spread:.2f}, {row.calls:g} calls per image")
            if dist_util.is_main():
                save(rows, folder)
    logger.log("\n" + markdown(rows) + f"saved comparison.png, comparison.md and comparison.csv in {folder}")


def save(rows, folder):
    """Write comparison.csv, comparison.md and comparison.png of the rows so far."""
    files.write_text(files.join(folder, "comparison.csv"), csv_text(rows))
    files.write_text(files.join(folder, "comparison.md"), markdown(rows))
    data = io.BytesIO()
    picture(rows).save(data, format="PNG")
    files.write_bytes(files.join(folder, "comparison.png"), data.getbuffer())


if __name__ == "__main__":
    launch.run("compare_samplers", __doc__, GROUPS, launch.alone(main), OVERRIDES)
