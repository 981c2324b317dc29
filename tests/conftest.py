"""Lets tests import the helpers beside them and benchmarks; keeps torch to one thread, fastest for small tensors.

A job in the background of a shell begins with Ctrl-C ignored, and so would all it starts; tests send that signal.
"""

import os
import signal
import sys
from pathlib import Path

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # it is read as huggingface_hub is imported

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "benchmarks")]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
signal.signal(signal.SIGINT, signal.default_int_handler)
