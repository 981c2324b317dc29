"""How timesteps are drawn, and that the weights undo it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guided_diffusion.errors import UserError
from guided_diffusion.resample import LossSecondMomentResampler, UniformSampler, create_named_schedule_sampler

DIFFUSION = SimpleNamespace(num_timesteps=4)
CPU = torch.device("cpu")


def taught(uniform_prob=0.001):
    """A resampler of two losses per step, after its warm-up: the older of three losses are forgotten."""
    sampler = LossSecondMomentResampler(DIFFUSION, history_per_term=2, uniform_prob=uniform_prob)
    sampler.update_with_all_losses([0, 1, 2, 3, 0, 1, 2, 3, 0], [9.0, 1.0, 2.0, 0.5, 3.0, 1.0, 4.0, 0.5, 4.0])
    return sampler


def test_second_moment_probabilities_by_hand():
    rms = np.sqrt([(3**2 + 4**2) / 2, 1, (2**2 + 4**2) / 2, 0.25])
    np.testing.assert_allclose(taught().weights(), 0.999 * rms / rms.sum() + 0.001 / 4)


def test_uniform_until_every_step_has_its_history():
    sampler = LossSecondMomentResampler(DIFFUSION, history_per_term=2)
    sampler.update_with_all_losses([0, 1, 2, 0, 1, 2, 3], [5.0, 1.0, 2.0, 3.0, 1.0, 4.0, 0.5])
    _, weights = sampler.sample(100, CPU)
    assert (sampler.weights() == 1).all() and (weights == 1).all()
    sampler.update_with_all_losses([3], [0.5])
    assert sampler.weights()[0] > sampler.weights()[3]


@pytest.mark.parametrize("make", [lambda: UniformSampler(DIFFUSION), taught, lambda: taught(0.3)])
def test_weights_keep_the_loss_unbiased(make):
    sampler = make()
    np.random.seed(0)
    t, weights = sampler.sample(40000, CPU)
    assert t.dtype == torch.int64 and weights.dtype == torch.float32
    p = sampler.weights() / sampler.weights().sum()
    share = np.bincount(t.numpy(), minlength=4) / len(t)
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(t)) + 1e-12).all()
    # each draw of step k weighs the same, so the expectation is exact: sum_k p_k w_k loss_k = mean loss
    weight_of = np.array([weights[t == k][0].item() for k in range(4)])
    assert all((weights[t == k] == weight_of[k]).all() for k in range(4))
    losses = np.array([0.1, 5.0, 2.0, 7.0])
    assert (p * weight_of * losses).sum() == pytest.approx(losses.mean(), rel=1e-6)


def test_local_losses_are_noted():
    sampler = taught()
    sampler.update_with_local_losses(torch.tensor([3, 3]), torch.tensor([20.0, 20.0]))
    assert sampler.weights().argmax() == 3


def test_names():
    assert isinstance(create_named_schedule_sampler("uniform", DIFFUSION), UniformSampler)
    assert isinstance(create_named_schedule_sampler("loss-second-moment", DIFFUSION), LossSecondMomentResampler)
    with pytest.raises(UserError, match="--schedule_sampler is 'best'; expected uniform or loss-second-moment"):
        create_named_schedule_sampler("best", DIFFUSION)
