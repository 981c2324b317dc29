"""GaussianDiffusion: the published face of a Process, its losses and its likelihood.

Names and signatures are those that downstream code imports. All arithmetic stands in `schedule`,
`denoiser`, `solvers`, `methods`, `sampling`, `likelihood` and `losses`; the methods here put those together.

Everywhere below, x [N, C, ...] is float, `t` is an int64 tensor [N] of step indices 0..num_timesteps-1,
`model(x, t, **model_kwargs)` is a network, `denoised_fn(x0) -> x0` and
`cond_fn(x, t, **model_kwargs) -> gradient` are optional, and `model_kwargs=None` means none.
"""

import enum
from collections import deque

import numpy as np
import torch

from . import likelihood
from .denoiser import ModelMeanType, ModelVarType, Prediction, bound, network_time, velocity
from .methods.classifier_guidance import MeanGuidedDenoiser, ScoreGuidedDenoiser
from .methods.clipping import ClippedDenoiser
from .nn import mean_flat
from .process import Process
from .schedule import NoiseSchedule, betas_for_alpha_bar, get_named_beta_schedule, posterior
from .solvers import DDIM, DDPM

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]


class LossType(enum.Enum):
    """What `training_losses` minimises."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self):
        """Whether the loss is the variational bound itself."""
        return self in (LossType.KL, LossType.RESCALED_KL)


class GaussianDiffusion:
    """A diffusion process over a grid of training timesteps; here the grid is all of them.

    :param betas: [T] noise of each training step, float64 in (0, 1).
    :param model_mean_type: what the network's output means.
    :param model_var_type: where the variance comes from.
    :param loss_type: what training minimises.
    :param rescale_timesteps: networks see times scaled to 0..1000, as floats.
    :param grid: the kept training timesteps; None keeps all.
    :param methods: Method objects, of those that need no classifier.
    :ivar process: the Process.
    """

    def __init__(
        self,
        *,
        betas,
        model_mean_type,
        model_var_type,
        loss_type,
        rescale_timesteps=False,
        grid=None,
        methods=(),
    ):
        self.loss_type = loss_type
        self.process = Process(
            NoiseSchedule(betas),
            grid,
            mean_type=model_mean_type,
            var_type=model_var_type,
            rescale_timesteps=rescale_timesteps,
            methods=methods,
        )
        self.model_mean_type, self.model_var_type = model_mean_type, model_var_type
        self.rescale_timesteps = rescale_timesteps
        self.schedule, self.timestep_map = self.process.schedule, self.process.grid
        self.num_timesteps = len(self.timestep_map)
        self._times = torch.tensor([-1, *self.timestep_map, self.schedule.num_timesteps])
        self._set_published_tables()

    def _set_published_tables(self):
        """The numpy arrays [num_timesteps] (float64) that downstream code reads; nothing here does."""
        levels = self.schedule.alpha_bar(self._times).numpy()
        before, now, after = levels[:-2], levels[1:-1], levels[2:]
        q = posterior(*(torch.from_numpy(a) for a in (now, before)))
        self.betas = q.beta.numpy()
        self.alphas_cumprod, self.alphas_cumprod_prev, self.alphas_cumprod_next = now, before, after
        self.sqrt_alphas_cumprod = np.sqrt(now)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1 - now)
        self.log_one_minus_alphas_cumprod = np.log(1 - now)
        with np.errstate(divide="ignore"):  # a schedule may end in pure noise
            self.sqrt_recip_alphas_cumprod = np.sqrt(1 / now)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / now - 1)
        self.posterior_mean_coef1 = q.x0_coef.numpy()
        self.posterior_mean_coef2 = q.xt_coef.numpy()
        self.posterior_variance = q.variance.numpy()
        floored = np.append(self.process.variance_floor, self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(floored)

    # -- from step indices to the words -----------------------------------------------------------

    def _time(self, t):
        """Training timesteps of step indices t [N]; index -1 is the data, num_timesteps pure noise."""
        return self._times.to(t.device)[t + 1]

    def network_time(self, t):
        """What networks and classifiers are given for step indices t [N]."""
        return network_time(self._time(t), self.schedule, self.rescale_timesteps)

    def denoiser(self, model, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """The whole stack `(x, t) -> Prediction`: network, methods, clipping, and guidance by score with `cond_fn`."""
        cond = model_kwargs or {}
        denoise = self._clipped(model, clip_denoised, denoised_fn)
        if cond_fn is not None:
            denoise = ScoreGuidedDenoiser(denoise, self._at_network_time(cond_fn))
        return bound(denoise, cond)

    def _clipped(self, model, clip_denoised, denoised_fn):
        denoise = self.process.wrapped(self.process.counted(self.process.adapter(model)))
        return ClippedDenoiser(denoise, denoised_fn, clip_denoised)

    def _mean_guided(self, model, clip_denoised, denoised_fn, cond_fn, model_kwargs):
        """The stack for the ancestral solver, which is guided by its mean."""
        denoise = self._clipped(model, clip_denoised, denoised_fn)
        if cond_fn is not None:
            denoise = MeanGuidedDenoiser(denoise, self._at_network_time(cond_fn))
        return bound(denoise, model_kwargs or {})

    def _at_network_time(self, cond_fn):
        """`cond_fn` as a function of x, training timesteps and cond."""
        return lambda x, t, cond: cond_fn(x, network_time(t, self.schedule, self.rescale_timesteps), **cond)

    def ddpm(self):
        """The ancestral solver of this process."""
        return DDPM(self.schedule, self.model_var_type, self.process.variance_floor)

    def ddim(self, eta=0.0):
        """The DDIM solver of this process."""
        return DDIM(self.schedule, eta)

    # -- q: from data to noise --------------------------------------------------------------------

    def q_mean_variance(self, x_start, t):
        """Mean, variance and log variance of q(x_t | x_0), each of x_start's shape."""
        return likelihood.marginal(self.schedule, x_start, self._time(t))

    def q_sample(self, x_start, t, noise=None):
        """A draw of x_t given x_0, by `noise` of the same shape or a fresh one."""
        if noise is None:
            noise = torch.randn_like(x_start)
        return likelihood.noised(self.schedule, x_start, self._time(t), noise)

    def q_posterior_mean_variance(self, x_start, x_t, t):
        """Mean, variance and (floored) log variance of q(x_{t-1} | x_t, x_0)."""
        return likelihood.posterior_moments(self.process, x_start, x_t, self._time(t), self._time(t - 1))

    # -- p: from noise to data --------------------------------------------------------------------

    def p_mean_variance(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None):
        """Dict of `mean`, `variance`, `log_variance` of p(x_{t-1} | x_t) and of `pred_xstart`."""
        prediction = self.denoiser(model, clip_denoised, denoised_fn, None, model_kwargs)(x, self._time(t))
        mean, variance, log_variance = self.ddpm().moments(prediction, self._time(t - 1))
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": prediction.x0}

    def condition_mean(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """The mean [N, C, ...] moved by variance * gradient (Dhariwal & Nichol 2021, algorithm 1)."""
        gradient = self._at_network_time(cond_fn)(x, self._time(t), model_kwargs or {})
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """`p_mean_var` with the mean and `pred_xstart` that the guided score implies (algorithm 2)."""
        alpha_bar = self.schedule.alpha_bar(self._time(t))
        unguided = Prediction.from_x0(x, alpha_bar, p_mean_var["pred_xstart"])
        guide = ScoreGuidedDenoiser(lambda x, t, cond: unguided, self._at_network_time(cond_fn))
        guided = guide(x, self._time(t), model_kwargs or {})
        mean, _, _ = self.q_posterior_mean_variance(guided.x0, x, t)
        return {**p_mean_var, "mean": mean, "pred_xstart": guided.x0}

    def _step(self, solver, denoise, x, t, to):
        step = solver(denoise, x, self._time(t), self._time(to), None, torch.randn_like)
        return {"sample": step.x, "pred_xstart": step.prediction.x0}

    def p_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """One ancestral step from step index t to t - 1: dict of `sample` and `pred_xstart`."""
        denoise = self._mean_guided(model, clip_denoised, denoised_fn, cond_fn, model_kwargs)
        return self._step(self.ddpm(), denoise, x, t, t - 1)

    def ddim_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, eta=0.0):
        """One DDIM step from step index t to t - 1: dict of `sample` and `pred_xstart`."""
        denoise = self.denoiser(model, clip_denoised, denoised_fn, cond_fn, model_kwargs)
        return self._step(self.ddim(eta), denoise, x, t, t - 1)

    def ddim_reverse_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0):
        """One step of the DDIM ODE towards noise, from step index t to t + 1; eta must be 0."""
        if eta != 0.0:
            raise ValueError("the reverse ODE is deterministic: eta must be 0")
        denoise = self.denoiser(model, clip_denoised, denoised_fn, None, model_kwargs)
        return self._step(self.ddim(), denoise, x, t, t + 1)

    def p_sample_loop(self, model, shape, *args, **kwargs):
        """Images [N, C, ...] of the whole ancestral loop; arguments as `p_sample_loop_progressive`."""
        return _last(self.p_sample_loop_progressive(model, shape, *args, **kwargs))["sample"]

    def p_sample_loop_progressive(
        self,
        model,
        shape,
        noise=None,
        clip_denoised=True,
        denoised_fn=None,
        cond_fn=None,
        model_kwargs=None,
        device=None,
        progress=False,
    ):
        """Yields dicts of `sample` and `pred_xstart` after every ancestral step, noisiest first.

        :param shape: of the images, (N, C, ...).
        :param noise: the start; drawn on `device` if not given.
        :param device: default the device of the model's parameters.
        :param progress: show a tqdm bar.
        """
        denoise = self._mean_guided(model, clip_denoised, denoised_fn, cond_fn, model_kwargs)
        yield from self._loop(model, self.ddpm(), denoise, shape, noise, device, progress)

    def ddim_sample_loop(self, model, shape, *args, **kwargs):
        """Images [N, C, ...] of the whole DDIM loop; arguments as `ddim_sample_loop_progressive`."""
        return _last(self.ddim_sample_loop_progressive(model, shape, *args, **kwargs))["sample"]

    def ddim_sample_loop_progressive(
        self,
        model,
        shape,
        noise=None,
        clip_denoised=True,
        denoised_fn=None,
        cond_fn=None,
        model_kwargs=None,
        device=None,
        progress=False,
        eta=0.0,
    ):
        """Yields dicts of `sample` and `pred_xstart` after every DDIM step; see `p_sample_loop_progressive`."""
        denoise = self.denoiser(model, clip_denoised, denoised_fn, cond_fn, model_kwargs)
        yield from self._loop(model, self.ddim(eta), denoise, shape, noise, device, progress)

    def _loop(self, model, solver, denoise, shape, noise, device, progress):
        if noise is None:
            noise = torch.randn(*shape, device=device or _device_of(model))
        for record in self.sample_records(solver, denoise, noise, progress=progress):
            yield {"sample": record.x, "pred_xstart": record.x0}

    def sample_records(self, solver, denoise, x, noise=torch.randn_like, progress=False):
        """As `Process.sample_records`, with a progress bar if asked for."""
        records = self.process.sample_records(solver, denoise, x, noise)
        if not progress:
            return records
        from tqdm.auto import tqdm

        return tqdm(records, total=self.num_timesteps)

    # -- training and likelihood ------------------------------------------------------------------

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None):
        """Dict of losses [N]: `loss`, and where they exist `mse` and `vb` (bits per dimension).

        :param noise: the noise of x_t, and the target; drawn if not given.
        """
        if noise is None:
            noise = torch.randn_like(x_start)
        time = self._time(t)
        level_noise, level = self.process.corruption(noise, time)
        x_t = likelihood.noised(self.schedule, x_start, level, level_noise)
        adapter = self.process.adapter(model)
        output, variance = adapter.network(x_t, time, model_kwargs or {})

        if self.loss_type.is_vb():
            bound = self._bound(adapter.interpret(x_t, time, output, variance), x_start, t)
            return {"loss": bound * self.num_timesteps if self.loss_type is LossType.RESCALED_KL else bound}

        terms = {}
        if variance is not None:
            # the bound teaches the variance alone (Nichol & Dhariwal 2021, section 3.1)
            terms["vb"] = self._bound(adapter.interpret(x_t, time, output.detach(), variance), x_start, t)
            if self.loss_type is LossType.RESCALED_MSE:
                terms["vb"] = terms["vb"] * self.num_timesteps / 1000
        terms["mse"] = mean_flat((self._target(x_start, x_t, t, noise) - output) ** 2)
        terms["loss"] = sum(terms.values())
        return terms

    def _target(self, x_start, x_t, t, noise):
        if self.model_mean_type is ModelMeanType.EPSILON:
            return noise
        if self.model_mean_type is ModelMeanType.START_X:
            return x_start
        if self.model_mean_type is ModelMeanType.VELOCITY:
            return velocity(x_start, noise, self.schedule.alpha_bar(self._time(t)))
        return self.q_posterior_mean_variance(x_start, x_t, t)[0]

    def _bound(self, prediction, x_start, t):
        """The term [N] of the variational bound at step index t, in bits per dimension."""
        return likelihood.bound(self.process, prediction, x_start, self._time(t), self._time(t - 1))

    def _prior_bpd(self, x_start):
        """KL [N] between q(x_T | x_0) and the standard normal, in bits per dimension."""
        t = torch.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        return likelihood.prior_bound(self.schedule, x_start, self._time(t))

    @torch.no_grad()
    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None, draw=torch.randn_like):
        """The variational bound of images, term by term.

        :param draw: draws the noise of each step, like x_start.
        :return: dict of `total_bpd` [N], `prior_bpd` [N] (bits per dimension), and, noisiest step first,
            `vb` (bits per dimension), `xstart_mse`, `mse` (of eps), each [N, num_timesteps].
        """
        denoise = self.denoiser(model, clip_denoised, None, None, model_kwargs)
        terms = {"vb": [], "xstart_mse": [], "mse": []}
        for i in reversed(range(self.num_timesteps)):
            t = torch.full((x_start.shape[0],), i, device=x_start.device)
            noise = draw(x_start)
            prediction = denoise(self.q_sample(x_start, t, noise), self._time(t))
            terms["vb"].append(self._bound(prediction, x_start, t))
            terms["xstart_mse"].append(mean_flat((prediction.x0 - x_start) ** 2))
            terms["mse"].append(mean_flat((prediction.eps - noise) ** 2))
        terms = {key: torch.stack(values, dim=1) for key, values in terms.items()}
        prior = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(dim=1) + prior, "prior_bpd": prior, **terms}


def _last(outputs):
    return deque(outputs, maxlen=1)[0]


def _device_of(model):
    return next(model.parameters()).device if hasattr(model, "parameters") else torch.device("cpu")
