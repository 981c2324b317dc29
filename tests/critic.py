"""An objective that owns a second network with its optimiser, and a frozen one: what a paper's file would hold."""

from dataclasses import dataclass

import torch

from guided_diffusion.flags import POSITIVE, FlagGroup, flag
from guided_diffusion.objectives import AuxiliaryNetwork, Loss
from guided_diffusion.objectives.sampled import SampledObjective
from guided_diffusion.resample import SamplerFlags


@dataclass
class CriticFlags(FlagGroup):
    """The critic."""

    critic_lr: float = flag(1e-2, "Learning rate of the critic.", legal=POSITIVE)


class Critic(SampledObjective):
    """A critic learns to tell the noise from what the network makes of it; the network is drawn to what it says."""

    flags = (*SampledObjective.flags, CriticFlags)

    def __init__(self, diffusion, sampler, lr=1e-2):
        super().__init__(diffusion, sampler)
        critic = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 1))
        self.critic = AuxiliaryNetwork(critic, torch.optim.Adam(critic.parameters(), lr))
        self.teacher = AuxiliaryNetwork(torch.nn.Conv2d(3, 3, 1))

    @classmethod
    def create(cls, parsed, diffusion):
        return cls(diffusion, parsed[SamplerFlags].create(diffusion), parsed[CriticFlags].critic_lr)

    def draw(self, x):
        """(timesteps [N], weights [N], noise like x)."""
        return *self.sampler.sample(len(x), x.device), torch.randn_like(x)

    def __call__(self, model, x, cond):
        t, weights, noise = self.draw(x)
        output = model(self.diffusion.q_sample(x, t, noise), self.diffusion.network_time(t), **cond)[:, :3]
        told = self.critic(output.detach())
        judged = (told - noise).square().mean(dim=(1, 2, 3))
        self.critic.backward(judged)
        aims = (noise, self.critic.fixed(output), self.teacher(noise))
        losses = [(output - aim).square().mean(dim=(1, 2, 3)) for aim in aims]
        self.update_sampler(t, losses[0])
        value = (losses[0] + 0.1 * losses[1] + 0.1 * losses[2]) * weights
        return Loss(value, {"loss": value.detach(), "critic": judged.detach()}, t)
