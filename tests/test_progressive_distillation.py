"""Progressive distillation: closed forms, a loss by hand, rounds through the script, and what it refuses."""

import json
import shutil

import gaussians
import numpy as np
import pytest
import script_runs
import torch
from processes import ROOT, mpirun, needs_mpirun
from refusals import one_sentence
from tiny_loop import weights

import guided_diffusion as gd
from guided_diffusion import checkpoints
from guided_diffusion.adapters import PIXELS
from guided_diffusion.denoiser import Prediction
from guided_diffusion.errors import UserError
from guided_diffusion.objectives import progressive_distillation as paper
from guided_diffusion.objectives.teacher import Teacher
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.schedule import NoiseSchedule
from guided_diffusion.script_util import diffusion_of
from guided_diffusion.solvers import DDIM
from guided_diffusion.spacing import spaced
from guided_diffusion.training.rounds import RoundFlags

SCHEDULES = {
    "linear": DiffusionFlags(noise_schedule="linear"),
    "cosine": DiffusionFlags(noise_schedule="cosine"),
    "cosine_to_noise": DiffusionFlags(noise_schedule="cosine", rescale_zero_terminal_snr=True, prediction="v"),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return NoiseSchedule(SCHEDULES[request.param].betas)


# ---------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("t, middle, s", [(999, 749, 499), (499, 249, -1), (1, 0, -1), (999, 0, -1), (612, 611, 610)])
def test_one_step_of_the_target_is_two_of_the_teacher(schedule, t, middle, s):
    """For any teacher, here one that answers noise, and the house's own solver."""
    generator = torch.Generator().manual_seed(0)
    x_t, *answers = (torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    told, times = iter(answers), [torch.full((3,), time) for time in (t, middle, s)]
    z = paper.two_steps(lambda x, t: Prediction.from_x0(x, schedule.alpha_bar(t), next(told)), schedule, x_t, *times)
    target = paper.implied(x_t, z, schedule.alpha_bar(times[0]), schedule.alpha_bar(times[2]))

    def student(x, t):
        return Prediction.from_x0(x, schedule.alpha_bar(t), target)

    went = DDIM(schedule)(student, x_t, times[0], times[2], None, torch.randn_like).x
    assert torch.allclose(went, z, rtol=0, atol=1e-6)
    if s == -1:
        assert torch.equal(target, z)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_students_of_a_gaussian_keep_the_gain_of_its_first_teacher(name):
    """8 -> 4 -> 2 -> 1: exact students of exact students still make DDIM's eight steps, whose gain is known."""
    schedule = NoiseSchedule(SCHEDULES[name].betas)
    grid, predict = spaced("uniform", schedule, "8"), gaussians.denoiser(schedule)
    whole = gaussians.ddim_gain(schedule.alpha_bar(torch.tensor([*reversed(grid), -1])).numpy())
    for steps in (4, 2, 1):
        assert paper.grid_of(schedule, steps) == grid
        predict, grid = _student(predict, schedule, grid), grid[1::2]
    x = gaussians.zeros_then_ones()
    last = torch.full((2,), grid[-1])
    gain, _ = gaussians.affine(predict(x, last).x0)
    assert np.allclose(gain, whole, rtol=1e-9)


def _student(predict, schedule, grid):
    """The denoiser that the loss of a teacher `predict` on its grid has as its minimiser."""
    nodes = [-1, *grid]

    def student(x, t):
        place = nodes.index(int(t[0]))
        times = [torch.full_like(t, node) for node in reversed(nodes[place - 2 : place + 1])]
        z = paper.two_steps(predict, schedule, x, *times)
        levels = schedule.alpha_bar(times[0]), schedule.alpha_bar(times[2])
        return Prediction.from_x0(x, levels[0], paper.implied(x, z, *levels))

    return student


@pytest.mark.parametrize("total, steps", [(1000, 8), (1000, 64), (1000, 500), (100, 3), (7, 3), (2, 1)])
def test_the_grid_of_a_student_is_every_second_of_its_teachers(total, steps):
    schedule = NoiseSchedule(DiffusionFlags(noise_schedule="cosine", diffusion_steps=total).betas)
    grid = paper.grid_of(schedule, steps)
    assert len(grid) == 2 * steps and grid[-1] == total - 1
    if total % (2 * steps) == 0 or steps < total // 8:
        assert grid[1::2] == spaced("uniform", schedule, str(steps))


# ------------------------------------------------------------------------------------ a loss, by hand


class Scaled(torch.nn.Module):
    """A network whose velocity is a number times its input."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, t):
        return self.factor * x


@pytest.mark.parametrize("perturbed", [False, True])
@pytest.mark.parametrize("weight, loss", [("truncated", "l2"), ("plus_one", "l2"), ("none", "l1")])
def test_its_loss_and_gradient_are_those_computed_by_hand(weight, loss, perturbed):
    flags = DiffusionFlags(noise_schedule="cosine", diffusion_steps=100, prediction="v")
    diffusion = diffusion_of(flags)
    if perturbed:
        diffusion.process.corruption = lambda noise, t: (2 * noise, t)
    teacher = Teacher(Scaled(-0.2), flags.create())
    sampler = UniformSampler(type("Steps", (), {"num_timesteps": 2}))
    objective = paper.ProgressiveDistillation(diffusion, sampler, teacher, 2, weight, loss)
    student, x = Scaled(0.3), torch.full((64, 1, 1, 1), 0.25)
    np.random.seed(0)
    torch.manual_seed(0)
    found = objective(student, x, {})
    found.value.mean().backward()

    torch.manual_seed(0)
    eps = torch.randn_like(x).double().numpy()[:, 0, 0, 0]
    t = found.t.numpy()
    assert {*t} == {49, 99} == {*objective.timesteps}
    level = {node: float(diffusion.schedule.alpha_bar(torch.tensor(node))) for node in (-1, 24, 49, 74, 99)}
    expected, slopes = [], []
    for time, noise in zip(t, eps):
        a, b = np.sqrt(level[time]), np.sqrt(1 - level[time])
        z = x_t = a * 0.25 + b * noise
        for start, end in ((time, time - 25), (time - 25, time - 50)):
            signal, spread = np.sqrt(level[start]), np.sqrt(1 - level[start])
            x0 = np.clip(signal * z + spread * 0.2 * z, -1, 1)
            z = np.sqrt(level[end]) * x0 + np.sqrt(1 - level[end]) * (z - signal * x0) / spread
        c, d = np.sqrt(level[end]), np.sqrt(1 - level[end])
        target = (z - d / b * x_t) / (c - d / b * a)
        seen = a * 0.25 + b * noise * (2 if perturbed else 1)
        error, slope = a * seen - b * 0.3 * seen - target, -b * seen
        snr = (a / b) ** 2
        scale = {"truncated": max(snr, 1), "plus_one": snr + 1, "none": 1}[weight]
        expected.append(scale * (error**2 if loss == "l2" else abs(error)))
        slopes.append(scale * (2 * error if loss == "l2" else np.sign(error)) * slope)
    assert np.allclose(found.value.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert student.factor.grad.item() == pytest.approx(np.mean(slopes), rel=1e-4)
    assert teacher.network.factor.grad is None


# ----------------------------------------------------------------------------------------- the script

NETWORK = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions=".split()
CLASSES = ["--class_cond", True, "--num_classes", 3]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("distilled")


@pytest.fixture(scope="module")
def data(place):
    return script_runs.draw_images(place / "data", 4, 8)


@pytest.fixture(scope="module")
def teacher(place, data):
    """It predicts eps, and learns its variance."""
    flags = [*NETWORK, *CLASSES, "--learn_sigma", True]
    return script_runs.train("image_train", data, place / "teacher", *flags)


def words(data, teacher, folder, *flags):
    common = ["--data_dir", data, "--teacher", teacher, "--out_dir", folder, "--start_steps", 4, "--end_steps", 1]
    common += "--batch_size 2 --iterations 2 --save_interval 1 --log_interval 1 --num_workers 0 --ema_rate 0.5".split()
    return [*common, "--lr", 0.01, "--sample_interval", 2, *flags]


@pytest.fixture(scope="module")
def distilled(place, data, teacher):
    said = script_runs.run("image_distill", *words(data, teacher, place / "whole"))
    assert "a student of 2 steps, by" in said and "a student of 1 steps, by" in said
    return place / "whole"


def tensors_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*000002.pt")}


def test_each_round_learns_from_the_average_of_the_one_before(distilled, teacher):
    first, second = (distilled / f"000{steps}_steps" for steps in (2, 1))
    for folder, source in ((first, teacher), (second, first / "ema_0.5_000002.pt")):
        kept = weights(folder / "state000002.pt")["teacher"]["network"]
        assert all(torch.equal(kept[name], value) for name, value in weights(source).items())
        assert (folder / "preview_000002.png").exists()
    assert not torch.equal(weights(second / "model000002.pt")["out.2.weight"], kept["out.2.weight"])


def test_a_stopped_run_goes_on_bit_for_bit(distilled, data, teacher, place, capsys):
    part = place / "part" / "0002_steps"
    part.mkdir(parents=True)
    for path in (distilled / "0002_steps").glob("*000001.*"):
        (part / path.name).write_bytes(path.read_bytes())
    said = script_runs.run("image_distill", *words(data, teacher, place / "part"))
    assert "other weights" not in said
    for name in ("0002_steps", "0001_steps"):
        assert tensors_of(place / "part" / name) == tensors_of(distilled / name) != {}
    assert "is at step 2" in script_runs.run("image_distill", *words(data, teacher, place / "part"))
    with pytest.raises(SystemExit):
        script_runs.run("image_distill", *words(data, place / "mistyped.pt", place / "part"))
    assert "mistyped.pt does not exist" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("half", ["--use_bf16", "--use_fp16"])
def test_half_precision_goes_on_bit_for_bit(half, data, teacher, place):
    whole, part = place / f"whole{half}", place / f"part{half}"
    for folder, iterations in ((whole, 2), (part, 1), (part, 2)):
        flags = ["--end_steps", 2, "--iterations", iterations, half, True]
        script_runs.run("image_distill", *words(data, teacher, folder, *flags))
    assert tensors_of(part / "0002_steps") == tensors_of(whole / "0002_steps") != {}


@needs_mpirun
@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(data, teacher, place):
    one = ["--end_steps", 2, "--start_steps", 4]
    commands = [
        ["image_distill", *words(data, teacher, place / "ranks"), *one],
        ["image_distill", *words(data, teacher, place / "ranks_part"), *one, "--iterations", 1],
        ["image_distill", *words(data, teacher, place / "ranks_part"), *one],
    ]
    (place / "commands.json").write_text(json.dumps([list(map(str, command)) for command in commands]))
    done = mpirun(2, "script_list.py", place / "commands.json")
    assert done.returncode == 0, done.stderr
    folders = [place / name / "0002_steps" for name in ("ranks", "ranks_part")]
    assert tensors_of(folders[0]) == tensors_of(folders[1]) != {}


@pytest.mark.parametrize(
    "flags",
    [
        ["--start_steps", 8],
        ["--iterations", 3],
        ["--start_steps", 2],
        ["--distill_loss", "l1"],
        ["--distill_weight", "none"],
        ["--teacher", "{teacher}/ema_0.9999_000002.pt"],
    ],
)
def test_a_chain_is_not_mixed_with_another(flags, distilled, data, teacher, place, capsys):
    """Whose students would have teachers that are there no more; nothing is trained before it is said."""
    flags = [str(word).format(teacher=teacher.parent) for word in flags]
    before = sorted(distilled.rglob("*"))
    with pytest.raises(SystemExit):
        script_runs.run("image_distill", *words(data, teacher, distilled, *flags))
    *_, said = capsys.readouterr().err.splitlines()
    assert "_steps has a student " in said and "or another --out_dir" in said
    assert sorted(distilled.rglob("*.pt")) == [path for path in before if path.suffix == ".pt"]


def test_a_teacher_is_asked_at_what_it_was_trained_at(distilled, data, teacher, place, tmp_path, capsys):
    """Or it is said; one that jumps to the data is none."""
    student = distilled / "0001_steps" / "ema_0.5_000002.pt"
    one = [*words(data, student, tmp_path / "one")[:6], "--start_steps", 4, "--end_steps", 2, "--iterations", 1]
    said = script_runs.run("image_distill", *one, "--num_workers", 0, "--batch_size", 2)
    assert f"--teacher {student} was not trained at 3 of the 4 timesteps at which it is asked here" in said
    own = ["--objective", "consistency_distillation", "--consistency_steps", 4, "--prediction", "v"]
    jumps = script_runs.train("image_train", data, tmp_path / "c", *NETWORK, *CLASSES, *own, "--teacher", teacher)
    with pytest.raises(SystemExit):
        script_runs.run("image_distill", *words(data, jumps, tmp_path / "two"))
    assert f"--teacher {jumps} was trained to jump to the data" in capsys.readouterr().err


def test_a_script_with_another_sampler_takes_nothing_of_a_students(distilled, data, tmp_path):
    student = distilled / "0002_steps" / "ema_0.5_000002.pt"
    told = ["--model_path", student, "--data_dir", data, "--num_samples", 2, "--batch_size", 2, "--out_dir", tmp_path]
    assert "sampled by" not in script_runs.run("image_nll", *told)


def test_sampling_takes_the_steps_that_it_was_distilled_to(distilled, place):
    student = distilled / "0002_steps" / "ema_0.5_000002.pt"
    few = ["--model_path", student, "--num_samples", 2, "--batch_size", 2]
    said = script_runs.run("image_sample", *few, "--out_dir", place / "samples")
    assert "sampled by --solver ddim --spacing uniform --timestep_respacing 2" in said
    assert json.loads((place / "samples" / "grid.json").read_text()) == [99, 49, -1]
    said = script_runs.run("image_sample", *few, "--timestep_respacing", 5, "--out_dir", place / "more")
    assert "was not trained at 4 of the 5 timesteps of this grid, such as 79" in said
    said = script_runs.run("image_sample", *few, "--use_ddim", True, "--out_dir", place / "published")
    assert "--solver" not in said.partition("sampled by")[2].partition("\n")[0]


def test_an_option_of_its_own_solver_is_taken_and_of_none_refused(distilled, teacher, place, capsys):
    student = distilled / "0002_steps" / "ema_0.5_000002.pt"
    few = ["--num_samples", 2, "--batch_size", 2, "--eta", 0.5]
    said = script_runs.run("image_sample", "--model_path", student, *few, "--out_dir", place / "eta")
    assert "sampled by --solver ddim" in said and "--eta 0.5" in said
    assert gd.load(str(student)).sample(2, eta=0.5).shape == (2, 8, 8, 3)
    said = refused(capsys, "image_sample", "--model_path", teacher, *few, "--out_dir", place / "none")
    assert "--eta 0.5 is read by --solver ddim alone" in said
    with pytest.raises(UserError, match="--eta 0.5 is read by --solver ddim alone"):
        gd.load(str(teacher)).sample(2, eta=0.5)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m"])
def test_another_solver_than_it_was_trained_for_is_said(solver, distilled, place):
    student = distilled / "0002_steps" / "ema_0.5_000002.pt"
    few = ["--model_path", student, "--num_samples", 2, "--batch_size", 2, "--out_dir", place / solver]
    said = script_runs.run("image_sample", *few, "--solver", solver)
    assert f"{student} was trained for the steps of --solver ddim, and this is {solver}" in said


# ------------------------------------------------------------------------------------------ bad input


def refused(capsys, name, *command):
    with pytest.raises(SystemExit):
        script_runs.run(name, *command)
    *_, sentence = capsys.readouterr().err.splitlines()
    return sentence


TRAIN = [*script_runs.TRAINING, *script_runs.PROCESS, *NETWORK, "--learn_sigma", True]
TRAIN += ["--objective", "progressive_distillation", "--prediction", "v", "--student_steps", 2]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ([*CLASSES], "--teacher is not given; expected the checkpoint of a diffusion network (.pt)"),
        ([*CLASSES, "--teacher", "TEACHER", "--image_size", 16], "has --image_size 8; expected 16, as of this run"),
        (["--teacher", "TEACHER"], "has --class_cond True; expected False, as of this run"),
        ([*CLASSES, "--teacher", "TEACHER", "--noise_schedule", "cosine"], "was trained with other noise"),
        ([*CLASSES, "--teacher", "TEACHER", "--diffusion_steps", 50], "was trained with other noise"),
        ([*CLASSES, "--teacher", "TEACHER", "--prediction", "eps"], "expected --prediction v or x0"),
        ([*CLASSES, "--teacher", "TEACHER", "--student_steps", 51], "are 102 of the teacher, which has 100 timesteps"),
        ([*CLASSES, "--teacher", "CLASSIFIER"], "is a classifier"),
        ([*CLASSES, "--teacher", "TEACHER", "--timestep_respacing", 10], "--timestep_respacing 10 does nothing beside"),
        ([*CLASSES, "--teacher", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_a_teacher_that_cannot_be_is_named(flags, sentence, teacher, data, tmp_path, capsys):
    paths = {"TEACHER": teacher, "CLASSIFIER": ROOT / "models" / "digits16_classifier.pt"}
    given = [paths.get(word, word) for word in flags]
    said = refused(capsys, "image_train", "--data_dir", data, "--out_dir", tmp_path, *TRAIN, *given)
    assert sentence in said


@pytest.mark.parametrize(
    "marks, sentence",
    [
        ({"pair": object()}, "denoises latents of an autoencoder; expected a network of pixels"),
        ({"latent_dim": 4}, "draws its images, each from a random vector (--latent_dim 4)"),
    ],
)
def test_a_teacher_of_latents_or_random_vectors_is_named(marks, sentence, teacher, monkeypatch, data, tmp_path, capsys):
    opened = checkpoints.open_network

    def marked(*args):
        network, process, flags = opened(*args)
        network.pair = marks.get("pair", PIXELS)
        return network, process, {**flags, **marks}

    monkeypatch.setattr(checkpoints, "open_network", marked)
    given = ["--data_dir", data, "--out_dir", tmp_path, *TRAIN, *CLASSES, "--teacher", teacher]
    assert sentence in refused(capsys, "image_train", *given)


@pytest.mark.parametrize("start, end", [(8, 3), (6, 1), (4, 4), (4, 8), (3, 1)])
def test_steps_that_do_not_halve_are_refused(start, end):
    halved = {8: "4, 2, 1", 6: "3", 4: "2, 1", 3: "none, for it is odd"}[start]
    one_sentence(RoundFlags(start, end).students, f"--start_steps {start}", f"--end_steps {end}", halved)


@pytest.mark.parametrize("start, end, students", [(8, 1, [4, 2, 1]), (2, 1, [1]), (1024, 256, [512, 256]), (6, 3, [3])])
def test_rounds_halve_the_steps(start, end, students):
    assert RoundFlags(start, end).students() == students


def test_rounds_have_an_end(data, teacher, tmp_path, capsys):
    said = refused(capsys, "image_distill", *words(data, teacher, tmp_path, "--iterations", 0))
    assert "--iterations is 0; expected the number of optimiser steps of each round" in said


def test_no_method_moves_the_times_of_a_student(distilled, tmp_path, capsys):
    student = distilled / "0002_steps" / "ema_0.5_000002.pt"
    moved = ["--do_time_shift", True, "--window", 4, "--cutoff", 10]
    said = refused(capsys, "image_sample", "--model_path", student, "--num_samples", 2, "--out_dir", tmp_path, *moved)
    assert "knows 2 timesteps alone, and a method of this command line moves them" in said


@pytest.mark.parametrize("asked", ["teacher", "reward"])
def test_a_network_of_other_classes_is_refused_by_their_names(asked, teacher, data, tmp_path, capsys):
    other = shutil.copytree(data, tmp_path / "other")
    for path in list(other.iterdir()):
        path.rename(other / path.name.replace("ant", "ape"))
    flags = ["--objective", "consistency_distillation", "--prediction", "v", *CLASSES, *NETWORK]
    if asked == "reward":
        classifier = script_runs.train(
            "classifier_train", data, tmp_path / "classifier", "--image_size", 8, "--num_classes", 3,
            *"--classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1,1".split(),
            *"--classifier_attention_resolutions 4 --classifier_num_head_channels 32".split(),
        )  # fmt: skip
        own = script_runs.train("image_train", other, tmp_path / "own", *NETWORK, *CLASSES, "--learn_sigma", True)
        flags += ["--teacher", own, "--reward", f"classifier:{classifier}", "--reward_scale", 1]
    else:
        flags += ["--teacher", teacher]
    words = ["--data_dir", other, "--out_dir", tmp_path / "out", *script_runs.TRAINING, *script_runs.PROCESS]
    said = refused(capsys, "image_train", *words, *flags, "--learn_sigma", True)
    assert f"--{asked}" in said and "has --class_names ant,bee,cat; expected ape,bee,cat, as of this run" in said
