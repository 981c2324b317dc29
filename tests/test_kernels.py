"""The kernels against torch in float64, and the fast networks against the published forward."""

import contextlib
import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recipe import fill_weights
from script_runs import run
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusion import kernels
from guided_diffusion.errors import UserError
from guided_diffusion.kernels import functions, winograd
from guided_diffusion.networks import (
    ConvFlags,
    compute_by,
    computing_by,
    fast,
    for_inference,
    for_training,
    slow_halves,
)
from guided_diffusion.unet import (
    AttentionBlock,
    EncoderUNetModel,
    PointwiseConv,
    QKVAttention,
    ResBlock,
    SuperResModel,
    UNetModel,
)

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "models" / "digits16.pt"
LIBRARY = kernels.find()
COMPILED = [name for name in kernels.INSTRUCTIONS if LIBRARY and kernels.load(LIBRARY, name)]

compiled = pytest.mark.skipif(not COMPILED, reason="no kernels for this processor, or no compiler")
every_set = pytest.mark.parametrize("instructions", COMPILED or [pytest.param("none", marks=compiled)])


@pytest.fixture(autouse=True)
def of_this_test():
    """One thread, and a choice of algorithm that no other test made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ConvFlags().apply()
    compute_by(None)
    torch.manual_seed(0)
    yield
    ConvFlags().apply()
    compute_by(None)
    torch.set_num_threads(threads)


@pytest.fixture
def absent():
    """As where no compiler was."""
    with mock.patch.object(kernels, "current", lambda: None):
        yield


def found(instructions):
    return kernels.load(LIBRARY, instructions)


def drawn(*shape, last=False):
    x = torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def close(a, b, tolerance):
    """Whether a is b (float64) to a part of b's largest value."""
    assert a.shape == b.shape
    assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


# -- kernels: (N, C, O, H, W), channels that fill vectors and not, one tile and many, images that are not square

SHAPES = [
    (1, 1, 1, 4, 4),
    (2, 3, 6, 4, 12),
    (3, 17, 5, 8, 4),
    (1, 40, 33, 16, 8),
    (5, 32, 64, 8, 8),
    (2, 129, 16, 12, 20),
    (4, 8, 100, 4, 4),
    (2, 256, 96, 8, 8),
]


@every_set
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_gradients(instructions, shape, last):
    n, inputs, outputs, height, width = shape
    x, gradient = drawn(n, inputs, height, width, last=last), drawn(n, outputs, height, width, last=last)
    weight, bias, residual = drawn(outputs, inputs, 3, 3), drawn(outputs), drawn(n, outputs, height, width)
    arguments = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
    y = functions.convolution(found(instructions), *arguments)
    exact = [t.double().requires_grad_() for t in (x, weight, bias, residual)]
    expected = F.conv2d(*exact[:3], padding=1) + exact[3]
    close(y.detach(), expected.detach(), 2e-5)
    for got, want in zip(
        torch.autograd.grad(y, arguments, gradient), torch.autograd.grad(expected, exact, gradient.double())
    ):
        close(got, want, 2e-5)


@every_set
@pytest.mark.parametrize("absent_part", ["bias", "residual", "both"])
def test_bias_and_residual_may_be_absent(instructions, absent_part):
    x, weight = drawn(2, 24, 8, 8), drawn(24, 24, 3, 3)
    bias = drawn(24) if absent_part == "residual" else None
    residual = drawn(2, 24, 8, 8) if absent_part == "bias" else None
    y = functions.convolution(found(instructions), x, weight, bias, residual)
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    close(y, expected if residual is None else expected + residual, 2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_in_plain_torch(shape):
    n, inputs, outputs, height, width = shape
    x, weight, bias = drawn(n, inputs, height, width), drawn(outputs, inputs, 3, 3), drawn(outputs)
    y = winograd.convolution(x, winograd.filters(weight), bias)
    close(y, F.conv2d(x.double(), weight.double(), bias.double(), padding=1), 2e-5)


@every_set
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 1, 1), (7, 33, 5), (100, 64, 96), (13, 500, 70)])
def test_linear(instructions, rows, inputs, outputs):
    x, weight, bias, residual = drawn(rows, inputs), drawn(outputs, inputs), drawn(outputs), drawn(rows, outputs)
    it = found(instructions)
    y = it.linear(x, it.linear_weights(weight), outputs, bias, residual)
    close(y, F.linear(x.double(), weight.double(), bias.double()) + residual, 1e-5)


def group_norm(x, groups, weight, bias, scale_shift, silu):
    """By its definition."""
    parts = x.reshape(len(x), groups, -1)
    mean, variance = parts.mean(-1, keepdim=True), parts.var(-1, keepdim=True, unbiased=False)
    side = (1, -1, *[1] * (x.ndim - 2))
    y = ((parts - mean) / (variance + 1e-5).sqrt()).reshape(x.shape) * weight.reshape(side) + bias.reshape(side)
    if scale_shift is not None:
        scale, shift = (part.reshape(len(x), *side[1:]) for part in scale_shift.chunk(2, dim=1))
        y = y * (1 + scale) + shift
    return y / (1 + (-y).exp()) if silu else y


@every_set
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    "shape, groups, mean",
    [((1, 32, 1, 1), 4, 0), ((3, 96, 5, 7), 32, 3), ((5, 64, 8, 8), 32, 0), ((2, 48, 9, 3), 6, 100)],
)
def test_normalisation_and_its_gradients(instructions, shape, groups, mean, scaled, silu):
    channels = shape[1]
    x, gradient = drawn(*shape) + mean, drawn(*shape)
    tensors = [x, 1 + drawn(channels) / 3, drawn(channels), drawn(shape[0], 2 * channels) if scaled else None]
    given = [t if t is None else t.clone().requires_grad_() for t in tensors]
    exact = [t if t is None else t.double().requires_grad_() for t in tensors]
    y = functions.normalised(found(instructions), given[0], groups, given[1], given[2], 1e-5, given[3], silu)
    expected = group_norm(exact[0], groups, *exact[1:], silu)
    tolerance = 1e-5 * (1 + abs(mean))  # what float32 holds of x itself
    close(y.detach(), expected.detach(), tolerance)
    given, exact = ([t for t in side if t is not None] for side in (given, exact))
    got = torch.autograd.grad(y, given, gradient)
    want = torch.autograd.grad(expected, exact, gradient.double())
    for a, b in zip(got[1:], want[1:]):
        close(a, b, tolerance)
    assert (got[0].double() - want[0]).abs().max() <= tolerance * max(1, want[0].abs().max())


