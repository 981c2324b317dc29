"""What clients read, hook and replace in the networks: attention, attributes, and the parts that are made halves."""

import math

import pytest
import torch

from guided_diffusion import fp16_util, nn
from guided_diffusion.errors import UserError
from guided_diffusion.script_util import create_classifier, create_model, sr_create_model
from guided_diffusion.unet import (
    AttentionBlock,
    Downsample,
    EncoderUNetModel,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    TimestepEmbedSequential,
    UNetModel,
    Upsample,
    count_flops_attn,
)

X, T = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), torch.tensor([3, 700])


def filled(model):
    """The network with weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.1 * torch.randn(param.shape, generator=generator))
    return model.eval()


def unet(**flags):
    options = {"num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8,4", "channel_mult": "1,1,2"}
    return filled(create_model(16, **{**options, "num_head_channels": 16, "resblock_updown": True, **flags}))


def classifier(pool="attention"):
    more = {"num_classes": 10, "classifier_num_head_channels": 16, "classifier_channel_mult": "1,1,2"}
    return filled(create_classifier(16, False, 32, 1, "8,4", True, True, pool, **more))


def upsampler():
    model = sr_create_model(
        16, 8, 32, 1, False, False, False, "8", 4, 16, -1, True, 0.0, True, False, channel_mult="1,2"
    )
    return filled(model)


def run(model):
    if isinstance(model, EncoderUNetModel):
        return model(X, T)
    low = {"low_res": X[..., ::2, ::2]} if "SuperRes" in type(model).__name__ else {}
    return model(X, T, **low)


NETWORKS = {
    "legacy order": lambda: unet(),
    "new order": lambda: unet(use_new_attention_order=True),
    "scale shift": lambda: unet(use_scale_shift_norm=True, resblock_updown=False),
    "checkpointed": lambda: unet(use_checkpoint=True),
    "upsampler": upsampler,
    "classifier": classifier,
    "spatial classifier": lambda: classifier("spatial"),
}


def blocks(model):
    return [module for module in model.modules() if isinstance(module, AttentionBlock)]


def by_hand(qkv, heads, new_order):
    """Attention [N, 3 * H * D, T] -> [N, H * D, T], head by head."""
    size = qkv.shape[1] // (3 * heads)
    out = []
    for head in range(heads):
        if new_order:
            q, k, v = (qkv[:, (part * heads + head) * size :][:, :size] for part in range(3))
        else:
            q, k, v = (qkv[:, (head * 3 + part) * size :][:, :size] for part in range(3))
        weights = torch.softmax(torch.einsum("nct,ncs->nts", q, k) / math.sqrt(size), dim=-1)
        out.append(torch.einsum("nts,ncs->nct", weights, v))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_see_what_attention_is_given_and_gives(name):
    """SAG and PAG: forward hooks on `block.attention` fire once for each attention of a call."""
    model, seen = NETWORKS[name](), []
    for block in blocks(model):
        new = isinstance(block.attention, QKVAttention)
        block.attention.register_forward_hook(lambda m, args, out, new=new: seen.append((args[0], out, m.n_heads, new)))
    with torch.no_grad():
        run(model)
    assert len(seen) == len(blocks(model)) > 2
    for qkv, out, heads, new in seen:
        torch.testing.assert_close(out, by_hand(qkv, heads, new), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_may_change_what_attention_gives(name):
    model = NETWORKS[name]()
    before = run(model)
    handles = [block.attention.register_forward_hook(lambda *_: _[2] * 0) for block in blocks(model)]
    assert not torch.allclose(run(model), before)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(run(model), before)


class ByHand(torch.nn.Module):
    """A client's own attention: it has `forward` alone."""

    def __init__(self, heads, new_order):
        super().__init__()
        self.heads, self.new_order, self.calls = heads, new_order, 0

    def forward(self, qkv):
        self.calls += 1
        return by_hand(qkv, self.heads, self.new_order)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_replaced_attention_is_the_one_that_is_asked(name):
    model = NETWORKS[name]()
    before = run(model)
    for block in blocks(model):
        block.attention = ByHand(block.num_heads, isinstance(block.attention, QKVAttention))
    torch.testing.assert_close(run(model), before, rtol=1e-4, atol=1e-4)
    assert all(block.attention.calls == 1 for block in blocks(model))


