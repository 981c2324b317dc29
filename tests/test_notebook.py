"""The notebook of docs: it is one, its links lead somewhere, and its cells run in their order."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = json.loads((DOCS / "exposure_bias.ipynb").read_text())


def cells(kind):
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def test_it_is_a_notebook_that_was_run():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"]) > 10
    run = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in run] == [*range(1, len(run) + 1)]
    outputs = [output for cell in run for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4


def test_its_cells_compile_and_its_links_lead_somewhere():
    for code in cells("code"):
        compile(code, "cell", "exec")
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(cells("markdown"))):
        assert (DOCS / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_cells_run():
    """From docs/, as a reader opens it; one asserts that the shifted states are nearer in variance to true ones."""
    env = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DOCS.parent)}
    words = [sys.executable, "-W", "ignore", "-c", "\n\n".join(cells("code"))]
    done = subprocess.run(words, cwd=DOCS, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "search in the data's variance" in done.stdout and "Frechet distance of 200 images" in done.stdout
