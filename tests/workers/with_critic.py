"""Run scripts/NAME.py with the objective of tests/critic.py in the table: NAME FLAGS..."""

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import critic  # noqa: E402

from guided_diffusion.objectives import OBJECTIVES  # noqa: E402

OBJECTIVES["critic"] = critic.Critic
sys.argv = sys.argv[1:]
runpy.run_path(str(TESTS.parent / "scripts" / f"{sys.argv[0]}.py"), run_name="__main__")
