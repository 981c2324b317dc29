"""What training logs: losses by quartiles of the timesteps, speed, and the time left."""

import contextlib
import time

from .. import logger


def log_loss_dict(diffusion, ts, losses):
    """Log the mean of each term, and its mean within each quartile of the timesteps.

    :param diffusion: has the `num_timesteps` T: a GaussianDiffusion or an Objective.
    :param ts: int64 [N] in 0..T-1.
    :param losses: {name: [N]}.
    """
    quartiles = (4 * ts // diffusion.num_timesteps).tolist()
    for name, values in losses.items():
        values = values.detach().float()
        logger.logkv_mean(name, values.mean().item())
        for quartile, value in zip(quartiles, values.tolist()):
            logger.logkv_mean(f"{name}_q{quartile}", value)


class Clock:
    """Speed and time left, for log lines, by the time of the steps: scores, previews and checkpoints are left out.

    :param step: after which the run begins.
    :param last: the step at which it ends; None for no end.
    :ivar images: how many images the steps have had; whoever takes a step adds them.
    :ivar logged: whether there has been a log line.
    """

    def __init__(self, step, last):
        self.start, self.first_step, self.last = time.time(), step, last
        self.images = 0
        self.logged = False

    @contextlib.contextmanager
    def stopped(self):
        """The time within it does not count."""
        began = time.time()
        yield
        self.start += time.time() - began

    def log(self, step):
        """Log the speed so far, and when the run will end."""
        seconds = time.time() - self.start
        self.logged = True
        logger.logkv("images_per_second", self.images / seconds)
        logger.logkv("progress", f"{step}/{self.last or 'no end'}")
        if self.last:
            left = seconds / (step - self.first_step) * (self.last - step)
            logger.logkv("time_left", f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}")
