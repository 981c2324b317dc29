"""A sampler's flags from measurements of it: proposals of its methods, and, if asked for, a trial of each.

A method proposes its own flags (`Method.propose`); this asks all of them, and says what came of it.
"""

from dataclasses import dataclass
from typing import NamedTuple

from evaluations.batches import images_of_dataset
from evaluations.features import KINDS, FeatureFlags
from guided_diffusion import checkpoints, dist_util, files, flags, logger, methods, presets, process
from guided_diffusion.errors import NotFinite, UserError
from guided_diffusion.flags import IMAGES, FlagGroup, Legal, flag
from guided_diffusion.jobs import launch
from guided_diffusion.process import SpacingFlags
from guided_diffusion.solvers.flags import SolverFlags

from . import tuning_tables
from .measures import MEASURES, Lengths
from .real import open_real
from .refine import FEWEST, Trial, tried
from .sampler import Opened

IDENTITY = "as it is"


@dataclass
class TuneFlags(FlagGroup):
    """The tuning."""

    refine: int = flag(
        0,
        "Images of each proposal, and of its neighbours, that are made and compared by --features; 0 compares none.",
        legal=Legal(f"0 or at least {FEWEST}, at most {IMAGES}", lambda value: value == 0 or FEWEST <= value <= IMAGES),
    )


class Candidate(NamedTuple):
    """A sampler that may be chosen.

    :ivar name: of the proposal.
    :ivar method: the class that proposed it; "" for the sampler as it is.
    :ivar values: {flag: value} that it changes in the sampler.
    :ivar numbers: {word: (number, its standard error)} behind it.
    :ivar near: it is a neighbour of a proposal.
    :ivar trial: its Trial; None where none was asked for.
    """

    name: str
    method: str
    values: dict
    numbers: dict
    near: bool
    trial: Trial | None = None


class Tuning(NamedTuple):
    """What became of a tuning.

    :ivar candidates: Candidates, the first of which is the sampler as it is.
    :ivar results: {sampler: {measure: {curve: Curve}, "times": [S]}} of what was measured.
    :ivar chosen: the Candidate to sample with.
    :ivar preset: the Preset of that sampler.
    """

    candidates: list
    results: dict
    chosen: Candidate
    preset: presets.Preset

    def save(self, folder):
        """Write tuning.csv, tuning.md, tuning.png and preset.json to a folder."""
        presets.write(files.join(folder, "preset.json"), self.preset)
        tuning_tables.save(self.candidates, self.results, self.chosen, folder)


def tune(parsed):
    """Measure a sampler, and write what became of it.

    :param parsed: the Parsed command line, with TuneFlags, DataFlags and FeatureFlags.
    """
    refuse_without_features(parsed)
    parsed, network, made = checkpoints.load_diffusion(parsed)
    real = open_real(parsed, network)
    if not launch.announce(parsed):
        return
    found = tuning_of(parsed, network, made, real)
    if dist_util.is_main():
        folder = logger.get_dir()
        found.save(folder)
        logger.log("\n" + tuning_tables.markdown(found.candidates))
        logger.log(f"chosen: {found.chosen.name} ({found.preset.score})")
        logger.log("flags: " + _pasted(found.preset.flags))
        logger.log(f"saved preset.json, tuning.csv, tuning.md and the figure in {folder}")


def refuse_without_features(parsed):
    """Validate that a trial of images is told what to compare them by, and nothing else is."""
    count, of_trials = parsed[TuneFlags].refine, {field.name for field in flags.flags_of(FeatureFlags)}
    if count and "features" not in parsed.given:
        raise UserError(f"--refine {count} compares features of images; expected --features {KINDS}")
    if not count and (unread := sorted(of_trials & parsed.given)):
        logger.warn(f"--{unread[0]} does nothing without --refine")


