"""The settings of a comparison: a text file with a line NAME: FLAGS for each sampler, and placeholders in the flags."""

import contextlib
import itertools
import re
from dataclasses import dataclass, replace

from guided_diffusion import checkpoints, files, flags, methods
from guided_diffusion.errors import UserError
from guided_diffusion.flags import THREADS, FlagGroup, at_least, flag

# what all samplers of a comparison share
COMMON = ("num_samples", "batch_size", "seed", "per_class")
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
SWEEP = re.compile(r"\{sweep ([^{}]*)\}")
# COUNT:VALUE COUNT:VALUE
BY_BUDGET = re.compile(r"\s*\d+:\S+(\s+\d+:\S+)*\s*")
# a flag whose value is {word NAME}
MEASURED = re.compile(r"--(\w+)[\s=]+\{\s*(\w+)\s+[^{}]*\}")


@dataclass
class SettingsFlags(FlagGroup):
    """The samplers."""

    settings: str = flag("", "Text file with a line NAME: FLAGS for each sampler.", essential="settings")
    steps: str = flag("10,20", "Numbers of steps, such as 5,10,20.", essential="steps")
    calls: str = flag("", "Network calls per image, such as 5,10,20, in place of --steps.")


@dataclass
class CompareFlags(FlagGroup):
    """The comparison."""

    repeats: int = flag(
        3,
        "Sets of images for each sampler, from the seeds --seed, --seed + 1 and so on.",
        legal=at_least(2, THREADS),
    )
    reference: str = flag("", "Real images: an npz with arr_0 (uint8 [N, H, W, 3]) or a folder.", essential="reference")
    columns: int = flag(
        8, "Images of each sampler in the picture, at each number of steps or calls.", legal=at_least(1, THREADS)
    )
    precision_recall: bool = flag(
        False, "Precision and recall of each set too; the features of all real images are kept in memory."
    )
    judge: str = flag(
        "", "Checkpoint of a classifier, not of a guiding one, that says how many images are of their class."
    )


@dataclass(frozen=True)
class Settings:
    """The samplers to compare.

    :ivar lines: {name: flags as one text}.
    :ivar groups: the flag groups that a line may set, but for COMMON.
    :ivar shared: the Parsed command line, on top of which the lines are.
    """

    lines: dict
    groups: list
    shared: flags.Parsed

    def parse(self, name, steps, budget, known):
        """The Parsed flags of one sampler in so many steps.

        :param budget: the Budget that it may spend.
        :param known: {name: {word: number}} of the samplers before it, for the placeholders {word NAME}.
        :raises UserError: for a mistake in the flags.
        """
        shared, text = self.shared, self.lines[name]
        common = {k: v for k, v in shared.values().items() if k in shared.given or k in COMMON}

        def fill(given, legal):
            for taken in COMMON:
                if taken in given:
                    raise UserError(f"--{taken} is for the command line, since all samplers share it")
            grid = fill_in(common.get("timestep_respacing", "{N}"), steps, budget, known)
            return {k: v for k, v in common.items() if k in legal} | {"timestep_respacing": grid}

        arguments = flags.words_of(fill_in(text, steps, budget, known))
        if "--help" in arguments or "-h" in arguments:
            raise UserError("--help is for the command line")
        parsed = _without_a_classifier(flags.parse(arguments, self.groups, name, fill=fill))
        return methods.settled(parsed, {match[1] for match in MEASURED.finditer(text) if match[2] in methods.words()})


def _without_a_classifier(parsed):
    """The Parsed flags without those of guidance where no classifier is named."""
    if parsed.values().get("classifier_path"):
        return parsed
    kept = replace(parsed, groups={k: made for k, made in parsed.groups.items() if k not in checkpoints.GUIDANCE})
    stray = parsed.given - kept.values().keys()
    if stray:
        raise UserError(f"--{min(stray)} is for guidance; expected --classifier_path beside it")
    return kept


def read_settings(path):
    """{name: flags as one text} of a settings file; empty lines and lines that begin with # do not count.

    A line with {sweep A,B,C} stands for one with each of the values, called NAME A, NAME B, NAME C.
    """
    try:
        lines = files.read_text(path).removeprefix("\ufeff").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--settings {path} cannot be read: {error}") from error
    settings = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, text = (part.strip() for part in line.partition(":"))
        if not (name and colon):
            raise UserError(f"--settings {path}, line {number} is {line.strip()!r}; expected NAME: FLAGS")
        for each, flags_of_it in swept(name, text):
            if "|" in each:
                raise UserError(f"--settings {path}, line {number} has a | in its name, which a table cannot show")
            if each in settings:
                raise UserError(f"--settings {path}, line {number} has the name {each!r} a second time")
            settings[each] = flags_of_it
    if not settings:
        raise UserError(f"--settings {path} has no line NAME: FLAGS")
    return settings


def swept(name, text):
    """(name, flags) of each combination of the values of {sweep A,B,C} in the flags of a line."""
    values = [match[1].replace(",", " ").split() for match in SWEEP.finditer(text)]
    if not all(values):
        raise UserError(f"setting {name!r}: {{sweep}} has no values; expected such as {{sweep 0,0.5,1}}")
    for chosen in itertools.product(*values):
        left = iter(chosen)
        yield " ".join([name, *chosen]), SWEEP.sub(lambda _, left=left: next(left), text)


def fill_in(text, steps, budget, known):
    """The flags of a setting with its placeholders replaced, as `Settings.parse` has them."""

    def value(match):
        word, _, name = match[1].strip().partition(" ")
        if match[1] == "N":
            return str(steps)
        number = known.get(name.strip(), {}).get(word)
        if number is not None:
            return str(round(number))
        by_budget = BY_BUDGET.fullmatch(match[1]) and [part.split(":", 1) for part in match[1].split()]
        if by_budget and len(dict(by_budget)) < len(by_budget):
            raise UserError(f"{match[0]} has a number of {budget.unit} twice; expected each once")
        if by_budget and str(budget.count) in dict(by_budget):
            return dict(by_budget)[str(budget.count)]
        raise UserError(
            f"{match[0]} says nothing at {budget}; expected {{N}}, {{5:80 10:40}} with all of --{budget.unit}, or "
            + " or ".join(f"{{{word} NAME}}" for word in methods.words())
            + " of a line above that measures it"
        )

    return PLACEHOLDER.sub(value, text)


def measured(parsed, row=None):
    """{word: number} that {word NAME} stands for in the lines after a sampler's.

    :param row: of the sampler; without one, as nothing is measured yet, each number is taken for 1.
    """
    measuring = [method for method in methods.chosen(parsed) if method.measures]
    found = {word: column for method in measuring for word, column in method.words.items()}
    # what moved nothing has a control that moves nothing
    return {word: 1 if row is None else row.findings[column] or 0 for word, column in found.items()}


@contextlib.contextmanager
def named(setting):
    """Put the setting's name before a mistake in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"setting {setting!r}: {error}") from error
