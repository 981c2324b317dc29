"""The public class, where the golden numbers do not reach."""

import inspect
import math

import numpy as np
import pytest
import torch
from recipe import tensor
from torch.distributions import Normal, kl_divergence

from guided_diffusion.errors import UserError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType
from guided_diffusion.methods import InputPerturbation
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.schedule import get_named_beta_schedule

SHAPE = (3, 3, 4, 4)
BETAS = get_named_beta_schedule("linear", 100)
LEVELS = np.cumprod(1 - BETAS)
KEPT = [0, 9, 40, 41, 99]
KEPT_LEVELS = LEVELS[KEPT]
BEFORE = np.append(1.0, KEPT_LEVELS[:-1])
KEPT_BETAS = 1 - KEPT_LEVELS / BEFORE
POSTERIOR_VARIANCE = KEPT_BETAS * (1 - BEFORE) / (1 - KEPT_LEVELS)
COEF_X0 = KEPT_BETAS * np.sqrt(BEFORE) / (1 - KEPT_LEVELS)
COEF_XT = (1 - BEFORE) * np.sqrt(1 - KEPT_BETAS) / (1 - KEPT_LEVELS)
T = torch.tensor([0, 2, 4])


def process(mean=ModelMeanType.EPSILON, var=ModelVarType.FIXED_SMALL, loss=LossType.MSE, **changes):
    return SpacedDiffusion(KEPT, betas=BETAS, model_mean_type=mean, model_var_type=var, loss_type=loss, **changes)


def at(table, t):
    """Entries of a numpy table, as [N, 1, 1, 1]."""
    return torch.from_numpy(np.asarray(table)[t.numpy()]).float().reshape(-1, 1, 1, 1)


def eps_model(x, t, **kwargs):
    """Some noise prediction that depends on x and on the training timestep."""
    return 0.4 * x + 0.3 * torch.sin(3 * x + t.float().reshape(-1, 1, 1, 1) / 20)


def two_outputs(x, t, **kwargs):
    return torch.cat([eps_model(x, t), torch.tanh(x) - 0.5], dim=1)


def step_index(t):
    return torch.tensor([KEPT.index(int(k)) for k in t])


def x0_of(model, x, t):
    """x0 for training timesteps t."""
    ab = at(LEVELS, t)
    return (x - (1 - ab).sqrt() * model(x, t)) / ab.sqrt()


def previous_x_model(x, t):
    """The network that predicts the mean of the step before, where eps_model predicts the noise."""
    i = step_index(t)
    return at(COEF_X0, i) * x0_of(eps_model, x, t) + at(COEF_XT, i) * x


# -- what the output of a network means ------------------------------------------------------------


def test_a_network_of_the_previous_x_is_the_same_process():
    x = tensor("x", *SHAPE)
    eps, previous = process(), process(ModelMeanType.PREVIOUS_X)
    expected = eps.p_mean_variance(eps_model, x, T, clip_denoised=False)
    actual = previous.p_mean_variance(previous_x_model, x, T, clip_denoised=False)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual["mean"], previous_x_model(x, torch.tensor(KEPT)[T]), rtol=1e-4, atol=1e-4)
    for loop in ("p_sample_loop", "ddim_sample_loop"):
        images = []
        for d, model in ((eps, eps_model), (previous, previous_x_model)):
            torch.manual_seed(0)
            images.append(getattr(d, loop)(model, SHAPE, noise=x, clip_denoised=False))
        torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


def test_a_network_of_the_clean_image_is_the_same_process():
    x = tensor("x", *SHAPE)
    expected = process().p_mean_variance(eps_model, x, T)
    actual = process(ModelMeanType.START_X).p_mean_variance(lambda x, t: x0_of(eps_model, x, t), x, T)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", ModelMeanType)
