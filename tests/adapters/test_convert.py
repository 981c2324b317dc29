"""scripts/convert.py: ADM's network in diffusers and back, exactly, with the same outputs."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import script_runs
import tiny_models
import torch
from processes import slow

from guided_diffusion import checkpoints
from guided_diffusion.adapters import dit, edm_networks
from guided_diffusion.networks import UNetFlags

MODELS = Path(__file__).parents[2] / "models"
PLAIN = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_head_channels": 32,
}
NETWORKS = {
    "plain": {},
    "other_order": {"use_new_attention_order": True},
    "resampled_by_blocks": {"resblock_updown": True, "attention_resolutions": "16"},
    "two_blocks_three_levels": {"num_res_blocks": 2, "channel_mult": "1,1,2", "attention_resolutions": "8,4"},
    "no_attention_but_below": {"attention_resolutions": "", "resblock_updown": True},
    "added_times": {"use_scale_shift_norm": False},
    "heads_by_number": {"num_head_channels": -1, "num_heads": 2, "num_channels": 64, "channel_mult": "1,1"},
    "learned": {"learn_sigma": True},
    "classes": {"class_cond": True, "num_classes": 5},
    "grey": {"image_channels": 1},
    "velocity": {"prediction": "v", "rescale_zero_terminal_snr": True},
    "cosine": {"noise_schedule": "cosine", "diffusion_steps": 200, "prediction": "x0"},
    "few_steps": {"diffusion_steps": 100, "sigma_small": True},
}


def checkpoint(folder, **changes):
    """A random network of ADM with its flags beside it; returns (path, network, flags)."""
    values = {**PLAIN, **changes}
    torch.manual_seed(0)
    unet = UNetFlags(**{k: v for k, v in values.items() if k in UNetFlags.__dataclass_fields__})
    network = tiny_models.stirred(unet.create(values.get("learn_sigma", False)))
    path = Path(folder) / "net.pt"
    checkpoints.write(str(path), network.state_dict(), values)
    return path, network, values


def state_of(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*list(NETWORKS)[::3], *slow(*(n for i, n in enumerate(NETWORKS) if i % 3))])
def test_there_and_back_is_exact_and_says_the_same(tmp_path, name):
    path, network, values = checkpoint(tmp_path, **NETWORKS[name])
    script_runs.run("convert", "--model_path", path, "--to", "diffusers", "--out_dir", tmp_path / "there")
    folder = tmp_path / "there" / "diffusers"
    theirs = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False).eval()
    x = torch.randn(2, values.get("image_channels", 3), 16, 16)
    t, y = torch.tensor([0, 77]), torch.tensor([4, 0]) if "class_cond" in values else None
    with torch.no_grad():
        expected = network(x, t) if y is None else network(x, t, y=y)
        found = theirs(x, t, class_labels=y).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    process = checkpoints.open_network(str(path))[1]
    steps = process.schedule.num_timesteps
    levels = process.schedule.alpha_bar(torch.arange(steps)).float()
    torch.testing.assert_close(scheduler.alphas_cumprod, levels, rtol=1e-4, atol=1e-6)
    script_runs.run("convert", "--model_path", folder, "--to", "adm", "--out_dir", tmp_path / "back")
    same(network.state_dict(), state_of(tmp_path / "back" / "model.pt"))
    kept = json.loads((tmp_path / "back" / "model.json").read_text())
    assert values.items() <= kept.items()


@pytest.mark.parametrize("name", ["plain", *slow(*(n for n in NETWORKS if n not in ("plain", "heads_by_number")))])
def test_back_without_the_flags_that_were_kept(tmp_path, name):
    """ADM's flags from the configs of diffusers alone: the same outputs, in the new order of attention."""
    path, network, values = checkpoint(tmp_path, **NETWORKS[name])
    script_runs.run("convert", "--model_path", path, "--to", "diffusers", "--out_dir", tmp_path / "there")
    folder = tmp_path / "there" / "diffusers"
    (folder / "adm.json").unlink()
    script_runs.run("convert", "--model_path", folder, "--to", "adm", "--out_dir", tmp_path / "back")
    back, _, flags = checkpoints.open_network(str(tmp_path / "back" / "model.pt"))
    x, t = torch.randn(2, values.get("image_channels", 3), 16, 16), torch.tensor([0, 77])
    told = {"y": torch.tensor([4, 0])} if "class_cond" in values else {}
    with torch.no_grad():
        torch.testing.assert_close(back(x, t, **told), network(x, t, **told), rtol=1e-5, atol=1e-5)
    hidden = ("diffusion_steps", "noise_schedule", "prediction", "rescale_zero_terminal_snr", "sigma_small")
    defaults = checkpoints.open_network(str(path))[2]
    assert {name: flags[name] for name in hidden} == {name: defaults[name] for name in hidden}


