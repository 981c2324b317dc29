"""Networks of diffusers, saved to disk and opened here: the images of its own pipelines, from the same noise."""

import json
import math
import re
import shutil
import sys

import diffusers
import numpy as np
import pytest
import script_runs
import tiny_models
import torch
from huggingface_hub.utils import filter_repo_objects

import guided_diffusion as gd
from guided_diffusion import checkpoints, methods
from guided_diffusion.adapters import pair_of
from guided_diffusion.checkpoints import CheckpointFlags
from guided_diffusion.errors import UserError
from guided_diffusion.flags import parse
from guided_diffusion.networks import UNetFlags
from guided_diffusion.process import DiffusionFlags, SpacingFlags
from guided_diffusion.schedule import NoiseSchedule
from guided_diffusion.solvers.flags import SolverFlags

GROUPS = [CheckpointFlags, SolverFlags, UNetFlags, DiffusionFlags, SpacingFlags, *methods.of_sampling()]


def opened(path, *flags):
    """(the resolved Parsed flags, network, process) of a command line."""
    return checkpoints.load_diffusion(parse(["--model_path", path, *map(str, flags)], GROUPS, ""))


def sampled(path, *flags, count=2, y=None, decode=True):
    """Images (or latents) [count, C, H, W] from the noise and the draws of `torch.manual_seed(7)`."""
    _, network, process = opened(path, *flags)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, *network.shape, generator=generator)
    denoise = process.denoiser(network, {} if y is None else {"y": y})
    for record in process.sample_records(
        process.solver, denoise, x, lambda x: torch.randn(x.shape, generator=generator)
    ):
        x = record.x
    return pair_of(network).decode(x) if decode else x


def theirs(images):
    """Images in [-1, 1] of what a pipeline gives, in 0..1 with the channels last."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def agree(mine, other):
    torch.testing.assert_close(mine.clamp(-1, 1), other, rtol=0, atol=1e-4)
    assert other.std() > 0.02 and not (other.abs() == 1).all()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", tiny_models.SCHEDULES)
def test_ddim_is_that_of_the_pipeline(tmp_path, schedule, prediction, clip):
    scheduler = tiny_models.scheduler(schedule=schedule, prediction_type=prediction, clip_sample=clip)
    pipeline = diffusers.DDIMPipeline(tiny_models.unet(), scheduler)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        2,
        torch.Generator().manual_seed(7),
        num_inference_steps=10,
        output_type="np",
        use_clipped_model_output=clip,
    ).images
    mine = sampled(str(tmp_path), "--use_ddim", True, "--timestep_respacing", "ddim10")
    agree(mine, theirs(found))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddpm_is_that_of_the_pipeline(tmp_path, schedule, prediction, variance):
    scheduler = tiny_models.scheduler(
        "DDPMScheduler", schedule, prediction_type=prediction, variance_type=variance, clip_sample=True
    )
    pipeline = diffusers.DDPMPipeline(tiny_models.unet(), scheduler)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(2, torch.Generator().manual_seed(7), num_inference_steps=20, output_type="np").images
    agree(sampled(str(tmp_path), "--timestep_respacing", "ddim20"), theirs(found))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_zero_terminal_snr(tmp_path, schedule, prediction):
    scheduler = tiny_models.scheduler(
        schedule=schedule,
        prediction_type=prediction,
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipeline = diffusers.DDIMPipeline(tiny_models.unet(), scheduler)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(2, torch.Generator().manual_seed(7), num_inference_steps=10, output_type="np").images
    mine = sampled(str(tmp_path), "--use_ddim", True, "--timestep_respacing", 10, "--spacing", "uniform")
    agree(mine, theirs(found))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_dpm_solver_is_that_of_the_pipeline_with_its_scheduler(tmp_path, schedule, prediction):
    scheduler = tiny_models.scheduler(schedule=schedule, prediction_type=prediction, clip_sample=False)
    pipeline = diffusers.DDIMPipeline(tiny_models.unet(), scheduler)
    pipeline.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    multistep = diffusers.DPMSolverMultistepScheduler.from_config(
        scheduler.config, lower_order_final=False, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    multistep.set_timesteps(10)
    with torch.no_grad():
        for t in multistep.timesteps:
            x = multistep.step(pipeline.unet(x, t).sample, t, x).prev_sample
    mine = sampled(str(tmp_path), "--solver", "dpmpp_2m", "--timestep_respacing", 10, "--spacing", "uniform")
    # nothing clips, and what random weights make of nearly pure noise is large
    scale = x.abs().max().clamp(min=1)
    torch.testing.assert_close(mine / scale, x / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [{}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}])
@pytest.mark.parametrize("schedule", tiny_models.SCHEDULES)
def test_levels_are_those_of_the_scheduler(tmp_path, schedule, config):
    scheduler = tiny_models.scheduler(schedule=schedule, **config)
    path = tiny_models.save(tmp_path, "DDIMPipeline", unet=tiny_models.unet(), scheduler=scheduler)
    parsed, _, process = opened(path)
    torch.testing.assert_close(
        process.schedule.alpha_bar(torch.arange(1000)).float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6
    )
    named = schedule in ("linear", "squaredcos_cap_v2")
    assert ("noise_schedule" in parsed.values()) == named
    assert isinstance(process.schedule, NoiseSchedule) and process.schedule.ends_in_noise == bool(config)


@pytest.mark.parametrize("solver", [["--use_ddim", True], ["--solver", "dpmpp_2m"]])
@pytest.mark.parametrize("pair", ["kl", "vq"])
def test_latents_are_decoded(tmp_path, pair, solver):
    """A latent UNet2DModel with its decoder; the pipeline is written out, for its scheduler's last step stops short."""
    channels = 4 if pair == "kl" else 3
    vae, unet = getattr(tiny_models, pair)(channels), tiny_models.unet(channels)
    scheduler = tiny_models.scheduler(schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing")
    path = tiny_models.save(tmp_path, "LDMPipeline", vqvae=vae, unet=unet, scheduler=scheduler)
    x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(7))
    if "dpmpp_2m" in solver:
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config, lower_order_final=False)
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
        found = vae.decode(x / vae.config.scaling_factor).sample
    # compared before decoding too: a rounding may turn a latent to another code of a VQModel
    flags = [*solver, "--timestep_respacing", 5, "--spacing", "uniform"]
    scale = x.abs().max().clamp(min=1)
    torch.testing.assert_close(sampled(path, *flags, decode=False) / scale, x / scale, rtol=0, atol=1e-4)
    assert sampled(path, *flags).shape == (2, 3, 16, 16)
    torch.testing.assert_close(pair_of(checkpoints.open_network(path)[0]).decode(x), found)
    if pair == "kl":
        agree(sampled(path, *flags), found.clamp(-1, 1))


