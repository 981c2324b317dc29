"""DiT, SongUNet and DhariwalUNet: keys and shapes of the published checkpoints, and outputs of the released code."""

import diffusers
import foreign
import pytest
import tiny_models
import torch

from guided_diffusion.adapters import dit, edm
from guided_diffusion.adapters.dit import DiT
from guided_diffusion.adapters.edm_networks import DhariwalUNet, SongUNet

KINDS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
UNETS, DITS = foreign.cases("SongUNet", "DhariwalUNet"), foreign.cases("DiT")
PRECONDITIONINGS = {
    "EDMPrecond": edm.EDMPreconditioning,
    "VPPrecond": edm.VPPreconditioning,
    "VEPrecond": edm.VEPreconditioning,
}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def made_of(case):
    model = (DiT if case["network"] == "DiT" else KINDS[case["network"]])(**case["args"])
    state = foreign.state_dict(case)
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("name", foreign.configurations())
def test_keys_and_shapes_of_published_checkpoints(name):
    published = foreign.configurations()[name]
    args = dict(published["args"])
    with torch.device("meta"):
        if published["class"] == "DiT":
            model, prefix = DiT(**args), ""
        else:
            kind = KINDS[args.pop("model_type")]
            args.pop("use_fp16")
            channels = args.pop("img_channels")
            model, prefix = kind(in_channels=channels, out_channels=channels, **args), "model."
    state = model.state_dict()
    assert [[prefix + key, list(value.shape)] for key, value in state.items()] == published["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == published["num_parameters"]


@pytest.mark.parametrize("name", foreign.configurations())
def test_arguments_are_read_from_shapes(name):
    published = foreign.configurations()[name]
    state = {key.removeprefix("model."): torch.zeros(shape, device="meta") for key, shape in published["state_dict"]}
    if published["class"] == "DiT":
        assert dit.arguments(state) == published["args"]
        return
    for key in state:
        if key.endswith("resample_filter"):
            taps = torch.tensor(published["args"].get("resample_filter", [1.0, 1.0]), dtype=torch.float32)
            state[key] = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    kind, args = edm.arguments(state)
    with torch.device("meta"):
        model = kind(**args)
    assert [(key, value.shape) for key, value in model.state_dict().items()] == [
        (key, value.shape) for key, value in state.items()
    ]
    assert kind.__name__ == published["args"]["model_type"]


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_outputs_of_the_unets(name):
    case = UNETS[name]
    model, x = made_of(case), foreign.unit(case["x_shape"])
    noise, labels, augment = (foreign.tensor(case[what]) for what in ("noise_labels", "class_labels", "augment_labels"))
    torch.testing.assert_close(model(x.float(), noise, labels, augment), foreign.output(case, "F"), **CLOSE)
    if "F.no_augment" in case["outputs"]:
        torch.testing.assert_close(model(x.float(), noise, labels), foreign.output(case, "F.no_augment"), **CLOSE)


# of the noise that VP tells a Fourier embedding too little is left in float32
PRECONDITIONED = [
    (name, kind)
    for name, case in UNETS.items()
    for kind in PRECONDITIONINGS
    if f"D.{kind}" in case["outputs"] and (kind, case["args"].get("embedding_type")) != ("VPPrecond", "fourier")
]


@pytest.mark.parametrize("name, preconditioning", PRECONDITIONED)
@torch.no_grad()
def test_outputs_preconditioned(name, preconditioning):
    case = UNETS[name]
    model, augment = made_of(case), foreign.tensor(case["augment_labels"])
    sigmas = foreign.tensor(case["sigmas"])
    x = foreign.unit(case["x_shape"]) * (0.25 + sigmas.double() ** 2).sqrt()[:, None, None, None]
    labels = case["class_labels"] and foreign.tensor(case["class_labels"]).argmax(1)

    class Augmented(torch.nn.Module):
        def forward(self, x, noise, y):
            return model(x, noise, foreign.tensor(case["class_labels"]), augment)

    inner = edm.OneHot(model) if augment is None else Augmented()
    denoise = edm.Denoiser(inner, PRECONDITIONINGS[preconditioning]())
    close = {"rtol": 1e-4, "atol": 1e-3 if preconditioning == "VPPrecond" else 2e-5}
    found = denoise(x.float(), sigmas, labels)
    torch.testing.assert_close(found, foreign.output(case, f"D.{preconditioning}"), **close)
    if f"D.{preconditioning}.labels_none" in case["outputs"] and augment is None:
        expected = foreign.output(case, f"D.{preconditioning}.labels_none")
        torch.testing.assert_close(denoise(x.float(), sigmas), expected, **close)
        dropped = torch.full((len(x),), -1)
        torch.testing.assert_close(denoise(x.float(), sigmas, dropped), expected, **close)


@pytest.mark.parametrize("name", DITS)
@torch.no_grad()
def test_outputs_of_dit(name):
    case = DITS[name]
    model, x = made_of(case), foreign.unit(case["x_shape"]).float()
    t, y = foreign.tensor(case["t"]), torch.tensor(case["y"])
    torch.testing.assert_close(model(x, t, y), foreign.output(case, "forward"), **CLOSE)
    built = DiT(**case["args"]).pos_embed
    torch.testing.assert_close(built.flatten(), foreign.tensor(case["kept"]["pos_embed"]))
    if "cfg" in case:
        cfg = case["cfg"]
        x, t, y = foreign.unit(cfg["x_shape"]).float(), foreign.tensor(cfg["t"]), torch.tensor(cfg["y"])
        expected = foreign.output(case, "forward_with_cfg", cfg["output_shape"])
        torch.testing.assert_close(model.forward_with_cfg(x, t, y, cfg["scale"]), expected, **CLOSE)


def in_keys_of_facebookresearch(theirs):
    """The state dict of a DiTTransformer2DModel under the keys of the release."""
    state, blocks = {}, {}
    for key, value in theirs.items():
        if key.startswith("transformer_blocks."):
            _, index, rest = key.split(".", 2)
            blocks.setdefault(int(index), {})[rest] = value
    state["pos_embed"] = theirs["pos_embed.pos_embed"]
    for part in ("weight", "bias"):
        state[f"x_embedder.proj.{part}"] = theirs[f"pos_embed.proj.{part}"]
        state[f"final_layer.linear.{part}"] = theirs[f"proj_out_2.{part}"]
        state[f"final_layer.adaLN_modulation.1.{part}"] = theirs[f"proj_out_1.{part}"]
        for i, linear in ((0, "linear_1"), (2, "linear_2")):
            state[f"t_embedder.mlp.{i}.{part}"] = blocks[0][f"norm1.emb.timestep_embedder.{linear}.{part}"]
    state["y_embedder.embedding_table.weight"] = blocks[0]["norm1.emb.class_embedder.embedding_table.weight"]
    for i, block in blocks.items():
        for part in ("weight", "bias"):
            qkv = [block[f"attn1.to_{name}.{part}"] for name in "qkv"]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(qkv)
            state[f"blocks.{i}.attn.proj.{part}"] = block[f"attn1.to_out.0.{part}"]
            state[f"blocks.{i}.mlp.fc1.{part}"] = block[f"ff.net.0.proj.{part}"]
            state[f"blocks.{i}.mlp.fc2.{part}"] = block[f"ff.net.2.{part}"]
            state[f"blocks.{i}.adaLN_modulation.1.{part}"] = block[f"norm1.linear.{part}"]
    return state


@pytest.mark.parametrize("learned", [True, False])
@torch.no_grad()
def test_dit_is_that_of_diffusers(learned):
    """But for its sinusoids of the time, whose frequencies there end at 1 / 10000, and in the release go towards it."""
    theirs = tiny_models.dit(learned=learned)
    for block in theirs.transformer_blocks:  # the release has one embedding for all blocks
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    state = theirs.state_dict() | {"pos_embed.pos_embed": theirs.pos_embed.pos_embed}
    state = in_keys_of_facebookresearch(state)
    mine = DiT(**dit.arguments(state), num_heads=2)
    mine.load_state_dict(state)
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 321, 999]), torch.tensor([5, 1000, 0])
    expected = theirs.eval()(x, t, class_labels=y).sample
    torch.testing.assert_close(mine.eval()(x, t, y), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(theirs, diffusers.DiTTransformer2DModel) and expected.std() > 0.01
