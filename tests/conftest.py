"""Lets tests import each other's helpers and benchmarks; keeps torch to one thread, fastest for small tensors."""

import os
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "benchmarks")]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
