"""Scale distillation: an upsampler for a large factor learns from itself at a smaller one.

YONOS-SR (Noroozi et al. 2024, "You Only Need One Step: Fast Super-Resolution with Stable Diffusion via Scale
Distillation", section 3): the network is first trained for a small scale on true images. Then, scale by scale, it is
told a smaller image and learns what its predecessor, which stays as it is, predicts from the larger one, of the same
x_t at the same time. So its target fits the noise, and is nearer to what can be known than the true image is. The
last of them samples in one step of DDIM.

    first scale:  L = w |x0_theta(x_t, low_s, t) - x0|^2
    later ones:   L = w |x0_theta(x_t, low_s, t) - x0_phi(x_t, low_r, t)|^2,   r the scale before s

| paper | here |
| --- | --- |
| scale factors 2, 4, 8 | `--scale_schedule`, of which one at a time is `scale` |
| training steps of each | `--scale_steps`; the last goes on to the end of training |
| x_h, z_h; the low resolution image of scale s | `x`; `low_res`, shrunk from the same x |
| teacher phi; the student, which goes on from its own weights | `teacher`, an average of those so far; the network |
| x0 of a network's v | `Prediction.x0` |
| w(lambda_t) | 1 |

Departures from the paper: images are pixels, not latents of Stable Diffusion, so that there is no decoder to fine-tune.
Low resolutions are area means that the network enlarges bilinearly, as ADM's are. The teacher's images are clipped, as
its sampler clips them. The paper leaves w open. A schedule of one scale is its baseline, training on true images alone.

Networks that predict eps say nothing of the image in a step from pure noise: --prediction v or x0. Input perturbation
reaches the student's input alone. Sampling in few steps composes with every method; in one step there is nothing for
time shift to do. Epsilon scaling is of the last network, whose error is not that of its teachers.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import checkpoints, logger
from ..averages import rate_at
from ..conditioning.low_resolution import shrunk
from ..denoiser import ModelMeanType, bound
from ..devices import on_device
from ..errors import UserError
from ..flags import BELOW_ONE, FlagGroup, at_least, flag, int_list, may_be_known
from ..networks import SuperResFlags, for_inference
from ..nn import mean_flat
from ..resample import SamplerFlags
from .objective import AuxiliaryNetwork, Loss, refuse_respacing
from .sampled import SampledObjective


@dataclass
class ScaleFlags(FlagGroup):
    """Scale distillation (YONOS-SR)."""

    scale_schedule: str = flag(
        "2,4,8",
        "Factors of --objective scale_distillation, each the teacher of the next; one alone has no teacher.",
        lasting=True,
    )
    scale_steps: int = flag(10000, "Steps of each factor but the last.", legal=at_least(1), lasting=True)
    scale_ema_rate: float = flag(
        0.999,
        "Rate of the weights' average, warming up, that becomes the teacher.",
        legal=BELOW_ONE,
        lasting=True,
    )

    def refuse_unread(self, given):
        unread = {"scale_steps", "scale_ema_rate"} & given.keys()
        alone = len(int_list(self.scale_schedule, "scale_schedule")) < 2
        if unread and alone and not may_be_known("scale_schedule", given):
            raise UserError(f"--{min(unread)} does nothing with a --scale_schedule of one factor")

    def scales(self, large_size, small_size):
        """The factors as a list.

        :raises UserError: if they do not grow to large_size / small_size, or large_size is no multiple of one.
        """
        scales = int_list(self.scale_schedule, "scale_schedule")
        grows = scales == sorted({*scales}) and scales[:1] > [1]
        if not grows or any(large_size % scale for scale in scales) or scales[-1] * small_size != large_size:
            raise UserError(
                f"--scale_schedule is {self.scale_schedule!r}; expected growing divisors of --large_size {large_size}, "
                f"the last of them {large_size / small_size:g}, which leads to --small_size {small_size}"
            )
        return scales


class ScaleDistillation(SampledObjective):
    """The squared error of predicted images, from true ones at the first scale and the teacher's at later ones.

    :param diffusion: a GaussianDiffusion.
    :param sampler: a ScheduleSampler.
    :param network: of the kind that is trained; the average of its weights becomes the teacher.
    :param scales: growing factors.
    :param steps: optimiser steps of each scale but the last.
    :param rate: of that average.
    :ivar taken: how many optimiser steps there have been.
    :raises UserError: for a network that predicts eps.
    """

    flags = (SamplerFlags, ScaleFlags)
    memory = "the factor that was reached, its teacher and the history of --schedule_sampler"
    trains_variance = False
    sampled_by: ClassVar = {"solver": "ddim", "spacing": "uniform", "timestep_respacing": "1"}

    def __init__(self, diffusion, sampler, network, scales, steps, rate):
        super().__init__(diffusion, sampler)
        if diffusion.model_mean_type is ModelMeanType.EPSILON:
            raise UserError(
                "--prediction eps says nothing of the image in one step from pure noise; expected --prediction v or x0"
            )
        self.schedule, self.process = diffusion.schedule, diffusion.process
        self.scales, self.steps, self.rate, self.taken = scales, steps, rate, 0
        self.average = AuxiliaryNetwork(network.eval())
        self.teacher = AuxiliaryNetwork(copy.deepcopy(network))
        self.asked = for_inference(self.teacher.network)

    @classmethod
    def create(cls, parsed, diffusion):
        if SuperResFlags not in parsed.groups:
            raise UserError("--objective scale_distillation is for upsamplers; expected scripts/super_res_train.py")
        refuse_respacing(parsed, "scale_distillation")
        flags, sizes = parsed[ScaleFlags], parsed[SuperResFlags]
        scales = flags.scales(sizes.large_size, sizes.small_size)
        before = flags.scale_steps * (len(scales) - 1)
        ends = [parsed.values()[name] for name in ("iterations", "lr_anneal_steps") if parsed.values().get(name)]
        if ends and min(ends) <= before:
            logger.warn(
                f"training ends after {min(ends)} steps, and --scale_steps {flags.scale_steps} gives the factors below "
                f"{scales[-1]} {before}: a network that ends there has not learnt what it is sampled at"
            )
        network = checkpoints.SUPER_RES.create(parsed)
        sampler = parsed[SamplerFlags].create(diffusion)
        return cls(diffusion, sampler, network, scales, flags.scale_steps, flags.scale_ema_rate)

    def begin(self, model):
        """Let the average begin at the weights of the network."""
        self.average.network.load_state_dict(model.state_dict())

    @property
    def stage(self):
        """The index of the scale that is trained."""
        return min(self.taken // self.steps, len(self.scales) - 1)

    def __call__(self, model, x, cond):
        index, weights = self.sampler.sample(len(x), x.device)
        t, noise = on_device(self.process.grid, x.device)[index], torch.randn_like(x)
        told = [{**cond, "low_res": shrunk(x, x.shape[-1] // scale)} for scale in self.scales[: self.stage + 1]]
        target = x if self.stage == 0 else self._teacher_x0(self.noised(x, noise, t), t, told[-2])
        seen = self.noised(x, *self.process.corruption(noise, t))
        said = bound(self.process.adapter(model), told[-1])(seen, t).x0
        loss = mean_flat((said - target).square())
        self.update_sampler(index, loss)
        loss = loss * weights
        return Loss(loss, {"loss": loss}, index)

    @torch.no_grad()
    def _teacher_x0(self, x, t, cond):
        """The image that the teacher predicts."""
        return bound(self.process.bare().adapter(self.asked), cond)(x, t).x0.clamp(-1, 1)

    @torch.no_grad()
    def stepped(self, model):
        before, rate = self.stage, rate_at(self.rate, self.taken - self.stage * self.steps, warmup=True)
        average = self.average.network
        for own, current in zip(average.parameters(), model.parameters()):
            own.lerp_(current.detach(), 1 - rate)
        self.taken += 1
        if self.stage != before:
            self.teacher.load_state_dict(self.average.state_dict())
            self.asked = for_inference(self.teacher.network)

    def logged(self):
        return {"scale": self.scales[self.stage]}

    def state_dict(self):
        return {"taken": self.taken, **self._plan(), **super().state_dict()}

    def _plan(self):
        """{flag: value} of what `taken` counts in."""
        return {"scale_schedule": self.scales, "scale_steps": self.steps if self.scales[1:] else 0}

    def load_state_dict(self, state):
        own = self._plan()
        then = {name: state.get(name, value) for name, value in own.items()}
        if then != own:
            began, now = (
                f"--scale_schedule {','.join(map(str, plan['scale_schedule']))} --scale_steps {plan['scale_steps']}"
                for plan in (then, own)
            )
            raise UserError(f"it was begun with {began}, not with {now}")
        super().load_state_dict(state)
        self.taken = state.get("taken", 0)
        self.asked = for_inference(self.teacher.network)
