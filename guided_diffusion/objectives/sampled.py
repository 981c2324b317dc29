"""What objectives have in common that draw their timesteps from a ScheduleSampler."""

from .. import logger
from ..errors import UserError
from ..resample import LossAwareSampler, SamplerFlags
from ..scalars import combined
from .objective import Objective


class SampledObjective(Objective):
    """An objective at drawn timesteps; what their sampler has learnt is saved as `sampler`.

    :param diffusion: a GaussianDiffusion.
    :param sampler: a ScheduleSampler.
    """

    flags = (SamplerFlags,)
    memory = "the history of --schedule_sampler"

    def __init__(self, diffusion, sampler):
        self.diffusion = diffusion
        self.sampler = sampler
        self.num_timesteps = diffusion.num_timesteps

    @classmethod
    def create(cls, parsed, diffusion):
        return cls(diffusion, parsed[SamplerFlags].create(diffusion))

    def update_sampler(self, t, losses):
        """Let the sampler learn from the losses [N] at timesteps t [N]; every rank must call it."""
        if self.waits_for_ranks:
            self.sampler.update_with_local_losses(t, losses.detach())

    @property
    def waits_for_ranks(self):
        return isinstance(self.sampler, LossAwareSampler)

    def noised(self, x, noise, t):
        """x [N, C, ...] with noise, at training timesteps t [N]."""
        level = self.diffusion.schedule.alpha_bar(t)
        return combined(level.sqrt(), x, (1 - level).sqrt(), noise)

    def state_dict(self):
        return {"sampler": self.sampler.state_dict(), **super().state_dict()}

    def load_state_dict(self, state):
        try:
            self.sampler.load_state_dict(state.get("sampler", {}))
        except UserError as error:
            logger.warn(f"{self.memory} starts afresh: {error}")
        super().load_state_dict(state)
