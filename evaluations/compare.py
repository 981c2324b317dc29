"""List what differs between two reports of evaluator.py --json: first what decides the scores, then the scores.

python evaluations/compare.py a.json b.json
"""

import json
import sys
from dataclasses import dataclass

from guided_diffusion import files, flags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag


@dataclass
class CompareFlags(FlagGroup):
    """The reports."""

    first: str = flag("", "Report of evaluator.py --json.")
    second: str = flag("", "The other report.")


def read_report(path, name):
    """{dotted name: value} of the report that --`name` names."""
    if not path:
        raise UserError(f"--{name} is not given; expected a report of evaluator.py --json")
    try:
        report = json.loads(files.read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--{name} {path} cannot be read as JSON ({error})") from error
    if not isinstance(report, dict) or "scores" not in report:
        raise UserError(f"--{name} {path} is no report of evaluator.py --json: it has no scores")
    return dict(_flat(report))


def _flat(report, prefix=""):
    for key, value in report.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(first, second):
    """(name, value, other value) of all that differs between two flat reports; scores come last, paths not at all.

    A value that one report lacks is "-".
    """
    names = sorted({*first, *second}, key=lambda name: (name.startswith("scores."), name))
    rows = ((name, first.get(name, "-"), second.get(name, "-")) for name in names if not name.endswith(".path"))
    return [row for row in rows if row[1] != row[2]]


def main(argv):
    chosen = flags.parse(argv, [CompareFlags], __doc__, positional=("first", "second"))[CompareFlags]
    rows = differences(read_report(chosen.first, "first"), read_report(chosen.second, "second"))
    for name, value, other in rows:
        change = f" ({other - value:+.6g})" if name.startswith("scores.") and "-" not in (value, other) else ""
        print(f"{name}: {value} -> {other}{change}")
    if not rows:
        print("the reports differ in nothing")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(2)
