"""What training logs: losses by quartiles of the timesteps, speed, and the time left."""

import contextlib
import re
import time
from numbers import Number

from .. import logger

# seconds without a log line after which a terminal gets one
SILENCE = 30.0
# what a terminal's line has no place for: it is in the files
DETAILS = re.compile(
    r"step|samples|progress|time_left|images_per_second|param_norm|lg_loss_scale|clipped|mse|vb|.*_q[0-3]"
)


def line(row):
    """A row in one line, for a terminal: the step of all, losses and scores, gradient norm, speed, and the time left.

    :param row: {key: number or text}, as a run logs it.
    """
    shown = [f"step {row['progress']}"]
    numbers = {key: value for key, value in row.items() if isinstance(value, Number) and not DETAILS.fullmatch(key)}
    shown += [f"{key} {value:.4g}" for key, value in numbers.items()]
    shown.append(f"{row['images_per_second']:.3g} images/s")
    return "  ".join(shown + ([f"{row['time_left']} left"] if "time_left" in row else []))


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
    :ivar logged: whether there has been a log row.
    :ivar said: when there was a line last.
    """

    def __init__(self, step, last):
        self.start = self.said = time.time()
        self.first_step, self.last = step, last
        self.images = 0
        self.logged = False

    @contextlib.contextmanager
    def stopped(self):
        """The time within it does not count."""
        began = time.time()
        yield
        self.start += time.time() - began

    def silent(self):
        """Whether there has been no line for SILENCE."""
        return time.time() - self.said >= SILENCE

    def read(self, step):
        """{key: value} of the speed so far, and of when the run will end; a line is said with it."""
        self.said = time.time()
        seconds = self.said - self.start
        facts = {"images_per_second": self.images / seconds, "progress": f"{step}/{self.last or 'no end'}"}
        if self.last:
            left = seconds / (step - self.first_step) * (self.last - step)
            facts["time_left"] = f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}"
        return facts
