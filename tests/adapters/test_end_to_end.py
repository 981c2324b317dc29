"""Scripts on networks of others, by --model_path alone: on one rank and on two, compared, inverted, and refused."""

import sys

import foreign
import numpy as np
import processes
import pytest
import script_runs
import tiny_models
import torch

import guided_diffusion as gd
from guided_diffusion.adapters.diffusers import Diffusers
from guided_diffusion.adapters.edm_networks import SongUNet

SAMPLING = "--num_samples 6 --batch_size 2 --timestep_respacing 4".split()


def ddpm(folder):
    unet, scheduler = tiny_models.unet(size=16), tiny_models.scheduler("DDPMScheduler", clip_sample=True)
    return [tiny_models.save(folder, "DDPMPipeline", unet=unet, scheduler=scheduler)]


def latents(folder):
    scheduler = tiny_models.scheduler(schedule="scaled_linear", clip_sample=False)
    parts = {"vqvae": tiny_models.vq(3), "unet": tiny_models.unet(3)}
    return [tiny_models.save(folder, "LDMPipeline", scheduler=scheduler, **parts)]


def dit(folder):
    parts = {"transformer": tiny_models.dit(classes=5), "vae": tiny_models.kl()}
    return [tiny_models.save(folder, "DiTPipeline", scheduler=tiny_models.scheduler(clip_sample=False), **parts)]


def dit_file(folder):
    torch.save(foreign.state_dict(foreign.cases("DiT")["dit.B"]), folder / "dit.pt")
    tiny_models.kl().save_pretrained(folder / "vae")
    return [str(folder / "dit.pt"), "--vae", folder / "vae", "--num_heads", 4]


def edm(folder):
    torch.manual_seed(0)
    args = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "label_dim": 3}
    torch.save(SongUNet(16, 3, 3, **args).state_dict(), folder / "edm.pt")
    return [str(folder / "edm.pt")]


MODELS = {"ddpm": ddpm, "latents": latents, "dit": dit, "dit_file": dit_file, "edm": edm}
SOLVERS = {
    "ddpm": "--use_ddim True --eta 0.5",
    "latents": "--solver dpmpp_2m",
    "dit": "--solver unipc",
    "dit_file": "--solver deis",
    "edm": "--solver heun --S_churn 4",
}
CLASSES = {"dit": 5, "dit_file": 5, "edm": 3}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    """(name, words after --model_path) of a tiny random model on disk."""
    (tmp_path / "model").mkdir()
    return request.param, MODELS[request.param](tmp_path / "model")


def images_in(folder):
    (path,) = folder.glob("*.npz")
    with np.load(path) as made:
        return dict(made)


def keywords_of(words):
    """{name: text} of words such as --eta 0.5."""
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])}


def test_images_from_python_are_those_of_the_script(model, tmp_path):
    """Also after a sampling in fewer steps, by which the schedule of EDM's networks goes."""
    name, (path, *words) = model
    script_runs.run(
        "image_sample", "--model_path", path, *words, *SAMPLING, *SOLVERS[name].split(), "--out_dir", tmp_path
    )
    opened = gd.load(path, **keywords_of(words))
    opened.sample(1, steps=2, progress=False)
    made = opened.sample(6, batch_size=2, steps=4, progress=False, **keywords_of(SOLVERS[name].split()))
    assert np.array_equal(made, images_in(tmp_path)["arr_0"]) and opened.num_classes == CLASSES.get(name)