@pytest.mark.parametrize("pair", ["kl", "vq"])
def test_the_pair_encodes_as_its_autoencoder_does(tmp_path, pair):
    channels = 4 if pair == "kl" else 3
    vae = getattr(tiny_models, pair)(channels)
    scheduler = tiny_models.scheduler(clip_sample=False)
    path = tiny_models.save(tmp_path, "LDMPipeline", vqvae=vae, unet=tiny_models.unet(channels), scheduler=scheduler)
    network, _, flags = checkpoints.open_network(path)
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        encoded = vae.encode(images)
    expected = encoded.latents if pair == "vq" else encoded.latent_dist.mean
    torch.testing.assert_close(pair_of(network).encode(images), expected * vae.config.scaling_factor)
    assert network.shape == (channels, 8, 8) and flags["image_size"] == 16 and flags["image_channels"] == 3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit_with_its_autoencoder_is_that_of_the_pipeline(tmp_path, scale):
    scheduler = tiny_models.scheduler(clip_sample=False)
    pipeline = diffusers.DiTPipeline(tiny_models.dit(), tiny_models.kl(), scheduler)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        [3, 999],
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=10,
        output_type="np",
    ).images
    guided = ["--guidance_scale", scale] if scale != 1 else []
    flags = ["--use_ddim", True, "--timestep_respacing", "ddim10", *guided]
    agree(sampled(str(tmp_path), *flags, y=torch.tensor([3, 999])), theirs(found))


def test_classes_of_a_unet_are_told(tmp_path):
    unet = tiny_models.unet(classes=5)
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=unet, scheduler=tiny_models.scheduler())
    parsed, network, process = opened(path)
    assert parsed[UNetFlags].class_cond and parsed[UNetFlags].num_classes == 5
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.tensor([4, 0])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, y=y), unet(x, t, class_labels=y).sample)
        with pytest.raises(UserError, match="without a class, where it has no answer"):
            opened(path, "--guidance_scale", 2)[2].denoiser(network, {"y": y})
        with pytest.raises(UserError, match="is told classes, and y says otherwise"):
            process.denoiser(network)(x, t)


