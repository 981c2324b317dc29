"""DiffuseVAE: its second form by the paper's formulas, the autoencoder's loss by hand, resuming, and refusals."""

import json
import math

import numpy as np
import pytest
import script_runs
import torch
from processes import mpirun, needs_mpirun
from torch import nn

from guided_diffusion import checkpoints, flags
from guided_diffusion.conditioning.vae import Drafts
from guided_diffusion.errors import UserError
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.networks import NETWORKS, UNetFlags, VaeFlags, for_inference
from guided_diffusion.networks.vae import VAE, DraftUNet
from guided_diffusion.objectives.vae import VaeObjective
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.solvers.flags import SolverFlags


class Shown(nn.Module):
    """A form 2 network of one number: it is told x_t = u_t + xh and predicts a noise that depends on it and on t."""

    takes = ("draft",)

    def forward(self, u, t, draft):
        x_t = u + draft
        return torch.sin(2 * x_t + 0.01 * t[:, None, None, None]) + 0.3 * draft


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_second_form_is_the_papers(solver, prediction):
    """Its states plus the draft follow the formulas of the paper, with the same noise, to the image at the end."""
    told = DiffusionFlags(noise_schedule="cosine", timestep_respacing="7", prediction=prediction, sigma_small=True)
    process = told.create((), SolverFlags(solver=solver))
    generator = torch.Generator().manual_seed(0)
    start, draft, *draws = torch.randn(9, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    network, noise = Shown(), iter(draws)
    denoise = process.denoiser(lambda u, t, draft: network(u, t, draft).double(), {"draft": draft})
    records = list(process.sample_records(process.solver, denoise, start, lambda x: next(noise)))

    levels, x, noise = process.schedule.alpha_bar(torch.tensor([-1, *process.grid])), start + draft, iter(draws)
    for record, i in zip(records, reversed(range(7))):
        a_s, a = levels[i], levels[i + 1]
        t = torch.full((3,), process.grid[i])
        said = network(x - draft, t, draft).float().double()
        if prediction == "eps":
            eps, x0 = said, (x - draft - (1 - a).sqrt() * said) / a.sqrt()
        else:
            eps, x0 = (x - draft - a.sqrt() * said) / (1 - a).sqrt(), said
        if solver == "ddim":
            x = a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps + draft
        else:
            beta = 1 - a / a_s
            c1, c2 = a_s.sqrt() * beta / (1 - a), (a / a_s).sqrt() * (1 - a_s) / (1 - a)
            x = c1 * x0 + c2 * x + (1 - c2) * draft
            x = x + (beta * (1 - a_s) / (1 - a)).sqrt() * next(noise) if i else x
        torch.testing.assert_close(record.x + draft, x, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(record.x0.double(), x0, atol=1e-6, rtol=1e-6)


def unet(form=1, channels=3):
    torch.manual_seed(0)
    flags = UNetFlags(
        image_size=8,
        num_channels=32,
        num_res_blocks=1,
        channel_mult="1",
        attention_resolutions="",
        image_channels=channels,
    )
    network = flags.build(lambda **config: DraftUNet(form=form, **config), 8, learn_sigma=False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def test_the_forms_of_the_network():
    x, draft, t = *torch.randn(2, 2, 3, 8, 8), torch.tensor([3, 900])
    one, two = unet(form="1"), unet(form="2")
    with torch.no_grad():
        torch.testing.assert_close(two(x, t, draft=draft), one(x + draft, t, draft=draft))
        assert (one(x, t, draft=draft) - one(x, t, draft=-draft)).abs().amax() > 0.01
        torch.testing.assert_close(for_inference(two)(x, t, draft=draft), two(x, t, draft=draft), atol=1e-4, rtol=1e-4)
    assert one.takes == ("draft",) and one.shape == (3, 8, 8)
    with pytest.raises(UserError, match="--vae_path needs draft"):
        one(x, t)


# ------------------------------------------------------------------------------------- the autoencoder


class Two(nn.Module):
    """Says an image and a posterior of two numbers."""

    def __init__(self, mean, log_variance):
        super().__init__()
        self.mean, self.log_variance = (nn.Parameter(torch.tensor(v)) for v in (mean, log_variance))

    def forward(self, x):
        return 0.5 * x, self.mean.expand(len(x), 2), self.log_variance.expand(len(x), 2)


def test_the_loss_of_the_autoencoder_by_hand():
    model, x = Two([0.5, -1.0], [0.0, math.log(4.0)]), torch.tensor([1.0, -1.0, 0.0]).reshape(3, 1, 1, 1)
    loss = VaeObjective(kl_weight=2.0)(model, x.expand(3, 1, 2, 2), {})
    # (0.25 + 1 + 1 + 4 - 2 - log 4) / 2
    divergence = (0.25 + 1 - 1 + 1 + 4 - 1 - math.log(4)) / 2
    np.testing.assert_allclose(loss.value.detach(), [4 / 16 + 2 * divergence] * 2 + [2 * divergence], rtol=1e-6)
    loss.value.mean().backward()
    # beta mean, and beta (variance - 1) / 2
    np.testing.assert_allclose(model.mean.grad, [1.0, -2.0], rtol=1e-6)
    np.testing.assert_allclose(model.log_variance.grad, [0.0, 3.0], atol=1e-6)


@pytest.mark.parametrize("size, channels, widths", [(8, 3, [8]), (16, 1, [8, 16]), (24, 4, [4, 8, 8])])
def test_an_autoencoder_knows_its_images(size, channels, widths):
    torch.manual_seed(0)
    vae, x = VAE(size, channels, widths, 5), torch.randn(2, channels, size, size)
    image, mean, log_variance = vae(x)
    assert image.shape == x.shape and image.abs().amax() <= 1 and mean.shape == log_variance.shape == (2, 5)
    assert not torch.equal(vae(x)[0], image), "a latent is drawn"
    found = NETWORKS["autoencoder"].reveal(vae.state_dict(), None)
    again = VaeFlags(**found).create()
    assert again.shape == vae.shape and {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in vae.state_dict().items()
    }


def test_drafts_are_of_the_posterior_in_training_and_of_the_prior_in_sampling():
    torch.manual_seed(0)
    vae = VAE(8, 3, [8], 5)
    told = Drafts(vae, (3, 8, 8))
    x = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        vae.to_latent.bias[5:] = -60.0  # the posterior has no width
        vae.to_latent.weight[5:] = 0.0
        torch.testing.assert_close(told.of_data(x, None)["draft"], vae.decode(vae.encode(x)[0]))
        drafts = told.of_indices(IndexedNoise(3, [7, 9]), [7, 9])["draft"]
        torch.testing.assert_close(drafts[1:], vae.decode(IndexedNoise(3, [9]).normal(5)))
    assert not drafts.requires_grad and told.shown(4, None, None)["draft"].shape == (4, 3, 8, 8)
    with pytest.raises(UserError, match="--vae_path makes images of 3x8x8; the diffusion network makes 1x8x8"):
        Drafts(vae, (1, 8, 8))


# ------------------------------------------------------------------------------------------- scripts

VAE_RUN = "--image_size 8 --vae_channels 8 --vae_channel_mult 1,2 --vae_latent_dim 5 --batch_size 4 --lr 1e-3".split()
RUN = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= "
    "--diffusion_steps 20 --noise_schedule cosine --batch_size 4 --microbatch 3 --lr 1e-3 --vae_form 2"
).split()
TRAIN = "--num_workers 0 --log_interval 1 --iterations 4 --save_interval 2".split()
SAMPLE = "--num_samples 5 --seed 1 --timestep_respacing 4".split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(256, size=(13, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of an autoencoder (vae) and a network that refines it (net)."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--data_dir", images, *TRAIN, "--sample_interval", 4]
    script_runs.run("vae_train", *VAE_RUN, *words, "--out_dir", folder / "vae")
    vae = folder / "vae" / "ema_0.9999_000004.pt"
    script_runs.run("image_train", *RUN, *words, "--vae_path", vae, "--out_dir", folder / "net")
    return folder


@pytest.mark.parametrize("name, script", [("vae", "vae_train"), ("net", "image_train")])
def test_a_run_goes_on_bit_for_bit(images, trained, tmp_path, name, script):
    for path in (trained / name).glob("*000002.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said = script_runs.run(script, "--data_dir", images, *TRAIN, "--out_dir", tmp_path, "--resume_checkpoint", "auto")
    assert "warning" not in said
    for path in (trained / name).glob("*000004.pt"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert (trained / name / "preview_000004.png").exists()
    before, after = (torch.load(trained / name / f"model00000{i}.pt", weights_only=True) for i in (2, 4))
    assert all(not torch.equal(before[key], after[key]) for key in before if "bias" in key)


def test_samples_are_those_of_their_index_and_of_the_autoencoder(images, trained, tmp_path):
    found = {}
    for name, more in (("five", ["--batch_size", 5]), ("two", ["--batch_size", 2]), ("other", ["--vae_path", "other"])):
        if name == "other":
            script_runs.run("vae_train", *VAE_RUN, "--data_dir", images, "--seed", 1, *TRAIN, "--out_dir", tmp_path)
            more = ["--vae_path", tmp_path / "model000004.pt", "--batch_size", 5]
        words = ["--model_path", trained / "net" / "model000004.pt", *SAMPLE, *more, "--out_dir", tmp_path / name]
        script_runs.run("image_sample", *words)
        found[name] = np.load(tmp_path / name / "samples_5x8x8x3.npz")["arr_0"].astype(int)
    assert np.abs(found["five"] - found["two"]).max() <= 1
    assert np.abs(found["five"] - found["other"]).max() > 1


def test_an_autoencoder_is_opened_by_its_path(trained):
    network, process, told = checkpoints.open_network(str(trained / "vae" / "model000004.pt"), expected="autoencoder")
    assert isinstance(network, VAE) and process is None and told["vae_latent_dim"] == 5


@pytest.mark.parametrize(
    "script, words, sentence",
    [
        ("image_train", ["--vae_path", "{trained}/net/model000004.pt"], "--vae_path"),
        ("image_train", ["--vae_path", "nowhere.pt"], "--vae_path: checkpoint nowhere.pt does not exist"),
        ("image_train", ["--vae_path", "{vae}", "--latent_dim", 4], "--latent_dim and --vae_path"),
        ("super_res_train", ["--vae_path", "{vae}", "--large_size", 8, "--small_size", 4], "cannot be told draft"),
        ("image_train", ["--vae_form", 2], "--vae_form 2 does nothing without --vae_path"),
        ("vae_train", ["--vae_channel_mult", "0.01,1"], "--vae_channels 8 leaves a level without channels"),
        ("vae_train", ["--image_size", 10], "--image_size 10 cannot be halved 2 times"),
        ("vae_train", ["--init_from", "{trained}/net/model000004.pt"], "expected an autoencoder"),
    ],
)
def test_what_does_not_fit_is_refused(images, trained, tmp_path, capsys, script, words, sentence):
    own = {"image_train": RUN, "super_res_train": RUN[2:], "vae_train": VAE_RUN}[script]
    told = [str(word).format(trained=trained, vae=trained / "vae" / "model000004.pt") for word in words]
    with pytest.raises(SystemExit):
        script_runs.run(script, *own, "--data_dir", images, *TRAIN, "--out_dir", tmp_path, *told)
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said, said


@pytest.mark.parametrize(
    "script, words",
    [
        ("convert", ["--to", "diffusers"]),
        ("image_nll", ["--data_dir", "{images}", "--num_samples", 1]),
        ("image_invert", ["--data_dir", "{images}", "--num_samples", 1]),
    ],
)
def test_scripts_that_cannot_tell_a_network_of_the_draft_say_so(images, trained, tmp_path, capsys, script, words):
    model = trained / "net" / "model000004.pt"
    with pytest.raises(SystemExit):
        told = [str(word).format(images=images) for word in words]
        script_runs.run(script, "--model_path", model, *told, "--out_dir", tmp_path)
    said = capsys.readouterr().err
    assert f"--model_path {model} was trained with --vae_path" in said and "cannot tell it; expected a script" in said


def test_what_a_checkpoint_says_is_waited_for(images, trained, tmp_path, capsys):
    """The form of an autoencoder that no command line names; and one that the network has never known."""
    vae, net = trained / "vae" / "model000004.pt", trained / "net" / "model000004.pt"
    assert "saved" in script_runs.run(
        "image_sample", "--model_path", net, "--vae_form", 2, *SAMPLE, "--out_dir", tmp_path
    )
    own = [word for i, word in enumerate(RUN) if "--vae_form" not in (word, RUN[i - 1])]
    script_runs.run("image_train", *own, "--data_dir", images, *TRAIN, "--out_dir", tmp_path / "plain")
    plain = tmp_path / "plain" / "model000004.pt"
    for path, words, sentence in (
        (net, ["--vae_form", 1], "--vae_form is '1', the checkpoint has '2'"),
        (plain, ["--vae_path", vae], f"--vae_path is {vae}, and --model_path {plain} was trained without"),
    ):
        with pytest.raises(SystemExit):
            script_runs.run("image_sample", "--model_path", path, *words, *SAMPLE, "--out_dir", tmp_path / "no")
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["progressive_distillation", "consistency_distillation"])
@pytest.mark.parametrize(
    "teacher, told, sentence",
    [
        ("net", [], "is one with --vae_path; expected it here too, or a teacher as of this run"),
        ("plain", ["--vae_path", "{vae}"], "is one without --vae_path; expected none here"),
    ],
)
def test_teacher_and_student_are_told_alike(images, trained, tmp_path, capsys, objective, teacher, told, sentence):
    own = [word for i, word in enumerate(RUN) if "--vae_form" not in (word, RUN[i - 1])]
    words = [*own, "--data_dir", images, *TRAIN]
    script_runs.run("image_train", *words, "--iterations", 4, "--out_dir", tmp_path / "plain")
    path = (tmp_path if teacher == "plain" else trained) / teacher / "model000004.pt"
    told = [word.format(vae=trained / "vae" / "model000004.pt") for word in told]
    with pytest.raises(SystemExit):
        words += ["--prediction", "v", "--objective", objective, "--teacher", path, *told]
        script_runs.run("image_train", *words, "--out_dir", tmp_path / "student")
    said = capsys.readouterr().err
    assert f"--teacher {path} {sentence}" in said and "Traceback" not in said, said


def test_without_an_autoencoder_the_network_is_the_published_one():
    parsed = flags.parse([*RUN[:6], "--channel_mult", "1"], [*NETWORKS["diffusion"].groups, DiffusionFlags], "")
    assert type(NETWORKS["diffusion"].create(parsed)).__name__ == "UNetModel"


@pytest.mark.slow
@pytest.mark.parametrize("half", ["--use_bf16", "--use_fp16"])
def test_half_precision_goes_on_bit_for_bit(half, images, trained, tmp_path):
    words = [*RUN, *TRAIN, "--data_dir", images, "--vae_path", trained / "vae" / "model000004.pt", half, True]
    whole = script_runs.trained("image_train", tmp_path / "whole", *words, ends=[2])
    assert script_runs.trained("image_train", tmp_path / "part", *words, ends=[1, 2]) == whole != {}


@needs_mpirun
@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(images, tmp_path):
    """Both stages at once, and from step 2 on."""
    commands = []
    for name in ("whole", "parted"):
        for stage, script, own in (("vae", "vae_train", VAE_RUN), ("net", "image_train", RUN)):
            out = str(tmp_path / name / stage)
            more = ["--vae_path", str(tmp_path / "whole" / "vae" / "model000004.pt")] if stage == "net" else []
            words = [script, *own, "--data_dir", str(images), *TRAIN, *more, "--out_dir", out]
            commands += [[*words, "--iterations", "2"]] * (name == "parted") + [[*words, "--resume_checkpoint", "auto"]]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    ran = mpirun(2, "script_list.py", tmp_path / "commands.json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for stage in ("vae", "net"):
        for path in (tmp_path / "whole" / stage).glob("*000004.pt"):
            assert (tmp_path / "parted" / stage / path.name).read_bytes() == path.read_bytes(), path
