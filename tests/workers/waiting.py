"""waiting.py FOLDER PART SECONDS: hold the folder, say so, fork a child that outlives this process, and wait."""

import os
import sys
import time

from guided_diffusion import dist_util
from guided_diffusion.errors import UserError
from guided_diffusion.jobs.folder_lock import locked

dist_util.setup_dist("cpu")
folder, part, seconds = sys.argv[1:]
try:
    with locked(folder, part):
        if float(seconds) and os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(30)
            os._exit(0)
        if dist_util.is_main():
            print("held", flush=True)
        time.sleep(float(seconds))
except UserError as error:
    if dist_util.is_main():
        print(error, flush=True)
    dist_util.cleanup()
    sys.exit(2)
dist_util.cleanup()
