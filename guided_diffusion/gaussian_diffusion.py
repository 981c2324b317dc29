"""GaussianDiffusion: the class that downstream code imports, subclasses and patches.

Its methods call each other as published: the loops call `self.p_sample` or `self.ddim_sample`, those call
`self.p_mean_variance`, `self.condition_mean` and `self.condition_score`, and those `self._predict_...`; an override
acts wherever the method is used. All read the tables of numbers below, which may be replaced. Methods of papers
(`methods`) act within: denoisers are wrapped in `p_mean_variance`, times and states are moved in the loops, noise in
`training_losses`. What needs no such class is in `process`, `sampling` and `solvers`; `denoiser` and `sample_records`
lead there.

Everywhere below, x [N, C, ...] is float, `t` is an int64 tensor [N] of step indices 0..num_timesteps-1,
`model(x, t, **model_kwargs)` is a network, `denoised_fn(x0) -> x0` and
`cond_fn(x, t, **model_kwargs) -> gradient` are optional, and `model_kwargs=None` means none. In methods that end in
`_with_grad`, and in loops under `cond_fn_with_grad`, `cond_fn(x, t, p_mean_var, **model_kwargs)` is also given what
`p_mean_variance` returned, through which it may differentiate.
"""

import contextlib
import enum
import inspect
import math
from collections import deque

import numpy as np
import torch

from .denoiser import ModelMeanType, ModelVarType, Prediction, network_time, split_output
from .devices import on_device
from .errors import RefusedByAssertion
from .losses import discretized_gaussian_log_likelihood, normal_kl
from .methods.clipping import ClippedDenoiser
from .methods.method import no_corruption
from .nn import mean_flat
from .process import Process
from .sampling import no_correction
from .schedule import NoiseSchedule, betas_for_alpha_bar, get_named_beta_schedule, posterior
from .solvers.pndm import ADAMS_BASHFORTH

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]


# what the loops take beside the published arguments
OF_FORKS = ("skip_timesteps", "init_image", "randomize_class", "cond_fn_with_grad")


