"""Consistency distillation and its rewards: closed forms, a loss by hand, the scripts, and what they refuse."""

import json

import numpy as np
import pytest
import script_runs
import torch
from processes import ROOT, mpirun, needs_mpirun
from refusals import one_sentence
from scipy.special import log_softmax
from tiny_loop import weights

from guided_diffusion import checkpoints
from guided_diffusion.denoiser import Prediction
from guided_diffusion.objectives import AuxiliaryNetwork
from guided_diffusion.objectives import consistency_distillation as paper
from guided_diffusion.objectives.teacher import Teacher
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.rewards import ProxyReward, Reward
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.solvers import Consistency
from guided_diffusion.spacing import uniform


def steps(count):
    return UniformSampler(type("Steps", (), {"num_timesteps": count}))


# ------------------------------------------------------------------------------------- a Gaussian teacher

MEAN, VARIANCE = 0.1, 0.09


class Exact(torch.nn.Module):
    """The noise in x_t of data N(MEAN, VARIANCE)."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t):
        level = self.schedule.alpha_bar(t).float()[:, None, None, None]
        return (1 - level).sqrt() * (x - level.sqrt() * MEAN) / (level * VARIANCE + 1 - level)


class Table(torch.nn.Module):
    """A gain and an offset of its own at each timestep: any affine map to an image."""

    def __init__(self, schedule):
        super().__init__()
        level = schedule.alpha_bar(torch.arange(schedule.num_timesteps)).float()
        gain = level.sqrt() * VARIANCE / (level * VARIANCE + 1 - level)  # the mean of x0 given x_t
        self.rows = torch.nn.Parameter(torch.stack([gain, MEAN - gain * level.sqrt() * MEAN], dim=1))

    def forward(self, x, t):
        gain, offset = self.rows[t].unbind(dim=1)
        return gain[:, None, None, None] * x + offset[:, None, None, None]


def test_the_student_of_a_gaussian_learns_the_map_to_the_data():
    """Its gain within 5 % of that of the probability flow ODE, its offset within 5 % of the data's deviation."""
    flags = DiffusionFlags(noise_schedule="cosine", diffusion_steps=60)
    schedule = diffusion_of(flags).schedule
    diffusion = diffusion_of(DiffusionFlags(noise_schedule="cosine", diffusion_steps=60, prediction="x0"))
    teacher = Teacher(Exact(schedule), flags.create())
    objective = paper.ConsistencyDistillation(diffusion, steps(60), teacher, 60, ema=0.0, huber_c=1.0)
    student = Table(schedule)
    objective.begin(student)
    np.random.seed(0)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    count = 2000
    for step in range(count):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / count)
        x = MEAN + VARIANCE**0.5 * torch.randn(600, 1, 1, 1)
        objective(student, x, {}).value.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.stepped(student)
    t = torch.tensor(objective.timesteps)
    gain, offset = student.rows.detach()[t].unbind(dim=1)
    level = schedule.alpha_bar(t).float()
    exact = (VARIANCE / (level * VARIANCE + 1 - level)).sqrt()
    assert torch.allclose(gain, exact, rtol=0.05, atol=0)
    assert torch.allclose(offset, MEAN * (1 - exact * level.sqrt()), rtol=0, atol=0.05 * VARIANCE**0.5)


# ------------------------------------------------------------------------------------ a loss, by hand


