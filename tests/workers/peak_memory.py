"""Runs the script in the first argument with the others, and prints the most memory that it had."""

import resource
import runpy
import sys

path = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(path, run_name="__main__")
print(f"peak MB: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}")
