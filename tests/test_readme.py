"""README: its commands parse, the small ones run, its tables name the flags that exist."""

import dataclasses
import re
import shlex
from pathlib import Path

import launched
import pytest
import script_runs

from guided_diffusion import flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LAUNCHERS = r"(?:mpirun -n \d+ python|torchrun --nproc_per_node \d+|python) (?:scripts|evaluations)/"
COMMANDS = [
    command.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    for command in line.split("&&")
    if ("scripts/" in command or "evaluations/" in command) and "compare.py" not in command
]
SCRIPTS = [re.split(LAUNCHERS, command, maxsplit=1)[1] for command in COMMANDS if re.search(LAUNCHERS, command)]
SMALL = [c for c in SCRIPTS if "models/" in c and ("--num_samples 10 " in c or "--num_samples 16 " in c)]


def test_every_command_with_a_script_was_found():
    assert len(SCRIPTS) == len(COMMANDS) > 10 and len(SMALL) > 3


@pytest.mark.parametrize("command", SCRIPTS)
def test_commands_parse(command):
    name, *arguments = shlex.split(command)
    script = launched.read(name.removesuffix(".py"))
    given = flags.parse(arguments, script.groups, "", script.overrides, positional=script.positional).given
    spelt = {a for a in arguments if a.startswith("--")} - {"--" + flag for flag in script.positional}
    assert spelt == {"--" + flag for flag in given - set(script.positional)}


@pytest.mark.parametrize("command", SMALL)
def test_small_commands_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)
    steps = arguments.index("--timestep_respacing") + 1
    arguments[steps] = {"ddim10": "ddim5"}.get(arguments[steps], "5")
    script_runs.run(name.removesuffix(".py"), *arguments, "--out_dir", tmp_path)
    assert list(tmp_path.glob("samples_*.npz")) and list(tmp_path.glob("samples_*.png"))


@pytest.mark.parametrize("name", [*launched.NAMES, *launched.EVALUATIONS])
def test_the_tables_name_every_flag(name):
    script = launched.read(name)
    for group in script.groups:
        for field in dataclasses.fields(group):
            names = [field.name, *field.metadata["aliases"]]
            assert all(re.search(rf"--{flag}\b", README) for flag in names), names


def test_the_tables_name_no_flag_that_is_not_there():
    known = {"nproc_per_node", "model_type", "data_type", "split", "help", "flag"}
    for name in [*launched.NAMES, *launched.EVALUATIONS]:
        for group in launched.read(name).groups:
            for field in dataclasses.fields(group):
                known |= {field.name, *field.metadata["aliases"]}
    assert set(re.findall(r"--(\w+)", README)) <= known


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
