"""What each script hands to launch.run, found without running its body."""

import runpy
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from guided_diffusion import launch

FOLDER = Path(__file__).parents[1] / "scripts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


class Script(NamedTuple):
    name: str
    description: str
    groups: list
    overrides: dict


def read(name):
    """The Script called `name`; RunFlags is among its groups, as launch.run adds them."""
    found = []

    def run(name, description, groups, body, overrides=None, argv=None):
        found.append(Script(name, description, [*groups, launch.RunFlags], overrides or {}))

    with mock.patch.object(launch, "run", run), mock.patch.object(sys, "path", [str(FOLDER), *sys.path]):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    (script,) = found
    return script
