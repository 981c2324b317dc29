"""Denoising diffusion GANs: the true posterior as a generator, a step by hand, resuming, and what is refused."""

import functools
import json
import math

import numpy as np
import pytest
import script_runs
import torch
from processes import mpirun, needs_mpirun
from sampled import process as process_of
from torch import nn

from guided_diffusion import methods
from guided_diffusion.conditioning.latent import Latents
from guided_diffusion.errors import UserError
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.methods import Latent, of_values
from guided_diffusion.methods.input_perturbation import InputPerturbation
from guided_diffusion.networks import NETWORKS, UNetFlags, for_inference
from guided_diffusion.networks.latent import LatentUNet
from guided_diffusion.objectives import AdversarialObjective, AuxiliaryNetwork
from guided_diffusion.objectives.adversarial import Discriminator
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.solvers.flags import SolverFlags

FEW = DiffusionFlags(diffusion_steps=4, noise_schedule="vp", prediction="x0", sigma_small=True)
# one-dimensional mixture
SHARES, MEANS, SPREADS = (torch.tensor(v) for v in ([0.5, 0.3, 0.2], [-1.0, 0.4, 1.2], [0.15, 0.25, 0.1]))


def levels():
    """alpha_bar of the four levels, by the formula of Song et al. 2021 and the release's first time 1e-3."""
    times = np.linspace(1e-3, 1, 5)
    levels = np.exp(-0.5 * (20 - 0.1) * times**2 - 0.1 * times)
    return levels[1:] / levels[0]


def test_the_levels_are_those_of_the_paper():
    np.testing.assert_allclose(FEW.create().schedule.alpha_bar(torch.arange(4)), levels(), rtol=1e-12)


# ------------------------------------------------------------------------------- sampling in closed form


def mixture(n, seed):
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(SHARES, n, replacement=True, generator=generator)
    return MEANS[which] + SPREADS[which] * torch.randn(n, generator=generator)


def posterior(x, t):
    """Of p(x_0 | x_t) of the mixture: shares, means and deviations [N, 3] of its parts."""
    level = torch.from_numpy(levels()).float()[t][:, None]
    total = level * SPREADS**2 + 1 - level
    error = x[:, None] - level.sqrt() * MEANS
    shares = (SHARES.log() - error**2 / (2 * total) - total.log() / 2).softmax(dim=1)
    return shares, MEANS + level.sqrt() * SPREADS**2 / total * error, (SPREADS**2 * (1 - level) / total).sqrt()


def true_generator(x, t, z):
    """x_0 drawn from p(x_0 | x_t) by a z of two numbers: the optimum of the objective."""
    shares, means, spreads = posterior(x.flatten(), t.long())
    chosen = (shares.cumsum(dim=1) < torch.special.ndtr(z[:, :1])).sum(dim=1, keepdim=True).clamp(max=2)
    drawn = means.gather(1, chosen) + spreads.gather(1, chosen) * z[:, 1:]
    return drawn.view_as(x)


def mean_of_posterior(x, t, z):
    shares, means, _ = posterior(x.flatten(), t.long())
    return (shares * means).sum(dim=1).view_as(x)


def distance(one, other):
    """The first Wasserstein distance of two samples of as many numbers."""
    return (one.flatten().sort().values - other.flatten().sort().values).abs().mean().item()


def sampled(generator, solver, n=20000, seed=0):
    torch.manual_seed(seed)
    process = FEW.create([Latent(latent_dim=2)], SolverFlags(solver=solver))
    denoise = process.denoiser(generator, {"z": torch.randn(n, 4, 2)})
    *_, last = process.sample_records(process.solver, denoise, torch.randn(n, 1, 1, 1))
    return last.x


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_true_posterior_as_generator_samples_the_data(solver):
    """And the mean of the posterior, to which a squared error leads, does not: why the paper has a GAN."""
    data = mixture(20000, seed=1)
    assert distance(sampled(true_generator, solver), data) < 0.02
    assert distance(sampled(mean_of_posterior, "ddpm"), data) > 0.3