def test_a_learned_variance_is_read(tmp_path):
    unet = tiny_models.unet(learned=True)
    scheduler = tiny_models.scheduler("DDPMScheduler", variance_type="learned_range", clip_sample=True)
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=unet, scheduler=scheduler)
    parsed, _, process = opened(path)
    assert parsed[DiffusionFlags].learn_sigma and process.var_type.is_learned
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, generator=generator).prev_sample
    agree(sampled(path, "--timestep_respacing", "ddim20"), x.clamp(-1, 1))


def test_a_lower_precision_is_close_and_another(tmp_path):
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        full, half = (opened(path, *flags)[1](x, t).float() for flags in ([], ["--use_bf16", True]))
    error = ((half - full).square().mean() / full.square().mean()).sqrt()
    assert 1e-4 < error < 0.1


def test_a_network_alone_takes_what_is_given_of_its_schedule(tmp_path):
    tiny_models.unet().save_pretrained(tmp_path)
    _, _, process = opened(str(tmp_path), "--noise_schedule", "cosine", "--diffusion_steps", 200, "--prediction", "v")
    assert process.schedule.num_timesteps == 200 and process.mean_type.name == "VELOCITY"


def test_latents_without_a_decoder_need_one(tmp_path):
    tiny_models.dit().save_pretrained(tmp_path / "dit")
    tiny_models.kl().save_pretrained(tmp_path / "vae")
    tiny_models.kl(8).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="--vae"):
        opened(str(tmp_path / "dit"))
    for factor in (0, None, "one"):
        file = tmp_path / "scaled" / "config.json"
        tiny_models.kl().save_pretrained(file.parent)
        file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": factor}))
        with pytest.raises(UserError, match=f"scaling_factor is {factor}; expected a number above 0"):
            opened(str(tmp_path / "dit"), "--vae", file.parent)
    with pytest.raises(UserError, match="8 channels; .* denoises 4"):
        opened(str(tmp_path / "dit"), "--vae", tmp_path / "other")
    with pytest.raises(UserError, match="expected AutoencoderKL or VQModel"):
        opened(str(tmp_path / "dit"), "--vae", tmp_path / "dit")
    parsed, network, _ = opened(str(tmp_path / "dit"), "--vae", tmp_path / "vae")
    assert network.shape == (4, 8, 8) and parsed[UNetFlags].image_size == 16


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--num_channels", 64], "--num_channels says nothing of .*UNet2DModel of diffusers"),
        (["--num_classes", 10], "--num_classes says nothing of"),
        (["--prediction", "v"], "--prediction is 'v'; .* has 'eps'"),
        (["--predict_xstart", True], "--predict_xstart is True; .* has False"),
        (["--noise_schedule", "cosine"], "--noise_schedule is 'cosine'; .* has 'linear'"),
        (["--diffusion_steps", 500], "--diffusion_steps is 500; .* has 1000"),
        (["--image_size", 16], "--image_size is 16; .* has 8"),
        (["--learn_sigma", True], "--learn_sigma is True; .* has False"),
        (["--vae", "x"], "x has no config.json"),
        (["--checkpoint_key", "ema"], "--checkpoint_key ema is of a file, and .* is a folder"),
        (["--override", True, "--prediction", "v"], "--override True has no meaning for .*UNet2DModel"),
    ],
)
def test_flags_that_contradict_are_refused(tmp_path, flags, sentence):
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler())
    with pytest.raises(UserError, match=sentence):
        opened(path, *flags)


