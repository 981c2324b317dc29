"""The training loop: against hand computation, a split over ranks, an interruption, and numbers gone bad."""

import contextlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import mpirun, needs_mpirun
from tiny_loop import INF, NAN, START, assert_same, half_square, plain_sum, poisoned, rows, tiny, weights
from workers import training

from guided_diffusion import logger
from guided_diffusion.errors import UserError
from guided_diffusion.networks import for_inference
from guided_diffusion.objectives import ClassifierObjective
from guided_diffusion.objectives.diffusion import DiffusionObjective
from guided_diffusion.resample import UniformSampler, create_named_schedule_sampler
from guided_diffusion.script_util import create_gaussian_diffusion, diffusion_of
from guided_diffusion.training.flags import AUTO, TrainFlags
from guided_diffusion.training.job import seed_everything
from guided_diffusion.training.log import line


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On so small networks, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def terminal_afterwards():
    yield
    logger.reset()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return training.write_images(tmp_path_factory.mktemp("data") / "images.npz")


# ---------------------------------------------------------------------- a model of three weights


def test_annealing_and_weight_decay_by_hand(tmp_path):
    loop, seen = tiny(tmp_path, plain_sum, lr_anneal_steps=4, weight_decay=0.01)
    loop.run_loop()
    assert len(seen) == 4
    w = np.array(START)
    for step, after in enumerate(seen):
        lr = 0.1 * (1 - step / 4)
        w = w - lr * 0.01 * w - lr
        assert np.allclose(after, w, atol=1e-6)


def test_ends_at_the_first_of_iterations_and_annealing(tmp_path):
    for name, flags, last in [
        ("iterations", dict(iterations=3), 3),
        ("both", dict(iterations=2, lr_anneal_steps=5), 2),
        ("annealed", dict(iterations=5, lr_anneal_steps=3), 3),
    ]:
        loop, seen = tiny(tmp_path / name, plain_sum, **flags)
        loop.run_loop()
        assert len(seen) == last
        assert (tmp_path / name / f"model{last:06d}.pt").exists()


def test_averages_follow_their_recursion(tmp_path):
    rates = ["0.5", "0.90", "0", "1"]
    loop, seen = tiny(
        tmp_path, half_square, ((1.0, 0.5, -1.0), (0.0, 2.0, 1.0)), iterations=4, ema_rate=",".join(rates)
    )
    loop.run_loop()
    assert not torch.equal(seen[0], seen[3])
    for rate in rates:
        average = np.array(START)
        for w in seen:
            average = float(rate) * average + (1 - float(rate)) * w.double().numpy()
        saved = weights(tmp_path / f"ema_{rate}_000004.pt")["weight"][0]
        assert np.allclose(saved, average, atol=1e-6), rate
    assert torch.equal(weights(tmp_path / "model000004.pt")["weight"][0], seen[-1])


def test_microbatches_of_any_size_give_the_gradient_of_the_batch(tmp_path):
    batch = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    w = np.array(START)
    gradient = (batch @ w) @ batch / 5
    for microbatch in (-1, 1, 2, 3, 5, 9):
        loop, seen = tiny(tmp_path, half_square, batch.tolist(), iterations=1, microbatch=microbatch)
        loop.opt = torch.optim.SGD(loop.model.parameters(), lr=0.1)
        loop.run_loop()
        assert np.allclose(seen[0], w - 0.1 * gradient, atol=1e-6)
        logged = rows(tmp_path)[-1]
        assert math.isclose(logged["grad_norm"], np.linalg.norm(gradient), rel_tol=1e-5)
        assert math.isclose(logged["param_norm"], np.linalg.norm(w), rel_tol=1e-5)


def test_files_bear_their_published_names(tmp_path):
    loop, _ = tiny(tmp_path, plain_sum, iterations=3, save_interval=2, ema_rate="0.9999,0.99")
    loop.run_loop()
    names = {path.name for path in tmp_path.iterdir() if path.suffix in (".pt", ".json")}
    expected = {f"{kind}{step}.{end}" for kind in ("model", "ema_0.9999_", "ema_0.99_") for step in ("000002", "000003")
                for end in ("pt", "json")}  # fmt: skip
    beside = {f"{name}00000{step}" for name in ("opt", "state", "manifest") for step in (2, 3)}
    assert names == expected | {f"{name}.{'json' if 'manifest' in name else 'pt'}" for name in beside}
    assert json.loads((tmp_path / "ema_0.99_000002.json").read_text()) == {"num_channels": 3, "step": 2}


