"""Run several scripts, one after the other, on the ranks of one job: FILE is a JSON list of [name, flag, ...]."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import script_runs

for command in json.loads(Path(sys.argv[1]).read_text()):
    script_runs.run(*command)