@every_set
@pytest.mark.parametrize("value", [0.0, 50.0, -50.0, 200.0, -200.0, float("inf"), float("nan")])
def test_silu_of_extreme_values(instructions, value):
    """A group's offset is what it normalises to, so a bias alone decides what SiLU is given."""
    bias = torch.full((32,), value)
    y, _ = found(instructions).normalised(torch.zeros(1, 32, 2, 2), 32, torch.ones(32), bias, 1e-5)
    torch.testing.assert_close(y[0, :, 0, 0], F.silu(bias), equal_nan=True, rtol=1e-5, atol=1e-30)


@every_set
@pytest.mark.parametrize("scale", [1e15, 1e25, float("inf"), float("nan")])
@pytest.mark.parametrize("one", [False, True])
def test_a_group_that_diverged_is_no_number_and_no_other_one_is(instructions, scale, one):
    """As torch has it, whose own squares overflow elsewhere."""
    x = drawn(2, 32, 8, 8)
    x[(0, 0, 5, 3) if one else (0, slice(8))] *= scale
    weight, bias = torch.ones(32), torch.zeros(32)
    y, _ = found(instructions).normalised(x, 4, weight, bias, 1e-5, silu=False)
    expected = F.group_norm(x, 4, weight, bias)
    if scale != 1e15:
        expected[0, :8] = float("nan")
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


LAYOUTS = {
    "every other": lambda t: torch.stack([t, t + 1], dim=-1).flatten(-2)[..., ::2],
    "expanded": lambda t: t[..., :1].expand(t.shape),
}


@every_set
@pytest.mark.parametrize("lies", LAYOUTS)
def test_what_is_given_may_lie_anyhow_in_memory(instructions, lies):
    it = found(instructions)

    def made(*shape):
        return LAYOUTS[lies](drawn(*shape))

    x, weight, bias, residual = drawn(2, 32, 8, 8), made(32, 32, 3, 3), made(32), made(2, 32, 8, 8)
    y = functions.convolution(it, x, weight, bias, residual)
    close(y, F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + residual, 2e-5)
    rows, matrix, added = made(5, 8), made(32, 8), made(5, 32)
    y = it.linear(rows, it.linear_weights(matrix), 32, bias, added)
    close(y, F.linear(rows.double(), matrix.double(), bias.double()) + added, 1e-5)
    tensors = [x, made(32), bias, made(2, 64)]
    given, exact = ([t.to(kind).detach().requires_grad_() for t in tensors] for kind in (torch.float32, torch.float64))
    y = functions.normalised(it, given[0], 8, given[1], given[2], 1e-5, given[3])
    expected = group_norm(exact[0], 8, *exact[1:], True)
    close(y.detach(), expected.detach(), 1e-5)
    for a, b in zip(torch.autograd.grad(y.sum(), given), torch.autograd.grad(expected.sum(), exact)):
        close(a, b, 1e-4)


@every_set
@pytest.mark.parametrize("kind", ["convolution", "normalisation"])
@pytest.mark.parametrize("only", range(4))
def test_one_input_alone_may_have_a_gradient_that_has_one(instructions, kind, only):
    it, layer = found(instructions), kind == "convolution"
    shapes = [(2, 32, 8, 8), (32, 32, 3, 3), (32,), (2, 32, 8, 8)] if layer else [(2, 32, 8, 8), (32,), (32,), (2, 64)]
    inputs = [drawn(*shape) for shape in shapes]
    inputs[only].requires_grad_()
    if layer:
        pair = functions.convolution(it, *inputs), F.conv2d(*inputs[:3], padding=1) + inputs[3]
    else:
        x, weight, bias, scale_shift = inputs
        pair = functions.normalised(it, x, 8, weight, bias, 1e-5, scale_shift), group_norm(x, 8, *inputs[1:], True)
    got, expected = (torch.autograd.grad(y.square().sum(), inputs[only], create_graph=True)[0] for y in pair)
    close(got, expected.double(), 1e-3)


@every_set
@pytest.mark.parametrize("kind", ["convolution", "normalisation"])
def test_a_gradient_penalty_is_that_of_torch(instructions, kind):
    """Gradients that are differentiated again."""

    def penalty(function, dtype):
        torch.manual_seed(1)
        x, weight, bias = drawn(2, 32, 8, 8), drawn(32, 32, 3, 3) / 17, drawn(32)
        if kind == "normalisation":
            weight, bias = drawn(32), drawn(32)
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        (slope,) = torch.autograd.grad(function(*inputs).square().sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(slope.square().sum(), inputs)

    it = found(instructions)
    if kind == "convolution":
        got = penalty(lambda x, w, b: functions.convolution(it, x, w, b), torch.float32)
        want = penalty(lambda x, w, b: F.conv2d(x, w, b, padding=1), torch.float64)
    else:
        got = penalty(lambda x, w, b: functions.normalised(it, x, 8, w, b, 1e-5), torch.float32)
        want = penalty(lambda x, w, b: group_norm(x, 8, w, b, None, True), torch.float64)
    for a, b in zip(got, want):
        close(a, b, 1e-3)


@every_set
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_bytes_depend_neither_on_threads_nor_on_the_batch(instructions, threads):
    it = found(instructions)
    x, weight, bias, scale_shift = drawn(5, 64, 12, 8), drawn(48, 64, 3, 3), drawn(48), drawn(5, 128)
    matrix, gradient = drawn(48, 64), drawn(5, 48, 12, 8)

    def made(images):
        one = x[images]
        normed, statistics = it.normalised(one, 32, matrix[0], matrix[1], 1e-5, scale_shift[images])
        back, _ = it.normalised_gradient(one, one, statistics, 32, matrix[0], matrix[1], scale_shift[images])
        rows = it.linear(one.permute(0, 2, 3, 1), it.linear_weights(matrix), 48, bias)
        return it.convolution(one, it.filters(weight), 48, bias), normed, back, rows

    whole, of_weight = made(slice(None)), it.filter_gradient(x, gradient)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(whole, made(slice(None))))
    assert torch.equal(of_weight, it.filter_gradient(x, gradient))
    for i in range(5):
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(whole, made(slice(i, i + 1))))


