"""README and docs: their commands parse, the small ones run, links lead somewhere, tables name the flags that exist."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import launched
import pytest
import script_runs
import timing
import torch

from guided_diffusion import conditioning, flags, methods
from guided_diffusion.image_datasets import DataFlags
from guided_diffusion.image_files import EXTENSIONS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("", "docs", "datasets", "evaluations")
    for path in sorted((ROOT / folder).glob("*.md"))
}
LAUNCHERS = r"(?:mpirun -n \d+ python|srun -n \d+ python|torchrun --nproc_per_node \d+|python) "
FOLDERS = r"(?:scripts|evaluations|datasets|benchmarks)/"
# what may stand in a bash block beside the commands of this repository
OTHERS = r"pip install|python3? -m (?:venv|pytest)|\. ~/|ruff "


def blocks(text, language):
    """(the line above, the content) of the fenced blocks of a language."""
    return re.findall(rf"([^\n]*)\n```{language}\n(.*?)```", text, re.S)


def commands_of(text):
    """The commands in the bash blocks of a page, with their launchers and without remarks."""
    joined = "\n".join(block for _, block in blocks(text, "bash")).replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in joined.splitlines()]
    return [command.strip() for line in lines for command in line.split("&&") if command.strip()]


ALL = [(page, command) for page, text in PAGES.items() for command in commands_of(text)]
OURS = sorted({command for _, command in ALL if re.match(LAUNCHERS + FOLDERS, command)})
SMALL = [
    command
    for command in OURS
    if "scripts/" in command and "models/" in command and re.search("--num_samples 1[06] ", command)
]


def words_of(command):
    """(the script's path, its arguments) of a command with its launcher."""
    script, *arguments = shlex.split(re.sub("^" + LAUNCHERS, "", command))
    return script, arguments


class Parsed(Exception):
    """Ends a script once argparse has accepted its arguments."""


def parse_by_argparse(path, arguments):
    """Run a script up to the end of its argparse; a refused argument ends it with SystemExit."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *given):
        original(self, *given)
        raise Parsed

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        mock.patch.object(timing, "device", torch.device),  # a GPU need not be here
        mock.patch.object(sys, "argv", [str(path), *arguments]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        pytest.raises(Parsed),
    ):
        runpy.run_path(str(path), run_name="__main__")


def test_every_command_was_recognised():
    strange = [f"{page}: {command}" for page, command in ALL if command not in OURS and not re.match(OTHERS, command)]
    assert not strange
    assert len(OURS) > 30 and len(SMALL) > 8
    assert all(commands_of(PAGES[f"docs/{name}.md"]) for name in ("training", "sampling", "solvers", "evaluation"))


@pytest.mark.parametrize("command", OURS)
def test_commands_parse(command):
    script, arguments = words_of(command)
    path = ROOT / script
    if path.parent.name in ("datasets", "benchmarks"):
        parse_by_argparse(path, arguments)
    elif path.stem == "compare":
        groups = [runpy.run_path(str(path))["CompareFlags"]]
        assert flags.parse(arguments, groups, "", positional=("first", "second")).given == {"first", "second"}
    else:
        found = launched.read(path.stem)
        given = flags.parse(arguments, found.groups, "", found.overrides, positional=found.positional).given
        spelt = {a for a in arguments if a.startswith("--")} - {"--" + flag for flag in found.positional}
        assert spelt == {"--" + flag for flag in given - set(found.positional)}


def test_a_mistyped_flag_is_refused():
    for script in ("datasets/digits.py", "benchmarks/plot_training.py"):
        with pytest.raises(SystemExit):
            parse_by_argparse(ROOT / script, ["--out_dri", "x"])


@pytest.mark.parametrize("command", SMALL)
def test_small_commands_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, arguments = words_of(command)
    steps = arguments.index("--timestep_respacing") + 1
    arguments[steps] = {"ddim10": "ddim5"}.get(arguments[steps], "5")
    script_runs.run(Path(script).stem, *arguments, "--out_dir", tmp_path)
    assert list(tmp_path.glob("samples_*.npz")) and list(tmp_path.glob("samples_*.png"))


PYTHON = [(page, above, code) for page, text in PAGES.items() for above, code in blocks(text, "python")]


@pytest.mark.parametrize(("page", "above", "code"), PYTHON, ids=[f"{page}-{i}" for i, (page, *_) in enumerate(PYTHON)])
def test_python_runs(page, above, code, monkeypatch):
    """Every block compiles; those below the line <!-- run --> run, from the root of the repository."""
    compiled = compile(code, page, "exec")
    if above == "<!-- run -->":
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(methods, "STACK", [*methods.STACK])
        monkeypatch.setattr(conditioning, "CONDITIONINGS", [*conditioning.CONDITIONINGS])
        module = ModuleType("block")  # dataclasses ask for their module
        monkeypatch.setitem(sys.modules, "block", module)
        made = vars(module)
        exec(compiled, made)
        if page == "README.md":
            assert made["images"].shape == (16, 16, 16, 1) and made["images"].dtype == "uint8"


def test_the_python_of_the_readme_is_run():
    assert [above for page, above, _ in PYTHON if page == "README.md"] == ["<!-- run -->"]


def test_readme_is_short():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 150 and len(readme.split()) <= 1500


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_readme_and_help_name_every_format_that_is_read(ending):
    (shown,) = (field.metadata["help"] for field in flags.flags_of(DataFlags) if field.name == "data_dir")
    assert re.search(rf"\b{ending}\b", PAGES["README.md"]) and re.search(rf"\b{ending}\b", shown)


def test_readme_names_every_page_of_the_docs():
    missing = [page for page in PAGES if page.startswith("docs/") and f"({page})" not in PAGES["README.md"]]
    assert not missing


def test_every_paper_of_the_readme_is_cited():
    cited = (ROOT / "CITATION.cff").read_text()
    papers = re.findall(r"https://arxiv\.org/abs/[\d.]+", PAGES["README.md"])
    assert len(papers) >= 14 and [paper for paper in papers if paper not in cited] == []


@pytest.mark.parametrize("name", [*launched.NAMES, *launched.EVALUATIONS])
def test_the_tables_name_every_flag(name):
    script, table = launched.read(name), PAGES["docs/flags.md"]
    for group in script.groups:
        for field in flags.flags_of(group):
            names = [field.name, *field.metadata["aliases"]]
            assert all(re.search(rf"--{flag}\b", table) for flag in names), names


def test_pages_name_no_flag_that_is_not_there():
    known = {"nproc_per_node", "help", "flag", "check"}
    known |= {"nodes", "ntasks", "gpus", "time", "signal", "open"}  # of SLURM
    for folder in ("datasets", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            known |= set(re.findall(r'"--(\w+)"', path.read_text()))
    for name in [*launched.NAMES, *launched.EVALUATIONS]:
        for group in launched.read(name).groups:
            for field in flags.flags_of(group):
                known |= {field.name, *field.metadata["aliases"]}
    for page, text in PAGES.items():
        strange = set(re.findall(r"--(\w+)", text)) - known
        assert not strange, (page, strange)


def anchors_of(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_pictures_are_there():
    for page, text in PAGES.items():
        for target in re.findall(r'\]\(([^)\s]+)\)|<img src="([^"]+)"', text):
            path, _, anchor = "".join(target).partition("#")
            if path.startswith("https://"):
                continue
            place = (ROOT / page).parent / path if path else ROOT / page
            assert place.exists(), (page, path)
            assert not anchor or anchor in anchors_of(place.read_text()), (page, anchor)


def test_paths_in_the_pages_are_there():
    """Files of the repository that stand between backquotes."""
    for page, text in PAGES.items():
        for path in re.findall(r"`((?:guided_diffusion|tests|benchmarks|evaluations|scripts|models)/[\w./]*)`", text):
            assert (ROOT / path).exists(), (page, path)