def test_preview_shows_the_average_and_leaves_the_weights(tmp_path):
    pictures = np.random.default_rng(0).integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    shown = []

    def preview(model):
        assert not model.training
        shown.append(model.weight.detach()[0].clone())
        return pictures

    loop, seen = tiny(tmp_path, plain_sum, iterations=3, sample_interval=2, ema_rate="0.5,0.9", preview=preview)
    loop.run_loop()
    average = 0.25 * torch.tensor(START) + 0.25 * seen[0] + 0.5 * seen[1]
    assert len(shown) == 1 and torch.allclose(shown[0], average, atol=1e-6)
    assert torch.allclose(seen[2], seen[1] - 0.1, atol=1e-6) and loop.model.training
    png = np.asarray(Image.open(tmp_path / "preview_000002.png"))
    assert np.array_equal(png[:64, :64], pictures[0]) and np.array_equal(png[:64, 65:], pictures[1])
    assert np.array_equal(png[65:, :64], pictures[2])


# ------------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path, dtype, bad):
    objective = poisoned(plain_sum, [1, bad, 1])
    loop, seen = tiny(tmp_path, objective, dtype=dtype, iterations=3, ema_rate="0.5", fp16_scale_growth=0.5)
    loop.run_loop()
    w = torch.tensor(START)
    assert torch.allclose(torch.stack(seen), torch.stack([w - 0.1, w - 0.1, w - 0.2]), atol=1e-6)
    average = weights(tmp_path / "ema_0.5_000003.pt")["weight"][0]
    assert torch.allclose(average, w - 0.125, atol=1e-6)  # 0.05, then 0.05 / 2 + 0.2 / 2
    scales = [row.get("lg_loss_scale") for row in rows(tmp_path)]
    assert scales == ([20.5, 19.5, 20.0] if dtype is torch.float16 else [None] * 3)


def test_loss_scale_falls_until_float16_holds_the_gradient(tmp_path):
    # y = 1.5, so 2^s * 1.5 has to stay below float16's 65504: s = 15
    loop, seen = tiny(tmp_path, half_square, dtype=torch.float16, iterations=7, fp16_scale_growth=0.001)
    loop.run_loop()
    scales = [row["lg_loss_scale"] for row in rows(tmp_path)]
    assert np.allclose(scales, [19, 18, 17, 16, 15, 15.001, 15.002])
    for w in seen[:5]:
        assert w.tolist() == START
    assert np.allclose(seen[5], [START[0] - 0.1, *START[1:]], atol=1e-6)  # Adam's first step is the learning rate


@pytest.mark.parametrize("name", ["use_bf16", "use_fp16"])
def test_lower_precision_is_near_float32(images, tmp_path, name):
    losses = []
    for flags in (training.NETWORK, replace(training.NETWORK, **{name: True})):
        run = training.train(images, tmp_path / str(len(losses)), network_flags=flags, iterations=1)
        assert all(p.dtype is torch.float32 for p in run.model.parameters())
        losses.append(run.objective.calls[0][1]["loss"])
    assert torch.allclose(*losses, rtol=0.03)
    assert not torch.equal(*losses)


# ------------------------------------------------------------------------------------------- logs


def test_log_rows_say_what_happened(images, tmp_path):
    run = training.train(images, tmp_path, iterations=2, microbatch=3)
    logged = rows(tmp_path)
    for step, row in enumerate(logged):
        calls = run.objective.calls[3 * step : 3 * step + 3]
        t = torch.cat([t for t, _ in calls])
        for name in ("loss", "mse", "vb"):
            values = torch.cat([terms[name] for _, terms in calls])
            assert math.isclose(row[name], np.mean([terms[name].mean() for _, terms in calls]), rel_tol=1e-5)
            for quartile in range(4):
                inside = values[(t >= 25 * quartile) & (t < 25 * (quartile + 1))]
                assert (f"{name}_q{quartile}" in row) == (len(inside) > 0)
                if len(inside):
                    assert math.isclose(row[f"{name}_q{quartile}"], inside.mean(), rel_tol=1e-5)
        assert (row["step"], row["samples"], row["progress"]) == (step + 1, 8 * (step + 1), f"{step + 1}/2")
        assert row["images_per_second"] > 0
    assert logged[-1]["time_left"] == "0:00:00"
    assert {int(key[-1]) for row in logged for key in row if key.startswith("loss_q")} == {0, 1, 2, 3}