def test_each_step_has_its_own_latent_whatever_the_batch():
    process = FEW.create([Latent(latent_dim=2)], SolverFlags(solver="ddpm"))
    seen = []

    def network(x, t, z):
        seen.append((t.tolist(), z))
        return x

    z = torch.randn(5, 4, 2)
    process.denoiser(network, {"z": z})(torch.zeros(5, 1, 1, 1), torch.tensor([3, 0, 1, 3, 2]))
    assert torch.equal(seen[0][1], z[range(5), [3, 0, 1, 3, 2]])


# ------------------------------------------------------------------------------------- a step by hand


class Scaled(nn.Module):
    """x_0 = w z, for images of one pixel."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, t, z):
        return self.weight * z[..., None, None]


class Weighed(nn.Module):
    """v x_s + u x_t; remembers what it was asked."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))
        self.asked = []

    def forward(self, x_s, x_t, time, y):
        self.asked.append((x_s.detach().flatten(), x_t.flatten(), time))
        return (self.weights[0] * x_s + self.weights[1] * x_t).flatten()


def by_hand(rec_weight=0.0, r1_gamma=0.0, interval=1, diffusion=None):
    judge = Weighed(0.7, -0.4)
    auxiliary = AuxiliaryNetwork(judge, torch.optim.SGD(judge.parameters(), lr=1.0))
    diffusion = diffusion or diffusion_of(FEW, ())
    return AdversarialObjective(diffusion, auxiliary, 1, rec_weight, r1_gamma, interval), judge


@pytest.mark.parametrize("r1_gamma, interval, at", [(0.0, 1, 0), (0.5, 1, 0), (0.5, 2, 0), (0.5, 2, 1)])
def test_a_training_step_by_hand(r1_gamma, interval, at):
    objective, judge = by_hand(0.3, r1_gamma, interval)
    objective.steps = at
    network, x = Scaled(0.8), torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    index, _, _ = objective.pairs(x)
    z = torch.randn(64, 1)
    drawn_noise = torch.randn(64)
    torch.manual_seed(0)
    loss = objective(network, x, {})
    loss.value.mean().backward()

    (x_s, x_t, time), (drawn, _, _), _ = judge.asked
    assert torch.equal(loss.t, index) and torch.equal(time, index) and set(index.tolist()) == {0, 1, 2, 3}
    a_t, a_s = torch.from_numpy(levels())[index], torch.from_numpy(np.append(1.0, levels()))[index]
    beta, x0 = 1 - a_t / a_s, 0.8 * z.double().flatten()
    of_x0 = a_s.sqrt() * beta / (1 - a_t)
    mean = of_x0 * x0 + (a_t / a_s).sqrt() * (1 - a_s) / (1 - a_t) * x_t
    expected = mean + ((1 - a_s) / (1 - a_t) * beta).sqrt() * drawn_noise
    torch.testing.assert_close(drawn.double(), expected, atol=1e-6, rtol=1e-5)

    v, u = torch.tensor([0.7, -0.4], dtype=torch.float64)
    real, fake = (v * states.double() + u * x_t.double() for states in (x_s, drawn))
    value = torch.log1p(torch.exp(-fake)) + 0.3 * (x0 - x.flatten().double()) ** 2
    torch.testing.assert_close(loss.value.double(), value, atol=1e-6, rtol=1e-5)
    slope = -torch.sigmoid(-fake) * v * of_x0 * z.flatten() + 0.6 * (x0 - x.flatten()) * z.flatten()
    assert network.weight.grad.item() == pytest.approx(slope.mean().item(), rel=1e-4)

    objective.stepped(network)
    pull = torch.stack([-torch.sigmoid(-real) * s + torch.sigmoid(fake) * d for s, d in ((x_s, drawn), (x_t, x_t))])
    pull = pull.mean(dim=1)
    pull[0] += r1_gamma * v if at % interval == 0 else 0.0
    torch.testing.assert_close(judge.weights.detach().double(), torch.tensor([v, u]).double() - pull, atol=1e-5, rtol=0)
    assert objective.steps == at + 1


def test_pairs_have_the_moments_of_the_process():
    objective, _ = by_hand()
    torch.manual_seed(0)
    index, x_s, x_t = objective.pairs(torch.full((40000, 1, 1, 1), 0.5))
    for i, a_t in enumerate(levels()):
        a_s = levels()[i - 1] if i else 1.0
        both = torch.stack([x_s[index == i].flatten(), x_t[index == i].flatten()]).double()
        np.testing.assert_allclose(both.mean(dim=1), 0.5 * np.sqrt([a_s, a_t]), atol=0.03)
        shared = math.sqrt(a_t / a_s) * (1 - a_s)
        np.testing.assert_allclose(torch.cov(both), [[1 - a_s, shared], [shared, 1 - a_t]], atol=0.03)


