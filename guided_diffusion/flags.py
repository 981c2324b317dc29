"""Command-line flags from dataclasses: the group that uses a value defines its flag, once.

A field made by `flag` is a flag; `parse` turns a command line into one object per group. Values are
written as published: `--learn_sigma True`, underscores, lists with commas.
"""

import argparse
import dataclasses
import difflib
from dataclasses import dataclass

from .errors import UserError

TRUE = ("true", "t", "yes", "y", "1")
FALSE = ("false", "f", "no", "n", "0")


def flag(default, help, choices=None, aliases=()):
    """A dataclass field that is a flag of the field's name.

    :param default: its type is the flag's type (bool, int, float or str).
    :param help: one sentence.
    :param choices: the legal values, or None.
    :param aliases: other published spellings, without dashes.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "aliases": tuple(aliases)})


def str2bool(text):
    """True or False of a word such as True, no, 1.

    :raises argparse.ArgumentTypeError: for any other word.
    """
    if isinstance(text, bool):
        return text
    word = text.lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise argparse.ArgumentTypeError("expected True or False")


@dataclass
class Parsed:
    """A parsed command line.

    :ivar groups: {group class: its object}.
    :ivar given: names of the flags that the command line gave.
    :ivar absent: names of the fields that are no flags of this script.
    """

    groups: dict
    given: frozenset
    absent: frozenset = frozenset()

    def __getitem__(self, group):
        return self.groups[group]

    def values(self):
        """All flags by name, sorted."""
        merged = {}
        for group in self.groups.values():
            merged.update(dataclasses.asdict(group))
        return {k: v for k, v in sorted(merged.items()) if k not in self.absent}

    def with_values(self, values):
        """The same with some flags replaced: {name: value}; `given` stays."""
        groups = {
            cls: dataclasses.replace(group, **{k: v for k, v in values.items() if k in _names(cls)})
            for cls, group in self.groups.items()
        }
        return Parsed(groups, self.given, self.absent)


def _names(group):
    return {field.name for field in dataclasses.fields(group)}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parser_for(groups, description, overrides=None):
    """An argparse parser for the flags of dataclasses.

    :param overrides: {flag: default} of this script; None as a value takes the flag away.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    overrides = overrides or {}
    seen = set()
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0].rstrip("."))
        for field in dataclasses.fields(group):
            # groups may share a flag, such as the image size of a network and its classifier
            if field.name in seen or overrides.get(field.name, "") is None:
                continue
            seen.add(field.name)
            _add(section, field, overrides.get(field.name, field.default))
    return parser


def _shown(value):
    return repr(value) if value == "" else str(value)


def _add(section, field, default):
    kind = type(field.default)
    choices = field.metadata["choices"]
    legal = "True or False" if kind is bool else ", ".join(map(_shown, choices)) if choices else None
    shown = f"default: {_shown(default)}{'; one of ' + legal if legal else ''}"
    section.add_argument(
        *(f"--{name}" for name in (field.name, *field.metadata["aliases"])),
        dest=field.name,
        type=str2bool if kind is bool else kind,
        choices=choices,
        default=argparse.SUPPRESS,
        metavar=kind.__name__.upper(),
        help=f"{field.metadata['help']} ({shown})".replace("%", "%%"),
    )


def parse(argv, groups, description, overrides=None, fill=None):
    """The Parsed command line.

    :param fill: `(given flags {name: value}, names of all flags) -> {name: value}` of flags that count as given
        where the command line leaves them out, as a preset does; None fills in nothing.
    :raises UserError: one sentence that names the flag; an unknown flag is answered with the nearest.
    """
    parser = parser_for(groups, description, overrides)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0], parser))
    given, overrides = vars(namespace), overrides or {}
    absent = frozenset(k for k, v in overrides.items() if v is None)
    if fill is not None:
        given = fill(given, set().union(*map(_names, groups)) - absent) | given
    values = {k: v for k, v in overrides.items() if v is not None} | given
    made = {group: group(**{k: v for k, v in values.items() if k in _names(group)}) for group in groups}
    return Parsed(made, frozenset(given), absent)


def _unknown(argument, parser):
    if not argument.startswith("-"):
        return f"{argument!r} does not belong to any flag; flags are written --name value"
    name = argument.split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{name} is not a flag of this script" + (
        f"; did you mean {nearest[0]}?" if nearest else "; --help lists all"
    )


def int_list(text, name):
    """The integers of "32,16,8"; "" is an empty list.

    :param name: of the flag, for the error.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--{name} is {text!r}; expected numbers such as 32,16,8") from None
