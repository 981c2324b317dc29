"""Overrides by subclasses, mixins and patches of GaussianDiffusion act wherever published code calls the method."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType
from guided_diffusion.methods import of_values
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.schedule import get_named_beta_schedule
from guided_diffusion.script_util import create_gaussian_diffusion

SHAPE = (2, 3, 4, 4)
BETAS = get_named_beta_schedule("linear", 25)
METHODS = {
    "plain": {},
    "scaled": {"eps_scaler": "1.05"},
    "guided": {"guidance_scale": 1.5},
    "shifted": {"do_time_shift": True, "window": 6, "cutoff": 3, "time_shift_variant": "paper"},
    "told": {"do_time_shift": True, "window": 6, "cutoff": 3, "time_shift_variant": "net"},
}


def network(x, t, y=None):
    """Twice the channels, and different for each time."""
    wave = torch.sin(3 * x + t.float().reshape(-1, 1, 1, 1) / 7)
    return torch.cat([0.8 * x + 0.2 * wave, 0.5 * wave], dim=1)


def plain_network(x, t, y=None):
    return network(x, t)[:, :3]


def cond_fn(x, t, **_):
    return -0.1 * x * (1 + t.float().reshape(-1, 1, 1, 1) / 50)


def make(kind, spaced=True, methods="plain", mean=ModelMeanType.EPSILON, var=ModelVarType.LEARNED_RANGE, loss=None):
    options = {
        "betas": BETAS,
        "model_mean_type": mean,
        "model_var_type": var,
        "loss_type": loss or LossType.MSE,
        "methods": of_values(METHODS[methods]),
    }
    if spaced:
        return kind(use_timesteps=range(0, 25, 4), **options)
    return kind(**options)


KWARGS = {"y": torch.tensor([1, 2])}
LOOPS = ("p_sample_loop", "ddim_sample_loop", "plms_sample_loop")


def entries(diffusion, model):
    """{name: run} of every way into the class."""
    x, t = torch.linspace(-1, 1, 96).reshape(SHAPE), torch.tensor([3, 5])
    asked = {"model_kwargs": KWARGS}

    def loop(name, **more):
        return lambda: getattr(diffusion, name)(model, SHAPE, noise=x, **asked, **more)

    return {
        **{name: loop(name) for name in LOOPS},
        **{f"guided {name}": loop(name, cond_fn=cond_fn) for name in LOOPS},
        "p_sample": lambda: diffusion.p_sample(model, x, t, **asked)["sample"],
        "ddim_sample": lambda: diffusion.ddim_sample(model, x, t, **asked)["sample"],
        "ddim_reverse_sample": lambda: diffusion.ddim_reverse_sample(model, x, t, **asked)["sample"],
        "training_losses": lambda: diffusion.training_losses(model, x, t, **asked)["loss"],
        "calc_bpd_loop": lambda: diffusion.calc_bpd_loop(model, x, **asked)["total_bpd"],
    }


# which entries each method is part of, by the published call graph
SAMPLES = {*LOOPS, *(f"guided {name}" for name in LOOPS), "p_sample", "ddim_sample", "ddim_reverse_sample"}
USED = {
    "p_mean_variance": SAMPLES | {"training_losses", "calc_bpd_loop"},
    "p_sample": {"p_sample_loop", "guided p_sample_loop", "p_sample"},
    "ddim_sample": {"ddim_sample_loop", "guided ddim_sample_loop", "ddim_sample"},
    "plms_sample": {"plms_sample_loop", "guided plms_sample_loop"},
    "p_sample_loop_progressive": {"p_sample_loop", "guided p_sample_loop"},
    "ddim_sample_loop_progressive": {"ddim_sample_loop", "guided ddim_sample_loop"},
    "plms_sample_loop_progressive": {"plms_sample_loop", "guided plms_sample_loop"},
    "condition_mean": {"guided p_sample_loop"},
    "condition_score": {"guided ddim_sample_loop", "guided plms_sample_loop"},
    "_predict_xstart_from_eps": SAMPLES | {"training_losses", "calc_bpd_loop"},
    "_predict_eps_from_xstart": SAMPLES - {"p_sample_loop", "guided p_sample_loop", "p_sample"} | {"calc_bpd_loop"},
    "q_posterior_mean_variance": SAMPLES | {"training_losses", "calc_bpd_loop"},
    "q_sample": {"training_losses", "calc_bpd_loop"},
    "q_mean_variance": {"calc_bpd_loop"},
    "_vb_terms_bpd": {"training_losses", "calc_bpd_loop"},
    "_prior_bpd": {"calc_bpd_loop"},
    "_scale_timesteps": SAMPLES | {"training_losses", "calc_bpd_loop"},
    "_wrap_model": SAMPLES | {"training_losses", "calc_bpd_loop"},
}
# of the spaced class alone
SPACED = {"_wrap_model"}


def subclass(kind, name, seen):
    def counted(self, *args, **kwargs):
        seen.append(name)
        return getattr(super(Counted, self), name)(*args, **kwargs)

    Counted = type("Counted", (kind,), {name: counted})
    return make(Counted, kind is SpacedDiffusion, seen.methods)


def mixin(kind, name, seen):
    def counted(self, *args, **kwargs):
        seen.append(name)
        return getattr(super(Mixin, self), name)(*args, **kwargs)

    Mixin = type("Mixin", (), {name: counted})
    return make(type("Mixed", (Mixin, kind), {}), kind is SpacedDiffusion, seen.methods)


def patched_object(kind, name, seen):
    diffusion = make(kind, kind is SpacedDiffusion, seen.methods)
    own = getattr(diffusion, name)

    def counted(*args, **kwargs):
        seen.append(name)
        return own(*args, **kwargs)

    setattr(diffusion, name, counted)
    return diffusion


class Seen(list):
    methods = "plain"


@pytest.mark.parametrize(
    "way, methods", [*((subclass, methods) for methods in METHODS), (mixin, "plain"), (patched_object, "plain")]
)
@pytest.mark.parametrize("kind", [GaussianDiffusion, SpacedDiffusion])
@pytest.mark.parametrize("name", USED)
def test_an_override_is_called_where_the_published_class_calls_it(name, kind, way, methods):
    if name in SPACED and kind is GaussianDiffusion:
        return
    seen = Seen()
    seen.methods = methods
    for entry, run in entries(way(kind, name, seen), network).items():
        seen.clear()
        run()
        assert bool(seen) == (entry in USED[name]), entry


@pytest.mark.parametrize("name", sorted(set(USED) - SPACED))
def test_a_patch_of_the_base_class_reaches_the_spaced_one(name, monkeypatch):
    """As forks do that replace a function in the module."""
    seen, own = [], getattr(GaussianDiffusion, name)

    def counted(self, *args, **kwargs):
        seen.append(name)
        return own(self, *args, **kwargs)

    # SpacedDiffusion has its own, published likewise, whose times are those of the wrapped network
    expected = USED[name] if name != "_scale_timesteps" else set()
    monkeypatch.setattr(GaussianDiffusion, name, counted)
    for entry, run in entries(make(SpacedDiffusion), network).items():
        seen.clear()
        run()
        assert bool(seen) == (entry in expected), entry


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("name", ["p_sample", "ddim_sample", "plms_sample"])
def test_what_a_step_returns_is_what_the_loop_returns(name, spaced, methods):
    def stuck(self, model, x, t, **kwargs):
        return {"sample": torch.full_like(x, -1.0), "pred_xstart": x, "old_eps": [x]}

    kind = type("Stuck", (SpacedDiffusion if spaced else GaussianDiffusion,), {name: stuck})
    images = getattr(make(kind, spaced, methods), f"{name}_loop")(network, SHAPE)
    assert (images == -1).all()


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("loop", LOOPS)
def test_an_image_that_p_mean_variance_sets_is_the_one_the_loop_ends_in(loop, methods):
    target = torch.linspace(-1, 1, 96).reshape(SHAPE)

    class Known(SpacedDiffusion):
        def p_mean_variance(self, *args, **kwargs):
            out = super().p_mean_variance(*args, **kwargs)
            return {**out, "pred_xstart": target, "mean": target}

    made = getattr(make(Known, methods=methods), loop)(network, SHAPE, model_kwargs=KWARGS)
    torch.testing.assert_close(made, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_image_of_an_eps_is_the_subclass_to_say(loop, methods):
    class Zero(SpacedDiffusion):
        def _predict_xstart_from_eps(self, x_t, t, eps):
            return torch.zeros_like(x_t)

    images = getattr(make(Zero, methods=methods), loop)(network, SHAPE, model_kwargs=KWARGS)
    torch.testing.assert_close(images, torch.zeros(SHAPE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spaced", [False, True])
def test_the_image_of_a_previous_state_is_the_subclass_to_say(spaced):
    base = SpacedDiffusion if spaced else GaussianDiffusion

    class Zero(base):
        def _predict_xstart_from_xprev(self, x_t, t, xprev):
            return torch.zeros_like(x_t)

    diffusion = make(Zero, spaced, mean=ModelMeanType.PREVIOUS_X)
    assert (diffusion.ddim_sample_loop(network, SHAPE) == 0).all()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("spaced", [False, True])
def test_networks_are_given_the_times_that_a_subclass_says(spaced, loop):
    told = set()

    def watched(x, t, **_):
        told.update(t.tolist())
        return network(x, t)

    if spaced:

        class Seventeen(SpacedDiffusion):
            def _wrap_model(self, model):
                return lambda x, t, **kwargs: model(x, torch.full_like(t, 17), **kwargs)
    else:

        class Seventeen(GaussianDiffusion):
            def _scale_timesteps(self, t):
                return torch.full_like(t, 17)

    getattr(make(Seventeen, spaced), loop)(watched, SHAPE)
    assert told == {17}


# -- arguments, as forks take them: by name, in another order, without defaults, as **kwargs ------------


class Collected(SpacedDiffusion):
    def p_mean_variance(self, model, x, t, **kwargs):
        return super().p_mean_variance(model, x, t, **kwargs)

    def _vb_terms_bpd(self, model, **kwargs):
        return super()._vb_terms_bpd(model, **kwargs)


class ByName(SpacedDiffusion):
    def p_mean_variance(self, model, x, t, *, clip_denoised, model_kwargs=None, denoised_fn=None):
        told = {"clip_denoised": clip_denoised, "denoised_fn": denoised_fn, "model_kwargs": model_kwargs}
        return super().p_mean_variance(model, x, t, **told)

    def _vb_terms_bpd(self, model, *, t, x_t, x_start, clip_denoised, model_kwargs=None):
        told = {"clip_denoised": clip_denoised, "model_kwargs": model_kwargs}
        return super()._vb_terms_bpd(model, x_start, x_t, t, **told)


class Reordered(SpacedDiffusion):
    def p_mean_variance(self, model, x, t, model_kwargs=None, denoised_fn=None, clip_denoised=True, weight=1.0):
        return super().p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)

    def _vb_terms_bpd(self, model, x_t, x_start, t, model_kwargs=None, clip_denoised=True):
        return super()._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)


FORKS = pytest.mark.parametrize("fork", [Collected, ByName, Reordered])


def same(a, b):
    for entry, run in a.items():
        torch.manual_seed(0)
        expected = b[entry]()
        torch.manual_seed(0)
        assert torch.equal(run(), expected), entry


@pytest.mark.parametrize("methods", METHODS)
@FORKS
@pytest.mark.parametrize("loss", [LossType.MSE, LossType.KL])
def test_any_way_of_taking_arguments_changes_nothing(fork, loss, methods):
    own, published = (make(kind, methods=methods, loss=loss) for kind in (fork, SpacedDiffusion))
    same(entries(own, network), entries(published, network))


def without_defaults(self, model, shape, noise, clip_denoised, denoised_fn, cond_fn, model_kwargs, device, progress):
    yield {"sample": self.p_sample(model, noise, torch.tensor([0, 0]), cond_fn=cond_fn)["sample"]}


def collected(self, model, shape, **kwargs):
    told = {name: kwargs.pop(name) for name in ("noise", "denoised_fn", "model_kwargs", "device", "progress")}
    assert kwargs.pop("clip_denoised") is True
    assert told.pop("denoised_fn") is None and told.pop("device") is None and told.pop("progress") is False
    yield {"sample": self.p_sample(model, told["noise"], torch.tensor([0, 0]), cond_fn=kwargs["cond_fn"])["sample"]}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("override", [without_defaults, collected])
def test_a_loop_tells_an_override_of_its_steps_all_that_the_published_one_does(override, loop):
    def progressive(self, *args, eta=None, order=None, **kwargs):
        return override(self, *args, **kwargs)

    diffusion = make(type("Fork", (SpacedDiffusion,), {f"{loop}_progressive": progressive}))
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    expected = make(SpacedDiffusion).p_sample(network, x, torch.tensor([0, 0]))["sample"]
    for args, kwargs in (((x,), {}), ((), {"noise": x}), ((x, True), {"progress": False})):
        assert torch.equal(getattr(diffusion, loop)(network, SHAPE, *args, **kwargs), expected)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_has_the_signature_of_its_steps_and_what_an_override_adds_reaches_it(loop):
    published = ["noise", "clip_denoised", "denoised_fn", "cond_fn", "model_kwargs", "device", "progress"]
    assert inspect.getfullargspec(getattr(SpacedDiffusion, loop)).args[3:10] == published
    progressive = getattr(SpacedDiffusion, f"{loop}_progressive")
    assert inspect.signature(getattr(SpacedDiffusion, loop)) == inspect.signature(progressive)

    def masked(self, model, shape, *, mask, **kwargs):
        yield {"sample": mask}

    diffusion = make(type("Fork", (SpacedDiffusion,), {f"{loop}_progressive": masked}))
    mask = torch.ones(SHAPE)
    assert getattr(diffusion, loop)(network, SHAPE, mask=mask) is mask
    with pytest.raises(TypeError):
        getattr(make(SpacedDiffusion), loop)(network, SHAPE, *[None] * 20)


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("mean, name", [(ModelMeanType.EPSILON, "eps"), (ModelMeanType.PREVIOUS_X, "xprev")])
def test_predictions_of_the_image_are_told_by_name(mean, name, methods):
    method = f"_predict_xstart_from_{name}"

    def by_name(self, x_t, t, *args, **kwargs):
        # guidance asks by place, as published
        assert args or set(kwargs) == {name}
        return getattr(super(Fork, self), method)(x_t, t, *args, **kwargs)

    Fork = type("Fork", (SpacedDiffusion,), {method: by_name})
    diffusion = make(Fork, methods=methods, mean=mean)
    assert diffusion.p_sample_loop(network, SHAPE, model_kwargs=KWARGS).isfinite().all()


# -- copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("variant", ["adm", "paper", "net", "target", None])
@pytest.mark.parametrize("values", [{}, {"eps_scaler": "1.05", "input_pertub": 0.1, "guidance_scale": 1.5}])
def test_copies_of_a_process_are_the_same_process(values, variant, way):
    """As processes that are started anew and checkpoints of whole objects make them."""
    shift = {"do_time_shift": True, "window": 6, "cutoff": 3, "time_shift_variant": variant} if variant else {}
    options = {"learn_sigma": True, "steps": 25, "timestep_respacing": "6"}
    diffusion = create_gaussian_diffusion(**options, **values, **shift)
    same(entries(way(diffusion), network), entries(diffusion, network))


# -- tables ------------------------------------------------------------------------------------------


def published_step(tables, x, x0, i, output):
    """Mean and variance [N, C, ...] of the ancestral step, in float64 from tables."""
    mean = tables["posterior_mean_coef1"][i] * x0 + tables["posterior_mean_coef2"][i] * x
    fraction = (output + 1) / 2
    least, most = tables["posterior_log_variance_clipped"][i], np.log(tables["betas"][i])
    return mean, np.exp(fraction * most + (1 - fraction) * least)


TABLES = (
    "betas",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_log_variance_clipped",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)


@pytest.mark.parametrize("name", [None, *TABLES])
@pytest.mark.parametrize("spaced", [False, True])
def test_tables_that_a_client_sets_are_used(name, spaced):
    diffusion = make(SpacedDiffusion if spaced else GaussianDiffusion, spaced)
    if name:
        setattr(diffusion, name, getattr(diffusion, name) * 0.9)
    tables = {key: getattr(diffusion, key) for key in TABLES}
    x, i = torch.linspace(-1, 1, 96).reshape(SHAPE), 4
    out = diffusion.p_mean_variance(network, x, torch.tensor([i, i]), clip_denoised=False)
    said = network(x, torch.full((2,), diffusion.timestep_map[i])).double().numpy()
    eps, output = said[:, :3], said[:, 3:]
    x = x.double().numpy()
    x0 = tables["sqrt_recip_alphas_cumprod"][i] * x - tables["sqrt_recipm1_alphas_cumprod"][i] * eps
    mean, variance = published_step(tables, x, x0, i, output)
    np.testing.assert_allclose(out["pred_xstart"], x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["variance"], variance, rtol=1e-5)


@pytest.mark.parametrize("name", ["alphas_cumprod", "alphas_cumprod_prev"])
def test_ddim_uses_the_levels_that_a_client_sets(name):
    diffusion = make(SpacedDiffusion)
    levels = getattr(diffusion, name) ** 1.1
    setattr(diffusion, name, levels)
    x, i, eta = torch.linspace(-1, 1, 96).reshape(SHAPE), 4, 0.7
    torch.manual_seed(0)
    out = diffusion.ddim_sample(network, x, torch.tensor([i, i]), eta=eta)
    torch.manual_seed(0)
    noise = torch.randn_like(x).double().numpy()
    x0, x = out["pred_xstart"].double().numpy(), x.double().numpy()
    eps = (diffusion.sqrt_recip_alphas_cumprod[i] * x - x0) / diffusion.sqrt_recipm1_alphas_cumprod[i]
    now, before = diffusion.alphas_cumprod[i], diffusion.alphas_cumprod_prev[i]
    sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    expected = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * eps + sigma * noise
    np.testing.assert_allclose(out["sample"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("var", [ModelVarType.FIXED_LARGE, ModelVarType.FIXED_SMALL])
def test_fixed_variances_come_from_the_tables(var):
    diffusion = make(SpacedDiffusion, var=var)
    diffusion.posterior_variance = diffusion.posterior_variance + 0.25
    diffusion.betas = diffusion.betas * 0.5
    large = np.append(diffusion.posterior_variance[1], diffusion.betas[1:])
    expected = large if var is ModelVarType.FIXED_LARGE else diffusion.posterior_variance
    for i, variance in enumerate(expected):
        out = diffusion.p_mean_variance(plain_network, torch.zeros(SHAPE), torch.tensor([i, i]))
        np.testing.assert_allclose(out["variance"], np.full(SHAPE, variance), rtol=1e-6)


def test_a_table_without_entries_for_moved_times_is_not_ignored():
    diffusion = make(SpacedDiffusion, methods="shifted")
    diffusion.betas = diffusion.betas * 0.5
    with pytest.raises(ValueError, match="betas was replaced"):
        diffusion.p_sample_loop(network, SHAPE, noise=torch.zeros(SHAPE))


def test_state_that_a_step_keeps_survives_moved_times():
    class Counting(SpacedDiffusion):
        steps = 0

        def p_sample(self, *args, **kwargs):
            self.steps += 1
            return super().p_sample(*args, **kwargs)

    diffusion = make(Counting, methods="shifted")
    diffusion.p_sample_loop(network, SHAPE)
    assert diffusion.steps == diffusion.num_timesteps == len(diffusion.betas)