def test_input_perturbation_acts_between_the_states_of_a_pair():
    objective, _ = by_hand(diffusion=diffusion_of(FEW, [InputPerturbation(input_perturbation=2.0)]))
    torch.manual_seed(0)
    index, x_s, x_t = objective.pairs(torch.zeros(40000, 1, 1, 1))
    last = index == 3
    assert x_s[last].var().item() == pytest.approx(1 - levels()[2], abs=0.03)
    beta = 1 - levels()[3] / levels()[2]
    assert x_t[last].var().item() == pytest.approx(1 - levels()[3] + 4 * beta, rel=0.05)


def test_the_count_of_steps_decides_the_penalty_and_is_saved():
    objective, _ = by_hand(r1_gamma=0.5, interval=3)
    objective.stepped(None)
    objective.skipped()
    again, _ = by_hand(r1_gamma=0.5, interval=3)
    again.load_state_dict(objective.state_dict())
    assert again.steps == 2


# ------------------------------------------------------------------------------------------ networks


def tiny(**more):
    return UNetFlags(image_size=8, num_channels=32, num_res_blocks=1, channel_mult="1", **more)


def test_a_latent_moves_the_output_by_its_direction_alone():
    torch.manual_seed(0)
    network = tiny().create(False, functools.partial(LatentUNet, latent_dim=5))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t, z = torch.randn(2, 3, 8, 8), torch.tensor([0, 3]), torch.randn(2, 5)
    with torch.no_grad():
        said = network(x, t, z=z)
        torch.testing.assert_close(network(x, t, z=3 * z), said)
        assert (network(x, t, z=-z) - said).abs().amax() > 0.01
        torch.testing.assert_close(for_inference(network)(x, t, z=z), said, atol=1e-4, rtol=1e-4)
    assert type(for_inference(network).input_blocks[1][0]) is not type(network.input_blocks[1][0]), "it is not fast"
    assert network.takes == ("z",) and network.shape == (3, 8, 8)
    with pytest.raises(UserError, match="--latent_dim needs z"):
        network(x, t)
    found = NETWORKS["diffusion"].reveal(network.state_dict(), 8)
    assert found["latent_dim"] == 5 and found["num_channels"] == 32


def test_a_discriminator_knows_both_states_time_class_and_spread():
    torch.manual_seed(0)
    judge = Discriminator(3, [8, 16], num_classes=3)
    nn.init.normal_(judge.out.weight)
    x, y, time = torch.randn(2, 4, 3, 8, 8), torch.zeros(4, dtype=torch.long), torch.zeros(4)
    said = judge(*x, time, y)
    assert said.shape == (4,)
    others = [(x[0], -x[1], time, y), (-x[0], x[1], time, y), (*x, time + 3, y), (*x, time, y + 2), (*x, time, y - 1)]
    assert all((judge(*other) - said).abs().amax() > 1e-4 for other in others)
    alike = x[:, :1].expand(-1, 4, -1, -1, -1)
    assert (judge(*alike, time, y)[0] - said[0]).abs() > 1e-4, "it does not see that images are alike"
    assert judge(*x[:, :3], time[:3], y[:3]).shape == (3,)


# ------------------------------------------------------------------------------------------- scripts

