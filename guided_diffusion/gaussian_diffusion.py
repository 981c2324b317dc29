"""GaussianDiffusion: the public face of the diffusion process, its losses and its likelihood.

Names and signatures are those that downstream code imports. All arithmetic stands in `schedule`,
`denoiser`, `solvers`, `methods`, `sampling` and `losses`; the methods here put those together.

Everywhere below, x [N, C, ...] is float, `t` is an int64 tensor [N] of step indices 0..num_timesteps-1,
`model(x, t, **model_kwargs)` is a network, `denoised_fn(x0) -> x0` and
`cond_fn(x, t, **model_kwargs) -> gradient` are optional, and `model_kwargs=None` means none.
"""

import enum
import math
from collections import deque

import numpy as np
import torch

from .denoiser import ClippedDenoiser, ModelMeanType, ModelVarType, NetworkDenoiser, Prediction, network_time
from .losses import discretized_gaussian_log_likelihood, normal_kl
from .methods.classifier_guidance import ScoreGuidedDenoiser
from .methods.epsilon_scaling import EpsilonScaledDenoiser
from .nn import mean_flat
from .sampling import no_coupling, sample
from .schedule import NoiseSchedule, betas_for_alpha_bar, get_named_beta_schedule, per_sample, posterior
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
    :param corrupt: the corruption `(noise, t) -> noise` of training; None leaves the noise alone.
    :param eps_scaler: the (k, b) of methods.epsilon_scaling; (0, 1) scales nothing.
    :ivar time_shift: a methods.time_shift.TimeShift, which needs this process to be built, or None.
    :ivar network_calls: calls of the network by denoisers of this process, one for each image of a batch.
    :ivar images_begun: images that `sample_records` has begun.
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
        corrupt=None,
        eps_scaler=(0.0, 1.0),
    ):
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps
        self.corrupt = corrupt or (lambda noise, t: noise)
        self.eps_scaler = eps_scaler
        self.time_shift = None
        self.network_calls = self.images_begun = 0
        self.schedule = NoiseSchedule(betas)
        self.timestep_map = list(range(self.schedule.num_timesteps)) if grid is None else list(grid)
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
        self.sqrt_recip_alphas_cumprod = np.sqrt(1 / now)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / now - 1)
        self.posterior_mean_coef1 = q.x0_coef.numpy()
        self.posterior_mean_coef2 = q.xt_coef.numpy()
        self.posterior_variance = q.variance.numpy()
        floored = np.append(self._variance_floor, self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(floored)

    @property
    def _variance_floor(self):
        """Stands in for the zero posterior variance of the last step (see solvers.ddpm).

        A grid of one step has no step before the last, and its posterior no variance at all.
        """
        return float(self.posterior_variance[1]) if self.num_timesteps > 1 else 1e-20

    # -- from step indices to the words -----------------------------------------------------------

    def _time(self, t):
        """Training timesteps of step indices t [N]; index -1 is the data, num_timesteps pure noise."""
        return self._times.to(t.device)[t + 1]

    def network_time(self, t):
        """What networks and classifiers are given for step indices t [N]."""
        return network_time(self._time(t), self.schedule, self.rescale_timesteps)

    def adapter(self, model, model_kwargs=None, clock=None):
        """The NetworkDenoiser of a network; a NetworkDenoiser passes unchanged."""
        if isinstance(model, NetworkDenoiser):
            return model
        previous = None
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            previous = torch.full((self.schedule.num_timesteps,), -1)
            previous[self._times[1:-1]] = self._times[:-2]
        return NetworkDenoiser(
            model,
            self.schedule,
            self.model_mean_type,
            self.model_var_type,
            self.rescale_timesteps,
            previous,
            model_kwargs,
            clock,
        )

    def denoiser(self, model, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """The whole stack: adapter, epsilon scaling, clipping, and guidance by score where `cond_fn` is given."""
        shifts_network = self.time_shift is not None and self.time_shift.variant == "net"
        clock = self.time_shift.network_time if shifts_network else None
        denoise = self._counted(self.adapter(model, model_kwargs, clock))
        if self.eps_scaler != (0.0, 1.0):
            denoise = EpsilonScaledDenoiser(denoise, self.timestep_map, *self.eps_scaler)
        denoise = ClippedDenoiser(denoise, clip_denoised, denoised_fn)
        if cond_fn is not None:
            denoise = ScoreGuidedDenoiser(denoise, self._at_network_time(cond_fn, model_kwargs))
        return denoise

    def _counted(self, denoise):
        def counted(x, t):
            self.network_calls += x.shape[0]
            return denoise(x, t)

        return counted

    def _at_network_time(self, cond_fn, model_kwargs):
        """`cond_fn` as a function of x and training timesteps."""
        kwargs = model_kwargs or {}
        return lambda x, t: cond_fn(x, network_time(t, self.schedule, self.rescale_timesteps), **kwargs)

    def ddpm(self, cond_fn=None, model_kwargs=None):
        """The ancestral solver of this process, guided by its mean where `cond_fn` is given."""
        guide = None if cond_fn is None else self._at_network_time(cond_fn, model_kwargs)
        return DDPM(self.schedule, self.model_var_type, self._variance_floor, guide)

    def ddim(self, eta=0.0):
        """The DDIM solver of this process."""
        return DDIM(self.schedule, eta)

    # -- q: from data to noise --------------------------------------------------------------------

    def q_mean_variance(self, x_start, t):
        """Mean, variance and log variance of q(x_t | x_0), each of x_start's shape."""
        alpha_bar = self.schedule.alpha_bar(self._time(t))
        variance = per_sample(1 - alpha_bar, x_start).expand_as(x_start)
        log_variance = per_sample((1 - alpha_bar).log(), x_start).expand_as(x_start)
        return per_sample(alpha_bar.sqrt(), x_start) * x_start, variance, log_variance

    def q_sample(self, x_start, t, noise=None):
        """A draw of x_t given x_0, by `noise` of the same shape or a fresh one."""
        if noise is None:
            noise = torch.randn_like(x_start)
        alpha_bar = self.schedule.alpha_bar(self._time(t))
        return per_sample(alpha_bar.sqrt(), x_start) * x_start + per_sample((1 - alpha_bar).sqrt(), x_start) * noise

    def q_posterior_mean_variance(self, x_start, x_t, t):
        """Mean, variance and (floored) log variance of q(x_{t-1} | x_t, x_0)."""
        alpha_bar, before = (self.schedule.alpha_bar(self._time(i)) for i in (t, t - 1))
        q = posterior(alpha_bar, before)
        mean = per_sample(q.x0_coef, x_t) * x_start + per_sample(q.xt_coef, x_t) * x_t
        floored = torch.where(t == 0, self._variance_floor, q.variance)
        variance, log_variance = (per_sample(v, x_t).expand_as(x_t) for v in (q.variance, floored.log()))
        return mean, variance, log_variance

    # -- p: from noise to data --------------------------------------------------------------------

    def p_mean_variance(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None):
        """Dict of `mean`, `variance`, `log_variance` of p(x_{t-1} | x_t) and of `pred_xstart`."""
        prediction = self.denoiser(model, clip_denoised, denoised_fn, None, model_kwargs)(x, self._time(t))
        return self._moments(prediction, t)

    def _moments(self, prediction, t):
        mean, variance, log_variance = self.ddpm().moments(prediction, self._time(t - 1))
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": prediction.x0}

    def condition_mean(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """The mean [N, C, ...] moved by variance * gradient (Dhariwal & Nichol 2021, algorithm 1)."""
        gradient = self._at_network_time(cond_fn, model_kwargs)(x, self._time(t))
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """`p_mean_var` with the mean and `pred_xstart` that the guided score implies (algorithm 2)."""
        alpha_bar = self.schedule.alpha_bar(self._time(t))
        unguided = Prediction.from_x0(x, alpha_bar, p_mean_var["pred_xstart"])
        gradient = self._at_network_time(cond_fn, model_kwargs)
        guided = ScoreGuidedDenoiser(lambda x, t: unguided, gradient)(x, self._time(t))
        mean, _, _ = self.q_posterior_mean_variance(guided.x0, x, t)
        return {**p_mean_var, "mean": mean, "pred_xstart": guided.x0}

    def _step(self, solver, denoise, x, t, to):
        step = solver(denoise, x, self._time(t), self._time(to), None, torch.randn_like)
        return {"sample": step.x, "pred_xstart": step.prediction.x0}

    def p_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """One ancestral step from step index t to t - 1: dict of `sample` and `pred_xstart`."""
        denoise = self.denoiser(model, clip_denoised, denoised_fn, None, model_kwargs)
        return self._step(self.ddpm(cond_fn, model_kwargs), denoise, x, t, t - 1)

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
        denoise = self.denoiser(model, clip_denoised, denoised_fn, None, model_kwargs)
        solver = self.ddpm(cond_fn, model_kwargs)
        yield from self._loop(model, solver, denoise, shape, noise, device, progress)

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
        """The records of `sampling.sample` over this process's grid, its time shift as coupling, without gradients.

        :param x: [N, C, ...] the start.
        :param noise: draws noise like x.
        """
        self.images_begun += x.shape[0]
        moves_steps = self.time_shift is not None and self.time_shift.variant != "net"
        coupling = self.time_shift if moves_steps else no_coupling
        records = _without_gradients(sample(denoise, solver, self.timestep_map, x, noise, coupling))
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
        x_t = self.q_sample(x_start, t, self.corrupt(noise, time))
        adapter = self.adapter(model, model_kwargs)
        output, variance = adapter.network(x_t, time)

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
        return self.q_posterior_mean_variance(x_start, x_t, t)[0]

    def _bound(self, prediction, x_start, t):
        """The term [N] of the variational bound at step index t, in bits per dimension.

        A Kullback-Leibler divergence, and at t = 0 the likelihood of the 8-bit data.
        """
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, prediction.x_t, t)
        mean, log_variance = (self._moments(prediction, t)[k] for k in ("mean", "log_variance"))
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
        nll = -discretized_gaussian_log_likelihood(x_start, means=mean, log_scales=0.5 * log_variance)
        return torch.where(t == 0, mean_flat(nll), mean_flat(kl)) / math.log(2)

    def _prior_bpd(self, x_start):
        """KL [N] between q(x_T | x_0) and the standard normal, in bits per dimension."""
        t = torch.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)

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


def _without_gradients(records):
    """Computes each record under no_grad, which must not stay on while the caller holds it."""
    while True:
        with torch.no_grad():
            record = next(records, None)
        if record is None:
            return
        yield record


def _last(outputs):
    return deque(outputs, maxlen=1)[0]


def _device_of(model):
    return next(model.parameters()).device if hasattr(model, "parameters") else torch.device("cpu")