def tuning_of(parsed, network, made, real):
    """The Tuning of a sampler, on every rank.

    :param parsed: its resolved Parsed flags.
    :param made: the Process of those.
    :param real: RealImages.
    """
    results, count, extract = {}, parsed[TuneFlags].refine, None
    if count:  # a network that does not fit is refused before anything is measured
        extract = parsed[FeatureFlags].create()
        extract.dimensions(images_of_dataset(real.dataset, "data_dir", range(1)))
        for place in range(len(real.dataset)):  # all are the reference
            real.expect_own(place)
    candidates = [
        Candidate(IDENTITY, "", {}, {}, False),
        *_candidates(parsed, made, _prober(parsed, network, real, results), results),
    ]
    if count:
        trials = tried(
            [(c.name, parsed.with_values(c.values)) for c in candidates], network, real.dataset, extract, count
        )
        candidates = [c._replace(trial=trial) for c, trial in zip(candidates, trials)]
    chosen = choice(candidates)
    preset = presets.Preset(_sampler_flags(parsed.with_values(chosen.values)), _reason(chosen, candidates))
    return Tuning(candidates, results, chosen, preset)


def choice(candidates):
    """The Candidate to sample with: of those tried the one of the largest gain, if that is above two standard errors.

    Without trials it is the proposal of fewest flags.
    """
    identity, *others = candidates
    if identity.trial is None:
        return min((c for c in others if not c.near), key=lambda c: len(c.values), default=identity)
    better = [c for c in others if c.trial.gain > 2 * c.trial.gain_error]
    return max(better, key=lambda c: c.trial.gain, default=identity)


def _reason(chosen, candidates):
    if candidates[0].trial is None:
        return "by measurement alone, no images compared" if chosen.values else "nothing was proposed"
    if chosen.values:
        trial = chosen.trial
        return f"Frechet distance {trial.distance:.4g}, {trial.gain:.3g} ± {trial.gain_error:.2g} below {IDENTITY}"
    return f"no gain above two standard errors, in {len(candidates) - 1} trials"


def _candidates(parsed, made, probe, results):
    """The Candidates that the methods of a Process propose, each of which makes a Process of its own.

    :param results: what the probes have measured so far.
    :raises UserError: for a sampler of which nothing can be measured; what a proposal excludes is a warning.
    """
    now = parsed.values()
    for method in made.methods:
        try:
            for proposal in method.propose(probe):
                process.of_flags(parsed.with_values(proposal.values))
                values = {name: value for name, value in proposal.values.items() if value != now[name]}
                yield Candidate(proposal.name, type(method).__name__, values, proposal.numbers, proposal.near)
        except UserError as error:
            # a sampler that is not finite as it is has nothing to be improved
            if not results or (isinstance(error, NotFinite) and IDENTITY in str(error)):
                raise
            logger.warn(f"{type(method).__name__} proposes no more: {error}")


def _prober(parsed, network, real, results):
    """`(values, *measures) -> Result`, as `Method.propose` is given it; results are kept by their names as well."""
    known = {measure.name: measure for measure in (Lengths(), *MEASURES)}
    opened = Opened.of(parsed, network, real, [])

    def probe(values, *names):
        changed = parsed.with_values(values)
        title = " ".join(f"--{k} {v}" for k, v in values.items() if v != parsed.values()[k]) or IDENTITY
        asked = opened._replace(measures=[known[name] for name in names])
        result = asked.result(title, "", changed, process.of_flags(changed))
        results.setdefault(title, {}).update(result.curves)
        results[title]["times"] = result.times
        return result

    return probe


def _sampler_flags(parsed):
    """{flag: value} of what makes a sampler, where it is not at its default, and of its network, where it was given."""
    groups = [parsed.groups[kind] for kind in (SolverFlags, SpacingFlags) if kind in parsed.groups]
    fields = [(group, field) for group in [*groups, *methods.chosen(parsed)] for field in flags.flags_of(group)]
    values = {
        field.name: getattr(group, field.name) for group, field in fields if getattr(group, field.name) != field.default
    }
    values["timestep_respacing"] = parsed.values()["timestep_respacing"]
    given = parsed.given & checkpoints.described(checkpoints.DIFFUSION)
    return {name: parsed.values()[name] for name in sorted(given)} | values


def _pasted(values):
    return " ".join(f"--{name} {value!r}" if value == "" else f"--{name} {value}" for name, value in values.items())