def test_logged_norms_are_those_of_the_first_gradient(images, tmp_path):
    run = training.train(images, tmp_path, iterations=1, microbatch=2)
    model, objective = training.network(), training.ReadFromImages()
    batch, _ = next(training.loop(images, tmp_path / "again").data)
    objective(model, batch, {})[0].mean().backward()
    logged = rows(tmp_path)[0]
    for name, tensors in (
        ("grad_norm", [p.grad for p in model.parameters()]),
        ("param_norm", list(training.network().parameters())),
    ):
        norm = math.sqrt(sum(float(np.square(x.detach().double().numpy()).sum()) for x in tensors))
        assert math.isclose(logged[name], norm, rel_tol=1e-4)
    assert len(run.objective.calls) == 4


@pytest.mark.parametrize(
    "extra, words",
    [
        ({}, ""),
        ({"frechet_distance": 12.3456, "val_loss": 0.25}, "frechet_distance 12.35  val_loss 0.25  "),
        ({"loss_q3": 1.0, "mse_q0": 2.0, "vb": 3.0, "mse": 4.0, "lg_loss_scale": 20.0, "note": "text"}, ""),
    ],
)
def test_a_row_in_one_line(extra, words):
    row = {"loss": 0.0312345, **extra, "grad_norm": 0.2, "param_norm": 9.0, "step": 20, "samples": 640}
    row |= {"images_per_second": 310.44, "progress": "20/50"}
    assert line(row) == f"step 20/50  loss 0.03123  {words}grad_norm 0.2  310 images/s"
    assert line({**row, "time_left": "1:02:11"}).endswith("310 images/s  1:02:11 left")


def _drawing(sampler):
    diffusion = diffusion_of(training.PROCESS)
    return DiffusionObjective(diffusion, create_named_schedule_sampler(sampler, diffusion))


@pytest.mark.parametrize("most, found, failures", [(8, 8, 0), (7, 4, 1), (4, 4, 1), (3, 2, 2), (1, 1, 3)])
@pytest.mark.parametrize("sampler", ["uniform", "loss-second-moment"])
def test_a_microbatch_that_fits_is_found_and_gives_the_weights_of_it(images, tmp_path, most, found, failures, sampler):
    """The same weights, averages and memory of the sampler as with that --microbatch from the start."""

    def run(name, objective, microbatch):
        seed_everything(TrainFlags())
        loop = training.loop(images, tmp_path / name, objective, iterations=3, ema_rate="0.5", microbatch=microbatch)
        loop.run_loop()
        return loop

    tight = training.OutOfMemory(_drawing(sampler), most)
    auto = run("auto", tight, AUTO)
    plain = run("plain", _drawing(sampler), found)
    assert (auto.microbatch or 8) == found and tight.failures == failures
    assert training.hashes(auto) == training.hashes(plain)
    assert_same(auto.objective.state_dict(), plain.objective.state_dict())
    assert [row["loss"] for row in rows(tmp_path / "auto")] == [row["loss"] for row in rows(tmp_path / "plain")]
    said = re.findall(r"from here on --microbatch (\d+)", (tmp_path / "auto" / "log.txt").read_text())
    assert list(map(int, said)) == [4, 2, 1][:failures]


