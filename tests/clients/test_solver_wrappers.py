"""How k-diffusion, DPM-Solver and UniPC wrap a network and a process: through tables, fractional times and raw calls.

Each wrapper is written here in the wrapper's own variables and held to the project's sampler on the same grid.
"""

import itertools

import numpy as np
import pytest
import torch

from guided_diffusion.script_util import (
    classifier_and_diffusion_defaults,
    create_classifier,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from guided_diffusion.solvers import SOLVERS
from guided_diffusion.solvers.flags import SolverFlags

SIZE, CLASSES = 16, 4


@pytest.fixture(scope="module", params=["fixed", "learned"])
def made(request):
    torch.manual_seed(0)
    flags = model_and_diffusion_defaults() | {
        "image_size": SIZE,
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "1,2",
        "attention_resolutions": "8",
        "num_heads": 2,
        "class_cond": True,
        "num_classes": CLASSES,
        "learn_sigma": request.param == "learned",
        "timestep_respacing": "ddim10",
    }
    model, diffusion = create_model_and_diffusion(**flags)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.05)
    _, full = create_model_and_diffusion(**{**flags, "timestep_respacing": ""})
    return model.eval().requires_grad_(False), diffusion, torch.tensor(full.alphas_cumprod, dtype=torch.float64)


@pytest.fixture(scope="module")
def start():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([1, 3])


def predicted_noise(model, x, t, y):
    """What every wrapper does with the output: three channels of noise, and perhaps three that it drops."""
    return model(x, t, y=y)[:, :3]


def sigmas_of(table):
    return ((1 - table) / table).sqrt()


def denoised_at(model, sigmas, x, sigma):
    """k-diffusion: D(x; sigma) with the time where log sigma lies in the table, a fraction between integers."""
    low = int((sigmas <= sigma).sum().clamp(1, len(sigmas) - 1)) - 1
    share = (sigma / sigmas[low]).log() / (sigmas[low + 1] / sigmas[low]).log()
    t = (low + share).float().expand(len(x))
    return x - sigma * predicted_noise(model, (x / (1 + sigma**2).sqrt()).float(), t, LABELS).double()


def test_euler_in_sigma_is_ddim(made, start):
    model, diffusion, table = made
    sigmas = sigmas_of(table)
    levels = [*sigmas[sorted(diffusion.use_timesteps)].flip(0), torch.zeros((), dtype=torch.float64)]
    x = start.double() * (1 + levels[0] ** 2).sqrt()
    for sigma, following in itertools.pairwise(levels):
        slope = (x - denoised_at(model, sigmas, x, sigma)) / sigma
        x = x + (following - sigma) * slope
    images = diffusion.ddim_sample_loop(
        model, start.shape, noise=start, clip_denoised=False, model_kwargs={"y": LABELS}
    )
    torch.testing.assert_close(images.double(), x, rtol=1e-3, atol=1e-3)


def test_heun_in_sigma_between_the_integers(made, start):
    """Two calls a step at times of the wrapper's own choice: the network answers there, and smoothly."""
    model, _, table = made
    sigmas = sigmas_of(table)
    at = [denoised_at(model, sigmas, start.double(), sigmas[500] * factor) for factor in (0.9995, 1.0, 1.0005)]
    assert not torch.equal(at[0], at[1])
    torch.testing.assert_close((at[0] + at[2]) / 2, at[1], rtol=1e-3, atol=1e-3)


def log_snr_half(table, t):
    """DPM-Solver: lambda at a time in [1/N, 1], by interpolation of log alpha in the table."""
    n = len(table)
    log_alpha = np.interp(t, np.arange(1, n + 1) / n, 0.5 * np.log(table.numpy()))
    return log_alpha - 0.5 * np.log1p(-np.exp(2 * log_alpha)), np.exp(log_alpha)


def model_fn(model, n, x, t):
    """DPM-Solver's and UniPC's: from a time in [1/N, 1] to the network's, (t - 1/N) N, never rounded."""
    told = torch.full((len(x),), (t - 1 / n) * n, dtype=torch.float32)
    return predicted_noise(model, x.float(), told, LABELS).double()