@pytest.mark.parametrize("name", NETWORKS)
def test_perturbed_attention_keeps_the_values(name):
    """PAG: each position attends to itself alone, so the block is a linear map of its normalised input."""
    model, seen = NETWORKS[name](), []

    class Identity(torch.nn.Module):
        def __init__(self, heads, new_order):
            super().__init__()
            self.heads, self.new_order = heads, new_order

        def forward(self, qkv):
            n, width, length = qkv.shape
            if self.new_order:
                return qkv[:, 2 * width // 3 :]
            return qkv.reshape(n, self.heads, 3, -1, length)[:, :, 2].reshape(n, -1, length)

    for block in blocks(model):
        block.attention = Identity(block.num_heads, isinstance(block.attention, QKVAttention))
        block.register_forward_hook(lambda b, args, out: seen.append((b, args[0], out)))
    with torch.no_grad():
        run(model)
        for block, x, out in seen:
            new = isinstance(block.attention, Identity) and block.attention.new_order
            rows = torch.arange(3 * block.channels).reshape(
                (3, block.num_heads, -1) if new else (block.num_heads, 3, -1)
            )
            values = (rows[2] if new else rows[:, 2]).flatten()
            v = torch.nn.functional.conv1d(block.norm(x).flatten(2), block.qkv.weight[values], block.qkv.bias[values])
            expected = x + torch.nn.functional.conv1d(v, block.proj_out.weight, block.proj_out.bias).reshape(x.shape)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == len(blocks(model))


def test_a_subclass_may_write_the_block_anew(monkeypatch):
    """As forks do: norm, qkv, attention and proj_out, channels first, positions in a row."""

    class Own(AttentionBlock):
        def _forward(self, x):
            n, c, *spatial = x.shape
            h = x.reshape(n, c, -1)
            h = self.proj_out(self.attention(self.qkv(self.norm(h))))
            return x + h.reshape(n, c, *spatial)

    torch.manual_seed(0)
    block = filled(AttentionBlock(32, num_heads=4))
    own = Own(32, num_heads=4).eval()
    own.load_state_dict(block.state_dict())
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(own(x), block(x))


@pytest.mark.parametrize("kind", [QKVAttention, QKVAttentionLegacy])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("length", [1, 7, 64])
def test_attention_is_that_of_the_formula(kind, heads, length):
    qkv = torch.randn(2, 3 * heads * 8, length, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kind(heads)(qkv), by_hand(qkv, heads, kind is QKVAttention), rtol=1e-4, atol=1e-5)


def test_multiplications_of_attention_are_counted():
    class Model:
        total_ops = torch.zeros(1, dtype=torch.float64)

    for count in (count_flops_attn, QKVAttention.count_flops, QKVAttentionLegacy.count_flops):
        model = Model()
        model.total_ops = torch.zeros(1, dtype=torch.float64)
        count(model, None, torch.zeros(2, 32, 49))
        # queries times keys: T * T * C for each image; weights times values: as many
        assert model.total_ops.item() == 2 * (2 * 32 * 49 * 49)


def test_attributes_of_blocks():
    block = ResBlock(32, 128, 0.1, out_channels=64, use_scale_shift_norm=True, down=True)
    assert (block.channels, block.emb_channels, block.dropout, block.out_channels) == (32, 128, 0.1, 64)
    assert (block.use_conv, block.use_checkpoint, block.use_scale_shift_norm) == (False, False, True)
    assert block.updown and isinstance(block.h_upd, Downsample) and isinstance(block.x_upd, Downsample)
    plain = ResBlock(32, 128, 0.0)
    assert not plain.updown and isinstance(plain.h_upd, torch.nn.Identity) and plain.out_channels == 32
    for kind in (Upsample, Downsample):
        made = kind(32, True, dims=2, out_channels=64)
        assert (made.channels, made.out_channels, made.use_conv, made.dims) == (32, 64, True, 2)
        assert kind(32, False).out_channels == 32
    attention = AttentionBlock(32, num_head_channels=8)
    assert (attention.channels, attention.num_heads, attention.attention.n_heads) == (32, 4, 4)
    for layer, width in ((attention.qkv, 96), (attention.proj_out, 32)):
        assert isinstance(layer, torch.nn.Conv1d) and layer(torch.zeros(2, 32, 5)).shape == (2, width, 5)


def test_attributes_of_networks():
    model = unet(class_cond=True, learn_sigma=True, dropout=0.2)
    expected = {
        "image_size": 16,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 6,
        "num_res_blocks": 1,
        "attention_resolutions": (2, 4),
        "dropout": 0.2,
        "channel_mult": (1, 1, 2),
        "conv_resample": True,
        "num_classes": 1000,
        "use_checkpoint": False,
        "num_head_channels": 16,
        "dtype": torch.float32,
    }
    assert {name: getattr(model, name) for name in expected} == expected
    assert len(model.output_blocks) == len(model.input_blocks) == 6
    # the skips, the middle, and what the output blocks give: two at each of 64, 32 and 32 channels
    assert model._feature_size == sum((32, 32, 32, 32, 32, 64)) + 64 + 2 * (64 + 32 + 32)
    assert classifier()._feature_size == sum((32, 32, 32, 32, 32, 64)) + 64
    assert model.label_emb.num_embeddings == 1000 and len(model.time_embed) == 3
    assert isinstance(model.middle_block, TimestepEmbedSequential) and isinstance(model, UNetModel)


@pytest.mark.parametrize("name", NETWORKS)
def test_halves_are_the_convolutions_of_the_torso_alone(name):
    model = NETWORKS[name]()
    before = run(model)
    model.convert_to_fp16()
    parts = ("input_blocks.", "middle_block.", "output_blocks.")
    for module_name, module in model.named_modules():
        own = [param.dtype for param in module.parameters(recurse=False)]
        conv = isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)) and module_name.startswith(parts)
        assert set(own) <= {torch.float16 if conv else torch.float32}, module_name
    assert model.dtype is torch.float16
    half = run(model)
    assert half.dtype == torch.float32
    # weights of 11 bits: their rounding, over the depth of these networks
    torch.testing.assert_close(half, before, rtol=0.05, atol=0.05 * before.abs().max().item())
    model.convert_to_fp32()
    assert {param.dtype for param in model.parameters()} == {torch.float32} and model.dtype is torch.float32