def test_targets(mean):
    """A network that outputs the target has no squared error; one off by 0.5 has 0.25."""
    d = process(mean)
    x0, noise = tensor("x0", *SHAPE).clamp(-1, 1), tensor("noise", *SHAPE)
    x_t = at(KEPT_LEVELS, T).sqrt() * x0 + (1 - at(KEPT_LEVELS, T)).sqrt() * noise
    target = {
        ModelMeanType.EPSILON: noise,
        ModelMeanType.START_X: x0,
        ModelMeanType.VELOCITY: at(KEPT_LEVELS, T).sqrt() * noise - (1 - at(KEPT_LEVELS, T)).sqrt() * x0,
        ModelMeanType.PREVIOUS_X: at(COEF_X0, T) * x0 + at(COEF_XT, T) * x_t,
    }[mean]
    for off in (0.0, 0.5):
        terms = d.training_losses(lambda x, t, off=off: target + off, x0, T, noise=noise)
        assert set(terms) == {"loss", "mse"}
        torch.testing.assert_close(terms["mse"], torch.full((3,), off**2), atol=1e-5, rtol=1e-4)


# -- variances -------------------------------------------------------------------------------------


def test_learned_log_variance_is_the_second_half_of_the_output():
    x = tensor("x", *SHAPE)
    out = process(var=ModelVarType.LEARNED).p_mean_variance(two_outputs, x, T)
    torch.testing.assert_close(out["log_variance"], torch.tanh(x) - 0.5)
    torch.testing.assert_close(out["variance"], (torch.tanh(x) - 0.5).exp())
    torch.testing.assert_close(out["mean"], process().p_mean_variance(eps_model, x, T)["mean"])


def test_learned_range_runs_between_the_logs_of_the_fixed_variances():
    x, t = tensor("x", *SHAPE), torch.tensor([1, 2, 4])
    small, large = (at(np.log(v), t) for v in (np.append(1, POSTERIOR_VARIANCE[1:]), KEPT_BETAS))
    for fraction in (0.0, 0.25, 1.0):

        def model(x, t, output=2 * fraction - 1):
            return torch.cat([eps_model(x, t), torch.full_like(x, output)], dim=1)

        out = process(var=ModelVarType.LEARNED_RANGE).p_mean_variance(model, x, t)
        expected = (fraction * large + (1 - fraction) * small).expand(SHAPE)
        torch.testing.assert_close(out["log_variance"], expected)
        torch.testing.assert_close(out["variance"], expected.exp())


@pytest.mark.parametrize(
    "var, table",
    [
        (ModelVarType.FIXED_LARGE, np.append(POSTERIOR_VARIANCE[1], KEPT_BETAS[1:])),
        (ModelVarType.FIXED_SMALL, POSTERIOR_VARIANCE),
    ],
)
def test_fixed_variances_belong_to_the_kept_steps(var, table):
    x, d = tensor("x", 5, 3, 4, 4), process(var=var)
    t = torch.arange(5)
    out = d.p_mean_variance(eps_model, x, t)
    torch.testing.assert_close(out["variance"], at(table, t).expand_as(x))
    floored = np.maximum(table, POSTERIOR_VARIANCE[1]) if table[0] == 0 else table
    torch.testing.assert_close(out["log_variance"], at(np.log(floored), t).expand_as(x))
    torch.manual_seed(5)
    sample = d.p_sample(eps_model, x, t)["sample"]
    torch.manual_seed(5)
    noise = torch.randn_like(x) * (t > 0).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(sample, out["mean"] + at(np.sqrt(table), t) * noise)


# -- losses ----------------------------------------------------------------------------------------


def bound_by_hand(x0, noise, t):
    """KL of the step in bits per dimension for `eps_model` with the small variance (no t = 0 here)."""
    x_t = at(KEPT_LEVELS, t).sqrt() * x0 + (1 - at(KEPT_LEVELS, t)).sqrt() * noise
    guess = x0_of(eps_model, x_t, torch.tensor(KEPT)[t])
    sigma = at(np.sqrt(POSTERIOR_VARIANCE), t).expand(SHAPE)
    true, model = (Normal(at(COEF_X0, t) * v + at(COEF_XT, t) * x_t, sigma) for v in (x0, guess))
    return kl_divergence(true, model).flatten(1).mean(dim=1) / math.log(2)