@every_set
@pytest.mark.parametrize("kernel", ["convolution", "normalisation", "linear"])
def test_an_empty_batch_gives_nothing_and_its_gradients_are_zero(instructions, kernel):
    it, x = found(instructions), torch.zeros(0, 32, 8, 8, requires_grad=True)
    shape = {"convolution": (48, 32, 3, 3), "normalisation": (32,), "linear": (48, 32)}[kernel]
    weight, bias = drawn(*shape).requires_grad_(), drawn(shape[0]).requires_grad_()
    if kernel == "linear":
        assert it.linear(x.detach().permute(0, 2, 3, 1), it.linear_weights(weight), 48, bias).shape == (0, 8, 8, 48)
        return
    if kernel == "convolution":
        y = functions.convolution(it, x, weight, bias)
    else:
        y = functions.normalised(it, x, 8, weight, bias, 1e-5, torch.zeros(0, 64))
    assert y.shape == (0, shape[0], 8, 8)
    for gradient, of in zip(torch.autograd.grad(y.sum(), (x, weight, bias)), (x, weight, bias)):
        assert torch.equal(gradient, torch.zeros_like(of))


IMAGES, FILTERS = (torch.zeros(2, 16, 8, 8), torch.zeros(2, 32, 8, 8)), torch.zeros(32, 16, 3, 3)
MISFITS = {
    "channels of images": lambda it: it.convolution(IMAGES[1], it.filters(FILTERS), 32),
    "outputs": lambda it: it.convolution(IMAGES[0], it.filters(FILTERS), 64),
    "sides": lambda it: it.convolution(torch.zeros(2, 16, 8, 6), it.filters(FILTERS), 32),
    "bias": lambda it: it.convolution(IMAGES[0], it.filters(FILTERS), 32, torch.zeros(16)),
    "residual": lambda it: it.convolution(IMAGES[0], it.filters(FILTERS), 32, None, torch.zeros(1, 32, 8, 8)),
    "gradient": lambda it: it.filter_gradient(IMAGES[0], torch.zeros(1, 32, 8, 8)),
    "rows": lambda it: it.linear(torch.zeros(3, 17), it.linear_weights(torch.zeros(32, 16)), 32),
    "outputs of rows": lambda it: it.linear(torch.zeros(3, 16), it.linear_weights(torch.zeros(32, 16)), 80),
    "bias of rows": lambda it: it.linear(
        torch.zeros(3, 16), it.linear_weights(torch.zeros(32, 16)), 32, torch.zeros(1)
    ),
    "normalised channels": lambda it: it.normalised(torch.zeros(2, 24, 8, 8), 8, *torch.zeros(2, 24), 1e-5),
    "groups": lambda it: it.normalised(IMAGES[0], 5, *torch.zeros(2, 16), 1e-5),
    "scales": lambda it: it.normalised(IMAGES[0], 8, *torch.zeros(2, 16), 1e-5, torch.zeros(1, 32)),
    "normalised weights": lambda it: it.normalised(IMAGES[0], 8, *torch.zeros(2, 8), 1e-5),
    "statistics": lambda it: it.normalised_gradient(*IMAGES[:1] * 2, torch.zeros(1, 2, 16), 8, *torch.zeros(2, 16)),
}


@every_set
@pytest.mark.parametrize("misfit", MISFITS)
def test_no_kernel_reads_beyond_what_it_is_given(instructions, misfit):
    with pytest.raises(ValueError, match="shapes do not fit"):
        MISFITS[misfit](found(instructions))


@every_set
@pytest.mark.parametrize("kind", ["convolution", "normalised"])
def test_many_gradients_at_once_are_those_of_torch(instructions, kind):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    it, x, weight, bias = found(instructions), drawn(2, 32, 8, 8), drawn(32, 32, 3, 3), drawn(32)
    if kind == "normalised":
        weight = drawn(32)
    by_kernels, by_torch = {
        "convolution": (
            lambda x: functions.convolution(it, x, weight, bias),
            lambda x: F.conv2d(x, weight, bias, padding=1),
        ),
        "normalised": (
            lambda x: functions.normalised(it, x, 8, weight, bias, 1e-5),
            lambda x: functions.normalised_by_torch(x, 8, weight, bias, 1e-5),
        ),
    }[kind]
    v, found_of = drawn(3, 2, 32, 8, 8), []
    for function in (by_kernels, by_torch):
        image = x.clone().requires_grad_()
        found_of += torch.autograd.grad(function(image), image, v, is_grads_batched=True)
    close(found_of[0], found_of[1].double(), 1e-4)


# -- whole networks

