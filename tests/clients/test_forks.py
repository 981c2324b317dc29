"""What forks build on the class API: each pattern against the same sampler written out in float64 from the betas."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    _extract_into_tensor,
)
from guided_diffusion.respace import SpacedDiffusion, _WrappedModel
from guided_diffusion.schedule import get_named_beta_schedule

T, KEPT = 40, range(0, 40, 5)
SHAPE = (2, 3, 8, 8)
START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
KNOWN = torch.linspace(-0.9, 0.9, 384).reshape(SHAPE)
MASK = (torch.arange(8) < 4).float().expand(SHAPE)


def network(x, t, y=None):
    """Its noise grows with x and falls with time; the second half is the variance output."""
    eps = x * (0.9 - t.to(x).reshape(-1, 1, 1, 1) / 100) + (0 if y is None else y.to(x).reshape(-1, 1, 1, 1) / 50)
    return torch.cat([eps, torch.zeros_like(x)], dim=1)


def make(kind=SpacedDiffusion):
    return kind(
        use_timesteps=KEPT,
        betas=get_named_beta_schedule("linear", T),
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE,
        loss_type=LossType.MSE,
    )


class ByHand:
    """The kept process in float64, from the betas alone; draws noise as the class does."""

    def __init__(self):
        self.levels = np.cumprod(1 - get_named_beta_schedule("linear", T))[list(KEPT)]
        self.before = np.append(1.0, self.levels[:-1])
        self.betas = 1 - self.levels / self.before
        self.variance = self.betas * (1 - self.before) / (1 - self.levels)
        self.log_floor = np.log(np.append(self.variance[1], self.variance[1:]))

    def told(self, i):
        return torch.full((2,), float(list(KEPT)[i]))

    def x0(self, x, i, y=None, clip=True):
        a = self.levels[i]
        x0 = (x - math.sqrt(1 - a) * network(x, self.told(i), y)[:, :3]) / math.sqrt(a)
        return x0.clamp(-1, 1) if clip else x0

    def eps(self, x, i, x0):
        return (x - math.sqrt(self.levels[i]) * x0) / math.sqrt(1 - self.levels[i])

    def noised(self, image, i, noise):
        return math.sqrt(self.levels[i]) * image + math.sqrt(1 - self.levels[i]) * noise

    def ancestral(self, x, i, x0, shift=0.0):
        a, b, beta = self.levels[i], self.before[i], self.betas[i]
        mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(1 - beta) * (1 - b) / (1 - a) * x
        variance = math.exp((math.log(beta) + self.log_floor[i]) / 2)
        noise = torch.randn(SHAPE).double()
        return mean + variance * shift + (math.sqrt(variance) * noise if i else 0)

    def ddim(self, i, x0, eps):
        return math.sqrt(self.before[i]) * x0 + math.sqrt(1 - self.before[i]) * eps


def close(made, expected):
    torch.testing.assert_close(made.double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_projection_after_each_step():
    """ILVR: the low frequencies of each new state are those of a reference, noised to its level."""

    def low(x):
        small = torch.nn.functional.avg_pool2d(x, 4)
        return torch.nn.functional.interpolate(small, scale_factor=4)

    class Projected(SpacedDiffusion):
        def p_sample(self, model, x, t, **kwargs):
            out = super().p_sample(model, x, t, **kwargs)
            noisy = self.q_sample(KNOWN, t, noise=torch.randn_like(x))
            return {**out, "sample": out["sample"] + low(noisy) - low(out["sample"])}

    torch.manual_seed(0)
    made = make(Projected).p_sample_loop(network, SHAPE, noise=START)
    torch.manual_seed(0)
    by_hand, x = ByHand(), START.double()
    for i in reversed(range(len(KEPT))):
        x = by_hand.ancestral(x, i, by_hand.x0(x, i))
        x = x + low(by_hand.noised(KNOWN.double(), i, torch.randn(SHAPE).double())) - low(x)
    close(made, x)


def test_inpainting_with_steps_back():
    """RePaint: the known part comes from the image, and each step is undone and repeated."""

    class Undoing(SpacedDiffusion):
        def p_sample_loop_progressive(self, model, shape, noise=None, **kwargs):
            x = noise
            for i in reversed(range(self.num_timesteps)):
                t = torch.tensor([i] * shape[0])
                for again in reversed(range(2)):
                    x = MASK * self.q_sample(KNOWN, t) + (1 - MASK) * x
                    out = self.p_sample(model, x, t)
                    if again:
                        beta = _extract_into_tensor(self.betas, t, x.shape)
                        x = (1 - beta).sqrt() * out["sample"] + beta.sqrt() * torch.randn_like(x)
                yield out
                x = out["sample"]

    torch.manual_seed(0)
    made = make(Undoing).p_sample_loop(network, SHAPE, noise=START)
    torch.manual_seed(0)
    by_hand, x, mask = ByHand(), START.double(), MASK.double()
    for i in reversed(range(len(KEPT))):
        for again in (True, False):
            x = mask * by_hand.noised(KNOWN.double(), i, torch.randn(SHAPE).double()) + (1 - mask) * x
            after = by_hand.ancestral(x, i, by_hand.x0(x, i))
            if again:
                beta = by_hand.betas[i]
                x = math.sqrt(1 - beta) * after + math.sqrt(beta) * torch.randn(SHAPE).double()
        x = after
    close(made, x)


def test_gradients_of_a_measurement_through_p_mean_variance():
    """DPS: each step moves against the gradient of the misfit between the predicted image and a measurement."""

    def measured(image):
        return torch.nn.functional.avg_pool2d(image, 2)

    class Posterior(SpacedDiffusion):
        def p_sample(self, model, x, t, **kwargs):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                out = super().p_sample(model, x, t, **kwargs)
                misfit = (measured(KNOWN) - measured(out["pred_xstart"])).norm()
                slope = torch.autograd.grad(misfit, x)[0]
            return {**out, "sample": out["sample"].detach() - 0.3 * slope}

    torch.manual_seed(0)
    made = make(Posterior).p_sample_loop(network, SHAPE, noise=START, clip_denoised=False)
    torch.manual_seed(0)
    by_hand, x = ByHand(), START.double()
    for i in reversed(range(len(KEPT))):
        x0 = by_hand.x0(x, i, clip=False)
        # the network is linear in x, so d x0 / d x is a number, and the misfit's gradient is written out
        gain = (1 - math.sqrt(1 - by_hand.levels[i]) * (0.9 - list(KEPT)[i] / 100)) / math.sqrt(by_hand.levels[i])
        residual = measured(x0) - measured(KNOWN.double())
        slope = gain * residual.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4 / residual.norm()
        x = by_hand.ancestral(x, i, x0) - 0.3 * slope
    close(made, x)


def test_masks_blended_outside_the_loop():
    """Blended diffusion: a client takes the states of the progressive loop and changes them in place."""
    diffusion = make()
    torch.manual_seed(0)
    for i, out in zip(reversed(range(len(KEPT))), diffusion.p_sample_loop_progressive(network, SHAPE, noise=START)):
        noisy = diffusion.q_sample(KNOWN, torch.tensor([max(i - 1, 0)] * 2))
        out["sample"] = MASK * out["sample"] + (1 - MASK) * noisy
    torch.manual_seed(0)
    by_hand, x, mask = ByHand(), START.double(), MASK.double()
    for i in reversed(range(len(KEPT))):
        x = by_hand.ancestral(x, i, by_hand.x0(x, i))
        x = mask * x + (1 - mask) * by_hand.noised(KNOWN.double(), max(i - 1, 0), torch.randn(SHAPE).double())
    close(out["sample"], x)


def frozen():
    layer = torch.nn.Linear(192, 1).requires_grad_(False)
    layer.weight.copy_(torch.linspace(-1, 1, 192))
    return layer


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_a_gradient_of_frozen_weights(loop):
    """CLIP guidance: `cond_fn` differentiates a network whose weights need no gradients, under no_grad outside."""
    judge = frozen()

    def cond_fn(x, t, y=None):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(judge(x.flatten(1)).square().sum() * (1 + t.float().mean()) / 100, x)[0]

    torch.manual_seed(0)
    made = getattr(make(), loop)(network, SHAPE, noise=START, cond_fn=cond_fn)
    torch.manual_seed(0)
    by_hand, x, weight = ByHand(), START.double(), judge.weight.double()
    for i in reversed(range(len(KEPT))):
        score = x.flatten(1) @ weight.T + judge.bias.double()
        gradient = (2 * score * weight).reshape(SHAPE) * (1 + list(KEPT)[i]) / 100
        x0 = by_hand.x0(x, i)
        if loop == "p_sample_loop":
            x = by_hand.ancestral(x, i, x0, gradient)
        else:
            eps = by_hand.eps(x, i, x0) - math.sqrt(1 - by_hand.levels[i]) * gradient
            x0 = (x - math.sqrt(1 - by_hand.levels[i]) * eps) / math.sqrt(by_hand.levels[i])
            x = by_hand.ddim(i, x0, eps)
    close(made, x)


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_a_gradient_through_the_prediction(loop):
    """`cond_fn_with_grad`: the gradient goes through the network, by what `p_mean_variance` gave."""

    def cond_fn(x, t, p_mean_var, y=None):
        misfit = (p_mean_var["pred_xstart"] - KNOWN).square().sum() * (1 + t.float().mean()) / 20
        return -torch.autograd.grad(misfit, x)[0]

    torch.manual_seed(0)
    options = {"noise": START, "cond_fn": cond_fn, "cond_fn_with_grad": True, "clip_denoised": False}
    made = getattr(make(), loop)(network, SHAPE, **options)
    torch.manual_seed(0)
    by_hand, x = ByHand(), START.double()
    for i in reversed(range(len(KEPT))):
        x0 = by_hand.x0(x, i, clip=False)
        gain = (1 - math.sqrt(1 - by_hand.levels[i]) * (0.9 - list(KEPT)[i] / 100)) / math.sqrt(by_hand.levels[i])
        gradient = -2 * gain * (x0 - KNOWN.double()) * (1 + i) / 20
        if loop == "p_sample_loop":
            x = by_hand.ancestral(x, i, x0, gradient)
        else:
            eps = by_hand.eps(x, i, x0) - math.sqrt(1 - by_hand.levels[i]) * gradient
            x0 = (x - math.sqrt(1 - by_hand.levels[i]) * eps) / math.sqrt(by_hand.levels[i])
            x = by_hand.ddim(i, x0, eps)
    assert not made.requires_grad
    close(made, x)


@pytest.mark.parametrize("skipped", [0, 3, 7])
@pytest.mark.parametrize("image", [None, KNOWN, KNOWN[:1]])
@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop", "plms_sample_loop"])
def test_a_walk_from_a_noised_image(loop, image, skipped):
    """`init_image` and `skip_timesteps`: the walk starts lower, from an image with `noise`; gray if there is none."""
    diffusion, left = make(), len(KEPT) - skipped
    torch.manual_seed(0)
    made = getattr(diffusion, loop)(network, SHAPE, noise=START, init_image=image, skip_timesteps=skipped)
    noised = diffusion.q_sample(
        torch.zeros(SHAPE) if image is None else image.expand(SHAPE), torch.tensor([left - 1] * 2), START
    )
    x, old = noised if skipped or image is not None else START, {}
    torch.manual_seed(0)
    for i in reversed(range(left)):
        out = getattr(diffusion, loop.removesuffix("_loop"))(network, x, torch.tensor([i] * 2), **old)
        x, old = out["sample"], {"old_out": out} if loop.startswith("plms") else {}
    assert torch.equal(made, x)


@pytest.mark.parametrize("skipped", [-1, len(KEPT), 99])
def test_no_step_left_is_said(skipped):
    with pytest.raises(ValueError, match=f"skip_timesteps is {skipped}; expected 0 to {len(KEPT) - 1}"):
        make().p_sample_loop(network, SHAPE, skip_timesteps=skipped)


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop", "plms_sample_loop"])
def test_labels_drawn_anew_at_each_step(loop):
    given, seen = {"y": torch.tensor([90, 91])}, []

    def watched(x, t, y):
        seen.append(tuple(y.tolist()))
        return network(x, t, y)

    watched.num_classes = 10
    getattr(make(), loop)(watched, SHAPE, randomize_class=True, model_kwargs=given)
    assert len(set(seen)) > 4 and all(0 <= label < 10 for labels in seen for label in labels)
    assert given["y"].tolist() == [90, 91]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_plms_is_the_multistep_of_the_paper(order):
    """Adams-Bashforth on the noises; improved Euler at first."""
    made = make().plms_sample_loop(network, SHAPE, noise=START, clip_denoised=False, order=order)
    by_hand, x, noises = ByHand(), START.double(), []
    rows = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -3 / 8]}

    def eps_at(x, i):
        return network(x, by_hand.told(i))[:, :3]

    def step(x, i, eps):
        x0 = (x - math.sqrt(1 - by_hand.levels[i]) * eps) / math.sqrt(by_hand.levels[i])
        return by_hand.ddim(i, x0, eps)

    for i in reversed(range(len(KEPT))):
        eps = eps_at(x, i)
        noises.insert(0, eps)
        if len(noises) == 1 and order > 1:
            eps = (eps + eps_at(step(x, i, eps), i - 1)) / 2
        else:
            eps = sum(weight * noise for weight, noise in zip(rows[min(order, len(noises))], noises))
        # the last step goes to the image that the network predicts there
        x = step(x, i, eps) if i else by_hand.x0(x, 0, clip=False)
    close(made, x)


@pytest.mark.parametrize("order", [0, 5, 1.5, "2"])
def test_plms_of_another_order_is_refused(order):
    with pytest.raises(ValueError, match="order is"):
        make().plms_sample_loop(network, SHAPE, order=order)


def test_private_helpers_have_the_published_meaning():
    """What plms, DDRM and DiffPIR clients call: one step by hand out of the private functions."""
    diffusion, by_hand, i = make(), ByHand(), 5
    t = torch.tensor([i, i])
    eps = network(START, by_hand.told(i).long())[:, :3]
    x0 = diffusion._predict_xstart_from_eps(START, t, eps)
    close(x0, by_hand.x0(START.double(), i, clip=False))
    close(diffusion._predict_eps_from_xstart(START, t, x0), eps)
    close(_extract_into_tensor(diffusion.alphas_cumprod, t, SHAPE), torch.full(SHAPE, by_hand.levels[i]))
    assert _extract_into_tensor(diffusion.alphas_cumprod, t, SHAPE).dtype == torch.float32
    mean, _, _ = diffusion.q_posterior_mean_variance(x0, START, t)
    close(diffusion._predict_xstart_from_xprev(START, t, mean), x0)
    assert torch.equal(diffusion._scale_timesteps(t), t)
    wrapped = diffusion._wrap_model(network)
    assert (
        torch.equal(wrapped(START, t), network(START, by_hand.told(i).long()))
        and diffusion._wrap_model(wrapped) is wrapped
    )
    assert wrapped.model is network and wrapped.timestep_map == list(KEPT) and wrapped.original_num_steps == T
    terms = diffusion._vb_terms_bpd(network, KNOWN, START, t)
    assert set(terms) == {"output", "pred_xstart"} and terms["output"].shape == (2,)


# -- spacing of a fork's own, on the plain class --------------------------------------------------------


class OwnSpacing(GaussianDiffusion):
    """Keeps steps as vendored copies of respace.py do: the map is there before the process of the kept betas is."""

    def __init__(self, kept, betas, **kinds):
        levels = np.cumprod(1 - betas)[list(kept)]
        self.timestep_map = list(kept)
        super().__init__(betas=1 - levels / np.append(1.0, levels[:-1]), **kinds)

    def _wrapped(self, model):
        return model if isinstance(model, _WrappedModel) else _WrappedModel(model, self.timestep_map, False, T)

    def _scale_timesteps(self, t):
        return t

    def p_mean_variance(self, model, *args, **kwargs):
        return super().p_mean_variance(self._wrapped(model), *args, **kwargs)

    def training_losses(self, model, *args, **kwargs):
        return super().training_losses(self._wrapped(model), *args, **kwargs)


@pytest.mark.parametrize(
    "entry", ["p_sample_loop", "ddim_sample_loop", "plms_sample_loop", "training", "calc_bpd_loop"]
)
def test_a_fork_that_spaces_its_steps_itself_asks_the_network_at_those(entry):
    def run(diffusion):
        torch.manual_seed(0)
        if entry == "training":
            return diffusion.training_losses(network, KNOWN, torch.tensor([2, 6]))["loss"]
        if entry == "calc_bpd_loop":
            return diffusion.calc_bpd_loop(network, KNOWN)["vb"]
        return getattr(diffusion, entry)(network, SHAPE, noise=START)

    spaced = make()
    kinds = {name: getattr(spaced, name) for name in ("model_mean_type", "model_var_type", "loss_type")}
    own = OwnSpacing(KEPT, get_named_beta_schedule("linear", T), **kinds)
    assert own.timestep_map == list(KEPT)
    close(run(own), run(spaced))


# -- what clients do with the parts -----------------------------------------------------------------------


@pytest.mark.parametrize("t", [3, [1, 2], [[1, 2, 3], [4, 5, 6]], [[[[1]]], [[[2]]]]])
def test_entries_of_a_table_have_the_axes_of_their_indices(t):
    table, t = np.linspace(0, 1, 10), torch.tensor(t)
    expected = table[t.numpy()].reshape(t.shape + (1,) * (4 - t.ndim))
    entries = _extract_into_tensor(table, t, (2, 3, 4, 4))
    np.testing.assert_allclose(entries, np.broadcast_to(expected, (2, 3, 4, 4)), rtol=1e-6)


def test_wrapped_networks_are_told_apart_by_identity():
    one, other = (_WrappedModel(network, [0, 5], False, T) for _ in range(2))
    assert len({one, other}) == 2 and one != other


def test_a_module_without_weights_of_its_own_is_sampled_on_the_cpu():
    class Around(torch.nn.Module):
        def forward(self, x, t):
            return network(x, t)

    assert make().p_sample_loop(Around(), SHAPE).device == torch.device("cpu")
