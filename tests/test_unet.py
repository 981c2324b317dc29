"""The networks against the published numbers, checkpoints, and independent oracles."""

import gzip
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import fill_weights, tensor

from guided_diffusion import unet as unet_module
from guided_diffusion.errors import UserError
from guided_diffusion.nn import (
    GroupNorm32,
    checkpoint,
    mean_flat,
    normalization,
    scale_module,
    timestep_embedding,
    update_ema,
    zero_module,
)
from guided_diffusion.unet import (
    AttentionBlock,
    AttentionPool2d,
    EncoderUNetModel,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    SuperResModel,
    UNetModel,
)

GOLDEN = Path(__file__).parent / "golden"
OUTPUTS = np.load(GOLDEN / "unet.npz")
CHECKPOINTS = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))

COMMON = dict(
    in_channels=3,
    model_channels=32,
    out_channels=6,
    num_res_blocks=1,
    attention_resolutions=(2, 4),
    dropout=0,
    channel_mult=(1, 2, 2),
)
AS_ADM = dict(use_scale_shift_norm=True, resblock_updown=True)
ENCODER = dict(image_size=32, out_channels=10, num_head_channels=32, use_scale_shift_norm=True)

# name -> class, arguments beyond COMMON, shape of the input
NETWORKS = {
    "cifar_style": (
        UNetModel,
        dict(
            image_size=32,
            channel_mult=(1, 2, 2, 2),
            num_res_blocks=2,
            num_head_channels=16,
            use_new_attention_order=True,
            **AS_ADM,
        ),
        (2, 3, 32, 32),
    ),
    "legacy_attention_class_cond": (
        UNetModel,
        dict(image_size=16, out_channels=3, num_classes=1000, num_heads=4),
        (2, 3, 16, 16),
    ),
    "avgpool_resample_heads_upsample": (
        UNetModel,
        dict(image_size=16, conv_resample=False, num_heads=2, num_heads_upsample=4, use_scale_shift_norm=True),
        (2, 3, 16, 16),
    ),
    "non_square_input": (UNetModel, dict(image_size=32, num_head_channels=32, **AS_ADM), (1, 3, 32, 16)),
    "one_dimensional": (UNetModel, dict(image_size=32, dims=1, num_heads=2, **AS_ADM), (2, 3, 32)),
    "three_dimensional": (
        UNetModel,
        dict(image_size=8, dims=3, num_heads=2, use_scale_shift_norm=True),
        (1, 3, 4, 8, 8),
    ),
    "super_res": (SuperResModel, dict(image_size=32, num_head_channels=32, num_classes=10, **AS_ADM), (2, 3, 32, 32)),
    "encoder_attention_pool": (
        EncoderUNetModel,
        dict(ENCODER, resblock_updown=True, pool="attention"),
        (2, 3, 32, 32),
    ),
    "encoder_adaptive_pool": (EncoderUNetModel, dict(ENCODER, resblock_updown=True, pool="adaptive"), (2, 3, 32, 32)),
    "encoder_spatial_pool": (EncoderUNetModel, dict(ENCODER, pool="spatial"), (2, 3, 32, 32)),
    "encoder_spatial_v2_pool": (EncoderUNetModel, dict(ENCODER, pool="spatial_v2"), (2, 3, 32, 32)),
}


def build(name, **changes):
    """The golden network `name`, its weights filled in, in eval mode."""
    kind, arguments, _ = NETWORKS[name]
    return fill_weights(kind(**{**COMMON, **arguments, **changes})).eval()


def inputs(name):
    """The golden inputs of network `name`: positional arguments and keywords of its forward."""
    _, arguments, shape = NETWORKS[name]
    n = shape[0]
    keywords = {}
    if "num_classes" in arguments:
        keywords["y"] = torch.tensor([3, 7])[:n]
    if name == "super_res":
        keywords["low_res"] = tensor("low_res:" + name, 2, 3, 16, 16)
    return (tensor("x:" + name, *shape), torch.tensor([17, 803.5])[:n]), keywords


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# --- published numbers


