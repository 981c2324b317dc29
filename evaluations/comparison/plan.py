"""The plan of a comparison: what each sampler may spend, and the steps that it takes for that."""

import contextlib
from bisect import bisect_right
from functools import cache, partial
from typing import NamedTuple

import torch

from guided_diffusion import checkpoints, conditioning, methods, process
from guided_diffusion.conditioning.classes import class_count
from guided_diffusion.errors import UserError
from guided_diffusion.flags import int_list
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.spacing import NoSuchGrid

from .settings import measured, named


class Budget(NamedTuple):
    """What all samplers of a column of the table may spend: so many of --steps, or of --calls."""

    count: int
    unit: str

    def __str__(self):
        return f"{self.count} {self.unit}"


def budgets(flags, given):
    """The Budgets of --steps or --calls, in the order given.

    :param flags: SettingsFlags.
    :param given: names of the flags of the command line.
    """
    unit = "calls" if flags.calls else "steps"
    if flags.calls and "steps" in given:
        raise UserError(f"--calls {flags.calls} contradicts --steps {flags.steps}; expected one of the two")
    text = getattr(flags, unit)
    counts = int_list(text, unit)
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise UserError(f"--{unit} is {text!r}; expected different numbers of {unit} from 1 on, such as 5,10,20")
    return [Budget(count, unit) for count in counts]


def make_plan(settings, columns):
    """{(Budget, name): number of steps}, once every setting is parsed and its process built.

    So a mistake in the last does not wait for the others' images. A process has to have as many steps as are
    planned.

    :param settings: Settings.
    :param columns: the Budgets.
    """
    planned = {}
    for budget in columns:
        known = {}
        for name in settings.lines:
            parse = partial(settings.parse, name, budget=budget, known=known)
            with named(name):
                steps = steps_within(budget, parse)
                parsed = parse(steps)
                kept = len(process_of(parsed).grid)
                if kept != steps:
                    raise UserError(
                        f"--timestep_respacing {parsed[DiffusionFlags].timestep_respacing} keeps {kept} timesteps "
                        f"where --{budget.unit} has {budget.count}; expected {{N}} in it, such as ddim{{N}}"
                    )
            known[name] = measured(parsed)
            planned[budget, name] = steps
    return planned


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
                return calls_of(methods.uncoupled(parse(fewer))), fewer
        return 0, 0

    def calls(steps):
        return tried(steps)[0]

    # whether a coupling fits the solver is to be asked of the steps that are taken in the end, and it changes the
    # calls of a step only where it moves that across nearly pure noise, or its target to the data
    whole = methods.uncoupled(parse(1)).with_values({"timestep_respacing": ""})
    most = min(budget.count, len(process_of(whole).grid))
    if calls(most) <= budget.count:
        return tried(most)[1]
    steps = tried(bisect_right(range(most), budget.count, key=calls) - 1)[1]
    if not steps:
        fewest = next(filter(None, map(calls, range(1, most + 1))))
        raise UserError(f"it takes {fewest} network calls in its shortest form, where --calls has {budget.count}")
    return steps


def process_of(parsed):
    """The Process of a sampler, without its network and without a word in the log.

    :raises UserError: for flags that exclude each other, or what the checkpoint has.
    """
    parsed = checkpoints.resolved(parsed, log=False)
    made = process.of_flags(parsed)
    made.denoiser(*_stand_in(parsed, made))
    return made


def _stand_in(parsed, made):
    """(a network that predicts zeros, what it is told of one image) for resolved Parsed flags and their Process."""
    factor = 2 if made.var_type.is_learned else 1

    def zeros(x, t, **cond):
        return x.new_zeros(len(x), factor * x.shape[1], *x.shape[2:])

    found = checkpoints.of_others(parsed)
    zeros.needs = found.needs if found is not None else ()
    told = conditioning.of_sampling(parsed).of_indices(IndexedNoise(0, [0]), [0])
    if class_count(parsed) is not None:  # those of images, where no flag says which
        told.setdefault("y", torch.tensor([0]))
    return zeros, told


def calls_of(parsed):
    """Network calls per image of a sampler, counted on one small image and a network that predicts zeros."""
    made, parsed = process_of(parsed), checkpoints.resolved(parsed, log=False)
    x = torch.zeros(1, parsed[UNetFlags].image_channels, 2, 2)
    for _ in made.sample_records(made.solver, made.denoiser(*_stand_in(parsed, made)), x):
        pass
    return made.network_calls
