"""Gradients of an unrolled objective on this rank's images; then scripts/inpaint_train.py with the flags given.

FOLDER FLAGS...: rank R saves FOLDER/R.pt, the gradients that all ranks are given, and those of its images alone.
"""

import runpy
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from unrolling import made, seed, told  # noqa: E402

from guided_diffusion import dist_util  # noqa: E402

folder, *words = sys.argv[1:]
dist_util.setup_dist("cpu")
objective, model = made()
rank = dist_util.rank()
for name, network in (("own", model), ("all", dist_util.data_parallel(model))):
    seed(rank)
    model.zero_grad()
    objective(network, *told(2, rank)).value.mean().backward()
    torch.save([p.grad for p in model.parameters()], Path(folder, f"{name}{rank}.pt"))
dist_util.cleanup()
sys.argv = ["inpaint_train", *words]
runpy.run_path(str(TESTS.parent / "scripts" / "inpaint_train.py"), run_name="__main__")