COMMON = dict(
    image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1, attention_resolutions=(2,)
)
AS_ADM = dict(channel_mult=(1, 2), num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True)
FAMILIES = {
    "adm": (UNetModel, AS_ADM),
    "new_attention_order": (
        UNetModel,
        dict(channel_mult=(1, 2), num_heads=4, use_new_attention_order=True, use_scale_shift_norm=True),
    ),
    "legacy_heads_classes": (UNetModel, dict(channel_mult=(1, 2, 2), num_heads=4, num_classes=5, dropout=0.1)),
    "pooled_resampling": (UNetModel, dict(channel_mult=(1, 2), num_heads=2, conv_resample=False)),
    "grey": (UNetModel, dict(in_channels=1, out_channels=1, channel_mult=(1, 1), use_scale_shift_norm=True)),
    "wide": (UNetModel, dict(model_channels=128, channel_mult=(1, 1), num_head_channels=64)),
    "super_res": (SuperResModel, dict(channel_mult=(1, 2), num_head_channels=32, num_classes=5)),
    "classifier_attention": (EncoderUNetModel, dict(AS_ADM, pool="attention")),
    "classifier_adaptive": (EncoderUNetModel, dict(channel_mult=(1, 2), num_head_channels=32, pool="adaptive")),
    "classifier_spatial": (EncoderUNetModel, dict(channel_mult=(1, 2), pool="spatial_v2")),
    "one_dimensional": (UNetModel, dict(channel_mult=(1, 2), dims=1)),
    "three_dimensional": (UNetModel, dict(image_size=8, channel_mult=(1, 2), dims=3)),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
# (instructions or "absent", --conv); absent kernels leave direct convolutions as they are
WAYS = [(name, conv) for name in [*COMPILED, "absent"] for conv in ("auto", "direct", "winograd")]


def network(family, **changes):
    kind, arguments = FAMILIES[family]
    return fill_weights(kind(**{**COMMON, **arguments, **changes})).eval()


def inputs(model, count=3, sides=None):
    """Positional arguments and keywords of a network's forward."""
    channels, *own = model.shape
    x = torch.randn(count, channels, *(sides or own))
    told = {"y": torch.arange(count) % 5} if "y" in getattr(model, "takes", ()) else {}
    if "low_res" in getattr(model, "takes", ()):
        told["low_res"] = torch.randn(count, channels, 8, 8)
    return (x, torch.linspace(3, 900, count)), told


@pytest.fixture
def way(request):
    """The --conv of one of WAYS, within which its kernels are those of the process."""
    instructions, conv = request.param
    there = None if instructions == "absent" else found(instructions)
    with mock.patch.object(kernels, "current", lambda: there):
        yield conv


def ways(pairs):
    return pytest.mark.parametrize("way", pairs, indirect=True, ids=lambda pair: "-".join(pair))


every_way, keeping = ways(WAYS), ways([pair for pair in WAYS if pair[1] == "winograd"])


@every_family
@every_way
def test_a_fast_network_gives_what_the_network_gives(family, way):
    model = network(family)
    made = for_inference(model, way)
    for sides in (None, [12, 20], [6, 2]) if family.startswith(("adm", "legacy", "super", "pooled")) else (None,):
        arguments, told = inputs(model, sides=sides if sides is None or len(model.channel_mult) < 3 else [12, 20])
        with torch.no_grad():
            expected = model(*arguments, **told)
            for _ in range(2):  # the second time by weights that were kept
                out = made(*arguments, **told)
                assert (out - expected).abs().max() < (1e-5 if way == "direct" else 1e-4)
        assert out.is_contiguous() and type(made) is type(model) and made.shape == model.shape


@every_way
@pytest.mark.parametrize("family", ["adm", "legacy_heads_classes", "pooled_resampling"])
@pytest.mark.parametrize("make", [for_inference, for_training])
def test_an_empty_batch_goes_through_a_network(make, family, way):
    made = make(network(family), way)
    arguments, told = inputs(made, count=0)
    assert made(*arguments, **told).shape == (0, 6, 16, 16)


@every_family
@every_way
def test_gradients_of_training_are_those_of_the_network(family, way):
    model = network(family)
    made = for_training(model, way)
    assert [id(p) for p in made.parameters()] == [id(p) for p in model.parameters()]
    assert made.state_dict().keys() == model.state_dict().keys()
    arguments, told = inputs(model)

    def gradients(net):
        x = arguments[0].clone().requires_grad_()
        loss = net(x, arguments[1], **told).square().mean()
        grads = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
        return [torch.zeros(1) if g is None else g for g in grads]

    expected, got = gradients(model), gradients(made)
    largest = max(g.norm() for g in expected)
    for a, b in zip(got, expected):  # a bias before a normalisation has no gradient but rounding
        assert (a - b).norm() <= 1e-3 * max(b.norm(), 1e-3 * largest)


@every_way
def test_a_gradient_with_respect_to_the_image_goes_through_a_network_for_inference(way):
    model = network("classifier_attention")
    (x, t), _ = inputs(model)

    def gradient(net):
        image = x.clone().requires_grad_()
        return torch.autograd.grad(net(image, t).log_softmax(-1)[:, 0].sum(), image)[0]

    close(gradient(for_inference(model, way)), gradient(model).double(), 1e-3)


@every_set
def test_a_gradient_penalty_goes_through_a_network_in_training(instructions):
    model = network("adm")
    (x, t), _ = inputs(model)

    def penalty(net):
        image = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(image, t).sum(), image, create_graph=True)
        weights = [p for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1]
        return torch.autograd.grad((slope.flatten(1).norm(dim=1) - 1).square().mean(), weights, allow_unused=True)

    # torch's fused attention has no second derivative
    with mock.patch.object(kernels, "current", lambda: found(instructions)), sdpa_kernel(SDPBackend.MATH):
        got, expected = penalty(for_training(model, "auto")), penalty(model)
    for a, b in zip(got, expected):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= 1e-3 * b.norm()


@every_set
@pytest.mark.parametrize("family", ["adm", "legacy_heads_classes", "super_res", "wide"])
def test_an_image_is_the_same_in_any_batch(instructions, family):
    model = network(family)
    with mock.patch.object(kernels, "current", lambda: found(instructions)), torch.no_grad():
        made = for_inference(model, "auto")
        (x, t), told = inputs(model, count=5)
        whole = made(x, t, **told)
        for part in (slice(0, 1), slice(2, 5), slice(4, 5)):
            assert torch.equal(made(x[part], t[part], **{k: v[part] for k, v in told.items()}), whole[part])


def dual(function, given, tangents):
    with torch.autograd.forward_ad.dual_level():
        made = map(torch.autograd.forward_ad.make_dual, given, tangents)
        return torch.autograd.forward_ad.unpack_dual(function(*made)).tangent