@pytest.mark.parametrize("kept", [True, False])
def test_safetensors_and_back(tmp_path, kept):
    path, network, _ = checkpoint(tmp_path)
    if not kept:
        path.with_suffix(".json").unlink()
    script_runs.run("convert", "--model_path", path, "--to", "safetensors", "--out_dir", tmp_path / "there")
    there = tmp_path / "there" / "model.safetensors"
    assert there.with_suffix(".json").exists() == kept
    script_runs.run("convert", "--model_path", there, "--to", "adm", "--out_dir", tmp_path / "back")
    same(network.state_dict(), state_of(tmp_path / "back" / "model.pt"))
    if kept:
        flags = ["--num_samples", 2, "--timestep_respacing", 2, "--out_dir", tmp_path / "samples"]
        script_runs.run("image_sample", "--model_path", there, *flags)


@pytest.mark.parametrize("name", ["digits16", "emoji32"])
def test_the_models_of_this_project(tmp_path, name):
    for ending in ("pt", "json"):
        shutil.copy(MODELS / f"{name}.{ending}", tmp_path)
    path = tmp_path / f"{name}.pt"
    script_runs.run("convert", "--model_path", path, "--to", "diffusers", "--out_dir", tmp_path / "there")
    folder = tmp_path / "there" / "diffusers"
    script_runs.run("convert", "--model_path", folder, "--to", "adm", "--out_dir", tmp_path / "back")
    same(state_of(path), state_of(tmp_path / "back" / "model.pt"))
    assert (
        json.loads((tmp_path / f"{name}.json").read_text()).items()
        <= json.loads((tmp_path / "back" / "model.json").read_text()).items()
    )


def refused(capsys, *flags):
    with pytest.raises(SystemExit):
        script_runs.run("convert", *flags)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"num_head_channels": -1, "num_heads": 2}, "--num_heads 2 gives heads of 16 and 32 channels"),
        ({"channel_mult": "2,2"}, "--channel_mult 2,2 begins at 64 channels"),
        ({"rescale_timesteps": True, "diffusion_steps": 100}, "--rescale_timesteps True"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(tmp_path, capsys, changes, named):
    if "num_heads" in changes:
        changes["attention_resolutions"] = "16,8"
    path, _, _ = checkpoint(tmp_path, **changes)
    said = refused(capsys, "--model_path", path, "--to", "diffusers", "--out_dir", tmp_path / "there")
    assert named in said and not (tmp_path / "there" / "diffusers").exists()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"freq_shift": 1}, "freq_shift is 1"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"downsample_padding": 0}, "downsample_padding is 0"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4"),
    ],
)
def test_what_adm_cannot_express_is_refused_by_name(tmp_path, capsys, change, named):
    path, _, _ = checkpoint(tmp_path)
    script_runs.run("convert", "--model_path", path, "--to", "diffusers", "--out_dir", tmp_path / "there")
    folder = tmp_path / "there" / "diffusers"
    (folder / "adm.json").unlink()
    config = json.loads((folder / "unet" / "config.json").read_text()) | change
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    said = refused(capsys, "--model_path", folder, "--to", "adm", "--out_dir", tmp_path / "back")
    assert named in said


@pytest.mark.parametrize("to", ["adm", "safetensors"])
def test_the_source_is_not_replaced(tmp_path, capsys, to):
    path, _, _ = checkpoint(tmp_path)
    script_runs.run("convert", "--model_path", path, "--to", to, "--out_dir", tmp_path / "out")
    (made,) = (tmp_path / "out").glob("model.[!j]*")
    before = made.read_bytes()
    said = refused(capsys, "--model_path", made, "--to", to, "--out_dir", tmp_path / "out")
    assert "would replace --model_path" in said and made.read_bytes() == before


def test_networks_that_are_no_adm_are_refused(tmp_path, capsys):
    scheduler = tiny_models.scheduler(schedule="scaled_linear")
    path = tiny_models.save(tmp_path / "ddpm", "DDPMPipeline", unet=tiny_models.unet(), scheduler=scheduler)
    out = ["--out_dir", tmp_path / "out"]
    assert "ADM expresses no other" in refused(capsys, "--model_path", path, "--to", "adm", *out)
    assert "expected --to adm" in refused(capsys, "--model_path", path, "--to", "safetensors", *out)
    assert "not both given" in refused(capsys, "--model_path", path, *out)
    for made, model in (
        ("edm", edm_networks.SongUNet(8, 3, 3, model_channels=16)),
        ("dit", dit.DiT(8, 2, 4, 384, 1, 6, num_classes=5)),
    ):
        torch.save(model.state_dict(), tmp_path / f"{made}.pt")
        for to in ("adm", "diffusers"):
            said = refused(capsys, "--model_path", tmp_path / f"{made}.pt", "--to", to, *out)
            assert f"no network of ADM, which alone --to {to} takes" in said and "--vae" not in said
    other = ["--num_channels", 64, "--to", "safetensors", *out]
    assert "--num_channels is 64" in refused(capsys, "--model_path", MODELS / "digits16.pt", *other)
    (tmp_path / "net.pkl").write_bytes(b"x")
    assert "python -c" in refused(capsys, "--model_path", tmp_path / "net.pkl", "--to", "safetensors", *out)
    assert "not exist" in refused(capsys, "--model_path", tmp_path / "absent.pkl", "--to", "safetensors", *out)
    assert not list((tmp_path / "out").glob("model*"))
    classifier = MODELS / "digits16_classifier.pt"
    assert "a classifier" in refused(capsys, "--model_path", classifier, "--to", "diffusers", *out)