class LossType(enum.Enum):
    """What `training_losses` minimises."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self):
        """Whether the loss is the variational bound itself."""
        return self in (LossType.KL, LossType.RESCALED_KL)


def _to_the_end(progressive):
    """The method that gives the images [N, C, ...] at the end of a progressive loop, and takes its arguments.

    An override of that loop is always told what the published one is told, and by name.
    """
    signature = inspect.signature(progressive)
    others = list(signature.parameters.values())[3:]
    published = {p.name: p.default for p in others if p.name not in OF_FORKS}

    def loop(self, model, shape, *args, **kwargs):
        signature.bind(self, model, shape, *args)
        told = published | {p.name: value for p, value in zip(others, args)} | kwargs
        return _last(getattr(self, progressive.__name__)(model, shape, **told))["sample"]

    loop.__name__ = progressive.__name__.removesuffix("_progressive")
    loop.__qualname__ = progressive.__qualname__.removesuffix("_progressive")
    loop.__doc__ = f"Images [N, C, ...] at the end of `{progressive.__name__}`, whose arguments it takes."
    loop.__signature__ = signature
    return loop


class GaussianDiffusion:
    """A diffusion process over a grid of training timesteps; here the grid is all of them.

    :param betas: [T] noise of each training step, float64 in (0, 1).
    :param model_mean_type: what the network's output means.
    :param model_var_type: where the variance comes from.
    :param loss_type: what training minimises.
    :param rescale_timesteps: networks see times scaled to 0..1000, as floats.
    :param grid: the kept training timesteps; None keeps all.
    :param methods: Method objects, of those that need no classifier.
    :param clip_variance: hold learned variances in their interval.
    :ivar process: the Process.
    :ivar timestep_map: the kept training timesteps, increasing.
    :ivar betas: [num_timesteps] (float64) noise of each kept step, one of the tables that all methods read; so are
        `alphas_cumprod`, `alphas_cumprod_prev`, `alphas_cumprod_next`, `sqrt_alphas_cumprod`,
        `sqrt_one_minus_alphas_cumprod`, `log_one_minus_alphas_cumprod`, `sqrt_recip_alphas_cumprod`,
        `sqrt_recipm1_alphas_cumprod`, `posterior_mean_coef1` (of x_0), `posterior_mean_coef2` (of x_t),
        `posterior_variance` and `posterior_log_variance_clipped`.
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
        clip_variance=False,
    ):
        self.loss_type = loss_type
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.rescale_timesteps = rescale_timesteps
        self.process = Process(
            NoiseSchedule(betas),
            grid,
            mean_type=model_mean_type,
            var_type=model_var_type,
            rescale_timesteps=rescale_timesteps,
            clip_variance=clip_variance,
            methods=methods,
        )
        self._bare = self.process.bare()
        self.schedule = self.process.schedule
        self.num_timesteps = len(self.process.grid)
        grid = self.process.grid
        ends = [-1, *grid[:-1]], [*grid[1:], self.schedule.num_timesteps]
        self._own_tables = self._tables(*map(torch.tensor, (grid, *ends)))
        # a subclass that spaces its steps itself has said before which they are
        said = {name: value for name, value in vars(self).items() if name == "timestep_map"}
        vars(self).update(self._own_tables | said)

    def _tables(self, t, s, above):
        """{attribute: table} of steps from training timesteps t [S] to s [S]; `above` are the next noisier ones."""
        levels, before, after = (self.schedule.alpha_bar(time.cpu()) for time in (t, s, above))
        q = posterior(levels, before)
        tables = {
            "betas": q.beta,
            "alphas_cumprod": levels,
            "alphas_cumprod_prev": before,
            "alphas_cumprod_next": after,
            "sqrt_alphas_cumprod": levels.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - levels).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - levels).log(),
            "sqrt_recip_alphas_cumprod": (1 / levels).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / levels - 1).sqrt(),
            "posterior_mean_coef1": q.x0_coef,
            "posterior_mean_coef2": q.xt_coef,
            "posterior_variance": q.variance,
            "posterior_log_variance_clipped": q.variance.where(s.cpu() >= 0, self.process.variance_floor).log(),
        }
        return {"timestep_map": t.tolist(), **{name: table.numpy() for name, table in tables.items()}}

    # -- between step indices and training timesteps -----------------------------------------------

    def _time(self, t):
        """Training timesteps of step indices t [N]."""
        return on_device(self.timestep_map, t.device).take(t.long())

    def _scale_timesteps(self, t):
        """What networks and classifiers are given for step indices t [N]."""
        return self.network_time(t)

    def network_time(self, t):
        """The time that networks and classifiers are trained with at step indices t [N]."""
        return network_time(self._time(t), self.schedule, self.rescale_timesteps)

    @contextlib.contextmanager
    def _between(self, t, s):
        """Within it this is the process of steps from training timesteps t [N] to s [N], whose step indices it gives.

        :raises ValueError: where a table was replaced, which says nothing of other timesteps.
        """
        replaced = [name for name, table in self._own_tables.items() if getattr(self, name) is not table]
        if replaced:
            raise ValueError(f"{replaced[0]} was replaced, but a method moves timesteps to where it has no entry")
        # the indices 0 and 1 stay those of the last two steps, and whoever asks for the very last one asks for index 0;
        # before the index of each sample is that of its end, which PLMS asks for
        own = self.process.grid[:2] if self.num_timesteps > 1 else self.process.grid * 2
        times = torch.cat([torch.tensor(own, device=t.device), torch.stack([s.clamp(min=0), t], dim=1).flatten()])
        ends = torch.stack([s.clamp(min=0) - 1, s], dim=1).flatten()
        ends = torch.cat([torch.tensor([-1, own[0]], device=t.device), ends])
        with self._changed(self._tables(times, ends, (times + 1).clamp(max=self.schedule.num_timesteps))):
            yield torch.arange(3, len(times), 2, device=t.device).where((s >= 0) | (t != own[0]), 0)

    @contextlib.contextmanager
    def _changed(self, attributes):
        before = {name: getattr(self, name) for name in attributes}
        vars(self).update(attributes)
        try:
            yield
        finally:
            vars(self).update(before)

    # -- q: from data to noise --------------------------------------------------------------------

    def q_mean_variance(self, x_start, t):
        """Mean, variance and log variance of q(x_t | x_0), each of x_start's shape."""
        shape = x_start.shape
        mean = _extract_into_tensor(self.sqrt_alphas_cumprod, t, shape) * x_start
        variance = _extract_into_tensor(1.0 - self.alphas_cumprod, t, shape)
        return mean, variance, _extract_into_tensor(self.log_one_minus_alphas_cumprod, t, shape)

    def q_sample(self, x_start, t, noise=None):
        """A draw of x_t given x_0, by `noise` of the same shape or a fresh one."""
        noise = torch.randn_like(x_start) if noise is None else noise
        if noise.shape != x_start.shape:
            raise RefusedByAssertion(
                f"noise is {tuple(noise.shape)}; expected the shape of x_start, {tuple(x_start.shape)}"
            )
        signal, spread = (
            _extract_into_tensor(table, t, x_start.shape)
            for table in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod)
        )
        return _combined(signal, x_start, spread, noise)

    def q_posterior_mean_variance(self, x_start, x_t, t):
        """Mean, variance and (floored) log variance of q(x_{t-1} | x_t, x_0)."""
        of_x0, of_xt, variance, log_variance = (
            _extract_into_tensor(table, t, x_t.shape)
            for table in (
                self.posterior_mean_coef1,
                self.posterior_mean_coef2,
                self.posterior_variance,
                self.posterior_log_variance_clipped,
            )
        )
        return _combined(of_x0, x_start, of_xt, x_t), variance, log_variance

    # -- p: from noise to data --------------------------------------------------------------------

    def p_mean_variance(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None):
        """Dict of `mean`, `variance`, `log_variance` of p(x_{t-1} | x_t) and of `pred_xstart`.

        The mean is that of the predicted (and clipped) x_0, whatever the network predicts.
        """
        if t.shape != x.shape[:1]:
            raise RefusedByAssertion(f"t is {tuple(t.shape)}; expected an index for each of {len(x)} samples")
        x0, output = self._predicted(model, x, t, model_kwargs or {})
        if denoised_fn is not None:
            x0 = denoised_fn(x0)
        if clip_denoised:
            x0 = x0.clamp(-1, 1)
        mean, _, _ = self.q_posterior_mean_variance(x_start=x0, x_t=x, t=t)
        variance, log_variance = self._variance(output, x, t)
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": x0}

    def _predicted(self, model, x, t, cond):
        """The network's x_0 and variance output (or None), [N, C, ...], with what methods make of them."""

        def network(x, time, cond):
            index = t if time is times else self._index(time)
            output, variance = self._asked(model, x, index, cond)
            x0 = self._x0_of(output, x, index)
            by_eps = self.model_mean_type is ModelMeanType.EPSILON
            eps = output if by_eps else self._predict_eps_from_xstart(x, index, x0)
            return Prediction(x, self.schedule.alpha_bar(time), x0, eps, variance)

        denoise = self.process.wrapped(network)
        if denoise is network:
            output, variance = self._asked(model, x, t, cond)
            return self._x0_of(output, x, t), variance
        times = self._time(t)
        prediction = denoise(x, times, cond)
        return self._x0_after(prediction, t), prediction.variance

    def _x0_after(self, prediction, t):
        """x_0 of what methods made of a prediction: its own, unless a subclass says what x_0 an eps has."""
        own = getattr(self._predict_xstart_from_eps, "__func__", None) is _predict_xstart_from_eps
        if own or self.model_mean_type is not ModelMeanType.EPSILON:
            return prediction.x0
        return self._predict_xstart_from_eps(prediction.x_t, t, prediction.eps)

    def _index(self, times):
        """Step indices [N] of training timesteps [N].

        :raises ValueError: for one that is not kept.
        """
        same = times[:, None] == torch.tensor(self.timestep_map, device=times.device)
        if not same.any(1).all():
            raise ValueError(f"a method asks for timesteps {times.tolist()}, which are not all among the kept ones")
        return same.int().argmax(1)

    def _asked(self, model, x, t, cond):
        """The network's output [N, C, ...] and its variance part (the same shape, or None)."""
        told = self._scale_timesteps(t)
        if self.process.clock is not None:
            # what SpacedDiffusion wraps takes step indices, and the clock says training timesteps
            model = getattr(model, "model", model) if hasattr(model, "timestep_map") else model
            told = network_time(self.process.clock(x, self._time(t)), self.schedule, self.rescale_timesteps)
        output = model(x, told, **cond).to(x.dtype)
        return split_output(output, x, self.model_var_type, self.process.clip_variance)

    def _x0_of(self, output, x, t):
        """x_0 [N, C, ...] that a network's output stands for."""
        if self.model_mean_type is ModelMeanType.START_X:
            return output
        if self.model_mean_type is ModelMeanType.EPSILON:
            return self._predict_xstart_from_eps(x_t=x, t=t, eps=output)
        if self.model_mean_type is ModelMeanType.VELOCITY:
            return self._predict_xstart_from_v(x, t, output)
        return self._predict_xstart_from_xprev(x_t=x, t=t, xprev=output)

    def _variance(self, output, x, t):
        """Variance and log variance of p(x_{t-1} | x_t), each of x's shape, by the variance output or a table."""
        if self.model_var_type is ModelVarType.LEARNED:
            return output.exp(), output
        if self.model_var_type is ModelVarType.FIXED_SMALL:
            tables = self.posterior_variance, self.posterior_log_variance_clipped
            return tuple(_extract_into_tensor(table, t, x.shape) for table in tables)
        if self.model_var_type is ModelVarType.FIXED_LARGE:
            floor = self.posterior_variance[1] if self.num_timesteps > 1 else self.process.variance_floor
            large = np.where(self.alphas_cumprod_prev < 1, self.betas, floor)
            return tuple(_extract_into_tensor(table, t, x.shape) for table in (large, np.log(large)))
        # Nichol & Dhariwal 2021, equation 15
        least, most = self.posterior_log_variance_clipped, np.log(self.betas)
        middle, half = (_extract_into_tensor(table, t, x.shape) for table in ((most + least) / 2, (most - least) / 2))
        log_variance = torch.addcmul(middle, half, output)
        return log_variance.exp(), log_variance

    def _predict_xstart_from_eps(self, x_t, t, eps):
        """x_0 of noise `eps` in x_t."""
        scale = _extract_into_tensor(self.sqrt_recip_alphas_cumprod, t, x_t.shape)
        return _combined(scale, x_t, -_extract_into_tensor(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape), eps)

    def _predict_xstart_from_v(self, x_t, t, v):
        """x_0 of a velocity (Salimans & Ho 2022, appendix D)."""
        signal = _extract_into_tensor(self.sqrt_alphas_cumprod, t, x_t.shape)
        return _combined(signal, x_t, -_extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_t.shape), v)

    def _predict_xstart_from_xprev(self, x_t, t, xprev):
        """x_0 whose posterior has the mean `xprev`."""
        of_x0 = _extract_into_tensor(self.posterior_mean_coef1, t, x_t.shape)
        return (xprev - _extract_into_tensor(self.posterior_mean_coef2, t, x_t.shape) * x_t) / of_x0

    def _predict_eps_from_xstart(self, x_t, t, pred_xstart):
        """The noise in x_t if its image is `pred_xstart`; pure noise is all of it."""
        scale = _extract_into_tensor(self.sqrt_recip_alphas_cumprod, t, x_t.shape)
        spread = _extract_into_tensor(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape)
        eps = (scale * x_t).sub_(pred_xstart).div_(spread)
        return eps.where(spread.isfinite(), x_t) if self.schedule.ends_in_noise else eps

    # -- guidance -----------------------------------------------------------------------------------

    def condition_mean(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """The mean [N, C, ...] moved by variance * gradient (Dhariwal & Nichol 2021, algorithm 1)."""
        return self._mean_moved(p_mean_var, cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {})))

    def condition_mean_with_grad(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """As `condition_mean`, where `cond_fn` takes step indices and `p_mean_var` besides."""
        return self._mean_moved(p_mean_var, cond_fn(x, t, p_mean_var, **(model_kwargs or {})))

    def _mean_moved(self, p_mean_var, gradient):
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """`p_mean_var` with the mean and `pred_xstart` that the guided score implies (algorithm 2)."""
        return self._score_moved(p_mean_var, cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {})), x, t)

    def condition_score_with_grad(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """As `condition_score`, where `cond_fn` takes step indices and `p_mean_var` besides."""
        return self._score_moved(p_mean_var, cond_fn(x, t, p_mean_var, **(model_kwargs or {})), x, t)

    def _score_moved(self, p_mean_var, gradient, x, t):
        eps = self._predict_eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        eps = eps - _extract_into_tensor(np.sqrt(1 - self.alphas_cumprod), t, x.shape) * gradient
        x0 = self._predict_xstart_from_eps(x, t, eps)
        mean, _, _ = self.q_posterior_mean_variance(x_start=x0, x_t=x, t=t)
        return {**p_mean_var, "mean": mean, "pred_xstart": x0}

    # -- one step -----------------------------------------------------------------------------------

    def p_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """One ancestral step from step index t to t - 1: dict of `sample` and `pred_xstart`."""
        out = self.p_mean_variance(
            model, x, t, clip_denoised=clip_denoised, denoised_fn=denoised_fn, model_kwargs=model_kwargs
        )
        noise = torch.randn_like(x)
        if cond_fn is not None:
            out["mean"] = self.condition_mean(cond_fn, out, x, t, model_kwargs=model_kwargs)
        return self._drawn(out, noise, t)

    def p_sample_with_grad(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """As `p_sample`, with gradients from x to what `cond_fn` is given."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = self.p_mean_variance(
                model, x, t, clip_denoised=clip_denoised, denoised_fn=denoised_fn, model_kwargs=model_kwargs
            )
            noise = torch.randn_like(x)
            if cond_fn is not None:
                out["mean"] = self.condition_mean_with_grad(cond_fn, out, x, t, model_kwargs=model_kwargs)
        return _detached(self._drawn(out, noise, t))

    def _drawn(self, out, noise, t):
        """The draw of a step whose mean and log variance are in `out`; the step to the data has no noise."""
        noisy = _extract_into_tensor(np.where(self.alphas_cumprod_prev < 1, 1.0, 0.0), t, noise.shape)
        spread = (0.5 * out["log_variance"]).exp_()
        return {"sample": torch.addcmul(out["mean"], noisy * spread, noise), "pred_xstart": out["pred_xstart"]}

    def ddim_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, eta=0.0):
        """One DDIM step from step index t to t - 1: dict of `sample` and `pred_xstart`."""
        out = self.p_mean_variance(
            model, x, t, clip_denoised=clip_denoised, denoised_fn=denoised_fn, model_kwargs=model_kwargs
        )
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs=model_kwargs)
        return self._ddim_step(out["pred_xstart"], x, t, eta)

    def ddim_sample_with_grad(
        self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, eta=0.0
    ):
        """As `ddim_sample`, with gradients from x to what `cond_fn` is given; `pred_xstart` is the unguided one."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            unguided = out = self.p_mean_variance(
                model, x, t, clip_denoised=clip_denoised, denoised_fn=denoised_fn, model_kwargs=model_kwargs
            )
            if cond_fn is not None:
                out = self.condition_score_with_grad(cond_fn, unguided, x, t, model_kwargs=model_kwargs)
        step = self._ddim_step(out["pred_xstart"].detach(), x.detach(), t, eta)
        return {**step, "pred_xstart": unguided["pred_xstart"].detach()}

    def _ddim_step(self, x0, x, t, eta):
        """Song et al. 2021 ("DDIM"), equations 12 and 16."""
        eps = self._predict_eps_from_xstart(x, t, x0)
        level, before = self.alphas_cumprod, self.alphas_cumprod_prev
        sigma = eta * np.sqrt((1 - before) / (1 - level) * np.clip(1 - level / before, 0, None))
        direction = np.sqrt(np.clip(1 - before - sigma**2, 0, None))
        signal, direction = (_extract_into_tensor(table, t, x.shape) for table in (np.sqrt(before), direction))
        sample = _combined(signal, x0, direction, eps)
        # drawn at eta = 0 too: the published order of draws under a global seed
        noise = torch.randn_like(x)
        if eta != 0:
            sample = torch.addcmul(sample, _extract_into_tensor(sigma, t, x.shape), noise)
        return {"sample": sample, "pred_xstart": x0}

    def ddim_reverse_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0):
        """One step of the DDIM ODE towards noise, from step index t to t + 1; eta must be 0."""
        if eta != 0.0:
            raise RefusedByAssertion("the reverse ODE is deterministic: eta must be 0")
        x0 = self.p_mean_variance(
            model, x, t, clip_denoised=clip_denoised, denoised_fn=denoised_fn, model_kwargs=model_kwargs
        )["pred_xstart"]
        eps = self._predict_eps_from_xstart(x, t, x0)
        signal, spread = (
            _extract_into_tensor(table, t, x.shape)
            for table in (np.sqrt(self.alphas_cumprod_next), np.sqrt(1 - self.alphas_cumprod_next))
        )
        return {"sample": _combined(signal, x0, spread, eps), "pred_xstart": x0}

    def plms_sample(
        self,
        model,
        x,
        t,
        clip_denoised=True,
        denoised_fn=None,
        cond_fn=None,
        model_kwargs=None,
        cond_fn_with_grad=False,
        order=2,
        old_out=None,
    ):
        """One step of PLMS (Liu et al. 2022, "PNDM", section 3.3) from step index t to t - 1, deterministic.

        :param order: 1 to 4, of the multistep formula; the first step of order 2 or more asks twice (improved Euler).
        :param old_out: what the step before returned; None at the first.
        :return: dict of `sample`, `pred_xstart` (unguided) and `old_eps`, the list of predicted noises so far.
        """
        if order not in range(1, 5):
            raise ValueError(f"order is {order!r}; expected 1, 2, 3 or 4")

        def asked(x, t):
            with torch.set_grad_enabled(cond_fn_with_grad and cond_fn is not None):
                x = x.detach().requires_grad_() if cond_fn_with_grad else x
                unguided = out = self.p_mean_variance(
                    model, x, t, clip_denoised=clip_denoised, denoised_fn=denoised_fn, model_kwargs=model_kwargs
                )
                if cond_fn is not None:
                    guide = self.condition_score_with_grad if cond_fn_with_grad else self.condition_score
                    out = guide(cond_fn, unguided, x, t, model_kwargs=model_kwargs)
            eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
            return tuple(value.detach() for value in (eps, out["pred_xstart"], unguided["pred_xstart"]))

        def moved(x0, eps):
            signal = _extract_into_tensor(np.sqrt(self.alphas_cumprod_prev), t, x.shape)
            return signal * x0 + _extract_into_tensor(np.sqrt(1 - self.alphas_cumprod_prev), t, x.shape) * eps

        eps, x0, unguided = asked(x, t)
        last = _extract_into_tensor(self.alphas_cumprod_prev, t, x.shape) == 1
        seen = [*(old_out["old_eps"] if old_out else ()), eps]
        if old_out is None and order > 1:
            mixed = (eps + asked(moved(x0, eps), (t - 1).clamp(min=0))[0]) / 2
        else:
            known = min(order, len(seen))
            weights = ADAMS_BASHFORTH[known - 1][:known]
            mixed = sum(weight * eps for weight, eps in zip(weights, reversed(seen)))
        sample = moved(self._predict_xstart_from_eps(x, t, mixed), mixed)
        return {"sample": x0.where(last, sample), "pred_xstart": unguided, "old_eps": seen[-3:]}

    # -- loops --------------------------------------------------------------------------------------

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
        skip_timesteps=0,
        init_image=None,
        randomize_class=False,
        cond_fn_with_grad=False,
    ):
        """Yields dicts of `sample` and `pred_xstart` after every ancestral step, noisiest first.

        :param shape: of the images, (N, C, ...).
        :param noise: the start; drawn on `device` if not given.
        :param device: default the device of the model's parameters.
        :param progress: show a tqdm bar.
        :param skip_timesteps: so many of the noisiest steps are left out; the start is then `init_image`, noised.
        :param init_image: [N, C, ...] in [-1, 1], to start from noised; default gray where steps are left out.
        :param randomize_class: draw new labels `y` in `model_kwargs` at each step.
        :param cond_fn_with_grad: `cond_fn` is given what `p_mean_variance` returned, to differentiate through.
        """
        return self._walk(
            self.p_sample_with_grad if cond_fn_with_grad else self.p_sample,
            model,
            shape,
            noise,
            device,
            progress,
            skip_timesteps,
            init_image,
            randomize_class,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
        )

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
        skip_timesteps=0,
        init_image=None,
        randomize_class=False,
        cond_fn_with_grad=False,
    ):
        """Yields dicts of `sample` and `pred_xstart` after every DDIM step; see `p_sample_loop_progressive`."""
        return self._walk(
            self.ddim_sample_with_grad if cond_fn_with_grad else self.ddim_sample,
            model,
            shape,
            noise,
            device,
            progress,
            skip_timesteps,
            init_image,
            randomize_class,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
            eta=eta,
        )

    def plms_sample_loop_progressive(
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
        skip_timesteps=0,
        init_image=None,
        randomize_class=False,
        cond_fn_with_grad=False,
        order=2,
    ):
        """Yields what `plms_sample` gives, step by step; see `p_sample_loop_progressive`."""
        return self._walk(
            self.plms_sample,
            model,
            shape,
            noise,
            device,
            progress,
            skip_timesteps,
            init_image,
            randomize_class,
            clip_denoised=clip_denoised,
            denoised_fn=denoised_fn,
            cond_fn=cond_fn,
            model_kwargs=model_kwargs,
            cond_fn_with_grad=cond_fn_with_grad,
            order=order,
            old_out=None,
        )

    p_sample_loop = _to_the_end(p_sample_loop_progressive)
    ddim_sample_loop = _to_the_end(ddim_sample_loop_progressive)
    plms_sample_loop = _to_the_end(plms_sample_loop_progressive)

    def _walk(self, step, model, shape, noise, device, progress, skip_timesteps, init_image, randomize_class, **told):
        """Yields what `step` gives at each step index, noisiest first, without gradients.

        :param told: what the step is told; `old_out`, where it is among it, becomes what the step before gave.
        :raises ValueError: if no step is left.
        """
        left = self.num_timesteps - skip_timesteps
        if not 0 < left <= self.num_timesteps:
            raise ValueError(f"skip_timesteps is {skip_timesteps}; expected 0 to {self.num_timesteps - 1}")
        x = torch.randn(*shape, device=device or _device_of(model)) if noise is None else noise
        if skip_timesteps or init_image is not None:
            image = torch.zeros_like(x) if init_image is None else init_image.expand_as(x)
            x = self.q_sample(image, torch.full((len(x),), left - 1, device=x.device), x)
        indices = reversed(range(left))
        if progress:
            from tqdm.auto import tqdm

            indices = tqdm(indices, total=left)
        for i in indices:
            labels = (told["model_kwargs"] or {}).get("y") if randomize_class else None
            if labels is not None:
                told["model_kwargs"] = {**told["model_kwargs"], "y": torch.randint_like(labels, model.num_classes)}
            with torch.no_grad():
                out = self._moved_step(step, model, x, i, told, moves=not skip_timesteps or i < left - 1)
            yield out
            x = out["sample"]
            if "old_out" in told:
                told["old_out"] = out

    def _moved_step(self, step, model, x, i, told, moves):
        """What `step` gives at step index i, between the times and with the corrections that methods say.

        :param moves: whether a coupling may move it, which none does where it starts from a noised image.
        """
        t = torch.full((len(x),), i, device=x.device)
        times, ends = (
            torch.full_like(t, time) for time in (self.timestep_map[i], self.timestep_map[i - 1] if i else -1)
        )
        start, end = self.process.coupling(i, x, times, ends) if moves else (times, ends)
        if start is times and end is ends:
            out = step(model, x, t, **told)
        else:
            with self._between(start, end) as index:
                out = step(model, x, index, **told)
        if self.process.correction is not no_correction:
            prediction = Prediction.from_x0(x, self.schedule.alpha_bar(start), out["pred_xstart"])
            out = {**out, "sample": self.process.correction(out["sample"], prediction, start, end)}
        return out

    def denoiser(self, model, model_kwargs=None, clip_denoised=True):
        """The denoiser `(x_t, t) -> Prediction` of a network that solvers ask, t being training timesteps [N].

        Overrides of a subclass belong to the loops above; this is what the scripts run.
        """
        denoise = self.process.denoiser(model, model_kwargs)
        clip = ClippedDenoiser(None).apply
        return (lambda x, t: clip(denoise(x, t))) if clip_denoised else denoise

    def sample_records(self, solver, denoise, x, noise=torch.randn_like):
        """The records of a solver over this process's grid; see `Process.sample_records`."""
        return self.process.sample_records(solver, denoise, x, noise)

    # -- training and likelihood ------------------------------------------------------------------

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None):
        """Dict of losses [N]: `loss`, and where they exist `mse` and `vb` (bits per dimension).

        Of the methods only those that corrupt the noise act here.

        :param noise: the noise of x_t, and the target; drawn if not given.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self._corrupted(x_start, t, noise)
        # nothing that wraps denoisers is for training
        with self._changed({"process": self._bare}):
            return self._losses(model, x_start, x_t, t, model_kwargs or {}, noise)

    def _corrupted(self, x_start, t, noise):
        if self.process.corruption is no_corruption:
            return self.q_sample(x_start, t, noise=noise)
        times = self._time(t)
        noise, level = self.process.corruption(noise, times)
        if level is times:
            return self.q_sample(x_start, t, noise=noise)
        with self._between(level, torch.full_like(level, -1)) as index:
            return self.q_sample(x_start, index, noise=noise)

    def _losses(self, model, x_start, x_t, t, cond, noise):
        total = self.num_timesteps
        states = {"x_start": x_start, "x_t": x_t, "t": t}
        if self.loss_type.is_vb():
            bound = self._vb_terms_bpd(model, **states, clip_denoised=False, model_kwargs=cond)["output"]
            return {"loss": bound * total if self.loss_type is LossType.RESCALED_KL else bound}

        terms = {}
        output, variance = self._asked(model, x_t, t, cond)
        if variance is not None:
            # the bound teaches the variance alone (Nichol & Dhariwal 2021, section 3.1)
            said = torch.cat([output.detach(), variance], dim=1)
            terms["vb"] = self._vb_terms_bpd(lambda *_, **__: said, **states, clip_denoised=False)["output"]
            if self.loss_type is LossType.RESCALED_MSE:
                terms["vb"] = terms["vb"] * total / 1000
        terms["mse"] = mean_flat((self._target(x_start, x_t, t, noise) - output) ** 2)
        terms["loss"] = sum(terms.values())
        return terms

    def _target(self, x_start, x_t, t, noise):
        """What the network ought to say."""
        if self.model_mean_type is ModelMeanType.EPSILON:
            return noise
        if self.model_mean_type is ModelMeanType.START_X:
            return x_start
        if self.model_mean_type is ModelMeanType.VELOCITY:
            signal = _extract_into_tensor(self.sqrt_alphas_cumprod, t, x_t.shape)
            return signal * noise - _extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_t.shape) * x_start
        return self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)[0]

    def _vb_terms_bpd(self, model, x_start, x_t, t, clip_denoised=True, model_kwargs=None):
        """The term of the variational bound at step index t (Ho et al. 2020, equation 5).

        :return: dict of `output` [N] in bits per dimension, a Kullback-Leibler divergence or at t = 0 the likelihood of
            8-bit data, and `pred_xstart`.
        """
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
        out = self.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
        mean, log_variance = out["mean"], out["log_variance"]
        kl = mean_flat(normal_kl(true_mean, true_log_variance, mean, log_variance))
        nll = -mean_flat(discretized_gaussian_log_likelihood(x_start, means=mean, log_scales=0.5 * log_variance))
        return {"output": torch.where(t == 0, nll, kl) / math.log(2), "pred_xstart": out["pred_xstart"]}

    def _prior_bpd(self, x_start):
        """KL [N] between q(x_T | x_0) and the standard normal, in bits per dimension."""
        t = torch.full((len(x_start),), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)

    @torch.no_grad()
    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None, draw=torch.randn_like):
        """The variational bound of images, term by term.

        :param draw: draws the noise of each step, like x_start.
        :return: dict of `total_bpd` [N], `prior_bpd` [N] (bits per dimension), and, noisiest step first,
            `vb` (bits per dimension), `xstart_mse`, `mse` (of eps), each [N, num_timesteps].
        """
        terms = {"vb": [], "xstart_mse": [], "mse": []}
        for i in reversed(range(self.num_timesteps)):
            t = torch.full((len(x_start),), i, device=x_start.device)
            noise = draw(x_start)
            x_t = self.q_sample(x_start=x_start, t=t, noise=noise)
            out = self._vb_terms_bpd(
                model, x_start=x_start, x_t=x_t, t=t, clip_denoised=clip_denoised, model_kwargs=model_kwargs
            )
            x0 = out["pred_xstart"]
            terms["vb"].append(out["output"])
            terms["xstart_mse"].append(mean_flat((x0 - x_start) ** 2))
            terms["mse"].append(mean_flat((self._predict_eps_from_xstart(x_t, t, x0) - noise) ** 2))
        terms = {key: torch.stack(values, dim=1) for key, values in terms.items()}
        prior = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(dim=1) + prior, "prior_bpd": prior, **terms}


# as it stands here, to tell whether a subclass or a patch says otherwise
_predict_xstart_from_eps = GaussianDiffusion._predict_xstart_from_eps


def _extract_into_tensor(arr, timesteps, broadcast_shape):
    """The entries of a table at indices, as float32, in a shape whose first axes are those of the indices."""
    entries = on_device(arr, timesteps.device).take(timesteps.long()).float()
    return entries.view(*timesteps.shape, *[1] * (len(broadcast_shape) - timesteps.ndim)).expand(broadcast_shape)


def _combined(a, x, b, y):
    """a x + b y, [N, ...], in two passes over memory."""
    return torch.addcmul(a * x, b, y)


def _detached(out):
    return {name: value.detach() for name, value in out.items()}


def _last(outputs):
    return deque(outputs, maxlen=1)[0]


def _device_of(model):
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    return torch.device("cpu") if parameter is None else parameter.device
