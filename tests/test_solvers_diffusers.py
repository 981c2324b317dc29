"""Solvers against the schedulers of Hugging Face diffusers: same noise prediction, same schedule, same grid.

Where the two define different things, the comparison leaves it out:
- PNDM, PLMS: diffusers averages in the step to the data too; here that step is DDIM's. So the states before it.
- F-PNDM: its Runge-Kutta steps begin at other timesteps there (two of three, and the grid repeats some).
- UniPC of order 3: diffusers lowers the order at the end by the number of steps left; switched off there, it has no
  step to the data. With bh1 its step to the data is NaN (infinity times 0). So the states before it.
- DEIS: polynomials in lambda there, in t here; they meet in order 1 alone, which is DDIM.
- DPM-Solver++ 2S: its middle there is the next timestep of the grid, here the middle of each step in lambda.
- iPNDM: another noise schedule there.
"""

import numpy as np
import pytest
import solver_orders
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from guided_diffusion.sampling import sample
from guided_diffusion.schedule import NoiseSchedule, get_named_beta_schedule
from guided_diffusion.solvers import DDIM, SOLVERS, UniPC

BETAS = get_named_beta_schedule("linear", 1000)
SCHEDULE = NoiseSchedule(BETAS)
START = torch.linspace(-2, 2, 48).reshape(2, 3, 2, 4)
DENOISE = solver_orders.denoiser(SCHEDULE)


def network(x, t):
    """The exact noise prediction, as diffusers asks for it."""
    alpha_bar = SCHEDULE.alpha_bar(torch.full((len(x),), int(t)))
    return solver_orders.exact_eps(x.double(), alpha_bar.reshape(-1, 1, 1, 1)).float()


def noises(count):
    return torch.randn(count, *START.shape, generator=torch.Generator().manual_seed(5))


def theirs(scheduler, steps, scale=1.0, last=None):
    """(grid, states after each of their steps, or after those before index `last`)."""
    scheduler.set_timesteps(steps)
    x, states, draws = START * scale, [], iter(noises(steps))
    sde = getattr(scheduler.config, "algorithm_type", "").startswith("sde")
    for t in scheduler.timesteps[:last]:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **({"variance_noise": next(draws)} if sde else {})).prev_sample
        states.append(x)
    return sorted({int(t) for t in scheduler.timesteps}), states


def ours(solver, grid):
    draws = iter(noises(len(grid)))
    return [r.x for r in sample(DENOISE, solver, grid, START.double(), lambda x: next(draws))]


def agree(mine, other):
    torch.testing.assert_close(mine.float(), other.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_ddim(steps):
    scheduler = DDIMScheduler(trained_betas=BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    grid, states = theirs(scheduler, steps)
    for a, b in zip(ours(DDIM(SCHEDULE), grid), states, strict=True):
        agree(a, b)


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize(
    "name, order, kind",
    [
        ("dpmpp_1", 1, "dpmsolver++"),
        ("dpmpp_2m", 2, "dpmsolver++"),
        ("dpmpp_3m", 3, "dpmsolver++"),
        ("dpmpp_sde_2m", 2, "sde-dpmsolver++"),
    ],
)
def test_dpm_solver_pp(name, order, kind, spacing, steps):
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=BETAS, solver_order=order, algorithm_type=kind, lower_order_final=False, timestep_spacing=spacing
    )
    grid, states = theirs(scheduler, steps)
    for a, b in zip(ours(SOLVERS[name](SCHEDULE), grid), states, strict=True):
        agree(a, b)


def test_the_corrected_3m_is_not_theirs():
    scheduler = DPMSolverMultistepScheduler(trained_betas=BETAS, solver_order=3, lower_order_final=False)
    grid, states = theirs(scheduler, 10)
    assert (ours(SOLVERS["dpmpp_3m_exact"](SCHEDULE), grid)[-1] - states[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, steps):
    scheduler = UniPCMultistepScheduler(
        trained_betas=BETAS,
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="zero",
        lower_order_final=order < 3,
    )
    last = None if order < 3 and variant == "bh2" else -1
    grid, states = theirs(scheduler, steps, last=last)
    for a, b in zip(ours(UniPC(SCHEDULE, order, variant), grid)[:last], states, strict=True):
        agree(a, b)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_deis_of_order_one(steps):
    grid, states = theirs(DEISMultistepScheduler(trained_betas=BETAS, solver_order=1), steps)
    # their last step goes to the level of timestep 0, which their grid need not hold
    for a, b in list(zip(ours(DDIM(SCHEDULE), grid), states, strict=True))[:-1]:
        agree(a, b)


@pytest.mark.parametrize("steps", [4, 10, 28])
def test_heun(steps):
    """At numbers of steps that give whole timesteps.

    Their states are x / sqrt(alpha_bar), and every second one ends a step.
    """
    first = (1 / SCHEDULE.alpha_bar(torch.tensor([999])).item()) ** 0.5
    grid, states = theirs(HeunDiscreteScheduler(trained_betas=BETAS), steps, scale=first)
    levels = SCHEDULE.alpha_bar(torch.tensor([*grid[-2::-1], -1])).sqrt()
    ended = [*states[1:-1:2], states[-1]]
    for a, b, level in zip(ours(SOLVERS["heun"](SCHEDULE), grid), ended, levels, strict=True):
        agree(a, b * level)


@pytest.mark.parametrize("steps", [10, 20])
def test_plms(steps):
    scheduler = PNDMScheduler(
        trained_betas=BETAS, skip_prk_steps=True, set_alpha_to_one=True, timestep_spacing="leading"
    )
    grid, states = theirs(scheduler, steps)
    # their first two calls make one step
    for a, b in zip(ours(SOLVERS["plms"](SCHEDULE), grid)[:-1], states[1:-1], strict=True):
        agree(a, b)


def test_the_oracle_is_told_the_same_levels():
    theirs_levels = DDIMScheduler(trained_betas=BETAS).alphas_cumprod.numpy()
    np.testing.assert_allclose(theirs_levels, SCHEDULE.alpha_bar(torch.arange(1000)).numpy(), rtol=1e-4)
