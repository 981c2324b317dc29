"""Lets tests import each other's helpers, and keeps torch to one thread, which is fastest for small tensors."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
