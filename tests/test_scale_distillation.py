"""Scale distillation (YONOS-SR): exact predictions of Gaussian images, steps by hand, its runs, what it refuses."""

import copy
import re
import sys

import numpy as np
import pytest
import script_runs
import torch
import torch.nn.functional as F
from processes import MPIRUN, WORKERS, needs_mpirun, run
from refusals import one_sentence
from torch import nn

from guided_diffusion.objectives.scale_distillation import ScaleDistillation, ScaleFlags
from guided_diffusion.process import DiffusionFlags
from guided_diffusion.resample import UniformSampler
from guided_diffusion.script_util import diffusion_of

SPREAD = 0.1  # of the pixels of Gaussian images
PROCESS = DiffusionFlags(diffusion_steps=8, noise_schedule="cosine", prediction="x0")
RUN = "--large_size 8 --small_size 2 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --diffusion_steps 20".split()
RUN += (
    "--attention_resolutions= --prediction v --noise_schedule cosine --batch_size 3 --num_workers 0 --lr 1e-3".split()
)
RUN += "--objective scale_distillation --scale_schedule 2,4 --scale_steps 2 --log_interval 1 --save_interval 3".split()


def means(x, side):
    """Each pixel the mean of its block, of side x side blocks."""
    small = x.unflatten(-1, (side, -1)).unflatten(-3, (side, -1)).mean(dim=(-1, -3))
    return small.repeat_interleave(x.shape[-1] // side, dim=-1).repeat_interleave(x.shape[-1] // side, dim=-2)


class Exact(nn.Module):
    """The mean of Gaussian images of independent pixels, given x_t and the means of their blocks; times a weight."""

    takes = ("low_res",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("levels", diffusion_of(PROCESS).schedule.alpha_bar(torch.arange(8)))

    def forward(self, x, t, low_res):
        level = self.levels[t][:, None, None, None]
        gain = (level.sqrt() * SPREAD**2 / (level * SPREAD**2 + 1 - level)).float()
        known = low_res.repeat_interleave(x.shape[-1] // low_res.shape[-1], dim=-1)
        known = known.repeat_interleave(x.shape[-1] // low_res.shape[-1], dim=-2)
        return self.weight * (known + gain * (x - means(x, low_res.shape[-1])))


def objective(scales, steps=1, rate=0.5):
    diffusion = diffusion_of(PROCESS)
    return ScaleDistillation(diffusion, UniformSampler(diffusion), Exact(), scales, steps, rate)


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)


def seen(made, x):
    """(t, noise) that the objective draws of images next; afterwards it draws them again."""
    state = torch.get_rng_state(), np.random.get_state()
    t, _ = made.sampler.sample(len(x), x.device)
    noise = torch.randn_like(x)
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    return t, noise


# ----------------------------------------------------------------------------------------- closed form


@pytest.mark.parametrize(
    "scales, share", [([2], 3 / 4), ([4], 15 / 16), ([2, 4], 15 / 16 - 3 / 4), ([2, 8], 3 / 16 + 3 / 64)]
)
def test_the_error_of_exact_networks_is_the_variance_that_their_teacher_knows_more_of(scales, share):
    """(1 - 1 / s^2) of the posterior variance is not known of a pixel at scale s; the teacher's share is taken off."""
    seed(0)
    made, model = objective(scales), Exact()
    if len(scales) > 1:
        made.stepped(model)
    x = SPREAD * torch.randn(6000, 1, 8, 8)
    t, _ = seen(made, x)
    found = made(model, x, {})
    level = model.levels[t]
    variance = 1 / (1 / SPREAD**2 + level / (1 - level))
    expected = share * variance
    for time in range(8):
        at = t == time
        torch.testing.assert_close(found.value[at].mean(), expected[at].mean().float(), rtol=0.06, atol=1e-6)
    assert torch.equal(found.t, t)


def test_the_means_are_those_of_the_conditioning():
    x = torch.randn(2, 3, 8, 8)
    area = F.interpolate(F.interpolate(x, 2, mode="area"), 8, mode="nearest")
    torch.testing.assert_close(means(x, 2), area)


# ------------------------------------------------------------------------------------------- by hand


def test_steps_by_hand():
    """Two scales: one step on true images, the teacher made of the average, one step on what it says."""
    made, model = objective([2, 4], steps=2, rate=0.15), Exact()
    weights = [1.0, 1.3, 0.7]  # of the average at first, and of the network after each step
    seed(1)
    x = SPREAD * torch.randn(5, 1, 8, 8)
    for step, weight in enumerate(weights[1:]):
        assert (made.stage, made.logged()) == (0, {"scale": 2})
        with torch.no_grad():
            model.weight.fill_(weight)
        before = [p.clone() for p in made.teacher.network.parameters()]
        assert torch.equal(before[0], torch.tensor(1.0)), step
        made.stepped(model)
    # the rate warms up: 0.1 at first, then at most 2 / 11, and 0.15
    average = 0.15 * (0.1 * 1.0 + 0.9 * 1.3) + 0.85 * 0.7
    assert (made.stage, made.logged()) == (1, {"scale": 4})
    assert made.teacher.network.weight.item() == pytest.approx(average)
    t, noise = seen(made, x)
    level = model.levels[t][:, None, None, None].float()
    x_t = level.sqrt() * x + (1 - level).sqrt() * noise
    gain = level.sqrt() * SPREAD**2 / (level * SPREAD**2 + 1 - level)
    of_scale = {s: means(x, 8 // s) + gain * (x_t - means(x_t, 8 // s)) for s in (2, 4)}
    target = (average * of_scale[2]).clamp(-1, 1)
    error = 0.7 * of_scale[4] - target
    loss = made(model, x, {})
    torch.testing.assert_close(loss.value, error.square().mean(dim=(1, 2, 3)))
    loss.value.mean().backward()
    gradient = (2 * error * of_scale[4]).mean()
    torch.testing.assert_close(model.weight.grad, gradient)
    assert made.teacher.network.weight.grad is None
    made.stepped(model)
    assert made.teacher.network.weight.item() == pytest.approx(average)  # it stays


def test_its_state_is_taken_up():
    made, model = objective([2, 4]), Exact()
    with torch.no_grad():
        model.weight.fill_(0.4)
    made.stepped(model)
    again = objective([2, 4])
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    x = SPREAD * torch.randn(4, 1, 8, 8)
    values = []
    for one in (made, again):
        seed(5)
        values.append(one(model, x, {}).value)
    assert again.stage == 1 and torch.equal(*values)


@pytest.mark.parametrize("scales, steps", [([4], 1), ([2, 4, 8], 1), ([2, 4], 2)])
def test_a_state_of_other_scales_or_steps_is_refused(scales, steps):
    """What it had reached means something else with them: its teacher could be a network that never learnt."""
    state = objective([2, 4]).state_dict()
    one_sentence(lambda: objective(scales, steps).load_state_dict(state), "--scale_schedule 2,4 --scale_steps 1")
    if scales == [4]:  # alone it has no steps to count
        objective(scales, 5).load_state_dict(objective(scales, 7).state_dict())


def test_its_average_begins_at_the_network():
    made, model = objective([2, 4]), Exact()
    with torch.no_grad():
        model.weight.fill_(3.0)
    made.begin(model)
    assert made.average.network.weight.item() == 3
    made.average.network.weight.fill_(2.0)
    assert model.weight.item() == 3


def test_input_perturbation_reaches_the_student_alone():
    made, model, asked = objective([2, 4]), Exact(), []
    made.stepped(model)
    made.process.corruption = lambda noise, t: (noise + 7, t)
    made.asked.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    model.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    x = SPREAD * torch.randn(4, 1, 8, 8)
    t, _ = seen(made, x)
    made(model, x, {})
    moved = 7 * (1 - model.levels[t]).sqrt()[:, None, None, None].float()
    torch.testing.assert_close(asked[1] - asked[0], moved.expand_as(x), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------- scripts


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(256, size=(7, 8, 8, 3), dtype=np.uint8))
    return path


@needs_mpirun
@pytest.mark.slow
def test_runs_go_on_in_the_middle_of_a_scale_and_are_sampled_in_a_step(images, tmp_path):
    """On two ranks: 5 steps at once, or 3 and then 2; and in one process."""
    words = ["--data_dir", images, *RUN]
    runs = [[*words, "--out_dir", tmp_path / "whole", "--iterations", 5]]
    runs += [[*words, "--out_dir", tmp_path / "on", "--iterations", n, "--resume_checkpoint", "auto"] for n in (3, 5)]
    lines = [" ".join(map(str, line)) for line in runs]
    worker = WORKERS / "in_turn.py"
    done = run(MPIRUN, "-n", 2, sys.executable, worker, "super_res_train", *lines, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert script_runs.tensors(tmp_path / "on", 5) == script_runs.tensors(tmp_path / "whole", 5)
    scales = re.findall(r"step [1-5]/5 .* scale (\d)", done.stdout)
    assert scales[:5] == ["2", "4", "4", "4", "4"]
    state = torch.load(tmp_path / "whole" / "state000005.pt", weights_only=True)
    assert state["taken"] == 5 and {"average", "teacher"} <= state.keys()

    np.savez(tmp_path / "small.npz", arr_0=np.full((2, 2, 2, 3), 99, np.uint8))
    model = tmp_path / "whole" / "model000005.pt"
    words = ["--model_path", model, "--base_samples", tmp_path / "small.npz", "--num_samples", 2]
    said = script_runs.run("super_res_sample", *words, "--out_dir", tmp_path / "out")
    assert "network calls: 1 for each of 2 images" in said and "timesteps: 19 -1" in said


@pytest.mark.slow
@pytest.mark.parametrize("half", ["--use_bf16", "--use_fp16"])
def test_half_precision_goes_on_bit_for_bit(half, images, tmp_path):
    """From the middle of a factor whose teacher is a float32 average."""
    words = [*RUN, "--data_dir", images, half, True]
    whole = script_runs.trained("super_res_train", tmp_path / "whole", *words, ends=[4])
    assert script_runs.trained("super_res_train", tmp_path / "part", *words, ends=[3, 4]) == whole != {}


def refused(capsys, call, *words):
    with pytest.raises(SystemExit):
        call()
    said = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(said) and all(str(word) in said[-1] for word in words), said


@pytest.mark.parametrize("schedule", ["", "2", "4,2", "1,4", "2,2,4", "3,4", "2,8"])
def test_scales_that_do_not_lead_there_are_refused(schedule):
    words = "--scale_schedule", repr(schedule), "--large_size 16", "--small_size 4"
    one_sentence(lambda: ScaleFlags(scale_schedule=schedule).scales(16, 4), *words)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--timestep_respacing", "ddim5"], ["--timestep_respacing ddim5 leaves out timesteps", "scale_distillation"]),
        (["--scale_schedule", "a", "--scale_ema_rate", 0.5], ["--scale_schedule", "'a'"]),
        (["--scale_schedule", "2", "--scale_ema_rate", 0.5], ["--scale_ema_rate does nothing"]),
    ],
)
def test_flags_that_cannot_be_are_named(images, tmp_path, capsys, flags, words):
    call = lambda: script_runs.run("super_res_train", *RUN, "--data_dir", images, *flags, "--out_dir", tmp_path)  # noqa: E731
    refused(capsys, call, *words)


def test_a_schedule_leads_from_large_to_small():
    assert ScaleFlags(scale_schedule="2,4,8").scales(64, 8) == [2, 4, 8]
    assert ScaleFlags(scale_schedule="4").scales(16, 4) == [4]


def test_training_that_ends_before_the_last_factor_is_said(images, tmp_path):
    for iterations, ends_before in ((1, True), (2, True), (3, False)):
        words = ["--data_dir", images, "--out_dir", tmp_path / str(iterations), "--iterations", iterations]
        said = script_runs.run("super_res_train", *RUN, *words)
        assert ("has not learnt what it is sampled at" in said) == ends_before


@pytest.mark.parametrize("objective", ["progressive_distillation", "consistency_distillation"])
def test_a_teacher_of_another_factor_is_refused(images, tmp_path, capsys, objective):
    first = ["--objective", "diffusion", "--small_size", 4, "--iterations", 1, "--out_dir", tmp_path / "teacher"]
    script_runs.run("super_res_train", *RUN[:-8], *first, "--data_dir", images)
    teacher = ["--objective", objective, "--teacher", tmp_path / "teacher" / "model000001.pt"]
    words = ["--data_dir", images, "--iterations", 1, "--out_dir", tmp_path / "run"]
    call = lambda: script_runs.run("super_res_train", *RUN[:-8], *teacher, *words)  # noqa: E731
    refused(capsys, call, "--teacher", "has --small_size 4; expected 2, as of this run")


def test_what_cannot_be_so_trained_is_refused(images, tmp_path, capsys):
    words = ["--data_dir", images, "--out_dir", tmp_path / "run", "--iterations", 1]

    def begin(name, *more):
        return lambda: script_runs.run(name, *words, *more)

    refused(capsys, begin("super_res_train", *RUN, "--prediction", "eps"), "--prediction v or x0")
    refused(capsys, begin("super_res_train", *RUN, "--small_size", 4), "--scale_schedule", "--small_size 4")
    refused(capsys, begin("super_res_train", *RUN, "--scale_ema_rate", 1), "--scale_ema_rate is 1.0", "below 1")
    for flag, value in {"scale_steps": 1, "scale_ema_rate": 0.5}.items():
        one = ["--scale_schedule", 4, f"--{flag}", value]
        without = [word for i, word in enumerate(RUN) if "--scale_steps" not in (word, RUN[i - 1])]
        refused(capsys, begin("super_res_train", *without, *one), f"--{flag} does nothing", "one factor")
    plain = [*RUN[4:], "--image_size", 8]
    refused(capsys, begin("image_train", *plain), "--objective scale_distillation", "scripts/super_res_train.py")