def test_kl_losses():
    t = torch.tensor([1, 2, 4])
    x0, noise = tensor("x0", *SHAPE).clamp(-1, 1), tensor("noise", *SHAPE)
    kl, rescaled = (
        process(loss=loss).training_losses(eps_model, x0, t, noise=noise)
        for loss in (LossType.KL, LossType.RESCALED_KL)
    )
    assert set(kl) == set(rescaled) == {"loss"}
    torch.testing.assert_close(kl["loss"], bound_by_hand(x0, noise, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rescaled["loss"], kl["loss"] * len(KEPT))


def test_rescaled_mse_weighs_the_bound_by_steps_per_thousand():
    x0, noise = tensor("x0", *SHAPE).clamp(-1, 1), tensor("noise", *SHAPE)
    plain, rescaled = (
        process(var=ModelVarType.LEARNED_RANGE, loss=loss).training_losses(two_outputs, x0, T, noise=noise)
        for loss in (LossType.MSE, LossType.RESCALED_MSE)
    )
    torch.testing.assert_close(rescaled["vb"], plain["vb"] * len(KEPT) / 1000)
    torch.testing.assert_close(rescaled["mse"], plain["mse"])
    torch.testing.assert_close(rescaled["loss"], rescaled["mse"] + rescaled["vb"])


def test_the_bound_teaches_the_variance_alone():
    d = process(var=ModelVarType.LEARNED_RANGE)
    x0, noise = tensor("x0", *SHAPE).clamp(-1, 1), tensor("noise", *SHAPE)
    mean = tensor("mean", *SHAPE).requires_grad_()
    fraction = tensor("fraction", *SHAPE).requires_grad_()
    terms = d.training_losses(lambda x, t: torch.cat([mean, fraction], dim=1), x0, T, noise=noise)
    of_mean, of_fraction = torch.autograd.grad(terms["loss"].sum(), (mean, fraction))
    torch.testing.assert_close(of_mean, 2 * (mean - noise).detach() / mean[0].numel())
    assert (of_fraction != 0).any()


def test_the_kl_loss_teaches_the_mean_too():
    d = process(var=ModelVarType.LEARNED_RANGE, loss=LossType.KL)
    x0 = tensor("x0", *SHAPE).clamp(-1, 1)
    mean = tensor("mean", *SHAPE).requires_grad_()
    loss = d.training_losses(lambda x, t: torch.cat([mean, x], dim=1), x0, T)["loss"]
    assert (torch.autograd.grad(loss.sum(), mean)[0].flatten(1).abs().sum(dim=1) > 0).all()


def test_corruption_moves_the_input_and_leaves_the_target():
    x0, noise = tensor("x0", *SHAPE).clamp(-1, 1), tensor("noise", *SHAPE)
    seen = {}

    def model(x, t):
        seen["x"], seen["t"] = x, t
        return eps_model(x, t)

    class Corrupting(InputPerturbation):
        def corrupt(self, process):
            def corrupt(noise, t):
                seen["corrupt_t"] = t
                return noise + 0.1 * tensor("more", *SHAPE), t

            return corrupt

    plain = process().training_losses(model, x0, T, noise=noise)
    clean = seen["x"]
    same = process(methods=[InputPerturbation()]).training_losses(model, x0, T, noise=noise)
    assert torch.equal(seen["x"], clean) and torch.equal(same["loss"], plain["loss"])
    moved = process(methods=[Corrupting()]).training_losses(model, x0, T, noise=noise)
    assert seen["corrupt_t"].tolist() == [KEPT[i] for i in T]
    shift = (1 - at(KEPT_LEVELS, T)).sqrt() * 0.1 * tensor("more", *SHAPE)
    torch.testing.assert_close(seen["x"], clean + shift)
    expected = ((noise - eps_model(seen["x"], seen["t"])) ** 2).flatten(1).mean(dim=1)
    torch.testing.assert_close(moved["mse"], expected)


# -- arguments on their way to the network ---------------------------------------------------------


def calls(d, model, x, **kwargs):
    """Every public function that asks the network, by name."""
    x0 = x.clamp(-1, 1)
    return {
        "p_mean_variance": lambda: d.p_mean_variance(model, x, T, **kwargs),
        "p_sample": lambda: d.p_sample(model, x, T, **kwargs),
        "ddim_sample": lambda: d.ddim_sample(model, x, T, **kwargs),
        "ddim_reverse_sample": lambda: d.ddim_reverse_sample(model, x, T, **kwargs),
        "p_sample_loop": lambda: {"x": d.p_sample_loop(model, SHAPE, noise=x, **kwargs)},
        "ddim_sample_loop": lambda: {"x": d.ddim_sample_loop(model, SHAPE, noise=x, **kwargs)},
        "training_losses": lambda: d.training_losses(model, x0, T, **kwargs),
        "calc_bpd_loop": lambda: d.calc_bpd_loop(model, x0, **kwargs),
    }


@pytest.mark.parametrize("name", calls(None, None, torch.zeros(())))
def test_model_kwargs_reach_the_network_and_none_means_none(name):
    x, d, got = tensor("x", *SHAPE), process(), []

    def model(x, t, **kwargs):
        got.append(kwargs)
        return eps_model(x, t) + kwargs.get("shift", 0)

    def run(**kwargs):
        got.clear()
        torch.manual_seed(0)
        return calls(d, model, x, **kwargs)[name]()

    without, none, empty = run(), run(model_kwargs=None), run(model_kwargs={})
    assert not any(got)
    shifted = run(model_kwargs={"shift": 0.2})
    assert got and all(kwargs == {"shift": 0.2} for kwargs in got)
    for key in without:
        assert torch.equal(without[key], none[key]) and torch.equal(without[key], empty[key])
    assert any(not torch.equal(without[key], shifted[key]) for key in without)


def test_the_network_sees_training_timesteps_or_those_scaled_to_1000():
    x, got = tensor("x", *SHAPE), []

    def model(x, t):
        got.append(t)
        return eps_model(x, t)

    process().p_mean_variance(model, x, T)
    process(rescale_timesteps=True).p_mean_variance(model, x, T)
    assert got[0].dtype == torch.int64 and got[0].tolist() == [0, 40, 99]
    assert got[1].is_floating_point() and got[1].tolist() == [0, 400, 990]


def test_cond_fn_sees_the_networks_time_and_arguments():
    seen = []

    def cond_fn(x, t, shift):
        seen.append((t.tolist(), shift))
        return torch.zeros_like(x)

    x, d = tensor("x", *SHAPE), process(rescale_timesteps=True)
    kwargs = {"cond_fn": cond_fn, "model_kwargs": {"shift": 0.2}}
    d.p_sample(eps_model, x, T, **kwargs)
    d.ddim_sample(eps_model, x, T, **kwargs)
    assert seen == [([0, 400, 990], 0.2)] * 2


def test_clipping_and_denoised_fn():
    x, d, t = 3 * tensor("x", *SHAPE), process(), torch.tensor([0, 1, 2])
    free = x0_of(eps_model, x, torch.tensor(KEPT)[t])
    assert free.abs().max() > 1
    for options, expected in (
        ({"clip_denoised": False}, free),
        ({"clip_denoised": True}, free.clamp(-1, 1)),
        ({"clip_denoised": False, "denoised_fn": torch.sin}, free.sin()),
        ({"clip_denoised": True, "denoised_fn": lambda x: 2 * x.sin()}, (2 * free.sin()).clamp(-1, 1)),
    ):
        out = d.p_mean_variance(eps_model, x, t, **options)
        torch.testing.assert_close(out["pred_xstart"], expected, rtol=1e-4, atol=1e-4)
        mean = at(COEF_X0, t) * expected + at(COEF_XT, t) * x
        torch.testing.assert_close(out["mean"], mean, rtol=1e-4, atol=1e-4)


def test_the_wrong_number_of_channels_names_the_flag():
    x = tensor("x", *SHAPE)
    with pytest.raises(UserError, match="--learn_sigma True"):
        process(var=ModelVarType.LEARNED_RANGE).p_mean_variance(eps_model, x, T)
    with pytest.raises(UserError, match="--learn_sigma False"):
        process().p_mean_variance(two_outputs, x, T)


# -- guidance --------------------------------------------------------------------------------------


def cond_fn(x, t):
    return torch.cos(x) * (1 + t.float().reshape(-1, 1, 1, 1) / 100)


def test_guided_ddim_is_condition_score_then_a_step():
    x, d = tensor("x", *SHAPE), process()
    unguided = d.p_mean_variance(eps_model, x, T)
    guided = d.condition_score(cond_fn, unguided, x, T)
    ab, before = at(KEPT_LEVELS, T), at(BEFORE, T)
    eps = (x - ab.sqrt() * unguided["pred_xstart"]) / (1 - ab).sqrt()
    eps = eps - (1 - ab).sqrt() * cond_fn(x, torch.tensor(KEPT)[T])
    x0 = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
    torch.testing.assert_close(guided["pred_xstart"], x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided["mean"], at(COEF_X0, T) * x0 + at(COEF_XT, T) * x, rtol=1e-4, atol=1e-4)
    out = d.ddim_sample(eps_model, x, T, cond_fn=cond_fn)
    torch.testing.assert_close(out["pred_xstart"], guided["pred_xstart"])
    torch.testing.assert_close(out["sample"], before.sqrt() * x0 + (1 - before).sqrt() * eps, rtol=1e-4, atol=1e-4)


def test_guided_ancestral_step_moves_the_mean():
    x, d = tensor("x", *SHAPE), process()
    out = d.p_mean_variance(eps_model, x, T)
    mean = out["mean"] + at(POSTERIOR_VARIANCE, T) * cond_fn(x, torch.tensor(KEPT)[T])
    torch.testing.assert_close(d.condition_mean(cond_fn, out, x, T), mean)
    torch.manual_seed(0)
    sample = d.p_sample(eps_model, x, T, cond_fn=cond_fn)["sample"]
    torch.manual_seed(0)
    noise = at(np.sqrt(POSTERIOR_VARIANCE), T) * torch.randn_like(x)
    torch.testing.assert_close(sample, mean + noise)


# -- the loops -------------------------------------------------------------------------------------

LOOPS = ["p_sample_loop", "ddim_sample_loop"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_progress_bar_changes_nothing_but_shows(loop, capsys):
    images = []
    for progress in (False, True):
        torch.manual_seed(0)
        images.append(getattr(process(), loop)(eps_model, SHAPE, progress=progress))
    assert torch.equal(*images)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("progress", [False, True])
def test_gradients_stay_on_for_the_caller_and_off_in_the_loop(loop, progress):
    inside = []

    def model(x, t):
        inside.append(torch.is_grad_enabled())
        return eps_model(x, t)

    outputs = getattr(process(), loop + "_progressive")(model, SHAPE, progress=progress)
    for output in outputs:
        assert torch.is_grad_enabled()
        assert not output["sample"].requires_grad
    assert inside == [False] * 5


@pytest.mark.parametrize("loop", LOOPS)
def test_the_shape_and_the_noise_may_be_positional_as_published(loop):
    x = tensor("x", *SHAPE)
    images = []
    for args, kwargs in (((x, False), {}), ((), {"noise": x, "clip_denoised": False})):
        torch.manual_seed(0)
        images.append(getattr(process(), loop)(eps_model, SHAPE, *args, **kwargs))
    assert torch.equal(*images)


@pytest.mark.parametrize("name", [loop + "_progressive" for loop in LOOPS])
def test_loops_have_the_published_parameters(name):
    published = "self model shape noise clip_denoised denoised_fn cond_fn model_kwargs device progress".split()
    if name.startswith("ddim"):
        published.append("eta")
    forks = ["skip_timesteps", "init_image", "randomize_class", "cond_fn_with_grad"]
    assert list(inspect.signature(getattr(GaussianDiffusion, name)).parameters) == published + forks


def test_encoding_refuses_noise():
    with pytest.raises(ValueError, match="eta"):
        process().ddim_reverse_sample(eps_model, tensor("x", *SHAPE), T, eta=0.5)


# -- the tables that downstream code reads ---------------------------------------------------------


def test_published_tables():
    d = process()
    expected = {
        "betas": KEPT_BETAS,
        "alphas_cumprod": KEPT_LEVELS,
        "alphas_cumprod_prev": BEFORE,
        "alphas_cumprod_next": np.append(KEPT_LEVELS[1:], 0.0),
        "sqrt_alphas_cumprod": KEPT_LEVELS**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - KEPT_LEVELS) ** 0.5,
        "log_one_minus_alphas_cumprod": np.log(1 - KEPT_LEVELS),
        "sqrt_recip_alphas_cumprod": KEPT_LEVELS**-0.5,
        "sqrt_recipm1_alphas_cumprod": ((1 - KEPT_LEVELS) / KEPT_LEVELS) ** 0.5,
        "posterior_variance": POSTERIOR_VARIANCE,
        "posterior_log_variance_clipped": np.log(np.append(POSTERIOR_VARIANCE[1], POSTERIOR_VARIANCE[1:])),
        "posterior_mean_coef1": COEF_X0,
        "posterior_mean_coef2": COEF_XT,
    }
    for name, table in expected.items():
        actual = getattr(d, name)
        assert isinstance(actual, np.ndarray) and actual.dtype == np.float64
        np.testing.assert_allclose(actual, table, rtol=1e-9, atol=1e-15, err_msg=name)


def test_the_unspaced_process_has_the_given_betas():
    d = GaussianDiffusion(
        betas=BETAS,
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.FIXED_SMALL,
        loss_type=LossType.MSE,
    )
    assert d.num_timesteps == 100
    np.testing.assert_allclose(d.betas, BETAS, rtol=1e-10)
    x0, noise, t = tensor("x0", *SHAPE), tensor("noise", *SHAPE), torch.tensor([0, 50, 99])
    expected = at(LEVELS, t).sqrt() * x0 + (1 - at(LEVELS, t)).sqrt() * noise
    torch.testing.assert_close(d.q_sample(x0, t, noise), expected)
    mean, variance, log_variance = d.q_mean_variance(x0, t)
    torch.testing.assert_close(mean, at(LEVELS, t).sqrt() * x0)
    torch.testing.assert_close(variance, (1 - at(LEVELS, t)).expand(SHAPE))
    torch.testing.assert_close(log_variance, (1 - at(LEVELS, t)).log().expand(SHAPE))


def test_bound_of_images_adds_up():
    d = process()
    x0 = tensor("x0", *SHAPE).clamp(-1, 1)
    torch.manual_seed(0)
    terms = d.calc_bpd_loop(eps_model, x0, clip_denoised=False)
    torch.manual_seed(0)
    by_hand = [bound_by_hand(x0, torch.randn_like(x0), torch.full((3,), i)) for i in (4, 3, 2, 1)]
    torch.testing.assert_close(terms["vb"][:, :4], torch.stack(by_hand, dim=1), rtol=1e-3, atol=1e-4)
    last = KEPT_LEVELS[-1]
    prior = kl_divergence(Normal(last**0.5 * x0, (1 - last) ** 0.5), Normal(0.0, 1.0)).flatten(1).mean(dim=1)
    torch.testing.assert_close(terms["prior_bpd"], prior / math.log(2), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["total_bpd"], terms["vb"].sum(dim=1) + terms["prior_bpd"])
