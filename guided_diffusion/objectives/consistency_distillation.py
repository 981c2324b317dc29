"""Consistency distillation (Song et al. 2023, "Consistency Models"), in pixels as Luo et al. 2023 ("Latent Consistency
Models") have it in latents, and guided by a reward (Li et al. 2024, "Reward Guided Latent Consistency Distillation").

A student learns to map the points of each path of its teacher's to one image, where that path ends.

| paper | here |
| --- | --- |
| t_n, of N: neighbours on the path | `--consistency_steps`: the `uniform` grid, and the data, -1, below it |
| x^Phi_t_n, one step of the teacher's solver | `arrived`: DDIM from `t` to `s` |
| f_theta(x, t), f_theta-(x, t), its average | the student's predicted image; that of `target`, by `--consistency_ema` |
| d, the pseudo-Huber distance (RG-LCD's release) | `distance`: the mean of sqrt(d^2 + c^2) - c, `--huber_c` |
| L_CD = E d(f_theta(x_t_n+1), f_theta-(x^Phi_t_n)) (Song et al., equation 7; k = 1 of LCM) | `found` |
| J = L_LCD - beta E R(f_theta(x_t_n+1)) (RG-LCD, section 4.1) | `--reward`, `--reward_scale` |
| r_psi, the latent proxy reward model; L_RM (section 4.2) | `rewards.ProxyReward`; `preferences`: `--reward_proxy` |

L_RM is the Kullback-Leibler divergence of the proxy's preferences from the expert's, a softmax of two rewards, over the
pairs of the student's image, the target's and the real one. The expert then has no gradient asked of it, and the
student follows the proxy, which sees halves of an image's resolution: so it is not rewarded for high frequencies.

Departures from the papers and the release. f needs no c_skip and c_out: the data are the time -1, below all trained
ones, where f is the identity by definition and no network is asked (in the release c_skip is at most 0.0025 at every
other time, and the lowest time is 0, which has noise). The scale of guidance is not embedded: the teacher is asked as
it is, with its conditions. There is no autoencoder: rewards and proxy are given pixels, held in [-1, 1]. The teacher's
predicted images are clipped, as its sampler clips them. Input perturbation reaches the student's input alone.

Rewards and their proxy are computed in float32, whatever the network is; so is the distance, whose c is below the
resolution of float16.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import logger
from ..devices import on_device
from ..errors import UserError
from ..flags import BELOW_ONE, POSITIVE, STEPS, FlagGroup, at_least, flag, may_be_known
from ..networks import UNetFlags, for_training
from ..nn import mean_flat, update_ema
from ..resample import SamplerFlags
from ..rewards import ProxyReward, RewardFlags
from ..spacing import uniform
from .objective import AuxiliaryNetwork, Loss
from .sampled import SampledObjective
from .teacher import Teacher, TeacherFlags, refuse_eps


@dataclass
class ConsistencyFlags(FlagGroup):
    """Consistency distillation (Song et al. 2023), guided by a reward (Li et al. 2024)."""

    consistency_steps: int = flag(
        50,
        "Steps of the teacher's DDIM, over one of which the student is held equal.",
        legal=at_least(2, STEPS),
        lasting=True,
    )
    consistency_ema: float = flag(
        0.95, "Rate of the moving average of the student that its images are held to.", legal=BELOW_ONE, lasting=True
    )
    huber_c: float = flag(1e-3, "Errors below it count squared, those above absolute.", legal=POSITIVE, lasting=True)
    reward_scale: float = flag(1.0, "Weight of --reward in the loss.", legal=at_least(0), lasting=True)
    reward_proxy: bool = flag(
        False,
        "The student is rewarded by a small network that learns --reward meanwhile, at half the size.",
        lasting=True,
    )
    reward_proxy_lr: float = flag(1e-3, "Learning rate of that network.", legal=POSITIVE, lasting=True)

    def refuse_unread(self, given):
        if "reward_proxy_lr" in given and not self.reward_proxy and not may_be_known("reward_proxy", given):
            raise UserError("--reward_proxy_lr does nothing without --reward_proxy True")


class ConsistencyDistillation(SampledObjective):
    """The distance of the student's images from those of its average, one step of the teacher nearer to the data.

    :param diffusion: the GaussianDiffusion of the student.
    :param sampler: a ScheduleSampler over the steps.
    :param teacher: a Teacher.
    :param steps: N of the grid.
    :param ema: rate of the target.
    :param huber_c: c of the distance.
    :param reward: a rewards.Reward; None for none.
    :param scale: beta.
    :param proxy: an AuxiliaryNetwork of a ProxyReward that stands for the reward; None asks the reward itself.
    """

    flags = (*SampledObjective.flags, TeacherFlags, ConsistencyFlags, RewardFlags)
    memory = "the average that images are held to, the proxy reward and the history of --schedule_sampler"
    trains_variance = False

    def __init__(self, diffusion, sampler, teacher, steps, ema=0.95, huber_c=1e-3, reward=None, scale=1.0, proxy=None):
        super().__init__(diffusion, sampler)
        self.schedule, self.process = diffusion.schedule, diffusion.process
        self.num_timesteps = self.schedule.num_timesteps
        if steps > self.num_timesteps:
            raise UserError(
                f"--consistency_steps {steps} is above the {self.num_timesteps} timesteps there are; expected at most "
                "those"
            )
        self.teacher, self.ema, self.huber_c = teacher, ema, huber_c
        self.reward, self.scale, self.proxy = reward, scale, proxy
        self.timesteps = uniform(self.schedule, steps)
        trained = {*self.timesteps}
        count = next(n for n in (4, 5, 3, 2, 1) if n <= steps and trained.issuperset(uniform(self.schedule, n)))
        self.sampled_by = {"solver": "consistency", "spacing": "uniform", "timestep_respacing": str(count)}

    @classmethod
    def create(cls, parsed, diffusion):
        flags, unet = parsed[ConsistencyFlags], parsed[UNetFlags]
        refuse_eps(parsed)
        teacher, reward, proxy = Teacher.open(parsed, diffusion), parsed[RewardFlags].create(parsed), None
        if flags.reward_proxy and (reward is None or not flags.reward_scale):
            raise UserError("--reward_proxy True has no --reward to learn, or no --reward_scale; expected both")
        if reward is None and "reward_scale" in parsed.given:
            raise UserError(f"--reward_scale {flags.reward_scale:g} does nothing without --reward")
        if reward is not None and not flags.reward_scale:
            logger.warn("--reward_scale 0: --reward is never asked")
        if flags.reward_proxy:
            network = ProxyReward(unet.image_channels, unet.num_classes if unet.class_cond else 0)
            proxy = AuxiliaryNetwork(network, torch.optim.Adam(network.parameters(), flags.reward_proxy_lr))
        steps = SimpleNamespace(num_timesteps=flags.consistency_steps)
        made = cls(
            diffusion,
            parsed[SamplerFlags].create(steps),
            teacher,
            flags.consistency_steps,
            flags.consistency_ema,
            flags.huber_c,
            reward,
            flags.reward_scale,
            proxy,
        )
        teacher.warn_of(made.timesteps)
        return made

    def begin(self, model):
        self.target = AuxiliaryNetwork(copy.deepcopy(model).eval())
        self._asked = for_training(self.target.network)

    def __call__(self, model, x, cond):
        index, weights = self.sampler.sample(len(x), x.device)
        nodes = on_device([-1, *self.timesteps], x.device)
        s, t = nodes[index], nodes[index + 1]
        noise = torch.randn_like(x)
        with torch.no_grad():
            level = self.schedule.alpha_bar(s)
            step = self.teacher.predict(self.noised(x, noise, t), t, cond)
            arrived = step.mixed(level.sqrt(), (1 - level).sqrt())
            jumped = self.process.denoiser(self._asked, cond)(arrived, s.clamp(min=0)).x0
            target = jumped.where((s >= 0)[:, None, None, None], arrived)
        seen = self.noised(x, *self.process.corruption(noise, t))
        image = self.process.denoiser(model, cond)(seen, t).x0
        found = distance(image, target, self.huber_c)
        self.update_sampler(index, found)
        terms = {"consistency": found.detach()}
        if self.reward is not None and self.scale:
            with torch.autocast(x.device.type, enabled=False):
                reward = self._reward(image.clamp(-1, 1), target.clamp(-1, 1), x, cond, terms)
            found = found - self.scale * reward
        loss = found * weights
        return Loss(loss, {"loss": loss} | terms, t)

    def _reward(self, image, target, real, cond, terms):
        """What the student's images [N, C, H, W] are rewarded by [N]; a proxy learns from them, `target` and `real`."""
        if self.proxy is None:
            reward = self.reward(image, cond)
            if image.requires_grad and not reward.requires_grad:
                raise UserError(
                    f"{self.reward.name} has no gradient that a student could follow; expected --reward_proxy True"
                )
            terms["reward"] = reward.detach()
            return reward
        told = {"y": cond["y"]} if "y" in cond else {}
        rivals = image.detach(), target, real
        with torch.no_grad():
            expert = [self.reward(rival, cond) for rival in rivals]
        learnt = preferences([self.proxy(rival, **told) for rival in rivals], expert)
        self.proxy.backward(learnt)
        terms |= {"reward": expert[0], "proxy": learnt.detach()}
        return self.proxy.fixed(image, **told)

    def stepped(self, model):
        super().stepped(model)
        update_ema(self.target.network.parameters(), model.parameters(), self.ema)


def distance(image, target, c):
    """The pseudo-Huber distance [N] of images [N, C, H, W], in the mean over their pixels."""
    return mean_flat(((image - target).square() + c**2).sqrt() - c)


def preferences(proxy, expert):
    """[N], how far the preferences of a proxy are from those of an expert, summed over the pairs of rivals.

    :param proxy, expert: of each rival the rewards [N]; a preference is the softmax of two.
    """
    total = 0.0
    for i in range(len(proxy)):
        for j in range(i):
            said, wanted = (
                torch.stack([rewards[i], rewards[j]], dim=1).log_softmax(dim=1) for rewards in (proxy, expert)
            )
            total = total + F.kl_div(said, wanted, reduction="none", log_target=True).sum(dim=1)
    return total
