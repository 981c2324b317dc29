"""Progressive distillation (Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models").

A student learns to do in one step of DDIM what its teacher does in two: algorithm 2 of the paper. ProDiff (Huang et al.
2022, "ProDiff: Progressive Fast Diffusion Model for High-Quality Text-to-Speech") has the same target with an absolute
error, --distill_loss l1 --distill_weight none, and a network that predicts the clean signal, --prediction x0.

| paper | here |
| --- | --- |
| N, steps of the student; 2N of the teacher | `--student_steps`, half of the `grid` |
| t = i / N, t' = t - 0.5 / N, t'' = t - 1 / N | `t`, `middle`, `s`: neighbours in the grid; t'' = 0 is -1 |
| alpha_t, sigma_t | sqrt(alpha_bar), sqrt(1 - alpha_bar) |
| z_t' and z_t'', two steps of DDIM (equation 8, appendix B) | `two_steps` |
| x tilde, of which one step goes from z_t to z_t'' (appendix G) | `implied` |
| w(lambda_t): truncated SNR, SNR + 1 (section 4) | `WEIGHTS` |
| v = alpha_t eps - sigma_t x | --prediction v |

Departures from the paper: time is that of the trained table, so a grid of 2N is the `uniform` one, in which that of N
is every second; the teacher's predicted images are clipped, as its sampler clips them; a student may predict something
else than its teacher, and then learns that in its first round. Departures from ProDiff's release: the student is told
the time that its input lies at, and is sampled by the DDIM that it was distilled for, not by the posterior of another
index. What ProDiff has for spectrograms is not here: structural similarity beside the absolute error, its schedule of
five levels (--noise_schedule vp is near it), and the encoder of text.

Input perturbation reaches the student's input alone; the target is of the unperturbed one.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from ..devices import on_device
from ..errors import UserError
from ..flags import STEPS, FlagGroup, at_least, flag
from ..nn import mean_flat
from ..resample import SamplerFlags
from ..scalars import combined, per_sample
from ..spacing import uniform
from .objective import Loss
from .sampled import SampledObjective
from .teacher import Teacher, TeacherFlags, refuse_eps

# of the signal-to-noise ratio [N] in power
WEIGHTS = {
    "truncated": lambda snr: snr.clamp(min=1),
    "plus_one": lambda snr: snr + 1,
    "none": torch.ones_like,
}
LOSSES = {"l2": torch.square, "l1": torch.abs}


@dataclass
class ProgressiveDistillationFlags(FlagGroup):
    """Progressive distillation (Salimans & Ho 2022)."""

    student_steps: int = flag(
        4, "Steps of the student, of which each is two of its teacher.", legal=at_least(1, STEPS), lasting=True
    )
    distill_weight: str = flag(
        "truncated",
        "Weight of a step by its signal-to-noise ratio: at least 1, that plus 1, or none.",
        tuple(WEIGHTS),
        lasting=True,
    )
    distill_loss: str = flag("l2", "Squared or absolute error of predicted images.", tuple(LOSSES), lasting=True)


class ProgressiveDistillation(SampledObjective):
    """The error of the student's images, against those of which one step is two of the teacher.

    :param diffusion: the GaussianDiffusion of the student.
    :param sampler: a ScheduleSampler over the steps of the student.
    :param teacher: a Teacher.
    :param steps: N of the student.
    :raises UserError: if the student predicts eps, or if there are not so many timesteps.
    """

    flags = (*SampledObjective.flags, TeacherFlags, ProgressiveDistillationFlags)
    trains_variance = False

    def __init__(self, diffusion, sampler, teacher, steps, weight="truncated", loss="l2"):
        super().__init__(diffusion, sampler)
        self.schedule, self.process = diffusion.schedule, diffusion.process
        self.num_timesteps = self.schedule.num_timesteps
        self.teacher = teacher
        self.weight, self.error = WEIGHTS[weight], LOSSES[loss]
        self.grid = grid_of(self.schedule, steps)
        self.timesteps = self.grid[1::2]
        self.sampled_by = {"solver": "ddim", "spacing": "uniform", "timestep_respacing": str(steps)}

    @classmethod
    def create(cls, parsed, diffusion):
        flags = parsed[ProgressiveDistillationFlags]
        refuse_eps(parsed)
        steps = SimpleNamespace(num_timesteps=flags.student_steps)
        made = cls(
            diffusion,
            parsed[SamplerFlags].create(steps),
            Teacher.open(parsed, diffusion),
            flags.student_steps,
            flags.distill_weight,
            flags.distill_loss,
        )
        made.teacher.warn_of(made.grid)
        return made

    def __call__(self, model, x, cond):
        index, weights = self.sampler.sample(len(x), x.device)
        s, middle, t = self._times(index)
        noise = torch.randn_like(x)
        x_t = self.noised(x, noise, t)
        z = two_steps(lambda z, t: self.teacher.predict(z, t, cond), self.schedule, x_t, t, middle, s)
        level, target_level = self.schedule.alpha_bar(t), self.schedule.alpha_bar(s)
        target = implied(x_t, z, level, target_level)
        seen = self.noised(x, *self.process.corruption(noise, t))
        said = self.process.denoiser(model, cond)(seen, t)
        weight = per_sample(self.weight(level / (1 - level)), x)
        loss = mean_flat(weight * self.error(said.x0 - target))
        self.update_sampler(index, loss)
        loss = loss * weights
        return Loss(loss, {"loss": loss}, t)

    def _times(self, index):
        """(s, middle, t) [N] of the student's steps `index` [N]."""
        nodes = on_device([-1, *self.grid], index.device)
        return (nodes[2 * index + i] for i in range(3))


def grid_of(schedule, steps):
    """The 2N increasing timesteps of a teacher whose student has N steps; the student's are every second."""
    if 2 * steps > schedule.num_timesteps:
        raise UserError(
            f"--student_steps {steps} are {2 * steps} of the teacher, which has {schedule.num_timesteps} timesteps; "
            "expected at most half of those"
        )
    return uniform(schedule, 2 * steps)


def two_steps(predict, schedule, x, t, middle, s):
    """x [N, C, ...] at times s after two steps of DDIM, from times t by way of `middle`, each [N].

    :param predict: `(x, t) -> Prediction`.
    """
    for start, end in ((t, middle), (middle, s)):
        level = schedule.alpha_bar(end)
        x = predict(x, start).mixed(level.sqrt(), (1 - level).sqrt())
    return x


def implied(x_t, x_s, level_t, level_s):
    """The image x0 [N, C, ...] of which one step of DDIM goes from x_t to x_s, at levels alpha_bar [N].

    x_s = sqrt(a_s) x0 + sqrt(1 - a_s) eps, where eps is what x_t has beside x0: solved for x0.
    """
    shrink = ((1 - level_s) / (1 - level_t)).sqrt()
    scale = 1 / (level_s.sqrt() - shrink * level_t.sqrt())
    return combined(scale, x_s, -scale * shrink, x_t)