class Scaled(torch.nn.Module):
    """A network whose image is a number times its input."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, t):
        return self.factor * x


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("perturbed", [False, True])
def test_its_loss_and_gradient_are_those_computed_by_hand(scale, perturbed):
    flags = DiffusionFlags(noise_schedule="cosine", diffusion_steps=100, prediction="x0")
    diffusion = diffusion_of(flags)
    if perturbed:
        diffusion.process.corruption = lambda noise, t: (2 * noise, t)
    reward = Reward(lambda images, cond: (3 * images).mean(dim=(1, 2, 3)))
    teacher, student = Teacher(Scaled(0.8), flags.create()), Scaled(0.3)
    objective = paper.ConsistencyDistillation(diffusion, steps(2), teacher, 2, 0.9, 0.01, reward, scale)
    objective.begin(student)
    with torch.no_grad():
        student.factor += 0.1
    objective.stepped(student)  # the target's factor is 0.9 * 0.3 + 0.1 * 0.4
    x = torch.full((64, 1, 1, 1), 0.25)
    np.random.seed(0)
    torch.manual_seed(0)
    found = objective(student, x, {})
    found.value.mean().backward()

    torch.manual_seed(0)
    eps = torch.randn_like(x).double().numpy()[:, 0, 0, 0]
    expected, slopes = [], []
    assert {*found.t.tolist()} == {49, 99} == {*objective.timesteps}
    for time, noise in zip(found.t.tolist(), eps):
        a, b = (float(diffusion.schedule.alpha_bar(torch.tensor(node))) for node in (time, time - 50))
        x_t = np.sqrt(a) * 0.25 + np.sqrt(1 - a) * noise
        x0 = np.clip(0.8 * x_t, -1, 1)
        arrived = np.sqrt(b) * x0 + np.sqrt(1 - b) * (x_t - np.sqrt(a) * x0) / np.sqrt(1 - a)
        target = 0.31 * arrived if time == 99 else arrived
        seen = np.sqrt(a) * 0.25 + np.sqrt(1 - a) * noise * (2 if perturbed else 1)
        image = 0.4 * seen
        far = np.sqrt((image - target) ** 2 + 1e-4)
        expected.append(far - 0.01 - scale * 3 * np.clip(image, -1, 1))
        slopes.append(seen * ((image - target) / far - scale * 3 * (abs(image) < 1)))
    assert np.allclose(found.value.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert student.factor.grad.item() == pytest.approx(np.mean(slopes), rel=1e-4)
    assert objective.target.network.factor.item() == pytest.approx(0.31)
    assert objective.target.network.factor.grad is teacher.network.factor.grad is None


def test_a_proxy_learns_the_preferences_of_its_expert():
    proxy, expert = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = np.zeros(5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        said, wanted = (log_softmax(rewards[[i, j]], axis=0) for rewards in (proxy, expert))
        expected += (np.exp(wanted) * (wanted - said)).sum(axis=0)
    found = paper.preferences(torch.from_numpy(proxy).unbind(), torch.from_numpy(expert).unbind())
    assert np.allclose(found.numpy(), expected)


def test_an_expert_without_a_gradient_rewards_by_its_proxy_alone():
    """Brightness in whole numbers: the proxy comes to prefer brighter images, and the student is drawn to them."""
    flags = DiffusionFlags(noise_schedule="cosine", diffusion_steps=100, prediction="x0")
    expert = Reward(lambda images, cond: (8 * images.mean(dim=(1, 2, 3))).long().float())
    torch.manual_seed(0)
    network = ProxyReward(1)
    proxy = AuxiliaryNetwork(network, torch.optim.Adam(network.parameters(), 0.01))
    arguments = diffusion_of(flags), steps(4), Teacher(Scaled(0.8), flags.create()), 4
    objective = paper.ConsistencyDistillation(*arguments, reward=expert, proxy=proxy)
    student = Scaled(0.3)
    objective.begin(student)
    for _ in range(60):
        x = torch.rand(32, 1, 1, 1).expand(-1, 1, 8, 8) * 2 - 1
        loss = objective(student, x, {})
        loss.value.mean().backward()
        objective.stepped(student)
    dark, bright = proxy(torch.stack([torch.full((1, 8, 8), -0.5), torch.full((1, 8, 8), 0.5)]))
    assert bright - dark > 1
    assert student.factor.grad is not None and loss.terms.keys() == {"loss", "consistency", "reward", "proxy"}
    direct = paper.ConsistencyDistillation(*arguments, reward=expert)
    direct.begin(student)
    one_sentence(lambda: direct(student, x, {}), "has no gradient", "--reward_proxy True")


@pytest.mark.parametrize("classes", [0, 3])
def test_a_proxy_has_no_high_frequencies_to_please(classes):
    """Its gradient is the same at all four pixels of a square."""
    torch.manual_seed(0)
    proxy, images = ProxyReward(3, classes), torch.randn(5, 3, 16, 16, requires_grad=True)
    y = {"y": torch.tensor([0, 1, 2, -1, 0])} if classes else {}
    rewards = proxy(images, **y)
    assert rewards.shape == (5,)
    (gradient,) = torch.autograd.grad(rewards.sum(), images)
    squares = gradient.reshape(5, 3, 8, 2, 8, 2)
    assert torch.equal(squares, squares[:, :, :, :1, :, :1].expand_as(squares)) and gradient.abs().max() > 0


# ---------------------------------------------------------------------------------------- the solver


@pytest.mark.parametrize("same", [True, False])
def test_a_step_is_a_jump_and_noise_anew(same):
    process = DiffusionFlags().create()
    solver, x = Consistency(process.schedule), torch.randn(3, 2, 4, 4)
    jump = torch.randn_like(x)
    t, s = torch.full((3,), 900), torch.full((3,), 400) if same else torch.tensor([400, 20, -1])
    z = torch.randn_like(x)
    made = solver(lambda x, t: Prediction.from_x0(x, process.schedule.alpha_bar(t), jump), x, t, s, None, lambda x: z).x
    level = process.schedule.alpha_bar(s).float()[:, None, None, None]
    assert torch.allclose(made, level.sqrt() * jump + (1 - level).sqrt() * z, atol=1e-6)
    if not same:
        assert torch.equal(made[2], jump[2])


# ---------------------------------------------------------------------------------------- the scripts

NETWORK = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions=".split()
CLASSES = ["--class_cond", True, "--num_classes", 3]
CLASSIFIER = (
    "--image_size 8 --num_classes 3 --classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1 "
    "--classifier_attention_resolutions= --classifier_num_head_channels 32 --classifier_pool spatial"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("consistent")


@pytest.fixture(scope="module")
def data(place):
    return script_runs.draw_images(place / "data", 4, 8)


@pytest.fixture(scope="module")
def teacher(place, data):
    return script_runs.train("image_train", data, place / "teacher", *NETWORK, *CLASSES, "--learn_sigma", True)


@pytest.fixture(scope="module")
def classifier(place, data):
    return script_runs.train("classifier_train", data, place / "classifier", *CLASSIFIER)


@pytest.fixture
def words(data, teacher, classifier):
    def words(folder, *flags):
        common = ["--data_dir", data, "--teacher", teacher, "--init_from", teacher, "--out_dir", folder, "--lr", 0.01]
        common += ["--objective", "consistency_distillation", "--consistency_steps", 10, "--prediction", "v"]
        common += "--batch_size 2 --save_interval 1 --log_interval 1 --num_workers 0 --ema_rate 0.5".split()
        common += ["--resume_checkpoint", "auto"]
        rewarded = ["--reward", f"classifier:{classifier}", "--reward_proxy", True, "--class_dropout", 0.5]
        return [*common, *rewarded, *flags]

    return words


def test_a_run_goes_on_bit_for_bit_and_its_target_follows(words, teacher, place):
    script_runs.run("image_train", *words(place / "whole", "--iterations", 2))
    script_runs.run("image_train", *words(place / "part", "--iterations", 1))
    said = script_runs.run("image_train", *words(place / "part", "--iterations", 2))
    assert (
        "afresh" not in said and script_runs.tensors(place / "part", 2) == script_runs.tensors(place / "whole", 2) != {}
    )
    start, first = weights(teacher), weights(place / "part" / "model000001.pt")
    state = weights(place / "part" / "state000001.pt")
    for name, value in state["target"]["network"].items():
        assert torch.allclose(value, 0.95 * start[name] + 0.05 * first[name], atol=1e-6), name
    assert state["proxy"]["optimizer"]["state"][0]["step"] == 1

    student = place / "whole" / "model000002.pt"
    sample = ["--model_path", student, "--num_samples", 2, "--out_dir"]
    said = script_runs.run("image_sample", *sample, place / "samples")
    assert "to jump to the data" not in said
    assert "was trained to jump to the data, as --solver consistency does, and this is ddim" in script_runs.run(
        "image_sample", *sample, place / "by_ddim", "--solver", "ddim"
    )
    assert "is not known to be trained to jump" in script_runs.run(
        "image_sample", "--model_path", teacher, *sample[2:], place / "no_student", "--solver", "consistency"
    )
    assert "sampled by --solver consistency --spacing uniform --timestep_respacing 5" in said
    assert json.loads((place / "samples" / "grid.json").read_text()) == [99, 79, 59, 39, 19, -1]


@pytest.mark.slow
@pytest.mark.parametrize("half", ["--use_bf16", "--use_fp16"])
def test_half_precision_goes_on_bit_for_bit(half, words, place):
    for name, iterations in (("whole", 2), ("part", 1), ("part", 2)):
        script_runs.run("image_train", *words(place / f"{name}{half}", "--iterations", iterations, half, True))
    assert script_runs.tensors(place / f"part{half}", 2) == script_runs.tensors(place / f"whole{half}", 2) != {}


@pytest.mark.parametrize("steps, count", [(50, 5), (64, 4), (10, 5), (9, 3), (7, 1), (2, 2), (1000, 4)])
def test_it_is_sampled_in_steps_that_it_was_trained_at(steps, count):
    diffusion = diffusion_of(DiffusionFlags(prediction="v"))
    made = paper.ConsistencyDistillation(diffusion, UniformSampler(diffusion), None, steps)
    assert made.sampled_by["timestep_respacing"] == str(count)
    assert set(uniform(diffusion.schedule, count)) <= set(made.timesteps)


def test_a_teacher_that_was_never_asked_without_a_class_is_said(words, teacher, place):
    said = script_runs.run("image_train", *words(place / "dropped", "--iterations", 1, "--class_dropout", 0.5))
    assert f"asks --teacher {teacher} without classes" in said and "trained without --class_dropout" in said


@needs_mpirun
@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(words, place):
    runs = [("ranks", 2), ("ranks_part", 1), ("ranks_part", 2)]
    commands = [["image_train", *words(place / folder, "--iterations", count)] for folder, count in runs]
    (place / "commands.json").write_text(json.dumps([list(map(str, command)) for command in commands]))
    done = mpirun(2, "script_list.py", place / "commands.json")
    assert done.returncode == 0, done.stderr
    assert script_runs.tensors(place / "ranks", 2) == script_runs.tensors(place / "ranks_part", 2) != {}


# --------------------------------------------------------------------------------- rewards, and bad input


def test_the_reward_of_a_classifier_is_the_log_probability_of_the_class():
    path = ROOT / "models" / "digits16_classifier.pt"
    network, _, _ = checkpoints.open_network(path)
    images, y = torch.rand(4, 1, 16, 16) * 2 - 1, torch.tensor([3, 1, 9, -1])
    values = Values(image_size=16, image_channels=1, num_classes=10)
    found = paper.RewardFlags(f"classifier:{path}").create(values)(images, {"y": y})
    logits = network(images, torch.zeros(4)).detach().numpy()
    expected = log_softmax(logits, axis=1)[range(4), y.numpy()] * (y.numpy() >= 0)
    assert np.allclose(found.detach().numpy(), expected, atol=1e-4)


def test_a_reward_knows_the_size_of_an_upsampler():
    """Whose flags have no --image_size."""
    reward = f"classifier:{ROOT / 'models' / 'digits16_classifier.pt'}"
    sizes = {"image_channels": 1, "num_classes": 10}
    assert paper.RewardFlags(reward).create(Values(large_size=16, **sizes)) is not None
    one_sentence(
        lambda: paper.RewardFlags(reward).create(Values(large_size=32, **sizes)), "has --image_size 16; expected 32"
    )


class Values(dict):
    """The flags of a training, as far as a reward asks for them."""

    def values(self):
        return {"class_cond": True, "image_channels": 3, **self}


def brightness(images, cond):
    """A reward, for --reward python:..."""
    return images.mean(dim=(1, 2, 3))


def per_pixel(images, cond):
    """None: it does not give one number for an image."""
    return images.mean(dim=1)


def test_code_may_be_a_reward(tmp_path):
    board = 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2) - 1.0
    ramp = torch.arange(8).expand(8, 8) / 8
    images = torch.stack([board, torch.full((8, 8), 0.5), board / 2, ramp])[:, None].repeat(1, 3, 1, 1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1), torch.nn.Flatten(0))
    with pytest.warns(DeprecationWarning):
        torch.jit.trace(network, images).save(str(tmp_path / "reward.pt"))
    for name, expected in (
        (f"torchscript:{tmp_path / 'reward.pt'}", network(images)),
        (f"python:{__name__}.brightness", images.mean(dim=(1, 2, 3))),
        ("python:guided_diffusion.rewards.sharpness", torch.tensor([2.0, 0.0, 1.0, 0.0])),
    ):
        found = paper.RewardFlags(name, trust_reward=True).create(Values())(images, {})
        assert torch.allclose(found, expected, atol=1e-6)


def failing(images, cond):
    """None: it ends in an error of its own."""
    return images + cond["y"]


def endless(images, cond):
    """None: it is not finite for any image."""
    return images.mean(dim=(1, 2, 3)) / 0


@pytest.mark.parametrize(
    "name, words",
    [
        ("failing", ["failing fails with KeyError at ", "test_consistency_distillation.py:", "('y')"]),
        ("endless", ["endless gives numbers that are not finite; expected finite ones"]),
    ],
)
def test_a_reward_that_fails_is_named(name, words):
    reward = paper.RewardFlags(f"python:{__name__}.{name}", trust_reward=True).create(Values())
    one_sentence(lambda: reward(torch.ones(4, 3, 8, 8), {}), "--reward python:", *words)


def test_images_that_are_not_finite_are_no_fault_of_the_reward():
    reward = paper.RewardFlags(f"python:{__name__}.brightness", trust_reward=True).create(Values())
    assert reward(torch.full((2, 3, 8, 8), torch.nan), {}).isnan().all()


def test_code_that_cannot_be_read_is_no_reward(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, line in (("unreadable", "def f(:"), ("nameless", "x = y")):
        (tmp_path / f"{name}_reward.py").write_text(line + "\n")
        flags = paper.RewardFlags(f"python:{name}_reward.f", trust_reward=True)
        one_sentence(lambda flags=flags: flags.create(Values()), f"python:{name}_reward.f cannot be imported", "Error")


def test_an_inpainting_network_has_no_classes_to_reward():
    flags = paper.RewardFlags(f"classifier:{ROOT / 'models' / 'digits16_classifier.pt'}")
    one_sentence(lambda: flags.create(Values(reference_cond=True)), "which no inpainting network is told")


def test_a_reward_of_another_shape_is_refused():
    reward = paper.RewardFlags(f"python:{__name__}.per_pixel", trust_reward=True).create(Values())
    one_sentence(lambda: reward(torch.zeros(4, 3, 8, 8), {}), "per_pixel", "(4, 8, 8)", "4 images", "[N]")
    one_sentence(lambda: Reward(lambda images, cond: 1.0)(torch.zeros(4, 3, 8, 8), {}), "float", "4 images")


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--teacher", ""], "--teacher is not given"),
        (["--consistency_steps", 101], "--consistency_steps 101 is above the 100 timesteps there are"),
        (["--prediction", "eps"], "expected --prediction v or x0"),
        (["--reward", ""], "--reward_proxy True has no --reward to learn"),
        (["--reward_scale", 0], "or no --reward_scale; expected both"),
        (
            ["--reward_proxy", False, "--reward", "", "--reward_scale", 1],
            "--reward_scale 1 does nothing without --reward",
        ),
        (["--timestep_respacing", 10], "--timestep_respacing 10 does nothing beside the steps of --objective"),
        (["--reward", "beauty"], "--reward is 'beauty'; expected classifier:PATH, torchscript:PATH"),
        (["--reward", "classifier:nowhere.pt"], "nowhere.pt"),
        (["--reward", f"classifier:{ROOT / 'models' / 'digits16_classifier.pt'}"], "has --image_size 16; expected 8"),
        (["--reward", "torchscript:x.pt"], "is code that would run here; expected --trust_reward True"),
        (["--reward", "torchscript:x.pt", "--trust_reward", True], "torchscript:x.pt: there is no file x.pt"),
        (["--reward", "python:no.such", "--trust_reward", True], "--reward python:no.such cannot be imported"),
        (
            ["--reward", "python:guided_diffusion.rewards", "--trust_reward", True],
            "python:guided_diffusion.rewards is a module; expected a function",
        ),
        (["--consistency_ema", 1], "--consistency_ema is 1.0; expected at least 0 and below 1"),
        (["--reward_proxy", False, "--reward_proxy_lr", 1], "--reward_proxy_lr does nothing without --reward_proxy"),
    ],
)
def test_what_cannot_be_is_named(flags, sentence, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script_runs.run("image_train", *words(tmp_path, "--iterations", 1, *flags))
    *_, said = capsys.readouterr().err.splitlines()
    assert sentence in said
