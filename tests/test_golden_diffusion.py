"""The published numbers: every key of tests/golden/diffusion_base.npz."""

import numpy as np
import pytest
import torch
from goldens import closed_form, cond_fn, published
from recipe import tensor

from guided_diffusion.script_util import create_gaussian_diffusion

GOLDEN = published("diffusion_base")
CASES = {
    "linear_small": dict(noise_schedule="linear", steps=1000, timestep_respacing="20"),
    "cosine_learned": dict(noise_schedule="cosine", steps=1000, learn_sigma=True, timestep_respacing="ddim10"),
    "cosine_learned_rescaled_mse": dict(
        noise_schedule="cosine",
        steps=1000,
        learn_sigma=True,
        rescale_learned_sigmas=True,
        timestep_respacing="10,5,5",
    ),
    "linear_kl_rescaled_t": dict(
        noise_schedule="linear",
        steps=1000,
        learn_sigma=True,
        use_kl=True,
        rescale_timesteps=True,
        timestep_respacing="25",
    ),
    "sigma_small_predict_xstart": dict(
        noise_schedule="linear", steps=500, sigma_small=True, predict_xstart=True, timestep_respacing="ddim25"
    ),
}
SHAPE = (3, 3, 8, 8)


@pytest.fixture(params=CASES)
def case(request):
    name = request.param
    diffusion = create_gaussian_diffusion(**CASES[name])
    inputs = {
        "x0": tensor(name + ":x0", *SHAPE).clamp(-1, 1),
        "x": tensor(name + ":x", *SHAPE),
        "n": tensor(name + ":n", *SHAPE),
        "t": torch.tensor([0, diffusion.num_timesteps // 2, diffusion.num_timesteps - 1]),
    }
    return name, diffusion, closed_form(CASES[name]), inputs


def check(name, key, actual):
    expected = GOLDEN[f"{name}.{key}"]
    atol = 5e-4 if name in ("cosine_learned_rescaled_mse",) else 1e-5
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-4, atol=atol, err_msg=f"{name}.{key}")
    checked.setdefault(name, set()).add(f"{name}.{key}")


checked = {}


def check_schedule(name, diffusion):
    assert list(GOLDEN[f"{name}.timestep_map"]) == diffusion.timestep_map
    np.testing.assert_allclose(diffusion.betas, GOLDEN[f"{name}.betas"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        diffusion.posterior_log_variance_clipped, GOLDEN[f"{name}.posterior_log_variance_clipped"], rtol=0, atol=1e-11
    )
    checked.setdefault(name, set()).update(
        f"{name}.{key}" for key in ("timestep_map", "betas", "posterior_log_variance_clipped")
    )


def seeded(call, *args, **kwargs):
    torch.manual_seed(1)
    return call(*args, **kwargs)


def test_every_published_number(case):
    name, d, model, i = case
    x0, x, n, t = i["x0"], i["x"], i["n"], i["t"]
    check_schedule(name, d)
    check(name, "q_sample", d.q_sample(x0, t, n))
    for key, value in zip(("mean", "variance", "log_variance"), d.q_posterior_mean_variance(x0, x, t)):
        check(name, f"q_posterior.{key}", value)
    for clip in (0, 1):
        out = d.p_mean_variance(model, x, t, clip_denoised=bool(clip), model_kwargs={})
        for key, value in out.items():
            check(name, f"p_mean_variance.clip{clip}.{key}", value)
    check(name, "p_sample", seeded(d.p_sample, model, x, t)["sample"])
    check(name, "p_sample.cond_fn", seeded(d.p_sample, model, x, t, cond_fn=cond_fn)["sample"])
    for eta in (0.0, 0.7):
        check(name, f"ddim_sample.eta{eta}", seeded(d.ddim_sample, model, x, t, eta=eta)["sample"])
    check(name, "ddim_sample.cond_fn", seeded(d.ddim_sample, model, x, t, cond_fn=cond_fn)["sample"])
    up = torch.tensor([0, d.num_timesteps // 2, d.num_timesteps - 2])
    check(name, "ddim_reverse_sample", seeded(d.ddim_reverse_sample, model, x, up)["sample"])
    for kind in ("p", "ddim"):
        torch.manual_seed(1)
        steps = list(getattr(d, f"{kind}_sample_loop_progressive")(model, SHAPE, device="cpu"))
        check(name, f"{kind}_sample_loop.samples", torch.stack([s["sample"] for s in steps]))
        check(name, f"{kind}_sample_loop.last_pred_xstart", steps[-1]["pred_xstart"])
        assert torch.equal(seeded(getattr(d, f"{kind}_sample_loop"), model, SHAPE, device="cpu"), steps[-1]["sample"])
    for key, value in d.training_losses(model, x0, t, noise=n).items():
        check(name, f"training_losses.{key}", value)
    for key, value in seeded(d.calc_bpd_loop, model, x0, clip_denoised=True).items():
        check(name, f"calc_bpd_loop.{key}", value)
    assert checked[name] == {key for key in GOLDEN.files if key.split(".")[0] == name}
