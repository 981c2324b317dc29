"""The losses of diffusion networks: the mean squared error, the bound, or both (Nichol & Dhariwal 2021)."""

from .. import logger
from .objective import Loss
from .sampled import SampledObjective


class DiffusionObjective(SampledObjective):
    """The training losses of a GaussianDiffusion at drawn timesteps, weighted so that they stay unbiased."""

    def __init__(self, diffusion, sampler):
        super().__init__(diffusion, sampler)
        if self.num_timesteps < diffusion.schedule.num_timesteps:
            logger.warn(
                f"--timestep_respacing leaves {self.num_timesteps} of {diffusion.schedule.num_timesteps} timesteps: "
                "the network is trained on no others"
            )

    def __call__(self, model, x, cond):
        t, weights = self.sampler.sample(x.shape[0], x.device)
        terms = self.diffusion.training_losses(model, x, t, model_kwargs=cond)
        self.teach(t, terms["loss"])
        terms = {name: values * weights for name, values in terms.items()}
        return Loss(terms["loss"], terms, t)
