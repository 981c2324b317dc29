"""What published code refuses by an AssertionError or a NotImplementedError is caught as that, and is one sentence."""

import pytest
import torch

from guided_diffusion.errors import UserError
from guided_diffusion.gaussian_diffusion import get_named_beta_schedule
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.respace import SpacedDiffusion, space_timesteps
from guided_diffusion.script_util import create_gaussian_diffusion

X = torch.zeros(2, 3, 4, 4)
T = torch.tensor([1, 2])


def network(channels):
    return lambda x, t, **cond: torch.zeros(len(x), channels, 4, 4)


def made(**flags):
    return create_gaussian_diffusion(steps=10, noise_schedule="cosine", **flags)


def of_betas(betas):
    like = made()
    kinds = {"model_mean_type": like.model_mean_type, "model_var_type": like.model_var_type}
    return SpacedDiffusion(use_timesteps=[0], betas=betas, loss_type=like.loss_type, **kinds)


WRONG = {
    "betas of two dimensions": (AssertionError, lambda: of_betas([[0.1, 0.2]])),
    "a beta of 0": (AssertionError, lambda: of_betas([0.1, 0.0])),
    "a beta above 1": (AssertionError, lambda: of_betas([0.1, 1.5])),
    "noise for one image of two": (AssertionError, lambda: made().q_sample(X, T, noise=X[:1])),
    "one time for two images": (AssertionError, lambda: made().p_mean_variance(network(3), X, T[:1])),
    "too many channels": (AssertionError, lambda: made().p_mean_variance(network(6), X, T)),
    "too few channels": (AssertionError, lambda: made(learn_sigma=True).p_mean_variance(network(3), X, T)),
    "a network of the wrong size in training": (AssertionError, lambda: made().training_losses(network(5), X, T)),
    "a reverse step that draws": (AssertionError, lambda: made().ddim_reverse_sample(network(3), X, T, eta=1.0)),
    "an unknown schedule": (NotImplementedError, lambda: get_named_beta_schedule("foo", 10)),
    "an unknown sampler": (NotImplementedError, lambda: create_named_schedule_sampler("foo", made())),
    "more sections than steps": (ValueError, lambda: space_timesteps(10, "20")),
    "a stride that does not exist": (ValueError, lambda: space_timesteps(10, "ddim7")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_published_to_be_raised(wrong):
    published, call = WRONG[wrong]
    with pytest.raises(published) as raised:
        call()
    assert isinstance(raised.value, UserError) and str(raised.value) and "\n" not in str(raised.value)