@pytest.mark.parametrize("name", NETWORKS)
def test_network_gives_the_published_output(name):
    positional, keywords = inputs(name)
    with torch.no_grad():
        out = build(name)(*positional, **keywords)
    torch.testing.assert_close(out, torch.from_numpy(OUTPUTS[name]), rtol=1e-4, atol=1e-5)


# --- published checkpoints

CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}


def parse_flags(line):
    """'--a 1 --b True' -> {'a': '1', 'b': 'True'}."""
    words = line.split()
    return {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}


def build_from_flags(kind, line):
    """The network that a command line describes: `kind` is "model", "sr" or "classifier"."""
    flags = parse_flags(line)
    prefix = "classifier_" if kind == "classifier" else ""
    size = int(flags["large_size" if kind == "sr" else "image_size"])
    common = dict(
        image_size=size,
        in_channels=3,
        # the published upsampler to 512 has the levels of 256
        channel_mult=CHANNEL_MULT[min(size, 256) if kind == "sr" else size],
        attention_resolutions=[size // int(r) for r in flags[prefix + "attention_resolutions"].split(",")],
        use_scale_shift_norm=flags.get(prefix + "use_scale_shift_norm", "True") == "True",
        resblock_updown=flags[prefix + "resblock_updown"] == "True",
    )
    if kind == "classifier":
        return EncoderUNetModel(
            **common,
            model_channels=int(flags["classifier_width"]),
            out_channels=1000,
            num_res_blocks=int(flags["classifier_depth"]),
            num_head_channels=64,
            pool=flags["classifier_pool"],
        )
    return (SuperResModel if kind == "sr" else UNetModel)(
        **common,
        model_channels=int(flags["num_channels"]),
        out_channels=6 if flags["learn_sigma"] == "True" else 3,
        num_res_blocks=int(flags["num_res_blocks"]),
        num_classes=1000 if flags.get("class_cond") == "True" else None,
        num_heads=int(flags.get("num_heads", 4)),
        num_head_channels=int(flags.get("num_head_channels", -1)),
        use_new_attention_order=flags.get("use_new_attention_order") == "True",
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_checkpoint_fits(name):
    published = CHECKPOINTS[name]
    with torch.device("meta"):
        model = build_from_flags(published["kind"], published["flags"])
    state = [(key, list(p.shape)) for key, p in model.state_dict().items()]
    assert state == list(published["state_dict"].items())
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]


# --- attention


def explicit_attention(q, k, v):
    """softmax(q k / sqrt(D)) v over [N, H, D, T], in float64."""
    weight = torch.einsum("nhdt,nhds->nhts", q.double(), k.double()) / q.shape[2] ** 0.5
    return torch.einsum("nhts,nhds->nhdt", weight.softmax(-1), v.double())


@pytest.mark.parametrize("kind, axes", [(QKVAttentionLegacy, (4, 3, 8)), (QKVAttention, (3, 4, 8))])
def test_attention_is_softmax_of_products(kind, axes):
    qkv = 2 * tensor("attention:qkv", 2, 3 * 4 * 8, 10)
    parts = qkv.reshape(2, *axes, 10).unbind(axes.index(3) + 1)
    expected = explicit_attention(*parts).reshape(2, 32, 10)
    torch.testing.assert_close(kind(4)(qkv).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_block_adds_projected_attention_of_the_normalised_input(new_order):
    block = fill_weights(AttentionBlock(64, num_head_channels=16, use_new_attention_order=new_order)).double()
    x = tensor("attention_block:x", 2, 64, 3, 5).double()
    grouped = x.reshape(2, 32, -1)
    grouped = (grouped - grouped.mean(-1, keepdim=True)) / (grouped.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    h = grouped.reshape(2, 64, 15) * block.norm.weight[:, None] + block.norm.bias[:, None]
    h = torch.einsum("oci,nct->not", block.qkv.weight, h) + block.qkv.bias[:, None]
    parts = h.reshape(2, 3, 4, 16, 15).unbind(1) if new_order else h.reshape(2, 4, 3, 16, 15).unbind(2)
    h = explicit_attention(*parts).reshape(2, 64, 15)
    h = torch.einsum("oci,nct->not", block.proj_out.weight, h) + block.proj_out.bias[:, None]
    torch.testing.assert_close(block(x), x + h.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_attention_pool_takes_only_its_own_size():
    with pytest.raises(UserError, match="16 positions and got 4: .*--image_size"):
        AttentionPool2d(4, 32, 16)(torch.zeros(1, 32, 2, 2))


# --- checkpointing


def gradients(module, *args):
    torch.manual_seed(3)
    module(*args).square().mean().backward()
    return [p.grad for p in module.parameters()]


def res_block(**options):
    block = ResBlock(32, 16, 0.5, out_channels=64, use_scale_shift_norm=True, **options)
    return fill_weights(block), (tensor("res:x", 2, 32, 4, 4), tensor("res:emb", 2, 16))


def attention_block(**options):
    return fill_weights(AttentionBlock(64, num_heads=2, **options)), (tensor("att:x", 2, 64, 4, 4),)


@pytest.mark.parametrize("make, watched", [(res_block, "in_layers"), (attention_block, "attention")])
def test_checkpointing_recomputes_and_changes_no_gradient(make, watched, monkeypatch):
    calls = []
    attend = unet_module.F.scaled_dot_product_attention
    monkeypatch.setattr(
        unet_module.F, "scaled_dot_product_attention", lambda *qkv: calls.append("attention") or attend(*qkv)
    )
    found = {}
    for flag in (False, True):
        calls.clear()
        block, args = make(use_checkpoint=flag)
        if watched == "in_layers":
            block.in_layers[0].register_forward_hook(lambda *_: calls.append("in_layers"))
        found[flag] = gradients(block, *args)
        assert calls == [watched] * (2 if flag else 1)
    for kept, recomputed in zip(found[False], found[True], strict=True):
        assert torch.equal(kept, recomputed)


def test_checkpointed_network_has_the_same_gradients_under_autocast():
    positional, keywords = inputs("cifar_style")
    with torch.autocast("cpu", torch.bfloat16):
        kept, recomputed = (
            gradients(build("cifar_style", num_res_blocks=1, use_checkpoint=flag), *positional, **keywords)
            for flag in (False, True)
        )
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


def test_checkpoint_without_flag_is_a_plain_call():
    x = torch.ones(3, requires_grad=True)
    assert checkpoint(lambda a, b: a is x and b == 2, (x, 2), (), False)


# --- dtypes and memory formats


@pytest.mark.parametrize("name", ["cifar_style", "super_res", "encoder_attention_pool", "encoder_spatial_v2_pool"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision_torso_stays_close(name, dtype, tolerance):
    positional, keywords = inputs(name)
    model = build(name)
    model.convert_to(dtype)
    assert model.dtype == model.input_blocks[0][0].weight.dtype == model.middle_block[1].qkv.weight.dtype == dtype
    assert model.middle_block[1].norm.weight.dtype == model.time_embed[0].weight.dtype == torch.float32
    with torch.no_grad():
        out = model(*positional, **keywords)
    assert out.dtype == torch.float32
    assert 0 < relative_error(out, torch.from_numpy(OUTPUTS[name])) < tolerance


def test_conversion_goes_there_and_back():
    model = build("legacy_attention_class_cond")
    model.convert_to_fp16()
    assert model.output_blocks[0][0].in_layers[2].weight.dtype == model.dtype == torch.float16
    model.convert_to_fp32()
    assert model.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_use_fp16_sets_the_dtype_and_leaves_the_weights_to_the_optimizer():
    model = UNetModel(image_size=16, use_fp16=True, **COMMON)
    assert model.dtype == torch.float16
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_autocast_gives_float32_close_to_the_published_output():
    positional, keywords = inputs("cifar_style")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = build("cifar_style")(*positional, **keywords)
    assert out.dtype == torch.float32
    assert 0 < relative_error(out, torch.from_numpy(OUTPUTS["cifar_style"])) < 4e-2


@pytest.mark.parametrize("name", ["cifar_style", "super_res", "encoder_attention_pool"])
def test_channels_last_changes_nothing(name):
    (x, t), keywords = inputs(name)
    model = build(name).to(memory_format=torch.channels_last)
    with torch.no_grad():
        out = model(x.to(memory_format=torch.channels_last), t, **keywords)
    torch.testing.assert_close(out, torch.from_numpy(OUTPUTS[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [res_block, attention_block])
def test_blocks_keep_channels_last(make):
    block, (x, *emb) = make()
    out = block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), *emb)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_group_norm_computes_in_float32():
    x = 100 + tensor("norm:x", 2, 64, 8, 8)
    norm = fill_weights(normalization(64))
    assert isinstance(norm, GroupNorm32)
    x16 = x.half()
    out = norm(x16)
    assert out.dtype == torch.float16
    assert torch.equal(out, norm(x16.float()).half())


# --- initialisation


def test_fresh_network_outputs_zero():
    model = UNetModel(image_size=16, num_heads=2, **COMMON)
    assert not model(tensor("zero:x", 2, 3, 16, 16), torch.tensor([0, 999])).any()


@pytest.mark.parametrize("make", [ResBlock, AttentionBlock])
def test_fresh_block_is_the_identity(make):
    x = tensor("identity:x", 2, 32, 4, 4)
    args = (tensor("identity:emb", 2, 16),) if make is ResBlock else ()
    block = ResBlock(32, 16, 0.1) if make is ResBlock else AttentionBlock(32)
    assert torch.equal(block(x, *args), x)


# --- classes


def answer(model, y):
    """What `model` gives for the golden inputs of its kind with labels y."""
    (x, t), keywords = inputs("super_res" if isinstance(model, SuperResModel) else "legacy_attention_class_cond")
    with torch.no_grad():
        return model(x, t, **keywords | {"y": y})


@pytest.mark.parametrize("name", ["legacy_attention_class_cond", "super_res"])
def test_label_minus_one_adds_no_class_embedding(name):
    model, unconditional = build(name), build(name, num_classes=None)
    assert unconditional.load_state_dict(model.state_dict(), strict=False).unexpected_keys == ["label_emb.weight"]
    for y, classless in ((torch.tensor([3, 7]), ()), (torch.tensor([-1, -1]), (0, 1)), (torch.tensor([3, -1]), (1,))):
        out = answer(model, y)
        expected = answer(model, torch.tensor([3, 7]))
        without = answer(unconditional, None)
        for i in range(2):
            assert torch.equal(out[i], (without if i in classless else expected)[i])
    assert not torch.equal(without, expected)


def test_other_labels_keep_every_bit_and_dropped_ones_teach_no_class(monkeypatch):
    """Against the embedding as it is without dropped classes; both in outputs and gradients."""
    (x, t), _ = inputs("legacy_attention_class_cond")
    y = torch.tensor([0, 7])
    now = gradients(build("legacy_attention_class_cond"), x, t, y)
    with monkeypatch.context() as patch:
        patch.setattr(
            UNetModel, "_embed", lambda self, t, y: self.time_embed(timestep_embedding(t, 32)) + self.label_emb(y)
        )
        before = gradients(build("legacy_attention_class_cond"), x, t, y)
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    model = build("legacy_attention_class_cond")
    gradients(model, x, t, torch.tensor([-1, 7]))
    assert model.label_emb.weight.grad.any(dim=1).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("label", [-2, 1000])
def test_labels_of_no_class_are_refused(label):
    with pytest.raises(IndexError):
        answer(build("legacy_attention_class_cond"), torch.tensor([-1, label]))


def test_the_published_signatures_can_be_read():
    unet, encoder = (list(inspect.signature(kind).parameters) for kind in (UNetModel, EncoderUNetModel))
    assert unet[:6] == [
        "image_size",
        "in_channels",
        "model_channels",
        "out_channels",
        "num_res_blocks",
        "attention_resolutions",
    ]
    assert unet[9:12] == ["dims", "num_classes", "use_checkpoint"] and len(unet) == 19
    assert encoder == [name for name in unet if name != "num_classes"] + ["pool"]


# --- what the user gets wrong


def test_missing_and_surplus_labels():
    (x, t), keywords = inputs("legacy_attention_class_cond")
    with pytest.raises(UserError, match="needs class labels y"):
        build("legacy_attention_class_cond")(x, t)
    with pytest.raises(UserError, match=r"one class label y per image: \[2\], not \[1\]"):
        build("legacy_attention_class_cond")(x, t, torch.tensor([3]))
    with pytest.raises(UserError, match="without classes"):
        build("avgpool_resample_heads_upsample")(x, t, **keywords)


def test_super_resolution_needs_the_small_image():
    (x, t), keywords = inputs("super_res")
    with pytest.raises(UserError, match="low_res"):
        build("super_res")(x, t, y=keywords["y"])


@pytest.mark.parametrize("name", ["avgpool_resample_heads_upsample", "encoder_spatial_pool"])
@pytest.mark.parametrize("shape, nearest", [((16, 18), "16 and 20"), ((2, 16), "4"), ((30, 16), "28 and 32")])
def test_sides_that_the_levels_do_not_divide(name, shape, nearest):
    with pytest.raises(UserError, match=f"divisible by 4: .* are {nearest}$"):
        build(name)(torch.zeros(1, 3, *shape), torch.zeros(1))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_channels=48), "--num_channels.*48 channels.*multiple of 32"),
        (dict(num_heads=3), "--num_heads 3 .* 64 channels"),
        (dict(num_head_channels=48), "--num_head_channels 48 .* 64 channels"),
        (dict(dims=4), "dims must be 1, 2 or 3, not 4"),
    ],
)
def test_channels_that_do_not_divide(changes, message):
    with pytest.raises(UserError, match=message):
        UNetModel(**{**COMMON, "image_size": 16, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(pool="attention", num_head_channels=-1), "needs --classifier_num_head_channels"),
        (dict(pool="mean"), "--classifier_pool must be .*, not mean"),
    ],
)
def test_pools_that_cannot_be_built(changes, message):
    with pytest.raises(UserError, match=message):
        EncoderUNetModel(**{**COMMON, **ENCODER, **changes})


# --- small parts


def test_timestep_embedding_formula():
    t = np.array([0, 1, 17.25, 999])
    angles = t[:, None] * 10000.0 ** (-np.arange(16) / 16)
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((4, 1))], axis=1)
    np.testing.assert_allclose(timestep_embedding(torch.from_numpy(t), 33), expected, atol=1e-4)
    np.testing.assert_allclose(timestep_embedding(torch.from_numpy(t), 32), expected[:, :-1], atol=1e-4)


def test_timestep_embedding_of_integers():
    t = torch.tensor([0, 3, 500])
    assert torch.equal(timestep_embedding(t, 16), timestep_embedding(t.double(), 16))


def test_update_ema_closed_form():
    start, goal = tensor("ema:start", 5), tensor("ema:goal", 5)
    target = [torch.nn.Parameter(start.clone()), start.double()]
    for _ in range(10):
        update_ema(target, iter([torch.nn.Parameter(goal), goal]), rate=0.9)
    expected = 0.9**10 * start.double() + (1 - 0.9**10) * goal.double()
    torch.testing.assert_close(target[0].detach().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(target[1], expected)
    with pytest.raises(ValueError):
        update_ema(target, [goal])


def test_scale_and_zero_module():
    layer = torch.nn.Linear(3, 2)
    weight = layer.weight.detach().clone()
    assert scale_module(layer, 0.5) is layer
    assert torch.equal(layer.weight, 0.5 * weight)
    assert not any(p.any() for p in zero_module(layer).parameters())


def test_mean_flat():
    x = tensor("mean:x", 2, 3, 4, 5)
    np.testing.assert_allclose(mean_flat(x), x.numpy().reshape(2, -1).mean(1), rtol=1e-5, atol=1e-6)
