"""waiting.py FOLDER PART [long]: hold the folder and say so; `long` forks a child: both end with standard input."""

import os
import sys

from guided_diffusion import dist_util
from guided_diffusion.errors import UserError
from guided_diffusion.jobs.folder_lock import locked

dist_util.setup_dist("cpu")
folder, part, *long = sys.argv[1:]
try:
    with locked(folder, part):
        if long and os.fork() == 0:
            os.closerange(1, 3)
            sys.stdin.read()
            os._exit(0)
        if dist_util.is_main():
            print("held", flush=True)
        if long:
            sys.stdin.read()
except UserError as error:
    if dist_util.is_main():
        print(error, flush=True)
    dist_util.cleanup()
    sys.exit(2)
dist_util.cleanup()
