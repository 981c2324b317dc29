"""The published numbers of Time Shift, Epsilon Scaling and Input Perturbation, every key of their goldens."""

import numpy as np
import pytest
import torch
from goldens import PERTURBED_T, closed_form, cond_fn, published
from recipe import tensor

from guided_diffusion.script_util import create_gaussian_diffusion

GOLDEN = {name: published(name) for name in ("time_shift", "epsilon_scaling", "input_perturbation")}
TIME_SHIFT = {
    "cosine_ddim5_w80_c300": ("cosine", "ddim5", 80, 300),
    "cosine_10_w40_c200": ("cosine", "10", 40, 200),
    "cosine_ddim20_w30_c500": ("cosine", "ddim20", 30, 500),
    "linear_ddim10_w60_c300": ("linear", "ddim10", 60, 300),
    "linear_50_w20_c600": ("linear", "50", 20, 600),
}
EPSILON_SCALING = {
    "ddpm_cosine_learned_100": ("p_sample_loop", "cosine", "20", 1.017, None),
    "ddim_cosine_learned": ("ddim_sample_loop", "cosine", "ddim10", 1.005, None),
    "ddpm_linear_guided": ("p_sample_loop", "linear", "20", 1.004, cond_fn),
}
INPUT_PERTURBATION = {
    "cosine_rescaled_mse": (0.15, {"noise_schedule": "cosine", "learn_sigma": True, "rescale_learned_sigmas": True}),
    "linear_mse": (0.1, {"noise_schedule": "linear"}),
}
ARRAYS = ("samples", "last_pred_xstart")


def check(file, key, actual, atol=1e-5):
    np.testing.assert_allclose(np.asarray(actual), GOLDEN[file][key], rtol=1e-4, atol=atol, err_msg=key)


def loop(diffusion, name, model, shape, **kwargs):
    """Samples after every step, and the last predicted images, under global seed 1."""
    torch.manual_seed(1)
    steps = list(getattr(diffusion, f"{name}_progressive")(model, shape, device="cpu", **kwargs))
    return torch.stack([step["sample"] for step in steps]), steps[-1]["pred_xstart"]


@pytest.mark.parametrize("shifted", [True, False], ids=["shifted", "plain"])
@pytest.mark.parametrize("case", TIME_SHIFT)
def test_time_shift(case, shifted):
    schedule, respacing, window, cutoff = TIME_SHIFT[case]
    process = {
        "steps": 1000,
        "noise_schedule": schedule,
        "learn_sigma": schedule == "cosine",
        "timestep_respacing": respacing,
    }
    diffusion = create_gaussian_diffusion(**process, do_time_shift=shifted, window=window, cutoff=cutoff)
    samples, last = loop(diffusion, "ddim_sample_loop", closed_form(process), (6, 3, 8, 8))
    kind = "shifted" if shifted else "plain"
    check("time_shift", f"{case}.{kind}.samples", samples)
    check("time_shift", f"{case}.{kind}.last_pred_xstart", last)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("case", EPSILON_SCALING)
def test_epsilon_scaling(case, clip):
    name, schedule, respacing, scaler, guide = EPSILON_SCALING[case]
    process = {"steps": 1000, "noise_schedule": schedule, "learn_sigma": True, "timestep_respacing": respacing}
    diffusion = create_gaussian_diffusion(**process, eps_scaler=scaler)
    samples, last = loop(diffusion, name, closed_form(process), (3, 3, 8, 8), clip_denoised=clip, cond_fn=guide)
    # at t = 999 of the cosine schedule the float32 numbers are only good to this (tests/golden/README.md)
    atol = 5e-4 if (schedule, respacing) == ("cosine", "20") else 1e-5
    check("epsilon_scaling", f"{case}.clip{int(clip)}.samples", samples, atol)
    check("epsilon_scaling", f"{case}.clip{int(clip)}.last_pred_xstart", last, atol)


@pytest.mark.parametrize("given", [True, False], ids=["given_noise", "seeded"])
@pytest.mark.parametrize("case", INPUT_PERTURBATION)
def test_input_perturbation(case, given):
    gamma, process = INPUT_PERTURBATION[case]
    diffusion = create_gaussian_diffusion(steps=1000, **process, input_perturbation=gamma)
    x0 = tensor(f"{case}:x0", 3, 3, 8, 8).clamp(-1, 1)
    noise = tensor(f"{case}:n", 3, 3, 8, 8) if given else None
    torch.manual_seed(1)
    terms = diffusion.training_losses(closed_form({"steps": 1000, **process}), x0, PERTURBED_T, noise=noise)
    for key, value in terms.items():
        check("input_perturbation", f"{case}.{'given_noise' if given else 'seeded'}.{key}", value)


def test_input_perturbation_that_depends_on_t():
    process = {"noise_schedule": "cosine", "learn_sigma": True, "rescale_learned_sigmas": True, "steps": 1000}
    diffusion = create_gaussian_diffusion(
        **process, input_perturbation=0.15, perturb_schedule_type="linear", perturb_cutoff=200
    )
    torch.manual_seed(1)
    x0 = tensor("ip_schedule:x0", 3, 3, 8, 8).clamp(-1, 1)
    for key, value in diffusion.training_losses(closed_form(process), x0, PERTURBED_T).items():
        check("time_shift", f"ip_schedule_linear.{key}", value)


def test_no_key_is_left_out():
    keys = {
        "time_shift": {f"{c}.{k}.{a}" for c in TIME_SHIFT for k in ("shifted", "plain") for a in ARRAYS}
        | {f"ip_schedule_linear.{a}" for a in ("vb", "mse", "loss")},
        "epsilon_scaling": {f"{c}.clip{k}.{a}" for c in EPSILON_SCALING for k in (0, 1) for a in ARRAYS},
        "input_perturbation": {
            f"{c}.{k}.{a}"
            for c in INPUT_PERTURBATION
            for k in ("given_noise", "seeded")
            for a in ("vb", "mse", "loss")[c == "linear_mse" :]
        },
    }
    assert {name: set(file.files) for name, file in GOLDEN.items()} == keys
