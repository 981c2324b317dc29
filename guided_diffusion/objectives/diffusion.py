"""The losses of diffusion networks: the mean squared error, the bound, or both (Nichol & Dhariwal 2021)."""

from .. import dist_util, logger
from ..denoiser import ModelVarType
from ..learned_variance import Range
from .objective import Loss
from .sampled import SampledObjective


class DiffusionObjective(SampledObjective):
    """The training losses of a GaussianDiffusion at drawn timesteps, weighted so that they stay unbiased.

    The log has the range of a learned variance's fraction v, which is meant to be in [0, 1].
    """

    def __init__(self, diffusion, sampler):
        super().__init__(diffusion, sampler)
        if self.num_timesteps < diffusion.schedule.num_timesteps:
            logger.warn(
                f"--timestep_respacing leaves {self.num_timesteps} of {diffusion.schedule.num_timesteps} timesteps: "
                "the network is trained on no others"
            )
        self.seen = Range() if diffusion.model_var_type is ModelVarType.LEARNED_RANGE else None

    def __call__(self, model, x, cond):
        t, weights = self.sampler.sample(x.shape[0], x.device)
        terms = self.diffusion.training_losses(self._watched(model), x, t, model_kwargs=cond)
        self.update_sampler(t, terms["loss"])
        terms = {name: values * weights for name, values in terms.items()}
        return Loss(terms["loss"], terms, t)

    def _watched(self, model):
        if self.seen is None:
            return model

        def watched(x, t, **cond):
            output = model(x, t, **cond)
            self.seen.add(output.narrow(1, x.shape[1], output.shape[1] - x.shape[1]))
            return output

        return watched

    def logged(self):
        ends = self.seen and self.seen.take()
        if ends is None:
            return {}
        low, high = dist_util.all_gather(ends[None]).amax(0).tolist()
        return {"variance_fraction_min": -low, "variance_fraction_max": high}
