"""Networks that a client assembles from this package's parts, and parts that a client swaps, patches or hooks."""

import inspect
import math
import types

import pytest
import torch
from recipe import fill_weights, tensor

from guided_diffusion import nn as parts
from guided_diffusion import unet
from guided_diffusion.fp16_util import convert_module_to_f16
from guided_diffusion.unet import (
    AttentionBlock,
    AttentionPool2d,
    Downsample,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    UNetModel,
    Upsample,
)

WIDTH, MULT, DEPTH = 32, (1, 2), 1


class Assembled(torch.nn.Module):
    """A UNet of two levels with attention at the lower one, written as vendored files write it: a list of layers."""

    def __init__(self, updown, new_order, scale_shift, classes, use_fp16=False):
        super().__init__()
        self.dtype = torch.float16 if use_fp16 else torch.float32
        emb = 4 * WIDTH
        res = {"use_scale_shift_norm": scale_shift, "use_checkpoint": False, "dims": 2}
        heads = {"num_heads": 2, "num_head_channels": -1, "use_new_attention_order": new_order, "use_checkpoint": False}

        def attention():
            return AttentionBlock(2 * WIDTH, **heads)

        def resampled(channels, kind, **direction):
            if updown:
                return ResBlock(channels, emb, 0.0, out_channels=channels, **res, **direction)
            return kind(channels, True, dims=2, out_channels=channels)

        def block(channels, out_channels):
            return ResBlock(channels, emb, 0.0, out_channels=out_channels, **res)

        def rows(*layers):
            return torch.nn.ModuleList([TimestepEmbedSequential(*row) for row in layers])

        one, two = WIDTH, 2 * WIDTH
        self.time_embed = torch.nn.Sequential(parts.linear(one, emb), parts.SiLU(), parts.linear(emb, emb))
        if classes:
            self.label_emb = torch.nn.Embedding(classes, emb)
        self.input_blocks = rows(
            [parts.conv_nd(2, 3, one, 3, padding=1)],
            [block(one, one)],
            [resampled(one, Downsample, down=True)],
            [block(one, two), attention()],
        )
        self.middle_block = TimestepEmbedSequential(block(two, two), attention(), block(two, two))
        self.output_blocks = rows(
            [block(two + two, two), attention()],
            [block(two + one, two), attention(), resampled(two, Upsample, up=True)],
            [block(two + one, one)],
            [block(one + one, one)],
        )
        last = parts.zero_module(parts.conv_nd(2, one, 6, 3, padding=1))
        self.out = torch.nn.Sequential(parts.normalization(one), parts.SiLU(), last)

    def forward(self, x, timesteps, y=None):
        emb = self.time_embed(parts.timestep_embedding(timesteps, WIDTH))
        if y is not None:
            emb = emb + self.label_emb(y)
        h, hs = x.type(self.dtype), []
        for module in self.input_blocks:
            h = module(h, emb)
            hs.append(h)
        h = self.middle_block(h, emb)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb)
        return self.out(h.type(x.dtype))


OPTIONS = [
    dict(updown=updown, new_order=new, scale_shift=shift, classes=classes)
    for updown, new, shift, classes in [
        (True, True, True, None),
        (False, False, True, 10),
        (True, False, False, None),
        (False, True, False, 10),
    ]
]


def ours(updown, new_order, scale_shift, classes, **more):
    return UNetModel(
        16, 3, WIDTH, 6, DEPTH, (2,), channel_mult=MULT, num_classes=classes, num_heads=2, resblock_updown=updown,
        use_scale_shift_norm=scale_shift, use_new_attention_order=new_order, **more,
    )  # fmt: skip


def given(options):
    y = {"y": torch.tensor([3, 7])} if options["classes"] else {}
    return (tensor("vendored:x", 2, 3, 16, 16), torch.tensor([17, 803])), y


