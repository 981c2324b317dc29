"""Run scripts/NAME.py with the papers of tests/papers.py in the tables, a line each: NAME FLAGS..."""

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import papers  # noqa: E402

from guided_diffusion.conditioning import CONDITIONINGS  # noqa: E402
from guided_diffusion.methods import STACK  # noqa: E402
from guided_diffusion.networks import NETWORKS  # noqa: E402
from guided_diffusion.solvers import SOLVERS  # noqa: E402

SOLVERS["lazy"] = papers.Lazy
STACK += [papers.Dimmed, papers.Late, papers.Pulled, papers.Slowed]
CONDITIONINGS.append(papers.Brightness)
NETWORKS["diffusion"] = papers.BRIGHT
sys.argv = sys.argv[1:]
sys.path.insert(0, str(TESTS.parent / "scripts"))
runpy.run_path(str(TESTS.parent / "scripts" / f"{sys.argv[0]}.py"), run_name="__main__")