@processes.needs_mpirun
@pytest.mark.parametrize("model", ["edm", *processes.slow("latents", "dit_file")], indirect=True)
def test_images_of_one_rank_and_of_two(model, tmp_path):
    name, words = model
    script_runs.run("image_sample", "--model_path", *words, *SAMPLING, "--out_dir", tmp_path / "one")
    script = [processes.MPIRUN, "-n", 2, sys.executable, script_runs.FOLDER / "image_sample.py"]
    flags = ["--model_path", *words, *SAMPLING, "--out_dir", tmp_path / "two"]
    done = processes.run(*script, *flags, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    one, two = images_in(tmp_path / "one"), images_in(tmp_path / "two")
    assert one["arr_0"].shape == (6, 16, 16, 3) and one["arr_0"].std() > 5
    np.testing.assert_array_equal(one["arr_0"], two["arr_0"])
    assert ("arr_1" in one) == (name in CLASSES) and max(one.get("arr_1", [0])) < CLASSES.get(name, 1)


def test_solvers_methods_and_resuming(model, tmp_path):
    """The same command again does nothing; Epsilon Scaling and time shift change the images."""
    name, words = model
    flags = ["--model_path", *words, *SAMPLING, *SOLVERS[name].split()]
    script_runs.run("image_sample", *flags, "--out_dir", tmp_path / "plain")
    assert "nothing to do" in script_runs.run("image_sample", *flags, "--out_dir", tmp_path / "plain")
    plain = images_in(tmp_path / "plain")["arr_0"]
    for i, method in enumerate(("--eps_scaler 1.2", "--do_time_shift True --window 400 --time_shift_variant target")):
        script_runs.run("image_sample", *flags, *method.split(), "--out_dir", tmp_path / str(i))
        assert (images_in(tmp_path / str(i))["arr_0"] != plain).any()


def test_samplers_are_compared(model, tmp_path):
    _, words = model
    settings, images = tmp_path / "settings.txt", script_runs.draw_images(tmp_path / "data")
    settings.write_text("ddim: --use_ddim True\nscaled: --use_ddim True --eps_scaler 1.02\n2m: --solver dpmpp_2m\n")
    script_runs.mean_colours(tmp_path / "features.pt", 16)
    flags = [
        "--settings",
        settings,
        "--reference",
        images,
        "--trust_code",
        True,
        "--features",
        f"torchscript:{tmp_path / 'features.pt'}",
    ]
    out = tmp_path / "compared"
    common = ["--steps", "3", "--repeats", "2", "--num_samples", "4", "--batch_size", "2", "--out_dir", out]
    script_runs.run("compare_samplers", "--model_path", *words, *flags, *common)
    table = (out / "comparison.md").read_text()
    assert all(name in table for name in ("ddim", "scaled", "2m")) and (out / "comparison.png").exists()


def test_images_are_inverted(model, tmp_path):
    """Bit by bit at gamma 1, through the autoencoder where there is one."""
    name, words = model
    images = script_runs.draw_images(tmp_path / "data")
    flags = ["--data_dir", images, "--num_samples", 2, "--timestep_respacing", 4, "--out_dir", tmp_path / "inverted"]
    edited = ["--edit_class", 1] if name in CLASSES else []
    said = script_runs.run("image_invert", "--model_path", *words, *flags, *edited)
    with np.load(tmp_path / "inverted" / "states.npz") as states:
        assert states["noisiest"].shape[1:] == {"latents": (3, 8, 8), "ddpm": (3, 16, 16), "edm": (3, 16, 16)}.get(
            name, (4, 8, 8)
        )
    assert "round trip by BDIA" in said


@pytest.mark.parametrize("name, reason", [("ddpm", "learns no variance"), ("edm", "learns no"), ("dit", "latents")])
def test_a_likelihood_that_says_nothing_is_refused(tmp_path, capsys, name, reason):
    (tmp_path / "model").mkdir()
    words = MODELS[name](tmp_path / "model")
    images = script_runs.draw_images(tmp_path / "data")
    flags = ["--data_dir", images, "--num_samples", 2, "--batch_size", 2, "--out_dir", tmp_path / "nll"]
    with pytest.raises(SystemExit):
        script_runs.run("image_nll", "--model_path", *words, *flags)
    assert reason in capsys.readouterr().err


def test_a_likelihood_with_a_learned_variance(tmp_path):
    scheduler = tiny_models.scheduler("DDPMScheduler", variance_type="learned_range")
    unet = tiny_models.unet(learned=True, size=16)
    path = tiny_models.save(tmp_path / "model", "DDPMPipeline", unet=unet, scheduler=scheduler)
    images = script_runs.draw_images(tmp_path / "data")
    flags = ["--data_dir", images, "--num_samples", 2, "--batch_size", 2, "--timestep_respacing", 5]
    said = script_runs.run("image_nll", "--model_path", path, *flags, "--out_dir", tmp_path / "nll")
    assert "bits/dim" in said


@pytest.mark.parametrize("name", ["latents", "edm"])
def test_a_classifier_cannot_guide_what_it_does_not_know(tmp_path, capsys, name):
    (tmp_path / "model").mkdir()
    classifier = script_runs.FOLDER.parent / "models" / "digits16_classifier.pt"
    words = [*MODELS[name](tmp_path / "model"), "--classifier_path", classifier, *SAMPLING]
    with pytest.raises(SystemExit):
        script_runs.run("classifier_sample", "--model_path", *words, "--out_dir", tmp_path / "guided")
    assert "a classifier here knows pixels" in capsys.readouterr().err


def told_classes(folder):
    unet = tiny_models.unet(size=16, classes=3)
    return tiny_models.save(folder / "model", "DDPMPipeline", unet=unet, scheduler=tiny_models.scheduler())


@pytest.mark.parametrize("job", ["denoiser", "sample", "encode", "exposure_bias", "tune"])
def test_guidance_without_a_class_is_refused_in_python_before_any_step(tmp_path, monkeypatch, job):
    model, images = gd.load(told_classes(tmp_path)), script_runs.draw_images(tmp_path / "data")
    monkeypatch.delattr(type(model.network), "answer")
    flags = {"steps": 3, "guidance_scale": 2.0}
    with pytest.raises(gd.UserError, match="--guidance_scale 2.0 asks the network without a class, where it has no"):
        {
            "denoiser": lambda: model.denoiser(classes=[1], **flags),
            "sample": lambda: model.sample(2, progress=False, **flags),
            "encode": lambda: model.encode(torch.zeros(2, 3, 16, 16), classes=[1], **flags),
            "exposure_bias": lambda: gd.exposure_bias(model, images, num_samples=4, **flags),
            "tune": lambda: gd.tune(model, images, num_samples=4, **flags),
        }[job]()


@pytest.mark.parametrize("script", "image_sample compare_samplers exposure_bias tune_sampler image_invert".split())
def test_guidance_without_a_class_is_refused_before_any_step(tmp_path, monkeypatch, capsys, script):
    """Of two settings, before the first."""
    path, images = told_classes(tmp_path), script_runs.draw_images(tmp_path / "data")
    monkeypatch.delattr(Diffusers, "answer")
    (tmp_path / "settings.txt").write_text("plain: --use_ddim True\nguided: --guidance_scale 2\n")
    settings, real = ["--settings", tmp_path / "settings.txt", "--steps", 3], ["--data_dir", images]
    guided = ["--timestep_respacing", 3, "--guidance_scale", 2]
    words = {
        "image_sample": guided,
        "compare_samplers": [*settings, "--reference", images, "--features", "classifier:none.pt"],
        "exposure_bias": [*settings, *real],
        "tune_sampler": [*guided, *real],
        "image_invert": [*guided, *real],
    }[script]
    with pytest.raises(SystemExit):
        script_runs.run(script, "--model_path", path, *words, "--num_samples", 4, "--out_dir", tmp_path / "out")
    assert "asks the network without a class, where it has no answer" in capsys.readouterr().err


def test_an_upsampler_is_none_of_others(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit):
        script_runs.run("super_res_sample", "--model_path", *ddpm(tmp_path / "model"), "--out_dir", tmp_path / "large")
    assert "expected a super-resolution network" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["dit", "edm", *processes.slow("ddpm", "latents", "dit_file")], indirect=True)
def test_the_bias_is_measured_and_tuned(model, tmp_path):
    _, words = model
    images = script_runs.draw_images(tmp_path / "data")
    common = ["--model_path", *words, "--data_dir", images, "--use_ddim", True, "--num_samples", 4, "--batch_size", 2]
    script_runs.run("exposure_bias", *common, "--steps", 3, "--out_dir", tmp_path / "bias")
    rows = (tmp_path / "bias" / "exposure_bias.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    script_runs.run("tune_sampler", *common, "--timestep_respacing", 3, "--out_dir", tmp_path / "tuned")
    assert (tmp_path / "tuned" / "preset.json").exists()
