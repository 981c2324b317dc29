"""As script_list.py, with the papers of tests/papers.py in the tables, a line each."""

import runpy
import sys
from pathlib import Path

WORKERS = Path(__file__).parent
sys.path.insert(0, str(WORKERS.parent))

import papers  # noqa: E402

from guided_diffusion.conditioning import CONDITIONINGS  # noqa: E402
from guided_diffusion.methods import STACK  # noqa: E402
from guided_diffusion.networks import NETWORKS  # noqa: E402
from guided_diffusion.solvers import SOLVERS  # noqa: E402

SOLVERS["lazy"] = papers.Lazy
STACK += [papers.Dimmed, papers.Late, papers.Pulled, papers.Slowed]
CONDITIONINGS.append(papers.Brightness)
NETWORKS["diffusion"] = papers.BRIGHT
runpy.run_path(str(WORKERS / "script_list.py"), run_name="__main__")
