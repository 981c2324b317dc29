"""Run scripts/NAME.py several times: NAME "FLAGS" "FLAGS" ..."""

import runpy
import sys
from pathlib import Path

name, *lines = sys.argv[1:]
path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
sys.path.insert(0, str(path.parent))

from guided_diffusion import dist_util, logger  # noqa: E402

for line in lines:
    sys.argv = [name, *line.split()]
    runpy.run_path(str(path), run_name="__main__")
    logger.reset()
    dist_util.cleanup()