def of_times(net, x, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(net(x, t).square().sum(), t)[0]


TRANSFORMS = {
    "gradient of times": of_times,
    "func.grad": lambda net, x, t: torch.func.grad(lambda t: net(x, t).square().sum())(t),
    "func.jvp": lambda net, x, t: torch.func.jvp(net, (x, t), (x, torch.arange(3.0)))[1],
    "dual numbers": lambda net, x, t: dual(net, (x, t), (x, torch.arange(3.0))),
    "vmap": lambda net, x, t: torch.vmap(net)(torch.stack([x, 2 * x]), torch.stack([t, t])),
    "vmap of images": lambda net, x, t: torch.vmap(net, (0, None))(torch.stack([x, 2 * x]), t),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
@ways([pair for pair in WAYS if pair[1] == "auto"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("alike", [True, False])
def test_transforms_of_functions_go_through_a_network_for_inference(transform, alike, way):
    model = network("adm", attention_resolutions=())
    model.middle_block[1] = nn.Identity()  # torch's own attention has no forward derivative on a CPU
    (x, t), _ = inputs(model)
    t = torch.full((3,), 321.0) if alike else t
    got, expected = (TRANSFORMS[transform](net, x, t) for net in (for_inference(model, way), model))
    assert (got - expected).norm() <= 1e-3 * expected.norm()


@every_set
@pytest.mark.parametrize("family", ["adm", "legacy_heads_classes", "super_res", "classifier_attention"])
def test_a_time_that_all_images_share_is_embedded_once_and_changes_no_bit(instructions, family):
    model = network(family)
    with mock.patch.object(kernels, "current", lambda: found(instructions)), torch.no_grad():
        made = for_inference(model, "auto")
        (x, _), told = inputs(model, count=4)
        rows = []
        made.time_embed[0].register_forward_pre_hook(lambda layer, given: rows.append(len(given[0])))
        alike, mixed = torch.full((4,), 321.0), torch.tensor([321.0, 5.0, 321.0, 700.0])
        whole, others = made(x, alike, **told), made(x, mixed, **told)
        assert rows == [1, 4]
        for i in range(4):
            part = slice(i, i + 1)
            alone = made(x[part], alike[part], **{k: v[part] for k, v in told.items()})
            assert torch.equal(alone, whole[part])
            assert torch.equal(others[part], whole[part]) == (mixed[i] == 321)


@compiled
def test_checkpoints_and_dropout_of_training_stay():
    model = network("adm", use_checkpoint=True, dropout=0.5).train()
    made = for_training(model, "auto")
    arguments, _ = inputs(model)
    torch.manual_seed(3)
    first = made(*arguments)
    torch.manual_seed(3)
    assert torch.equal(first, made(*arguments)) and not torch.equal(first, made(*arguments))
    first.sum().backward()
    blocks = [m for m in made.modules() if isinstance(m, (ResBlock, AttentionBlock))]
    assert all(block.use_checkpoint for block in blocks)
    blocks = [m for m in for_inference(model).modules() if isinstance(m, (ResBlock, AttentionBlock))]
    assert not any(block.use_checkpoint for block in blocks)


def written(change):
    """A change of weights in place, as a function of the network."""

    @torch.no_grad()
    def to(model):
        for p in model.parameters():
            change(p)

    return to


class Told(nn.Module):
    """What a network says of x alone."""

    def __init__(self, net, t):
        super().__init__()
        self.net, self.t = net, t

    def forward(self, x):
        return self.net(x, self.t)


@contextlib.contextmanager
def by_default(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@every_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_torch_makes_by_default_changes_nothing(dtype, way):
    made = for_inference(network("wide"), way)
    arguments, _ = inputs(made)
    with torch.no_grad():
        expected = made(*arguments)
        with by_default(dtype), torch.device("meta"):
            got = made(*arguments)
    assert got.dtype is torch.float32 and torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # of torch's own
@every_way
def test_a_tracer_sees_what_is_computed(way):
    made = for_inference(network("adm"), way)
    (x, t), _ = inputs(made)
    with torch.no_grad():
        traced = torch.jit.trace(Told(made, t), x, check_trace=False)
        close(traced(2 * x), made(2 * x, t).double(), 1e-4)


@every_way
def test_modes_see_what_is_computed(way):
    model, flops = network("adm"), []
    arguments, _ = inputs(model)
    for net in (model, for_inference(model, way)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(*arguments)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


@every_way
def test_a_gradient_may_follow_a_call_without(way):
    """What is kept from a call in inference mode is there for those that are differentiated."""
    model = network("wide")
    made = for_inference(model, way)
    (x, t), _ = inputs(model)
    with torch.inference_mode():
        made(x, t)
    found_of = []
    for net in (made, model):
        image = x.clone().requires_grad_()
        found_of += torch.autograd.grad(net(image, t).sum(), image)
    close(found_of[0], found_of[1].double(), 1e-3)
    assert all(p.grad is None for p in model.parameters())


@every_way
def test_weights_of_a_network_for_inference_have_no_gradients(way):
    model = network("pooled_resampling")
    (x, t), _ = inputs(model)
    for_inference(model, way)(x.requires_grad_(), t).sum().backward()
    layers = [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear, PointwiseConv))]
    assert all(p.grad is None for part in layers for p in part.parameters())


def wrong(family, **changed):
    """A call of a network with something of another shape than it takes."""

    def call(make):
        model = network(family)
        (x, t), told = inputs(model)
        told = {**told, "x": x, **changed}
        return make(model)(told.pop("x"), t, **told)

    return call


WRONG = {
    "more channels": wrong("adm", x=torch.zeros(3, 4, 16, 16)),
    "fewer channels": wrong("adm", x=torch.zeros(3, 1, 16, 16)),
    "of an upsampler": wrong("super_res", low_res=torch.zeros(3, 1, 8, 8)),
    "of a classifier": wrong("classifier_attention", x=torch.zeros(3, 1, 16, 16)),
}


@every_way
@pytest.mark.parametrize("call", WRONG)
def test_what_torch_refuses_is_refused(call, way):
    for make in (lambda model: model, lambda model: for_inference(model, way), lambda model: for_training(model, way)):
        with torch.no_grad(), pytest.raises(RuntimeError):
            WRONG[call](make)


WRITES = {
    "in place": written(lambda p: p.mul_(1.1)),
    "replaced": written(lambda p: setattr(p, "data", p.data * 0.9)),
    "in place through data": written(lambda p: p.data.mul_(1.1)),
    "copied through data": written(lambda p: p.data.copy_(p.data.flip(0))),
    "turned in memory": written(
        lambda p: setattr(p, "data", p.data.transpose(0, 1)) if p.ndim > 1 and len(p) == p.shape[1] else 0
    ),
    "turned through data": written(
        lambda p: p.data.copy_(p.data.transpose(0, 1).clone()) if p.ndim > 1 and len(p) == p.shape[1] else 0
    ),
    "through numpy": written(lambda p: np.multiply(p.numpy(), 1.1, out=p.numpy())),
    "by a state dict": lambda model: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}),
}


@keeping
@pytest.mark.parametrize("born", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", WRITES)
def test_weights_that_change_are_followed(write, born, way):
    with born():
        model = network("adm")
        made = for_inference(model, way)
        arguments, _ = inputs(model)
        before = made(*arguments)
        WRITES[write](model)
        out = made(*arguments)
        assert (out - model(*arguments)).abs().max() < 1e-4 < (out - before).abs().max()


@keeping
def test_weights_that_are_handed_in_are_followed(way):
    """Each call frees what the call before was given, so its memory is used again."""
    model = network("adm")
    made = for_inference(model, way)
    arguments, _ = inputs(model)
    with torch.no_grad():
        for scale in (0.9, 1.0, 1.1, 1.2):
            out, expected = (
                torch.func.functional_call(net, {k: v * scale for k, v in model.named_parameters()}, arguments)
                for net in (made, model)
            )
            assert (out - expected).abs().max() < 1e-4


COPIES = {"deep": copy.deepcopy, "pickled": lambda made: pickle.loads(pickle.dumps(made))}


@keeping
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_of_the_weights_and_keeps_its_own(copied, way):
    made = for_inference(network("adm"), way)
    arguments, _ = inputs(made)
    with torch.no_grad():
        expected = made(*arguments)
        two = COPIES[copied](made)
        assert torch.equal(two(*arguments), expected)
        kept = [[part.kept is not None for part in net.modules() if hasattr(part, "kept")] for net in (made, two)]
        assert kept[0] == kept[1] and any(kept[0])
        for p in two.parameters():
            p.mul_(1.1)
        assert torch.equal(made(*arguments), expected) and not torch.equal(two(*arguments), expected)


@compiled
@pytest.mark.parametrize("family", ["adm", "wide"])
def test_weights_grow_at_most_fourfold_and_those_of_rows_are_always_kept(family):
    model = network(family)
    made = for_inference(model, "winograd")
    arguments, _ = inputs(model)
    with torch.no_grad():
        made(*arguments)
    layers = [m for m in made.modules() if hasattr(m, "kept")]
    kept, weights = [m for m in layers if m.kept is not None], sum(p.numel() for p in model.parameters())
    assert sum(m.kept.made.numel() for m in kept) + weights <= 4 * weights
    assert {type(m) for m in layers if m.kept is None} == {fast.FastConvolution} < {type(m) for m in kept}


# -- what somebody changed is left alone


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnBlock(ResBlock):
    def _forward(self, x, emb):
        return super()._forward(x, emb) + 1


class OwnAttention(nn.Module):
    def forward(self, qkv):
        return qkv.chunk(3, dim=1)[2]


def around_a_torus(x, weight, bias):
    """In place of a convolution's, as pictures without seams are made."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)


def subclassed(layer, kind):
    layer.__class__ = kind


CHANGES = {
    "hooked convolution": lambda m: m.input_blocks[1][0].in_layers[2].register_forward_hook(lambda *a: a[2].abs()),
    "hooked activation": lambda m: m.input_blocks[1][0].out_layers[1].register_forward_hook(lambda *a: a[2] + 1),
    "hooked normalisation": lambda m: m.out[0].register_forward_pre_hook(lambda m, x: (x[0].abs(),)),
    "hooked layers": lambda m: m.middle_block[0].in_layers.register_forward_hook(lambda *a: a[2].abs()),
    "hooked block": lambda m: m.input_blocks[1][0].register_forward_hook(lambda *a: a[2] * 2),
    "hooked level": lambda m: m.output_blocks[0].register_forward_hook(lambda *a: a[2] * 2),
    "hooked network": lambda m: m.register_forward_hook(lambda *a: a[2] * 2),
    "hooked projection": lambda m: m.middle_block[1].qkv.register_forward_hook(lambda *a: a[2] * 2),
    "replaced attention": lambda m: setattr(m.middle_block[1], "attention", OwnAttention()),
    "replaced heads": lambda m: setattr(m.middle_block[1], "attention", QKVAttention(4)),
    "replaced end": lambda m: setattr(m, "out", nn.Conv2d(32, 6, 3, padding=1)),
    "replaced embedding": lambda m: setattr(m, "time_embed", nn.Sequential(m.time_embed[0], nn.BatchNorm1d(128))),
    "hooked embedding": lambda m: m.time_embed[0].register_forward_hook(lambda *a: a[2] * len(a[2])),
    "hooked scales": lambda m: m.middle_block[0].emb_layers.register_forward_hook(lambda *a: a[2] * len(a[2])),
    "replaced dropout": lambda m: setattr(m.middle_block[0].out_layers, "2", nn.Tanh()),
    "replaced activation": lambda m: setattr(m.middle_block[0].in_layers, "1", nn.ReLU()),
    "replaced skip": lambda m: setattr(m.input_blocks[1][0], "skip_connection", nn.Tanh()),
    "subclassed convolution": lambda m: subclassed(m.output_blocks[1][0].out_layers[3], Doubled),
    "subclassed block": lambda m: subclassed(m.middle_block[2], OwnBlock),
    "patched block": lambda m: setattr(m.middle_block[0], "_forward", lambda x, emb: x * 2),
    "patched product": lambda m: setattr(m.middle_block[0].in_layers[2], "_conv_forward", around_a_torus),
    "patched convolution": lambda m: setattr(m.out[2], "forward", lambda x: x[:, :6]),
    "normalised weights": lambda m: nn.utils.parametrizations.weight_norm(m.middle_block[0].in_layers[2]),
    "spectral norm": lambda m: nn.utils.spectral_norm(m.middle_block[0].in_layers[2]),
}


@compiled
@pytest.mark.parametrize("made_for", [for_inference, for_training])
@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changed_does_what_it_did(change, made_for):
    model = network("adm")
    arguments, _ = inputs(model)
    alike = arguments[0], torch.full((3,), 321.0)  # of which fast networks embed one
    with torch.no_grad():
        before = model(*arguments)
        CHANGES[change](model)
        made = made_for(model, "auto")
        for given in (arguments, alike):
            expected, out = model(*given), made(*given)
            assert (out - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    if change != "normalised weights":
        assert (model(*arguments) - before).abs().max() > 1e-2


PATCHES = {
    "a block's": "f = unet.ResBlock._forward; unet.ResBlock._forward = functools.wraps(f)(lambda s, *a: 2 * f(s, *a))",
    "torch's own": "f = torch.nn.Conv2d._conv_forward; torch.nn.Conv2d._conv_forward = lambda s, *a: 2 * f(s, *a)",
    "that of all modules": "f = torch.nn.Module.__call__; torch.nn.Module.__call__ = lambda s, *a: 0.9 * f(s, *a)",
}


@compiled
@pytest.mark.parametrize("order", ["patch; fast", pytest.param("fast; patch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("patch", PATCHES)
def test_a_class_that_somebody_patched_is_left_alone(patch, order):
    """Before the fast networks were imported, and afterwards."""
    lines = {"fast": "from guided_diffusion import networks", "patch": PATCHES[patch]}
    code = [lines[word] for word in order.split("; ")]
    body = f"""
import functools, torch
from guided_diffusion import unet
plain = unet.UNetModel(16, 3, 32, 6, 1, (2,), channel_mult=(1, 2), num_heads=2)
with torch.no_grad():
    for p in plain.parameters():
        p.normal_(std=p[0].numel() ** -0.5)
    x = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 500.0])
    before = plain(*x)
    {code[0]}
    {code[1]}
    expected = plain(*x)
    assert (expected - before).abs().max() > 1e-2
    for make in networks.for_inference, networks.for_training:
        assert (make(plain, "auto")(*x) - expected).abs().max() < 1e-4
"""
    subprocess.run([sys.executable, "-c", body], cwd=ROOT, check=True)


@compiled
@pytest.mark.parametrize("made_for", [for_inference, for_training])
def test_hooks_of_all_modules_do_what_they_did(made_for):
    model = network("adm")
    arguments, _ = inputs(model)
    handle = nn.modules.module.register_module_forward_hook(
        lambda layer, given, out: out * 0.9 if isinstance(layer, nn.SiLU) else None
    )
    with handle, torch.no_grad():
        assert torch.equal(made_for(model, "auto")(*arguments), model(*arguments))


def test_the_network_itself_stays_as_it_is():
    model = network("adm")
    before = copy.deepcopy(model)
    arguments, _ = inputs(model)
    with torch.no_grad():
        for make in (for_inference, for_training):
            make(model, "winograd")(*arguments)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in before.named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values()))


class Own(UNetModel):
    pass


@pytest.mark.parametrize(
    "make", [lambda: Own(**COMMON, channel_mult=(1, 1)), lambda: nn.Bilinear(3, 4, 5), lambda: lambda x, t: x]
)
def test_other_networks_are_returned_as_they_are(make):
    model = make()
    assert for_inference(model) is model and for_training(model) is model


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_to_torch(dtype):
    model = network("adm")
    model.convert_to(dtype)
    arguments, _ = inputs(model)
    with torch.no_grad():
        assert (for_inference(model, "auto")(*arguments) - model(*arguments)).abs().max() < 5e-2


@compiled
def test_autocast_goes_to_torch():
    model = network("adm")
    arguments, _ = inputs(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (for_training(model, "auto")(*arguments) - model(*arguments)).abs().max() < 5e-2


@pytest.mark.parametrize(
    "capabilities, slow",
    [
        ({"architecture": "x86_64", "avx2": True}, [torch.float16, torch.bfloat16]),
        ({"architecture": "x86_64", "avx512_bf16": True, "avx512_fp16": False}, [torch.float16]),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_fp16": True}, []),
        ({"architecture": "aarch64"}, []),
        ({}, []),
    ],
)
@pytest.mark.parametrize("dtypes", [(), (torch.float32, None), (torch.float16,), (torch.float16, torch.bfloat16)])
def test_half_precision_is_slow_without_instructions_for_it(capabilities, slow, dtypes):
    with mock.patch.object(torch.cpu, "get_capabilities", lambda: capabilities, create=True):
        assert slow_halves(*dtypes) == [kind for kind in slow if kind in dtypes]


def test_half_precision_that_is_slow_is_warned_of_once(tmp_path, capsys):
    flags = ["--model_path", DIGITS, "--num_samples", 1, "--timestep_respacing", 1, "--out_dir", tmp_path]
    with mock.patch.object(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, create=True):
        printed = run("image_sample", *flags, "--use_bf16", "True")
    assert (printed + capsys.readouterr().err).count("no instructions for bfloat16") == 1


# -- the choice


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize(
    "channels, sides, by", [((32, 32), (8, 8), True), ((16, 32), (8, 8), False), ((32, 32), (8, 6), False)]
)
@compiled
def test_auto_asks_channels_and_sides_never_the_batch(channels, sides, by, batch):
    layer = nn.Conv2d(*channels, 3, padding=1)
    plan = fast.Plan(ConvFlags().algorithm(), 0, False)
    assert plan.takes_winograd(layer, torch.empty(batch, channels[0], *sides)) is by


@pytest.mark.usefixtures("absent")
def test_without_kernels_auto_takes_winograd_for_wide_layers_and_never_in_training():
    assert ConvFlags().algorithm() == fast.PLAIN and ConvFlags().algorithm(training=True) == fast.DIRECT
    assert "plain torch" in fast.described(fast.PLAIN)


@pytest.mark.parametrize("asked, there", [("none", False), ("avx2", "avx2" in COMPILED), ("sse", None)])
def test_the_environment_chooses_the_kernels(monkeypatch, asked, there):
    monkeypatch.setenv(kernels.SWITCH, asked)
    if there:
        assert kernels.current.__wrapped__().instructions == asked
    elif asked == "none":
        assert kernels.current.__wrapped__() is None
    else:
        with pytest.raises(UserError, match=kernels.SWITCH):
            kernels.current.__wrapped__()


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_library_that_does_not_load_is_none(tmp_path, content):
    path = tmp_path / "_kernels.so"
    path.write_bytes(content)
    assert kernels.load(path, "avx2") is None


@compiled
def test_a_library_of_another_version_is_none(monkeypatch):
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    assert kernels.load(LIBRARY, COMPILED[-1]) is None


def test_a_tree_without_the_library_computes_by_torch(tmp_path):
    shutil.copytree(
        ROOT / "guided_diffusion", tmp_path / "guided_diffusion", ignore=shutil.ignore_patterns("_kernels*")
    )
    code = (
        "import torch; from guided_diffusion import kernels, networks, unet; assert kernels.current() is None; "
        "m = unet.UNetModel(16, 3, 32, 3, 1, (2,), channel_mult=(1, 1)); x = torch.randn(1, 3, 16, 16), torch.ones(1); "
        "assert torch.allclose(networks.for_inference(m)(*x), m(*x)); "
        "print(networks.described(networks.computing_by()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "plain torch" in ran.stdout


def test_a_folder_is_gone_on_with_by_its_algorithm(tmp_path):
    flags = ["--model_path", DIGITS, "--batch_size", 2, "--timestep_respacing", 4]
    whole = run("image_sample", *flags, "--num_samples", 4, "--conv", "direct", "--out_dir", tmp_path / "whole")
    assert "direct" in whole
    part = [*flags, "--out_dir", tmp_path / "part"]
    run("image_sample", *part, "--num_samples", 4, "--shard", "1/2", "--conv", "direct")
    said = run("image_sample", *part, "--num_samples", 4, "--conv", "winograd")
    assert "3x3 convolutions: direct" in said and "as this folder was begun" in said
    assert computing_by() == fast.DIRECT
    npz = [np.load(tmp_path / name / "samples_4x16x16x1.npz")["arr_0"] for name in ("whole", "part")]
    assert np.array_equal(*npz)


def test_an_older_folder_counts_as_direct(tmp_path):
    flags = ["--model_path", DIGITS, "--batch_size", 2, "--timestep_respacing", 4, "--num_samples", 4]
    run("image_sample", *flags, "--shard", "1/2", "--out_dir", tmp_path)
    (settings,) = tmp_path.glob("*.chunks/settings.json")
    saved = json.loads(settings.read_text())
    assert saved.pop("winograd") == computing_by() and saved["rounding"].pop("kernels") == kernels.instructions()
    settings.write_text(json.dumps(saved))
    said = run("image_sample", *flags, "--out_dir", tmp_path)
    assert "3x3 convolutions: direct" in said and "begun with" not in said


def test_a_folder_of_other_instructions_is_said(tmp_path):
    flags = ["--model_path", DIGITS, "--batch_size", 2, "--timestep_respacing", 2, "--num_samples", 4]
    run("image_sample", *flags, "--shard", "1/2", "--out_dir", tmp_path)
    with mock.patch.object(kernels, "instructions", lambda: "avx1024"):
        said = run("image_sample", *flags, "--out_dir", tmp_path)
    assert f"begun with kernels {kernels.instructions()}, now avx1024: images may differ by a rounding" in said


# -- torch's own compiler, and TF32


def plainly(function, mode):
    """In place of torch.compile: the function itself, with the mode on it."""
    asked.append(mode)
    return function


asked = []


@pytest.mark.parametrize("mode, told", [("default", None), ("max-autotune", "max-autotune")])
def test_compile_takes_the_network_itself_and_leaves_it_as_it_is(mode, told):
    model = network("legacy_heads_classes")
    arguments, y = inputs(model)
    ConvFlags(compile=mode).apply()
    asked.clear()
    with mock.patch.object(torch, "compile", plainly):
        made, trained = fast.compiled(model), for_training(model)
    assert asked == [told, told] and mode in fast.described(computing_by())
    assert "forward" not in vars(model) and type(made) is type(model) and made.shape == model.shape
    assert [id(p) for p in trained.parameters()] == [id(p) for p in model.parameters()]
    assert for_inference(made) is made
    with torch.no_grad():
        assert torch.equal(made(*arguments, **y), model(*arguments, **y))
    for copied in COPIES.values():
        with mock.patch.object(torch, "compile", plainly), torch.no_grad():
            two = copied(made)
            two.out[2].weight.mul_(2)
            assert torch.equal(made(*arguments, **y), model(*arguments, **y))
            assert not torch.equal(two(*arguments, **y), made(*arguments, **y))
    ConvFlags().apply()
    assert fast.compiled(model) is model


def test_a_smaller_batch_is_compiled_no_other_way():
    """The sizes that torch's compiler sees, and what comes of the samples that are there; gradients too."""
    model, seen = network("legacy_heads_classes"), []
    ConvFlags(compile="default").apply()

    def compiler(function, mode):
        def counted(*args, **told):
            seen.append({len(value) for value in (*args, *told.values())})
            return function(*args, **told)

        return counted

    with mock.patch.object(torch, "compile", compiler):
        made = fast.compiled(model)
    (x, t), told = inputs(model, count=5)
    for count in (3, 1, 2, 5, 4):
        part = x[:count].clone().requires_grad_()
        labels = {name: value[:count] for name, value in told.items()}
        expected, got = model(part, t[:count], **labels), made(part, t[:count], **labels)
        close(got, expected.double(), 1e-5)
        slopes = [torch.autograd.grad(y.square().sum(), part)[0] for y in (got, expected)]
        close(slopes[0], slopes[1].double(), 1e-5)
    assert seen == [{3}, {3}, {3}, {5}, {5}]


def test_scripts_run_a_compiled_network(tmp_path):
    flags = ["--model_path", DIGITS, "--num_samples", 2, "--timestep_respacing", 2, "--seed", 1]
    run("image_sample", *flags, "--conv", "direct", "--out_dir", tmp_path / "off")
    asked.clear()
    with mock.patch.object(torch, "compile", plainly):
        said = run("image_sample", *flags, "--compile", "default", "--out_dir", tmp_path / "on")
    assert asked == [None] and "compiled by torch (default)" in said
    off, on = (np.load(tmp_path / name / "samples_2x16x16x1.npz")["arr_0"].astype(int) for name in ("off", "on"))
    assert abs(off - on).max() <= 1


def test_compile_without_a_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ConvFlags(compile="default").apply()
    with pytest.raises(UserError, match=r"--compile default needs a C\+\+ compiler.*\$CXX"):
        fast.compiled(network("adm"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_what_the_network_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    ConvFlags(compile="default").apply()
    made = fast.compiled(model)
    for count in (2, 5):
        x = torch.randn(count, 3, 8, 8, requires_grad=True)
        expected, got = model(x), made(x)
        close(got, expected.double(), 1e-5)
        wanted = [x, *model.parameters()]
        grads = zip(torch.autograd.grad(got.sum(), wanted), torch.autograd.grad(expected.sum(), wanted))
        for a, b in grads:
            close(a, b.double(), 1e-5)


@pytest.fixture
def without_tf32():
    """The parts of torch that may round to TF32, which do not; afterwards they do as before."""
    parts = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    yield parts
    for part, value in zip(parts, before):
        part.allow_tf32 = value


def test_what_does_nothing_is_said(without_tf32, tmp_path):
    words = ["--model_path", DIGITS, "--num_samples", 1, "--timestep_respacing", 2, "--out_dir", tmp_path]
    said = run("image_sample", *words, "--tf32", True)
    assert "--tf32 True rounds the products of a GPU, and does nothing on a CPU" in said
    with mock.patch.object(torch, "compile", plainly):
        said = run("image_sample", *words[:-1], tmp_path / "compiled", "--compile", "default", "--conv", "winograd")
    assert "networks are compiled by torch (default), whatever --conv is" in said
    ConvFlags().apply()


def test_tf32_is_off_unless_asked_for(without_tf32):
    ConvFlags().apply()
    assert not any(part.allow_tf32 for part in without_tf32)
    for _ in range(2):
        ConvFlags(tf32=True).apply()
        assert all(part.allow_tf32 for part in without_tf32)
    ConvFlags().apply()
    assert not any(part.allow_tf32 for part in without_tf32)
