"""measured.py SCRIPT FLAGS...: run a script and say how much memory its process took at most."""

import os
import resource
import runpy
import sys

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
os.write(1, f"rank {os.environ['PMI_RANK']} peaked at {peak} kB\n".encode())