def test_memory_that_is_short_later_gives_the_weights_of_the_whole_batch_to_rounding(images, tmp_path):
    """Losses that draw nothing are the same whatever the microbatch: a batch is its mean."""
    tight = training.OutOfMemory(training.ReadFromImages(), 3, after=1)
    auto = training.loop(images, tmp_path / "auto", tight, iterations=3, microbatch=AUTO, sgd=True)
    plain = training.loop(images, tmp_path / "plain", iterations=3, sgd=True)
    for loop in (auto, plain):
        loop.run_loop()
    assert auto.microbatch == 2 and tight.failures == 2
    for a, b in zip(auto.model.parameters(), plain.model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_no_memory_for_one_image_ends_in_a_sentence(images, tmp_path):
    tight = training.OutOfMemory(training.ReadFromImages(), 0)
    loop = training.loop(images, tmp_path, tight, microbatch=AUTO, iterations=1)
    with pytest.raises(UserError, match="not enough memory on cpu for one image"):
        loop.run_loop()


def test_auto_refuses_losses_that_ranks_share(images, tmp_path, monkeypatch):
    monkeypatch.setattr("guided_diffusion.training.loop.dist_util.world_size", lambda: 2)
    with pytest.raises(UserError, match="--microbatch auto .*--schedule_sampler loss-second-moment"):
        training.loop(images, tmp_path, _drawing("loss-second-moment"), microbatch=AUTO)


def test_first_row_comes_at_once(tmp_path):
    loop, _ = tiny(tmp_path, plain_sum, iterations=5, log_interval=4)
    loop.run_loop()
    assert [row["step"] for row in rows(tmp_path)] == [1, 4, 5]


def test_speed_and_time_left_are_those_of_the_steps_alone(tmp_path, monkeypatch):
    """By a clock that only the parts of a step set forward: 2 s for the batch, 100 for a score, preview or save."""
    now = [0.0]

    def taking(seconds, answer=None):
        now[0] += seconds
        return answer

    monkeypatch.setattr("guided_diffusion.training.log.time", SimpleNamespace(time=lambda: now[0]))
    loop, _ = tiny(tmp_path, plain_sum, iterations=4, save_interval=1, sample_interval=1)
    loop.data = iter(lambda: taking(2, (torch.ones(3, 3), {})), None)

    def score(loop):
        with loop.aside():
            return taking(100)

    loop.after_step = score
    loop.draw_preview = loop.save = lambda: taking(100)
    loop.run_loop()
    assert [row["images_per_second"] for row in rows(tmp_path)] == [1.5] * 4
    assert [row["time_left"] for row in rows(tmp_path)] == ["0:00:06", "0:00:04", "0:00:02", "0:00:00"]
    # what steps have begun on a device is theirs, whoever waits for it
    before, loop._read = loop.clock.start, lambda: taking(3)
    score(loop)
    assert loop.clock.start - before == 100


def test_slow_steps_are_told_between_rows(tmp_path, monkeypatch):
    """Steps of 20 s: a line after each second one, of the mean loss since the last row, and no row for it."""
    now = [0.0]

    def batch():
        now[0] += 20
        return torch.ones(3, 3), {}

    monkeypatch.setattr("guided_diffusion.training.log.time", SimpleNamespace(time=lambda: now[0]))
    loop, _ = tiny(tmp_path, poisoned(plain_sum, [1.0] * 7), iterations=7, log_interval=6)
    loop.data = iter(batch, None)
    loop.run_loop()
    assert [row["step"] for row in rows(tmp_path)] == [1, 6, 7]
    said = re.findall(
        r"^step (\S+)  loss (\S+)  grad_norm (\S+)  0.15 images/s  (\S+) left$",
        (tmp_path / "log.txt").read_text(),
        re.M,
    )
    assert [line[0] for line in said] == ["3/7", "5/7"]
    # w = 0, and each weight falls by the learning rate, 0.1, in each step: the sums are 0, -0.3, ...
    losses = [0.0 - 0.3 * step for step in range(7)]
    assert [float(line[1]) for line in said] == pytest.approx([np.mean(losses[1:3]), np.mean(losses[1:5])], abs=1e-3)
    assert [line[2] for line in said] == ["1.732"] * 2 and [line[3] for line in said] == ["0:01:20", "0:00:40"]


def test_a_slow_step_is_told_by_its_part(tmp_path, monkeypatch):
    """What the watch is told that is waited for, at the time when each part begins."""
    told = []

    @contextlib.contextmanager
    def listen(say):
        yield lambda what, step=None: told.append(what.split(",")[0])

    monkeypatch.setattr("guided_diffusion.training.loop.slow_steps.told", listen)
    loop, _ = tiny(tmp_path, plain_sum, iterations=1, sample_interval=1)
    seen = {}
    for name in ("run_step", "after_step", "draw_preview", "save"):
        whole = getattr(loop, name)

        def noted(*args, name=name, whole=whole):
            seen[name] = told[-1]
            return whole(*args)

        setattr(loop, name, noted)
    loop.run_loop()
    assert seen == {
        "run_step": "its loss and gradient", "after_step": "its score", "draw_preview": "its preview",
        "save": "its checkpoint",
    }  # fmt: skip


# ----------------------------------------------------------------------------------- conditioning


def test_conditioning_sees_whole_batches_and_its_draws_are_resumed(images, tmp_path):
    """What it draws from torch's global generator comes again where a run goes on."""
    seen = []

    def conditioning(batch, extra):
        seen.append((len(batch), dict(extra), torch.rand(len(batch))))
        return {"drawn": seen[-1][2]}

    class Told(training.ReadFromImages):
        def __call__(self, model, x, cond):
            told.append(cond.pop("drawn"))
            return super().__call__(model, x, cond)

    told, start = [], str(tmp_path / "whole" / "model000001.pt")
    options = dict(microbatch=3, iterations=2, save_interval=1)
    for name, more in (("whole", {}), ("resumed", {"resume_checkpoint": start})):
        loop = training.loop(images, tmp_path / name, Told(), **options, **more)
        loop.conditioning = conditioning
        loop.run_loop()
    assert [(count, extra) for count, extra, _ in seen] == [(8, {})] * 3
    assert [len(part) for part in told] == [3, 3, 2] * 3
    assert torch.equal(torch.cat(told), torch.cat([drawn for *_, drawn in seen]))
    assert torch.equal(seen[2][2], seen[1][2]) and not torch.equal(seen[0][2], seen[1][2])


# ---------------------------------------------------------------------------------------- ranks


def test_one_process_never_communicates(images, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a single process communicates")

    for name in (
        "init_process_group all_reduce all_gather all_gather_object barrier broadcast broadcast_object_list "
        "gather gather_object reduce"
    ).split():
        monkeypatch.setattr(torch.distributed, name, refuse)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", refuse)
    run = training.train(images, tmp_path, iterations=2, microbatch=4, save_interval=1)
    assert run.step == 2


@pytest.mark.parametrize("half", ["use_fp16", "use_bf16"])
def test_what_trains_in_half_precision_answers_outside_of_training(images, tmp_path, half):
    """As previews and scores ask it."""
    loop = training.train(images, tmp_path, network_flags=replace(training.NETWORK, **{half: True}), iterations=1)
    x, t = torch.randn(2, 3, training.SIZE, training.SIZE), torch.tensor([3.0, 90.0])
    with torch.no_grad():
        expected, got = loop.model(x, t), for_inference(loop.model)(x, t)
    assert expected.dtype is got.dtype is torch.float32 and torch.allclose(got, expected, atol=1e-4)


@pytest.fixture(scope="module")
def two_ranks(images, tmp_path_factory):
    """(folder, what each of two ranks saw) of tests/workers/training.py."""
    folder = tmp_path_factory.mktemp("ranks")
    Path(folder, "images.npz").write_bytes(Path(images).read_bytes())
    done = mpirun(2, "training.py", folder)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@needs_mpirun
@pytest.mark.parametrize("name", ["whole", "uneven", "auto"])
def test_two_ranks_are_one_with_microbatches(two_ranks, images, tmp_path, name):
    one = training.train(images, tmp_path, sgd=True, microbatch=4, **training.THREE_STEPS)
    folder = two_ranks[0] / name
    start = training.network().state_dict()
    for file in ("model000003.pt", "ema_0.5_000003.pt", "ema_0.9_000003.pt"):
        split, whole = weights(folder / file), weights(tmp_path / file)
        for key in whole:
            assert torch.allclose(split[key], whole[key], rtol=1e-5, atol=1e-6), (file, key)
        moved = max(float((whole[key] - start[key]).abs().max()) for key in whole)
        assert moved > 1e-3, "the tolerance would hide everything"
    for ours, theirs in zip(rows(tmp_path), rows(folder), strict=True):
        for key in ("step", "samples", "grad_norm", "param_norm", *(["loss", "mse", "vb"] if name == "whole" else [])):
            assert math.isclose(ours[key], theirs[key], rel_tol=1e-4), key
    assert one.step == 3


@needs_mpirun
def test_ranks_end_with_the_same_weights(two_ranks):
    ours, theirs = two_ranks[1]
    assert ours["data"] != theirs["data"]
    for name in ("whole", "uneven", "auto", "adam", "resumed", "critic", "critic_uneven", "critic_resumed"):
        assert ours[name] == theirs[name]


@needs_mpirun
def test_ranks_take_the_microbatch_that_fits_on_each(two_ranks):
    """One has memory for two images, the other for all four."""
    assert [seen["fits"] for seen in two_ranks[1]] == [{"microbatch": 2, "failures": n} for n in (0, 1)]


@needs_mpirun
def test_two_ranks_resume_bit_for_bit(two_ranks):
    folder, seen = two_ranks
    assert seen[0]["resumed"] == seen[0]["adam"]
    for name in ("model000004.pt", "ema_0.9999_000004.pt", "opt000004.pt"):
        assert_same(weights(folder / "resumed" / name), weights(folder / "adam" / name))


@needs_mpirun
@pytest.mark.parametrize("name", ["critic", "critic_uneven"])
def test_a_second_network_on_two_ranks_is_that_of_one_with_microbatches(two_ranks, images, tmp_path, name):
    training.train(images, tmp_path, training.CriticFromImages(), microbatch=4, **training.THREE_STEPS)
    split, whole = (weights(folder / "state000003.pt")["critic"] for folder in (two_ranks[0] / name, tmp_path))
    start = weights(two_ranks[0] / "critic" / "state000002.pt")["critic"]["network"]
    for key in whole["network"]:
        assert torch.allclose(split["network"][key], whole["network"][key], rtol=1e-4, atol=1e-5), key
        assert not torch.allclose(split["network"][key], start[key], atol=1e-3), "the tolerance would hide everything"
    assert split["optimizer"]["state"][0]["step"] == 3


@needs_mpirun
def test_a_second_network_resumes_on_two_ranks_bit_for_bit(two_ranks):
    folder, seen = two_ranks
    assert seen[0]["critic_resumed"] == seen[0]["critic"]
    for name in ("model", "ema_0.5_", "ema_0.9_", "opt", "state"):
        ours, theirs = (folder / run / f"{name}000003.pt" for run in ("critic_resumed", "critic"))
        assert ours.read_bytes() == theirs.read_bytes()


@needs_mpirun
def test_one_bad_rank_stops_the_step_of_all(two_ranks):
    assert [seen["unmoved"] for seen in two_ranks[1]] == [True, True]


# --------------------------------------------------------------------------------------- resuming


def test_resuming_continues_bit_for_bit(images, tmp_path):
    options = dict(iterations=4, lr_anneal_steps=8, weight_decay=0.1, ema_rate="0.5,0.999")
    training.train(images, tmp_path / "whole", save_interval=2, **options)
    start = str(tmp_path / "whole" / "model000002.pt")
    training.train(images, tmp_path / "resumed", resume_checkpoint=start, **options)
    for name in ("model000004.pt", "ema_0.5_000004.pt", "ema_0.999_000004.pt", "opt000004.pt"):
        assert_same(weights(tmp_path / "resumed" / name), weights(tmp_path / "whole" / name))
    whole, resumed = rows(tmp_path / "whole"), rows(tmp_path / "resumed")
    assert [row["step"] for row in resumed] == [3, 4]
    for key in ("loss", "samples", "progress", "grad_norm"):
        assert [row[key] for row in resumed] == [row[key] for row in whole[2:]]


def test_resuming_takes_the_learning_rate_of_its_own_flags(tmp_path):
    tiny(tmp_path, plain_sum, iterations=1)[0].run_loop()
    loop, seen = tiny(tmp_path, plain_sum, iterations=2, lr=0.5, resume_checkpoint=str(tmp_path / "model000001.pt"))
    loop.run_loop()
    assert torch.allclose(seen[0], torch.tensor(START) - 0.6, atol=1e-6)


def test_resuming_from_weights_alone_says_what_is_missing(tmp_path):
    tiny(tmp_path / "first", plain_sum, iterations=1)[0].run_loop()
    bare = tmp_path / "bare"
    bare.mkdir()
    (tmp_path / "first" / "model000001.pt").rename(bare / "model000001.pt")
    loop, _ = tiny(tmp_path / "second", plain_sum, iterations=2, resume_checkpoint=str(bare / "model000001.pt"))
    assert torch.allclose(loop.ema["0.9999"][0][0], torch.tensor(START) - 0.1, atol=1e-6)
    log = (tmp_path / "second" / "log.txt").read_text()
    assert "ema_0.9999_000001.pt" in log and "opt000001.pt" in log


def test_a_resumed_network_has_to_fit(images, tmp_path):
    tiny(tmp_path, plain_sum, iterations=1)[0].run_loop()
    with pytest.raises(UserError, match="resume_checkpoint .*model000001.pt"):
        training.loop(images, tmp_path / "other", resume_checkpoint=str(tmp_path / "model000001.pt"))


# ------------------------------------------------------------------------------------- objectives


class Asked(torch.nn.Module):
    """Gives fixed logits and remembers what it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x, t):
        self.x, self.t = x, t
        return self.logits


LOGITS = [[0.0, 1, 2, 3, 4, 5, 6], [9.0, 1, 2, 3, 4, 5, 6], [1.0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("noised", [True, False])
def test_classifier_objective_by_hand(noised):
    diffusion = diffusion_of(training.PROCESS)
    model, labels = Asked(LOGITS), torch.tensor([6, 3, 1])
    images = torch.linspace(-1, 1, 3 * 3 * 4 * 4).reshape(3, 3, 4, 4)
    objective = ClassifierObjective(diffusion, UniformSampler(diffusion), noised, "val")
    np.random.seed(3)
    torch.manual_seed(3)
    loss, terms, t = objective(model, images, {"y": labels})
    for row, label, got in zip(LOGITS, labels, loss):
        assert math.isclose(got, math.log(sum(math.exp(v) for v in row)) - row[label], rel_tol=1e-5)
    assert terms["val_acc@1"].tolist() == [1, 0, 0]
    assert terms["val_acc@5"].tolist() == [1, 1, 0]  # the second's label is fifth, behind 9 6 5 4 3
    assert torch.equal(terms["val_loss"], loss)
    assert torch.equal(model.t, t)
    if not noised:
        assert t.tolist() == [0, 0, 0] and torch.equal(model.x, images)
        return
    np.random.seed(3)
    torch.manual_seed(3)
    drawn = np.random.choice(100, size=3, p=np.full(100, 0.01))
    betas = np.linspace(1000 / 100 * 1e-4, 1000 / 100 * 0.02, 100)  # the linear schedule of 100 steps
    kept = torch.tensor(np.cumprod(1 - betas)[drawn]).view(3, 1, 1, 1)
    expected = kept.sqrt() * images + (1 - kept).sqrt() * torch.randn_like(images)
    assert t.tolist() == drawn.tolist() and torch.allclose(model.x, expected.float(), atol=1e-5)


def test_weighted_timesteps_weigh_the_loss():
    diffusion = diffusion_of(training.PROCESS)
    t, weight = torch.tensor([3, 50]), torch.tensor([2.0, 0.5])
    sampler = SimpleNamespace(sample=lambda n, device: (t, weight))
    images = torch.zeros(2, 3, 8, 8)
    model = training.network()
    torch.manual_seed(0)
    loss, terms, told = DiffusionObjective(diffusion, sampler)(model, images, {})
    torch.manual_seed(0)
    plain = diffusion.training_losses(model, images, t)
    assert torch.equal(told, t)
    assert torch.allclose(loss, plain["loss"] * weight) and torch.allclose(terms["mse"], plain["mse"] * weight)


def test_a_process_with_fewer_timesteps_is_warned_of(capsys):
    for respacing, said in (("10", "leaves 10 of 1000 timesteps"), ("", "")):
        diffusion = create_gaussian_diffusion(timestep_respacing=respacing)
        DiffusionObjective(diffusion, UniformSampler(diffusion))
        printed = capsys.readouterr().out
        assert said in printed and bool(printed) == bool(said)
