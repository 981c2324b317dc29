"""dying.py RANK [raise]: that rank is killed, or raises, while the others wait for it."""

import os
import signal
import sys
import tempfile

from guided_diffusion import dist_util
from guided_diffusion.jobs import launch

VICTIM, HOW = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "kill"


def main(parsed):
    dist_util.barrier()
    if dist_util.rank() == VICTIM:
        if HOW == "raise":
            raise RuntimeError("out of luck")
        os.kill(os.getpid(), signal.SIGKILL)
    dist_util.barrier()


launch.run("dying", "", [], main, argv=["--device", "cpu", "--out_dir", tempfile.mkdtemp()])