@pytest.mark.parametrize(
    "part, change, sentence",
    [
        ("scheduler", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'; expected one of"),
        ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'; expected linear"),
        ("scheduler", {"variance_type": "learned"}, "variance_type is 'learned'; expected"),
        ("scheduler", {"clip_sample": True, "clip_sample_range": 2.0}, "clip_sample_range is 2.0; expected 1"),
        ("scheduler", {"thresholding": True}, "dynamic thresholding"),
        ("scheduler", {"beta_schedule": None}, "FlowMatch.*, which has no betas"),
        ("scheduler", {"num_train_timesteps": -5}, "num_train_timesteps is -5; expected a number of at least 1"),
        ("scheduler", {"trained_betas": [0.1, "a"]}, "a config that is not of diffusers"),
        ("unet", {"time_embedding_type": "other"}, "cannot be loaded as UNet2DModel"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ("unet", {"sample_size": None}, "sample_size of UNet2DModel is None"),
        ("model_index", {"text_encoder": ["transformers", "CLIPTextModel"]}, "pipeline with CLIPTextModel; expected"),
        ("model_index", {"unet": ["diffusers", "UNet2DConditionModel"]}, "pipeline with UNet2DConditionModel"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, part, change, sentence):
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler())
    names = {"scheduler": "scheduler/scheduler_config.json", "unet": "unet/config.json"}
    file = tmp_path / names.get(part, "model_index.json")
    config = json.loads(file.read_text()) | change
    if change == {"beta_schedule": None}:
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        opened(path)


def test_a_name_of_the_hub_is_the_folder_in_its_cache(tmp_path, monkeypatch):
    """Laid out as huggingface_hub does; what it downloads is never a pickle."""
    commit = "0" * 40
    repository = tmp_path / "models--google--ddpm-tiny"
    tiny_models.save(
        repository / "snapshots" / commit, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler()
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    by_folder = gd.load(repository / "snapshots" / commit).sample(2, steps=2, progress=False)
    assert np.array_equal(gd.load("google/ddpm-tiny").sample(2, steps=2, progress=False), by_folder)
    _, network, _ = opened("google/ddpm-tiny")
    assert network.shape == by_folder.transpose(0, 3, 1, 2).shape[1:]
    printed = script_runs.run(
        "image_sample", "--model_path", "google/ddpm-tiny", "--num_samples", 2, "--timestep_respacing", 2,
        "--batch_size", 16, "--out_dir", tmp_path / "out",
    )  # fmt: skip
    assert str(tmp_path / "out") in printed
    with np.load(next((tmp_path / "out").glob("*.npz"))) as npz:
        assert np.array_equal(npz["arr_0"], by_folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a hub, repositories in it by their names; what is downloaded of them is copied beside it."""

    def download(name, allow_patterns, ignore_patterns):
        there, here = tmp_path / "hub" / name, tmp_path / "cache" / name
        paths = [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()]
        for path in filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there / path, here / path)
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return tmp_path / "hub"


@pytest.mark.parametrize("form", ["safetensors", "bin", "both"])
def test_weights_are_downloaded_in_whatever_form_the_hub_has(hub, form):
    """Of pickles those alone that no safetensors stand beside, and of precisions the whole one."""
    folder = hub / "some" / "model"
    tiny_models.save(folder, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler())
    if form != "safetensors":
        tiny_models.unet().save_pretrained(folder / "unet", safe_serialization=False)
    if form == "bin":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_models.unet().half().save_pretrained(folder / "unet", variant="fp16")
    assert len(list((folder / "unet").iterdir())) == (3 if form != "both" else 4)
    by_folder = gd.load(folder).sample(2, steps=2, progress=False)
    assert np.array_equal(gd.load("some/model").sample(2, steps=2, progress=False), by_folder)
    found = {path.name for path in (hub.parent / "cache" / "some" / "model" / "unet").iterdir()}
    kept = "diffusion_pytorch_model." + ("bin" if form == "bin" else "safetensors")
    assert found == {"config.json", kept}


def test_an_autoencoder_and_a_network_to_convert_may_be_of_the_hub(hub, tmp_path):
    tiny_models.dit(classes=3).save_pretrained(tmp_path / "dit")
    tiny_models.kl().save_pretrained(hub / "some" / "vae")
    words = ["--num_samples", 2, "--timestep_respacing", 2, "--batch_size", 2]
    for name, vae in (("hub", "some/vae"), ("folder", hub / "some" / "vae")):
        where = ["--model_path", tmp_path / "dit", "--vae", vae, "--out_dir", tmp_path / name]
        script_runs.run("image_sample", *where, *words)
    made = [np.load(next((tmp_path / name).glob("*.npz")))["arr_0"] for name in ("hub", "folder")]
    assert np.array_equal(*made) and made[0].std() > 1
    in_python = gd.load(tmp_path / "dit", vae="some/vae").sample(2, steps=2, batch_size=2, progress=False)
    assert np.array_equal(in_python, made[0])
    assert pair_of(checkpoints.open_network(str(tmp_path / "dit"), vae="some/vae")[0]).model.config.latent_channels == 4
    digits = script_runs.FOLDER.parent / "models" / "digits16.pt"
    script_runs.run("convert", "--model_path", digits, "--to", "diffusers", "--out_dir", hub / "some")
    script_runs.run("convert", "--model_path", "some/diffusers", "--to", "adm", "--out_dir", tmp_path / "back")
    back = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
    for name, value in torch.load(digits, weights_only=True).items():
        assert torch.equal(back[name], value)


@pytest.mark.parametrize("flag", ["model_path", "vae"])
def test_a_name_that_the_hub_cannot_tell_of_is_refused(tmp_path, monkeypatch, flag):
    tiny_models.dit().save_pretrained(tmp_path)
    given = {"model_path": str(tmp_path), "vae": "", flag: "some/where"}
    with pytest.raises(UserError, match=f"--{flag} some/where does not exist; as a name .* where there is a network"):
        gd.load(**given)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=f"--{flag} some/where .*no huggingface_hub.*pip install"):
        opened(given["model_path"], "--vae", given["vae"])


def test_paths_without_a_network_are_refused(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        opened(str(tmp_path))
    with pytest.raises(UserError, match="hf download google/ddpm-cifar10-32 --local-dir"):
        opened("google/ddpm-cifar10-32")
    with pytest.raises(UserError, match="checkpoint models/absent.pt does not exist$"):
        opened("models/absent.pt")
    tiny_models.unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="weights of a model of diffusers; expected its folder"):
        opened(str(tmp_path / "unet" / "diffusion_pytorch_model.safetensors"))
    (tmp_path / "edm.pkl").write_bytes(b"\x80")
    with pytest.raises(UserError, match="pickle, which runs code.*python -c .*state_dict"):
        opened(str(tmp_path / "edm.pkl"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        opened(str(tmp_path))
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler())
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded as UNet2DModel"):
        opened(path)


def test_dit_under_the_name_that_it_was_published_under(tmp_path):
    parts = {"transformer": tiny_models.dit(), "vae": tiny_models.kl(), "scheduler": tiny_models.scheduler()}
    path = tiny_models.save(tmp_path, "DiTPipeline", **parts)
    for file in (tmp_path / "model_index.json", tmp_path / "transformer" / "config.json"):
        file.write_text(file.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    _, network, _ = opened(path)
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tensor([7])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, y=y), parts["transformer"](x, t, class_labels=y).sample)
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "norm_type": "layer_norm"}))
    with pytest.raises(UserError, match="norm_type is 'layer_norm'; a DiT has 'ada_norm_zero'"):
        opened(path)


def test_a_pipeline_of_one_folder(tmp_path):
    """As google/ddpm-cifar10-32 lies on the hub: config.json and scheduler_config.json beside model_index.json."""
    unet, scheduler = tiny_models.unet(), tiny_models.scheduler("DDPMScheduler", variance_type="fixed_small")
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=unet, scheduler=scheduler)
    for part in ("unet", "scheduler"):
        for file in (tmp_path / part).iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / part).rmdir()
    parsed, network, _ = opened(path)
    assert parsed[DiffusionFlags].sigma_small
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t), unet(x, t).sample)


@pytest.mark.parametrize("change", [None, math.nan])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_that_lack_some_are_refused(tmp_path, part, change):
    """And none is drawn in their place."""
    from safetensors.torch import load_file, save_file

    parts = {"unet": tiny_models.unet(4), "scheduler": tiny_models.scheduler(schedule="scaled_linear")}
    path = tiny_models.save(tmp_path, "LDMPipeline", vqvae=tiny_models.kl(), **parts)
    file = tmp_path / {"unet": "unet", "vae": "vqvae"}[part] / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = sorted(state)[len(state) // 2]
    state = {k: v for k, v in state.items() if k != name} | ({} if change is None else {name: state[name] * change})
    save_file(state, file)
    lacks = "lacks 1 of the weights of a .*, such as" if change is None else "weights that are not finite numbers"
    with pytest.raises(UserError, match=lacks + rf".*{re.escape(name)}|{lacks} \({re.escape(name)}"):
        opened(path)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be loaded as"):
        opened(path)


@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_pipeline_without_a_part_or_an_entry_is_refused(tmp_path, part):
    path = tiny_models.save(tmp_path, "DDPMPipeline", unet=tiny_models.unet(), scheduler=tiny_models.scheduler())
    file = tmp_path / {"unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json"}[part]
    config = json.loads(file.read_text())
    del config[{"unet": "in_channels", "scheduler": "num_train_timesteps"}[part]]
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="a config that is not of diffusers"):
        opened(path)
    file.unlink()
    with pytest.raises(UserError, match=r"there is no .*scheduler_config|no config\.json"):
        opened(path)