@pytest.mark.parametrize("layer", [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d])
@pytest.mark.parametrize("bias", [True, False])
def test_conversion_of_a_vendored_network(layer, bias):
    """Vendored unet.py files apply these to each of their modules."""
    model = torch.nn.Sequential(layer(3, 4, 1, bias=bias), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 4))
    before = model[0].weight.clone()
    model.apply(fp16_util.convert_module_to_f16)
    assert [param.dtype for param in model.parameters()][: 1 + bias] == [torch.float16] * (1 + bias)
    assert {param.dtype for part in model[1:] for param in part.parameters()} == {torch.float32}
    model.apply(fp16_util.convert_module_to_f32)
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model[0].weight, before, rtol=1e-3, atol=1e-3)


def test_a_checkpointed_call_has_the_gradients_of_a_plain_one():
    """`nn.CheckpointFunction.apply(function, number of inputs, *inputs, *weights)`."""
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    calls = []

    def function(x):
        calls.append(1)
        return layer(x).sin()

    function(x).sum().backward()
    expected = [x.grad, *(param.grad for param in layer.parameters())]
    x.grad, calls[:] = None, []
    layer.zero_grad()
    nn.CheckpointFunction.apply(function, 1, x, *layer.parameters()).sum().backward()
    assert len(calls) == 2
    for ours, plain in zip([x.grad, *(param.grad for param in layer.parameters())], expected):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: unet(class_cond=True)(X, T),
        lambda: unet()(X, T, y=T),
        lambda: unet(class_cond=True)(X, T, y=T[:1]),
        lambda: Downsample(32, False, out_channels=64),
        lambda: AttentionBlock(32, num_head_channels=5),
        lambda: AttentionBlock(32, num_heads=5),
    ],
)
def test_a_mistake_is_a_sentence_and_an_assertion(mistake):
    """The published networks assert; clients wait for AssertionError, and scripts show a UserError."""
    for kind in (UserError, ValueError, AssertionError):
        with pytest.raises(kind):
            mistake()
