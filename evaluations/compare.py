"""List what differs between two reports of evaluator.py --json: first what decides the scores, then the scores.

python evaluations/compare.py a.json b.json
"""

import sys
from dataclasses import dataclass

from guided_diffusion import files, flags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import FlagGroup, flag
from guided_diffusion.jobs.terminal import lasting


@dataclass
class CompareFlags(FlagGroup):
    """The reports."""

    first: str = flag("", "Report of evaluator.py --json.")
    second: str = flag("", "The other report.")


def read_report(path, name):
    """The report that --`name` names, as JSON has it."""
    if not path:
        raise UserError(f"--{name} is not given; expected a report of evaluator.py --json")
    try:
        report = files.read_json(path, "a report of evaluator.py --json")
    except (OSError, UserError) as error:
        raise UserError(f"--{name} {path} cannot be read ({error})") from error
    if isinstance(report, dict) and isinstance(report.get("runs"), list):
        raise UserError(f"--{name} {path} has the reports of {len(report['runs'])} runs; expected that of one alone")
    if not isinstance(report, dict) or not isinstance(report.get("scores"), dict):
        raise UserError(f"--{name} {path} is no report of evaluator.py --json: it has no scores")
    if wrong := [key for key, value in report["scores"].items() if not isinstance(value, (int, float))]:
        raise UserError(f"--{name} {path} is no report of evaluator.py --json: {wrong[0]} is no number")
    return report


def differences(first, second):
    """(dotted name, value, other value) of all that differs between two reports; scores come last.

    What one report lacks is "-", and a whole group opposite to it "given". Of a group with the same sha256 in both
    reports, neither the path nor the name differs.
    """
    return sorted(_rows(first, second), key=lambda row: (row[0].startswith("scores."), row[0]))


def _rows(first, second, prefix=""):
    same = "sha256" in first and first["sha256"] == second.get("sha256")
    for key in first.keys() | second.keys():
        value, other = first.get(key, "-"), second.get(key, "-")
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _rows(value, other, f"{prefix}{key}.")
        elif key != "path" and value != other and not (same and key == "name"):
            yield prefix + key, _shown(value), _shown(other)


def _shown(value):
    return "given" if isinstance(value, dict) else value


def main(argv):
    chosen = flags.parse(argv, [CompareFlags], __doc__, positional=("first", "second"))[CompareFlags]
    rows = differences(read_report(chosen.first, "first"), read_report(chosen.second, "second"))
    for name, value, other in rows:
        change = f" ({other - value:+.6g})" if name.startswith("scores.") and "-" not in (value, other) else ""
        print(f"{name}: {value} -> {other}{change}")
    if not rows:
        print("the reports differ in nothing")


if __name__ == "__main__":
    with lasting():
        try:
            main(sys.argv[1:])
        except UserError as error:
            print(f"compare: {error}", file=sys.stderr)
            sys.exit(2)