RUN = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= --class_cond True "
    "--prediction x0 --sigma_small True --diffusion_steps 4 --noise_schedule vp --objective adversarial "
    "--latent_dim 5 --beta1 0.5 --beta2 0.9 --rec_weight 1 --r1_interval 2 --batch_size 4 --microbatch 3 --lr 1e-3 "
    "--num_workers 0 --log_interval 1"
).split()
SAMPLE = "--num_samples 5 --classes 0,1,2 --seed 1".split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    drawn = np.random.default_rng(0).integers(256, size=(13, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=drawn, arr_1=np.arange(13) % 3)
    return path


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    words = [*RUN, "--data_dir", images, "--out_dir", folder, "--iterations", 4, "--save_interval", 2]
    script_runs.run("image_train", *words, "--sample_interval", 4)
    return folder


def test_a_run_goes_on_bit_for_bit(images, trained, tmp_path):
    for path in trained.glob("*000002.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    words = ["--data_dir", images, "--out_dir", tmp_path, "--iterations", 4, "--resume_checkpoint", "auto"]
    said = script_runs.run("image_train", *words, "--num_workers", 0)
    assert "warning" not in said
    for path in trained.glob("*000004.pt"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    state = torch.load(tmp_path / "state000004.pt", weights_only=True)
    assert state["steps"] == 4 and "label_emb.weight" in state["discriminator"]["network"]
    assert json.loads((trained / "model000004.json").read_text())["latent_dim"] == 5
    assert (trained / "preview_000004.png").exists()


def test_samples_are_those_of_their_index(trained, tmp_path):
    arrays = []
    for size in (5, 2):
        words = ["--model_path", trained / "model000004.pt", *SAMPLE, "--batch_size", size]
        script_runs.run("image_sample", *words, "--out_dir", tmp_path / str(size))
        arrays.append(np.load(tmp_path / str(size) / "samples_5x8x8x3.npz")["arr_0"].astype(int))
    assert np.abs(arrays[0] - arrays[1]).max() <= 1 and arrays[0].std() > 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--solver", "dpmpp_2m"], ["--solver dpmpp_2m", "expected ddpm or ddim"]),
        (["--eps_scaler", 1.01], ["--eps_scaler", "--latent_dim"]),
        (["--do_time_shift", True, "--cutoff", 0], ["--do_time_shift", "--latent_dim"]),
        (["--latent_dim", 7], ["--latent_dim is 7, the checkpoint has 5"]),
    ],
)
def test_sampling_refuses_what_has_no_meaning(trained, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit):
        words_of_run = ["--model_path", trained / "model000004.pt", *SAMPLE, "--out_dir", tmp_path]
        script_runs.run("image_sample", *words_of_run, *flags)
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said, said


@pytest.mark.parametrize(
    "script, flags", [("convert", ["--to", "diffusers"]), ("image_nll", ["--data_dir", "{images}", "--num_samples", 1])]
)
def test_scripts_that_cannot_tell_a_network_of_z_say_so(images, trained, tmp_path, capsys, script, flags):
    model = trained / "model000004.pt"
    with pytest.raises(SystemExit):
        words = [str(word).format(images=images) for word in flags]
        script_runs.run(script, "--model_path", model, *words, "--out_dir", tmp_path)
    assert f"--model_path {model} was trained with --latent_dim 5, which this script" in capsys.readouterr().err


def test_a_number_of_steps_that_was_not_trained_is_warned_of(trained, tmp_path):
    words = ["--model_path", trained / "model000004.pt", *SAMPLE, "--out_dir", tmp_path, "--timestep_respacing", 2]
    assert "2 steps are not the 4 that the network was trained to take" in script_runs.run("image_sample", *words)


@pytest.mark.parametrize(
    "script, flags, sentence",
    [
        ("image_train", ["--prediction", "eps"], "expected --prediction x0"),
        (
            "image_train",
            ["--discriminator_channels", 1, "--channel_mult", "0.5", "--num_channels", 64],
            "--discriminator_channels 1 leaves a level without channels",
        ),
        ("image_train", ["--sigma_small", False], "expected --sigma_small True"),
        ("image_train", ["--objective", "diffusion"], "--latent_dim needs z"),
        ("super_res_train", ["--large_size", 8, "--small_size", 4], "expected scripts/image_train.py"),
        ("inpaint_train", ["--class_cond", False], "no filled holes to judge; expected scripts/image_train.py"),
    ],
)
def test_training_refuses_what_has_no_meaning(images, tmp_path, capsys, script, flags, sentence):
    words = RUN[2:] if script == "super_res_train" else RUN
    with pytest.raises(SystemExit):
        script_runs.run(script, *words, "--data_dir", images, "--out_dir", tmp_path, "--iterations", 1, *flags)
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said, said


@pytest.mark.parametrize(
    "flags, shares",
    [
        ([], [1, 1, 1, 1]),
        (["--lr_anneal_steps", 4], [1, 3 / 4, 2 / 4, 1 / 4]),
        (["--lr_warmup_steps", 3], [1 / 3, 2 / 3, 1, 1]),
    ],
)
def test_the_learning_rates_of_both_rise_and_fall_together(images, tmp_path, flags, shares):
    """Also where a run is gone on with, in which the files say the rate of the last step."""
    words = ["--data_dir", images, "--out_dir", tmp_path, *RUN, "--discriminator_lr", 0.004, "--save_interval", 1]
    for end in (2, 4):
        script_runs.run("image_train", *words, *flags, "--iterations", end, "--resume_checkpoint", "auto")
    for step, share in enumerate(shares, 1):
        own = torch.load(tmp_path / f"opt{step:06d}.pt", weights_only=True)
        theirs = torch.load(tmp_path / f"state{step:06d}.pt", weights_only=True)["discriminator"]["optimizer"]
        found = [state["param_groups"][0]["lr"] for state in (own, theirs)]
        assert found == pytest.approx([1e-3 * share, 0.004 * share])


def test_the_generator_may_compute_in_half_precision(images, tmp_path):
    words = ["--data_dir", images, "--out_dir", tmp_path, "--iterations", 2, "--use_bf16", True]
    script_runs.run("image_train", *RUN, *words)
    state = torch.load(tmp_path / "state000002.pt", weights_only=True)
    values = state["discriminator"]["network"].values()
    assert all(value.dtype is torch.float32 and value.isfinite().all() for value in values)


@pytest.mark.slow
@pytest.mark.parametrize("half", ["--use_bf16", "--use_fp16"])
def test_half_precision_goes_on_bit_for_bit(half, images, tmp_path):
    words = [*RUN, "--data_dir", images, half, True]
    whole = script_runs.trained("image_train", tmp_path / "whole", *words, ends=[2])
    assert script_runs.trained("image_train", tmp_path / "part", *words, ends=[1, 2]) == whole != {}


@needs_mpirun
def test_two_ranks_go_on_bit_for_bit(images, tmp_path):
    """Trained at once, and from step 2 on; then sampled."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train = ["image_train", "--data_dir", str(images), *RUN, "--save_interval", "2"]
    commands = [
        [*train, "--out_dir", str(whole), "--iterations", "4"],
        [*train, "--out_dir", str(parted), "--iterations", "2"],
        [*train, "--out_dir", str(parted), "--iterations", "4", "--resume_checkpoint", "auto"],
        ["image_sample", "--model_path", str(whole / "model000004.pt"), *SAMPLE, "--out_dir", str(tmp_path / "two")],
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    ran = mpirun(2, "script_list.py", tmp_path / "commands.json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for path in whole.glob("*000004.pt"):
        assert (parted / path.name).read_bytes() == path.read_bytes(), path.name
    script_runs.run("image_sample", "--model_path", whole / "model000004.pt", *SAMPLE, "--out_dir", tmp_path / "one")
    one, two = (np.load(tmp_path / name / "samples_5x8x8x3.npz")["arr_0"].astype(int) for name in ("one", "two"))
    assert np.abs(one - two).max() <= 1


def test_the_conditioning_draws_each_images_latents():
    from guided_diffusion.conditioning.latent import Latents

    told = Latents(4, 5).of_indices(IndexedNoise(3, [7, 9]), [7, 9])["z"]
    assert torch.equal(told[1:], Latents(4, 5).of_indices(IndexedNoise(3, [9]), [9])["z"]) and told.shape == (2, 4, 5)
    assert methods.at_defaults({"latent_dim": 5})[0] == Latent(latent_dim=5) and of_values({"latent_dim": 5})


@pytest.mark.parametrize("cond", [{}, {"y": torch.zeros(2, dtype=torch.long)}])
def test_whoever_has_no_latents_is_told_so(cond):
    process = process_of(
        "ddpm", diffusion={"diffusion_steps": 4, "noise_schedule": "cosine"}, methods={"latent_dim": 3}
    )
    with pytest.raises(UserError, match="--latent_dim 3: the network needs a random vector z for each image"):
        process.denoiser(lambda x, t, **told: x, cond)
    with pytest.raises(UserError, match="--latent_dim draws a vector"):
        Latents(4, 3).of_indices(None, range(2))
