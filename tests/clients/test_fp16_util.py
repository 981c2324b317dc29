"""Float16 helpers as vendored networks and training loops call them, against sums and copies written out in torch."""

import copy
import inspect
import io
import math

import numpy as np
import pytest
import torch

from guided_diffusion import fp16_util
from guided_diffusion.script_util import create_classifier, create_model

SIGNATURES = {
    "convert_module_to_f16": "(l)",
    "convert_module_to_f32": "(l)",
    "make_master_params": "(param_groups_and_shapes)",
    "model_grads_to_master_grads": "(param_groups_and_shapes, master_params)",
    "master_params_to_model_params": "(param_groups_and_shapes, master_params)",
    "unflatten_master_params": "(param_group, master_param)",
    "get_param_groups_and_shapes": "(named_model_params)",
    "master_params_to_state_dict": "(model, param_groups_and_shapes, master_params, use_fp16)",
    "state_dict_to_master_params": "(model, state_dict, use_fp16)",
    "zero_master_grads": "(master_params)",
    "zero_grad": "(model_params)",
    "param_grad_or_zeros": "(param)",
    "check_overflow": "(value)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert str(inspect.signature(getattr(fp16_util, name))) == SIGNATURES[name]


def small():
    """Convolutions that become halves, beside layers that do not, and a buffer."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.Linear(2, 2)
    )


def unet():
    torch.manual_seed(0)
    flags = dict(learn_sigma=True, num_head_channels=16, use_scale_shift_norm=True, resblock_updown=True)
    return create_model(16, 32, 1, channel_mult="1,2", attention_resolutions="8", **flags)


def classifier():
    torch.manual_seed(0)
    return create_classifier(16, False, 32, 1, "8", True, True, "attention")


MODELS = {"small": small, "unet": unet, "classifier": classifier}


def groups_of(model):
    return fp16_util.get_param_groups_and_shapes(model.named_parameters())


def by_axes(model):
    """Weights with at most one axis, and all others, in their order."""
    params = list(model.parameters())
    return [p for p in params if len(p.shape) < 2], [p for p in params if len(p.shape) >= 2]


def in_a_row(tensors):
    return [value for tensor in tensors for value in tensor.detach().float().reshape(-1).tolist()]


# --- conversion


@pytest.mark.parametrize("name", MODELS)
def test_conversion_is_of_convolutions_and_keeps_the_parameters_themselves(name):
    """An optimiser that was made before still holds them."""
    model = MODELS[name]()
    before = {key: (p, p.detach().clone()) for key, p in model.named_parameters()}
    model.apply(fp16_util.convert_module_to_f16)
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    halves = {
        f"{key}.{part}"
        for key, module in model.named_modules()
        for part, _ in module.named_parameters(recurse=False)
        if isinstance(module, convolutions)
    }
    for key, p in model.named_parameters():
        kept, value = before[key]
        assert p is kept and p.dtype is (torch.float16 if key in halves else torch.float32)
        assert torch.equal(p.float(), value.half().float() if key in halves else value)
    model.apply(fp16_util.convert_module_to_f32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_parts_of_a_convolution_are_layers_of_their_own():
    """An adapter within a convolution, as LoRA has it, is no weight of the convolution."""
    conv = torch.nn.Conv2d(2, 2, 1)
    conv.adapter = torch.nn.Linear(2, 2)
    fp16_util.convert_module_to_f16(conv)
    assert (conv.weight.dtype, conv.adapter.weight.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("layer", [torch.nn.Linear(2, 2), torch.nn.GroupNorm(1, 2), torch.nn.ConvTranspose2d(2, 2, 1)])
def test_other_layers_are_left_alone(layer):
    fp16_util.convert_module_to_f16(layer)
    assert layer.weight.dtype is torch.float32


# --- master weights


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("half", [False, True])
def test_master_weights_are_the_weights_in_a_row(name, half):
    model = MODELS[name]()
    if half:
        model.apply(fp16_util.convert_module_to_f16)
    masters = fp16_util.make_master_params(groups_of(model))
    few, many = by_axes(model)
    assert [in_a_row([master]) for master in masters] == [in_a_row(few), in_a_row(many)]
    assert [list(master.shape) for master in masters] == [[len(in_a_row(few))], [1, len(in_a_row(many))]]
    for master in masters:
        assert isinstance(master, torch.nn.Parameter) and master.requires_grad and master.dtype is torch.float32
        master.detach().zero_()
    assert any(p.any() for p in model.parameters()), "masters are copies"


def test_groups_take_a_generator_and_keep_names():
    model = small()
    few, many = groups_of(model)
    assert [name for name, _ in few[0]] == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert [name for name, _ in many[0]] == ["0.weight", "2.weight", "3.weight"] and many[1] == (1, -1)
    assert all(p is dict(model.named_parameters())[name] for group, _ in (few, many) for name, p in group)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_halves_become_float32_and_missing_ones_zero(name):
    model = MODELS[name]()
    model.apply(fp16_util.convert_module_to_f16)
    generator = torch.Generator().manual_seed(3)
    for i, p in enumerate(model.parameters()):
        if i % 3:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    groups = groups_of(model)
    masters = fp16_util.make_master_params(groups)
    fp16_util.model_grads_to_master_grads(groups, masters)
    expected = [
        in_a_row([torch.zeros(p.shape) if p.grad is None else p.grad for p in params]) for params in by_axes(model)
    ]
    assert [in_a_row([master.grad]) for master in masters] == expected
    assert all(master.grad.shape == master.shape and master.grad.dtype is torch.float32 for master in masters)
    fp16_util.zero_master_grads(masters)
    assert [master.grad for master in masters] == [None, None]


@pytest.mark.parametrize("name", MODELS)
def test_masters_go_back_to_the_weights(name):
    """And a step on them is the step that float32 weights would take, rounded where the weights are halves."""
    model, plain = MODELS[name](), MODELS[name]()
    model.apply(fp16_util.convert_module_to_f16)
    groups = groups_of(model)
    masters = fp16_util.make_master_params(groups)
    rounded = [p.detach().float() for p in model.parameters()]
    for p, start in zip(plain.parameters(), rounded):
        p.data = start
    generator = torch.Generator().manual_seed(4)
    for p, q in zip(model.parameters(), plain.parameters()):
        q.grad = torch.randn(q.shape, generator=generator).to(p.dtype).float()
        p.grad = q.grad.to(p.dtype)
    fp16_util.model_grads_to_master_grads(groups, masters)
    torch.optim.AdamW(masters, lr=0.01, weight_decay=0.1).step()
    torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1).step()
    fp16_util.master_params_to_model_params(groups, masters)
    for p, q in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(
            p.float(), q.to(p.dtype).float(), rtol=1e-3 if p.dtype is torch.float16 else 1e-5, atol=1e-6
        )


def test_a_flat_weight_is_taken_apart():
    shapes = [(2, 3), (4,), (), (1, 2, 2)]
    group = [(f"p{i}", torch.zeros(shape)) for i, shape in enumerate(shapes)]
    flat = torch.arange(6 + 4 + 1 + 4.0)
    parts = fp16_util.unflatten_master_params(group, flat)
    assert [tuple(part.shape) for part in parts] == shapes
    assert in_a_row(parts) == list(range(15))


# --- state dicts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use_fp16", [False, True])
def test_a_state_dict_of_masters_is_float32_and_can_be_saved_and_copied(name, use_fp16):
    """What `save` of a training loop writes, and what its averages are copies of."""
    model = MODELS[name]()
    values = {key: p.detach().clone() + 0.25 for key, p in model.named_parameters()}
    groups, masters = groups_of(model), list(model.parameters())
    if use_fp16:
        masters = fp16_util.make_master_params(groups)
        model.apply(fp16_util.convert_module_to_f16)
    with torch.no_grad():
        for master in masters:
            master.add_(0.25)
    state = fp16_util.master_params_to_state_dict(model, groups, masters, use_fp16)
    assert list(state) == list(model.state_dict())
    copied, file = copy.deepcopy(state), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    for given in (state, copied, torch.load(file, weights_only=True)):
        assert all(
            torch.equal(given[key], value) and given[key].dtype is torch.float32 for key, value in values.items()
        )
    fresh = MODELS[name]()
    fresh.load_state_dict(state)
    back = fp16_util.state_dict_to_master_params(model, state, use_fp16)
    assert [in_a_row([a]) for a in back] == [in_a_row([b]) for b in masters]
    assert [a.shape for a in back] == [b.shape for b in masters]


# --- small parts


def test_gradients_are_set_to_zero_in_place():
    with_grad, without = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    (with_grad * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    grad = with_grad.grad
    assert fp16_util.param_grad_or_zeros(with_grad).tolist() == [1, 2, 3]
    assert fp16_util.param_grad_or_zeros(without).tolist() == [0, 0]
    fp16_util.zero_grad(iter([with_grad, without]))
    assert with_grad.grad is grad and grad.tolist() == [0, 0, 0] and without.grad is None
    assert not fp16_util.param_grad_or_zeros(with_grad).requires_grad


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, torch.tensor])
def test_what_overflows(kind):
    for value, bad in ((1.5, False), (0.0, False), (math.inf, True), (-math.inf, True), (math.nan, True)):
        assert bool(fp16_util.check_overflow(kind(value))) is bad


def test_the_loss_scale_starts_at_twenty():
    assert fp16_util.INITIAL_LOG_LOSS_SCALE == 20.0