@pytest.mark.parametrize("order", [1, 2])
def test_multistep_in_log_snr(made, start, order):
    """DPM-Solver++ (2M) of the data prediction equals the project's solver on the same grid."""
    model, diffusion, table = made
    n = len(table)
    times = [(k + 1) / n for k in sorted(diffusion.use_timesteps, reverse=True)]
    x, before = start.double(), None
    for t, following in itertools.pairwise(times):
        half, alpha = log_snr_half(table, t)
        next_half, next_alpha = log_snr_half(table, following)
        sigma, next_sigma = np.sqrt(1 - alpha**2), np.sqrt(1 - next_alpha**2)
        x0 = (x - sigma * model_fn(model, n, x, t)) / alpha
        mixed = x0
        if order == 2 and before is not None:
            ratio = (half - before[0]) / (next_half - half)
            mixed = x0 + (x0 - before[1]) / (2 * ratio)
        before = half, x0
        x = next_sigma / sigma * x - next_alpha * np.expm1(half - next_half) * mixed
    solver = SOLVERS["ddim" if order == 1 else "dpmpp_2m"](diffusion.schedule)
    denoiser = diffusion.denoiser(model, {"y": LABELS}, clip_denoised=False)
    records = list(diffusion.sample_records(solver, denoiser, start))
    torch.testing.assert_close(records[-2].x.double(), x, rtol=1e-3, atol=1e-3)


def test_guided_model_fn_with_a_classifier_at_fractional_times(made, start):
    """Noise less sigma times the classifier's gradient, as the wrappers guide."""
    model, diffusion, _ = made
    flags = classifier_and_diffusion_defaults() | {"image_size": SIZE, "classifier_width": 64, "classifier_depth": 1}
    names = [name for name in flags if name.startswith("classifier") or name == "image_size"]
    torch.manual_seed(2)
    classifier = create_classifier(**{name: flags[name] for name in names}).eval()
    for weights in classifier.parameters():
        torch.nn.init.normal_(weights, std=0.05)

    def gradient(t):
        with torch.enable_grad():
            x = start.clone().requires_grad_()
            chosen = torch.log_softmax(classifier(x, torch.full((2,), t)), dim=-1)[range(2), LABELS]
            return torch.autograd.grad(chosen.sum(), x)[0]

    low, middle, high = (gradient(t) for t in (500.0, 500.05, 500.1))
    assert low.abs().max() > 0 and not torch.equal(low, middle)
    torch.testing.assert_close(middle, (low + high) / 2, rtol=1e-2, atol=1e-2 * float(low.abs().max()))

    index = 5
    t = torch.full((2,), index)
    told = float(diffusion.timestep_map[index])
    out = diffusion.p_mean_variance(model, start, t, clip_denoised=False, model_kwargs={"y": LABELS})
    scored = diffusion.condition_score(lambda x, t, y: gradient(float(t[0])), out, start, t, model_kwargs={"y": LABELS})
    level = diffusion.alphas_cumprod[index]
    eps = predicted_noise(model, start, torch.full((2,), told), LABELS) - np.sqrt(1 - level) * gradient(told)
    expected = (start - np.sqrt(1 - level) * eps) / np.sqrt(level)
    torch.testing.assert_close(scored["pred_xstart"], expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_solvers_from_the_class(made, start, name):
    """The class leads to the solvers, and they give what its own loops give, clipping and noise included."""
    model, diffusion, _ = made
    solver = SolverFlags(solver=name).create(diffusion.process)
    told = {"y": LABELS}
    torch.manual_seed(3)
    *_, last = diffusion.sample_records(solver, diffusion.denoiser(model, told), start)
    torch.manual_seed(3)
    loop = diffusion.ddim_sample_loop if name == "ddim" else diffusion.p_sample_loop
    torch.testing.assert_close(last.x, loop(model, start.shape, noise=start, model_kwargs=told), rtol=1e-4, atol=1e-4)