@pytest.mark.parametrize("options", OPTIONS)
def test_an_assembled_network_is_the_network(options):
    """Keys in their order, numbers and gradients."""
    model, assembled = fill_weights(ours(**options)), Assembled(**options)
    assert list(assembled.state_dict()) == list(model.state_dict())
    assembled.load_state_dict(model.state_dict())
    args, y = given(options)
    outs = [network(*args, **y) for network in (model, assembled)]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(model.parameters(), assembled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_assembled_network_computes_in_halves(options):
    """Its embedding stays float32, as do the layers that are linear in it; a block casts what they give."""
    model = fill_weights(ours(**options, use_fp16=True)).eval()
    assembled = Assembled(**options, use_fp16=True).eval()
    assembled.load_state_dict(model.state_dict())
    model.convert_to_fp16()
    for torso in (assembled.input_blocks, assembled.middle_block, assembled.output_blocks):
        torso.apply(convert_module_to_f16)
    assert [p.dtype for p in assembled.parameters()] == [p.dtype for p in model.parameters()]
    args, y = given(options)
    with torch.no_grad():
        outs = [network(*args, **y) for network in (model, assembled)]
        model.convert_to_fp32()
        full = model(*args, **y)
    assert torch.equal(*outs) and outs[0].dtype is torch.float32
    assert 0 < (outs[0] - full).norm() / full.norm() < 5e-3


# --- parts that are swapped, patched or hooked


def viewed(qkv, heads, new_order):
    """Attention by `view`, which a tensor must be contiguous for."""
    n, width, length = qkv.shape
    size = width // (3 * heads)
    if new_order:
        q, k, v = (part.view(n * heads, size, length) for part in (part * 1 for part in qkv.chunk(3, dim=1)))
    else:
        q, k, v = qkv.view(n * heads, 3 * size, length).split(size, dim=1)
    weights = (q.transpose(1, 2) @ k / math.sqrt(size)).softmax(-1)
    return (v @ weights.transpose(1, 2)).reshape(n, -1, length)


ATTENTIONS = [(QKVAttention, True), (QKVAttentionLegacy, False)]
MEMORY = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("way", ["module", "instance", "class", "hook", "before", "qkv"])
@pytest.mark.parametrize("kind, new_order", ATTENTIONS)
def test_what_attention_is_given_can_be_viewed_by_heads(kind, new_order, way, memory, monkeypatch):
    """However the client comes to see it, and however the images lie in memory."""
    block = fill_weights(AttentionBlock(64, num_heads=4, use_new_attention_order=new_order))
    x = tensor("viewed:x", 2, 64, 4, 6).to(memory_format=memory)
    expected, seen = block(x).detach(), []

    def forward(self, qkv):
        seen.append(viewed(qkv, 4, new_order))
        return seen[-1]

    if way == "module":
        block.attention = type("Own", (torch.nn.Module,), {"forward": forward})()
    elif way == "instance":
        block.attention.forward = types.MethodType(forward, block.attention)
    elif way == "class":
        monkeypatch.setattr(kind, "forward", forward)
    elif way == "hook":
        block.attention.register_forward_hook(lambda module, args, out: forward(module, *args))
    elif way == "before":
        block.attention.register_forward_pre_hook(lambda module, args: forward(module, *args) is None or args)
    else:
        block.qkv.register_forward_hook(lambda module, args, out: forward(module, out) is None or out)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1


def test_a_wrapped_projection_is_asked():
    """LoRA: qkv and proj_out are replaced by modules that hold them and add to what they give."""

    class Adapted(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.down = torch.nn.Conv1d(layer.in_channels, 4, 1)
            self.up = torch.nn.Conv1d(4, layer.out_channels, 1)

        def forward(self, x):
            return self.layer(x) + self.up(self.down(x))

    block = fill_weights(AttentionBlock(32, num_heads=2))
    adapted = AttentionBlock(32, num_heads=2)
    adapted.load_state_dict(block.state_dict())
    adapted.qkv, adapted.proj_out = fill_weights(Adapted(adapted.qkv)), fill_weights(Adapted(adapted.proj_out))
    for name in ("qkv", "proj_out"):
        layer, wrapped = getattr(block, name), getattr(adapted, name)
        with torch.no_grad():
            layer.weight.copy_(
                wrapped.layer.weight + (wrapped.up.weight[..., 0] @ wrapped.down.weight[..., 0])[..., None]
            )
            layer.bias.copy_(wrapped.layer.bias + wrapped.up.bias + wrapped.up.weight[..., 0] @ wrapped.down.bias)
    x = tensor("lora:x", 2, 32, 4, 4)
    torch.testing.assert_close(adapted(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [2, 3])
def test_the_pool_asks_its_attention(side):
    pool, seen = fill_weights(AttentionPool2d(side, 32, 16, 5)), []
    pool.attention.register_forward_hook(lambda module, args, out: seen.append((args[0].shape, out.shape)))
    assert pool(tensor("pool:x", 2, 32, side, side)).shape == (2, 5)
    assert seen == [((2, 96, side**2 + 1), (2, 32, side**2 + 1))]
    pool.attention = type("Values", (torch.nn.Module,), {"forward": lambda self, qkv: qkv[:, 64:]})()
    x = tensor("pool:x", 2, 32, side, side).flatten(2)
    mean = x.mean(-1) + pool.positional_embedding[:, 0]
    value = mean @ pool.qkv_proj.weight[64:, :, 0].T + pool.qkv_proj.bias[64:]
    expected = value @ pool.c_proj.weight[..., 0].T + pool.c_proj.bias
    torch.testing.assert_close(pool(x.unflatten(2, (side, side))), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_block_that_resamples_asks_both_ways(direction):
    block = fill_weights(ResBlock(32, 16, 0.0, **{direction: True}))
    x, emb, seen = tensor("updown:x", 2, 32, 4, 4), tensor("updown:emb", 2, 16), []
    for name in ("h_upd", "x_upd"):
        getattr(block, name).register_forward_hook(
            lambda module, args, out, name=name: seen.append((name, out.shape[-1]))
        )
    side = 8 if direction == "up" else 2
    out = block(x, emb)
    assert sorted(seen) == [("h_upd", side), ("x_upd", side)]
    block.x_upd.register_forward_hook(lambda module, args, out: out + 1)
    torch.testing.assert_close(block(x, emb), out + 1)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_layers_of_a_block_are_hooked_and_replaced(scale_shift):
    block = fill_weights(ResBlock(32, 16, 0.0, out_channels=64, use_scale_shift_norm=scale_shift))
    x, emb, seen = tensor("block:x", 2, 32, 4, 4), tensor("block:emb", 2, 16), []
    for name in ("in_layers", "emb_layers", "skip_connection"):
        getattr(block, name).register_forward_hook(lambda module, args, out, name=name: seen.append(name))
    h = block(x, emb) - block.skip_connection(x)
    assert sorted(set(seen)) == ["emb_layers", "in_layers", "skip_connection"]
    block.skip_connection = type("Twice", (torch.nn.Module,), {"forward": lambda self, x: x.repeat(1, 2, 1, 1)})()
    torch.testing.assert_close(block(x, emb), torch.cat([x, x], dim=1) + h, rtol=1e-4, atol=1e-5)


def test_a_client_s_block_is_told_the_time():
    class Shifted(TimestepBlock):
        def forward(self, x, emb):
            return x + emb[:, :, None, None]

    row = TimestepEmbedSequential(torch.nn.ReLU(), Shifted(), torch.nn.Identity())
    x, emb = tensor("row:x", 2, 3, 2, 2), tensor("row:emb", 2, 3)
    assert torch.equal(row(x, emb), x.relu() + emb[:, :, None, None])


# --- published signatures

SIGNATURES = {
    "AttentionBlock": "channels num_heads=1 num_head_channels=-1 use_checkpoint=False use_new_attention_order=False",
    "AttentionPool2d": "spacial_dim embed_dim num_heads_channels output_dim=None",
    "ResBlock": "channels emb_channels dropout out_channels=None use_conv=False use_scale_shift_norm=False dims=2 "
    "use_checkpoint=False up=False down=False",
    "Upsample": "channels use_conv dims=2 out_channels=None",
    "Downsample": "channels use_conv dims=2 out_channels=None",
    "QKVAttention": "n_heads",
    "QKVAttentionLegacy": "n_heads",
    "UNetModel": "image_size in_channels model_channels out_channels num_res_blocks attention_resolutions dropout=0 "
    "channel_mult=(1,2,4,8) conv_resample=True dims=2 num_classes=None use_checkpoint=False use_fp16=False num_heads=1 "
    "num_head_channels=-1 num_heads_upsample=-1 use_scale_shift_norm=False resblock_updown=False "
    "use_new_attention_order=False",
    "EncoderUNetModel": "image_size in_channels model_channels out_channels num_res_blocks attention_resolutions "
    "dropout=0 channel_mult=(1,2,4,8) conv_resample=True dims=2 use_checkpoint=False use_fp16=False num_heads=1 "
    "num_head_channels=-1 num_heads_upsample=-1 use_scale_shift_norm=False resblock_updown=False "
    "use_new_attention_order=False pool='adaptive'",
    "SuperResModel": "image_size in_channels *args **kwargs",
    "count_flops_attn": "model _x y",
    "conv_nd": "dims *args **kwargs",
    "linear": "*args **kwargs",
    "avg_pool_nd": "dims *args **kwargs",
    "update_ema": "target_params source_params rate=0.99",
    "zero_module": "module",
    "scale_module": "module scale",
    "mean_flat": "tensor",
    "normalization": "channels",
    "timestep_embedding": "timesteps dim max_period=10000",
    "checkpoint": "func inputs params flag",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    found = inspect.signature(getattr(unet, name, None) or getattr(parts, name))
    bare = [str(p.replace(annotation=p.empty)).replace(" ", "") for p in found.parameters.values()]
    assert " ".join(bare) == SIGNATURES[name]


def test_forwards():
    for kind, names in (
        (UNetModel, "x timesteps y"),
        (unet.SuperResModel, "x timesteps low_res kwargs"),
        (unet.EncoderUNetModel, "x timesteps"),
        (ResBlock, "x emb"),
        (AttentionBlock, "x"),
    ):
        assert " ".join(list(inspect.signature(kind.forward).parameters)[1:]) == names


@pytest.mark.parametrize("options", OPTIONS)
def test_how_many_parameters_become_halves(options):
    model = ours(**options)
    model.convert_to_fp16()
    of = [[module for module in model.modules() if isinstance(module, kind)] for kind in (ResBlock, AttentionBlock)]
    skips = sum(block.channels != block.out_channels for block in of[0])
    resampling = 0 if options["updown"] else 2
    # a block's two convolutions, a skip's one, qkv and proj_out, those between levels, and the network's first
    convolutions = 2 * len(of[0]) + skips + 2 * len(of[1]) + resampling + 1
    assert [p.dtype for p in model.parameters()].count(torch.float16) == 2 * convolutions
