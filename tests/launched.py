"""What each script hands to launch.run, found without running its body."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from guided_diffusion.jobs import launch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scripts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
EVALUATIONS = ["classifier_accuracy", "evaluator", "grain", "make_reference", "nearest"]


class Script(NamedTuple):
    name: str
    description: str
    groups: list
    overrides: dict
    positional: tuple
    body: Callable


def read(name):
    """The Script called `name`; RunFlags is among its groups, as launch.run adds them."""
    found = []
    folder = ROOT / "evaluations" if name in EVALUATIONS else FOLDER

    def run(name, description, groups, body, overrides=None, argv=None, positional=()):
        found.append(Script(name, description, [*groups, launch.RunFlags], overrides or {}, positional, body))

    with mock.patch.object(launch, "run", run), mock.patch.object(sys, "path", [str(folder), *sys.path]):
        runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
    (script,) = found
    return script
