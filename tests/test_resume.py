"""A training run that ends, by whatever, and goes on: restored exactly, or it says what is not."""

import json
import os
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import script_runs
import torch
from tiny_loop import INF, NAN, START, assert_same, half_square, plain_sum, poisoned, rows, tiny, weights

from guided_diffusion import checkpoints, files, flags, logger
from guided_diffusion.checkpoints import manifest, resume
from guided_diffusion.errors import UserError
from guided_diffusion.flags import Parsed
from guided_diffusion.image_datasets import batches
from guided_diffusion.jobs import random_state
from guided_diffusion.objectives import Loss
from guided_diffusion.objectives.sampled import SampledObjective
from guided_diffusion.resample import LossSecondMomentResampler
from guided_diffusion.training.data import next_batch, stream
from guided_diffusion.training.flags import TrainFlags
from guided_diffusion.training.loop import Loop

EIGHT = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= --learn_sigma True "
    "--class_cond True --num_classes 3 --diffusion_steps 6 --noise_schedule cosine --dropout 0.3"
).split()
# the history of 6 timesteps is full after 15 to 30 batches of 4, so the weights of the sampler count by then
EXACT = "--batch_size 4 --schedule_sampler loss-second-moment --use_bf16 True --ema_rate 0.9,0.5 --lr 1e-3".split()


@pytest.fixture(autouse=True)
def terminal_afterwards():
    yield
    logger.reset()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = np.random.default_rng(0).integers(256, size=(13, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=pixels, arr_1=np.arange(13) % 3)
    return path


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The folder of a run of 40 steps, with checkpoints at 20 and 40."""
    folder = tmp_path_factory.mktemp("whole")
    train(images, folder, *EIGHT, *EXACT, "--iterations", 40, "--save_interval", 20)
    return folder


def train(images, folder, *flags):
    return script_runs.run("image_train", "--data_dir", images, "--num_workers", 0, "--out_dir", folder, *flags)


def copy_checkpoint(source, target, step, leave_out=()):
    """Copy the files of a step but those whose names begin with one of `leave_out`."""
    target.mkdir(exist_ok=True)
    for path in source.glob(f"*{step:06d}.*"):
        if not path.name.startswith(tuple(leave_out)) and not path.name.startswith("preview"):
            (target / path.name).write_bytes(path.read_bytes())


def different_files(a, b, step):
    """Names of the files of a step, but for those that tell paths and times, that are not the same bytes."""
    found = sorted(path.name for path in a.glob(f"*{step:06d}.pt"))
    assert {name.split("0000")[0] for name in found} >= {"model", "opt", "state"}
    return [name for name in found if (a / name).read_bytes() != (b / name).read_bytes()]


# ------------------------------------------------------------------------------------------ exactly


def test_a_resumed_run_is_the_run_bit_for_bit(images, whole, tmp_path):
    """With other flags left out as well: those that count come from the checkpoint."""
    copy_checkpoint(whole, tmp_path, 20)
    said = train(images, tmp_path, "--iterations", 40, "--resume_checkpoint", "auto")
    warned = [line for line in said.splitlines() if line.startswith("warning") and "this processor" not in line]
    assert different_files(whole, tmp_path, 40) == [] and warned == []
    sampler = torch.load(whole / "state000040.pt", weights_only=True)["sampler"]
    assert sampler["seen"].min() >= 10, "the history would not have counted yet"


class Drawn(SampledObjective):
    """The squared error of y = w x + noise at a drawn timestep; the sampler learns from it."""

    def __init__(self):
        process = SimpleNamespace(num_timesteps=3)
        super().__init__(process, LossSecondMomentResampler(process, history_per_term=2))

    def __call__(self, model, x, cond):
        t, weights = self.sampler.sample(len(x), x.device)
        loss = (model(x + 0.1 * torch.randn_like(x))[:, 0] - t).square()
        self.update_sampler(t, loss)
        return Loss(loss * weights, {"loss": loss}, t)


def test_a_run_of_the_first_edition_goes_on(tmp_path):
    """The files are from commit 59aed76, whose objective had the shape of a function and a `sampler` beside it."""
    old = Path(__file__).parent / "data" / "state_59aed76"
    images = torch.tensor([[1.0, 0.5, -1.0], [0.0, 2.0, 1.0], [1.5, 0.0, 0.5], [-1.0, 1.0, 0.0]])
    logger.configure(str(tmp_path), "log")
    settings = TrainFlags(
        batch_size=4, lr=0.1, ema_rate="0.5", iterations=8, resume_checkpoint=str(old / "model000004.pt")
    )
    Loop(
        model=torch.nn.Linear(3, 1, bias=False),
        objective=Drawn(),
        data=iter(lambda: (images, {}), None),
        flags=settings,
        resolved={},
    ).run_loop()
    for name in ("model", "ema_0.5_", "opt", "state"):
        # the processor that wrote them may have rounded otherwise
        assert_same(weights(tmp_path / f"{name}000008.pt"), weights(old / f"{name}000008.pt"), torch.allclose)
    assert weights(old / "state000004.pt")["sampler"]["seen"].min() >= 2, "the history would not have counted yet"
    assert "warning" not in (tmp_path / "log.txt").read_text()


def test_rows_past_the_checkpoint_are_made_again_where_its_logs_lie(tmp_path):
    tiny(tmp_path / "run", plain_sum, iterations=4, save_interval=2)[0].run_loop()
    start = str(tmp_path / "run" / "model000002.pt")
    tiny(tmp_path / "other", plain_sum, iterations=4)[0].run_loop()
    for name in ("run", "other"):
        tiny(tmp_path / name, plain_sum, iterations=3, resume_checkpoint=start)[0].run_loop()
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    assert [row["step"] for row in rows(tmp_path / "other")] == [1, 2, 3, 4, 3]


def test_what_a_published_triple_cannot_restore_is_said(images, whole, tmp_path):
    copy_checkpoint(whole, tmp_path / "published", 20, ["state", "manifest"])
    start = tmp_path / "published" / "model000020.pt"
    said = train(images, tmp_path / "on", "--iterations", 21, "--resume_checkpoint", start)
    assert "state000020.pt: random numbers, the loss scale and the history of --schedule_sampler start afresh" in said
    assert weights(tmp_path / "on" / "opt000021.pt")["state"][0]["step"] == 21


def test_steps_of_another_size_go_on_where_the_data_stood(images, whole, tmp_path):
    copy_checkpoint(whole, tmp_path, 20)
    said = train(images, tmp_path, "--iterations", 21, "--batch_size", 8, "--resume_checkpoint", "auto")
    assert "steps were of 4 images x 1 ranks, now they are of 8 images x 1 ranks" in said and "after 80 images" in said
    assert rows(tmp_path)[-1]["samples"] == 88
    settings = TrainFlags(batch_size=8, resume_checkpoint=str(tmp_path / "model000020.pt"))
    data = script_runs.groups_of("image_train")[0][0](data_dir=str(images), num_workers=0)
    parsed, dataset = Parsed({type(data): data, TrainFlags: settings}, frozenset()), data.dataset(8, True, 3)
    batch = next(stream(dataset, parsed, next_batch(settings)))
    again = next(batches(dataset, 8, start=10))
    assert torch.equal(batch[0], again[0]) and torch.equal(batch[1]["y"], again[1]["y"])


def test_random_states_come_back():
    state = random_state.capture(torch.device("cpu"))
    np.random.standard_normal()  # of a pair, so that the second is kept
    half = random_state.capture(torch.device("cpu"))
    first = [np.random.standard_normal(3).tolist(), torch.randn(3).tolist()]
    random_state.restore(half, torch.device("cpu"))
    assert [np.random.standard_normal(3).tolist(), torch.randn(3).tolist()] == first
    random_state.restore(state, torch.device("cpu"))
    np.random.standard_normal()
    assert [np.random.standard_normal(3).tolist(), torch.randn(3).tolist()] == first


def test_a_history_of_another_sampler_is_refused():
    sampler = LossSecondMomentResampler(type("Diffusion", (), {"num_timesteps": 4}))
    for state in ({}, {"losses": torch.zeros(5, 10), "seen": torch.zeros(5)}):
        with pytest.raises(UserError, match="another --schedule_sampler or number"):
            sampler.load_state_dict(state)


def test_a_state_that_runs_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"samples": Runs()}, tmp_path / "state000002.pt")
    with pytest.raises(UserError, match="state000002.pt was refused: .*mkdir"):
        resume.read_state(str(tmp_path / "model000002.pt"))
    assert not (tmp_path / "ran").exists()
    torch.save([1], tmp_path / "state000002.pt")
    with pytest.raises(UserError, match="state000002.pt is not the state of a training run"):
        resume.read_state(str(tmp_path / "model000002.pt"))


@pytest.mark.parametrize("name", ["ema_0.9999_000001.pt", "opt000001.pt"])
def test_a_file_of_another_network_is_named(tmp_path, name):
    tiny(tmp_path, plain_sum, iterations=1)[0].run_loop()
    torch.save({}, tmp_path / name)
    with pytest.raises(UserError, match=f"{name} does not fit the network"):
        tiny(tmp_path, plain_sum, iterations=2, resume_checkpoint=str(tmp_path / "model000001.pt"))


def test_old_checkpoints_go_as_new_ones_come(tmp_path):
    tiny(tmp_path, plain_sum, iterations=7, save_interval=2, keep_checkpoints=2)[0].run_loop()
    assert sorted(path.name for path in tmp_path.glob("m*")) == sorted(
        f"{kind}{step}.{end}" for step in ("000006", "000007") for kind, end in
        (("model", "pt"), ("model", "json"), ("manifest", "json"))
    )  # fmt: skip
    for step in (6, 7):
        manifest.check(tmp_path, step)


def test_a_fresh_start_deletes_no_checkpoint_of_an_earlier_run_and_a_resumed_one_its_own(tmp_path):
    tiny(tmp_path, plain_sum, iterations=40, save_interval=20)[0].run_loop()
    options = dict(save_interval=1, keep_checkpoints=1)
    tiny(tmp_path, plain_sum, iterations=3, **options)[0].run_loop()
    assert manifest.steps(tmp_path) == [3, 40, 20]
    start = str(tmp_path / "model000003.pt")
    tiny(tmp_path, plain_sum, iterations=4, **options, resume_checkpoint=start)[0].run_loop()
    assert manifest.steps(tmp_path) == [4, 40, 20]


def test_an_old_checkpoint_that_cannot_be_deleted_is_no_failure(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError("not yours")

    monkeypatch.setattr(manifest, "prune", refuse)
    tiny(tmp_path, plain_sum, iterations=2, save_interval=1, keep_checkpoints=1)[0].run_loop()
    assert manifest.steps(tmp_path) == [2, 1]
    assert "warning: step 2 is saved, but older checkpoints cannot" in (tmp_path / "log.txt").read_text()


# ------------------------------------------------------------------------------- weights and no more


def test_a_run_may_begin_from_weights_of_other_classes(images, whole, tmp_path):
    start = whole / "ema_0.9_000040.pt"
    said = train(
        images, tmp_path, "--init_from", start, "--num_classes", 5, "--iterations", 1, "--lr", 1e-12,
        "--input_perturbation", 0.1,
    )  # fmt: skip
    assert f"label_emb.weight is not taken from {start}, which has other classes" in said
    ours, theirs = weights(tmp_path / "model000001.pt"), weights(start)
    assert ours["label_emb.weight"].shape[0] == 5
    for name in theirs:
        if name != "label_emb.weight":
            assert torch.allclose(ours[name], theirs[name], atol=1e-9), name
    saved = json.loads((tmp_path / "model000001.json").read_text())
    assert (saved["input_perturbation"], saved["dropout"], saved["step"]) == (0.1, 0.3, 1)
    average = weights(tmp_path / "ema_0.9999_000001.pt")
    assert torch.allclose(average["out.2.weight"], theirs["out.2.weight"], atol=1e-9)


@pytest.mark.parametrize("conditional", [True, False])
def test_classes_may_come_and_go(images, whole, tmp_path, conditional):
    start = whole / "model000040.pt"
    if conditional:
        state = weights(start)
        del state["label_emb.weight"]
        start = tmp_path / "bare.pt"
        torch.save(state, start)
    process = EIGHT[EIGHT.index("--diffusion_steps") :]
    flags = ["--class_cond", conditional, "--num_classes", 3, "--image_size", 8, *process, "--iterations", 1]
    said = train(images, tmp_path / "run", "--init_from", start, *flags)
    assert "label_emb.weight is not taken" in said
    assert ("label_emb.weight" in weights(tmp_path / "run" / "model000001.pt")) is conditional


def test_another_network_is_no_beginning(images, whole, tmp_path):
    def refused():
        group, overrides = script_runs.groups_of("image_train")
        words = ["--init_from", str(whole / "model000040.pt"), "--num_channels", "64"]
        return resume.starting_point(flags.parse(words, group, "", overrides), checkpoints.DIFFUSION)

    with pytest.raises(UserError, match="--num_channels is 64, the checkpoint has 32") as error:
        refused()
    assert "--override" not in str(error.value)


def test_to_begin_and_to_go_on_exclude_each_other():
    with pytest.raises(UserError, match="--init_from a.pt starts a run, and --resume_checkpoint model01.pt goes on"):
        TrainFlags(init_from="a.pt", resume_checkpoint="model01.pt")


def test_one_command_begins_from_weights_and_then_goes_on(images, whole, tmp_path, capsys):
    command = ["--init_from", whole / "model000040.pt", "--resume_checkpoint", "auto", "--lr", 1e-12]
    train(images, tmp_path, *command, "--iterations", 1)
    first = weights(tmp_path / "model000001.pt")
    assert all(torch.allclose(first[k], v, atol=1e-9) for k, v in weights(whole / "model000040.pt").items())
    train(images, tmp_path, *command, "--iterations", 2)
    assert weights(tmp_path / "opt000002.pt")["state"][0]["step"] == 2
    with pytest.raises(SystemExit):
        train(images, tmp_path, *command[:2], "--iterations", 1, "--dry_run", True)
    assert "has checkpoints of another run, the last at step 2" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("bad", [NAN, INF])
def test_twenty_bad_steps_end_the_run_and_keep_the_last_checkpoint(tmp_path, bad):
    loop, seen = tiny(
        tmp_path, poisoned(plain_sum, [1, 1] + [bad] * 19 + [1] + [bad] * 20), save_interval=2, ema_rate="0.5"
    )
    with pytest.raises(UserError) as error:
        loop.run_loop()
    for words in (
        "diverged at step 42: 20 steps in a row", "learning rate 0.1", f"gradient norm {'nan'}",
        "checkpoint of step 22 is whole", "a lower --lr, --grad_clip 1",
    ):  # fmt: skip
        assert words in str(error.value)
    assert torch.allclose(seen[-1], torch.tensor(START) - 0.3, atol=1e-6)
    # nothing after a bad step: what is due at step 4 waits for step 22
    assert sorted(manifest.steps(tmp_path)) == [2, 22]
    assert torch.isfinite(weights(tmp_path / "ema_0.5_000022.pt")["weight"]).all()


@pytest.mark.parametrize("interval, step", [(1, 1), (20, 2)])
def test_weights_thrown_too_far_by_a_finite_step_are_not_saved(tmp_path, interval, step):
    """One step of 1e30 from a finite gradient: the weights are numbers, of a norm that float32 cannot hold."""
    loop, _ = tiny(tmp_path, plain_sum, iterations=40, save_interval=interval)
    for rates in (vars(loop.flags), *loop.opt.param_groups):
        rates["lr"] = 1e30  # which the flag refuses
    with pytest.raises(UserError, match=f"diverged at step {step}: the norm of the weights is inf.* no checkpoint yet"):
        loop.run_loop()
    assert not list(tmp_path.glob("model*"))


def test_a_bad_streak_prunes_nothing_and_a_run_that_diverges_again_names_what_it_came_from(tmp_path):
    tiny(tmp_path, plain_sum, iterations=2)[0].run_loop()
    options = dict(save_interval=1, keep_checkpoints=1, resume_checkpoint=str(tmp_path / "model000002.pt"))
    loop, _ = tiny(tmp_path, poisoned(plain_sum, [NAN] * 20), **options)
    with pytest.raises(UserError, match="diverged at step 22: .*; the checkpoint of step 2 is whole"):
        loop.run_loop()
    assert manifest.steps(tmp_path) == [2]


def test_a_run_that_ends_on_a_bad_step_says_that_it_is_not_saved(tmp_path):
    loop, _ = tiny(tmp_path, poisoned(plain_sum, [1, 1, NAN]), iterations=3, save_interval=2)
    with pytest.raises(UserError, match="step 3 is not saved, .* is not finite; the checkpoint of step 2 is whole"):
        loop.run_loop()
    assert manifest.steps(tmp_path) == [2]


def test_weights_that_are_no_numbers_are_no_start(tmp_path):
    tiny(tmp_path, plain_sum, iterations=1)[0].run_loop()
    path = tmp_path / "model000001.pt"
    torch.save({"weight": torch.tensor([[1.0, NAN, 1.0]])}, path)
    (tmp_path / "manifest000001.json").unlink()  # which would say that they are altered
    for flag in ("resume_checkpoint", "init_from"):
        with pytest.raises(UserError, match="weights of .*model000001.pt are not finite"):
            tiny(tmp_path, plain_sum, iterations=2, **{flag: str(path)})


def test_a_loss_that_is_not_finite_counts_though_its_gradient_is(tmp_path):
    def objective(model, batch, cond):
        loss, terms, t = plain_sum(model, batch, cond)
        return loss + next(constants), terms, t

    constants = iter([0.0, INF, 0.0])
    loop, seen = tiny(tmp_path, objective, iterations=3)
    loop.run_loop()
    w = torch.tensor(START)
    assert torch.allclose(torch.stack(seen), torch.stack([w - 0.1, w - 0.1, w - 0.2]), atol=1e-6)


def test_a_loss_scale_below_one_ends_the_run(tmp_path):
    loop, _ = tiny(tmp_path, poisoned(plain_sum, [INF] * 30), dtype=torch.float16)
    loop.precision.lg_loss_scale = 3.0
    with pytest.raises(UserError, match="at step 4: 4 steps in a row .* the loss scale fell below 1.* --use_bf16"):
        loop.run_loop()


def test_losses_that_are_not_finite_leave_no_mark_on_the_sampler():
    sampler = LossSecondMomentResampler(type("Diffusion", (), {"num_timesteps": 2}), history_per_term=1)
    sampler.update_with_all_losses([0, 0, 1, 1], [2.0, NAN, 3.0, INF])
    assert np.isfinite(sampler.weights()).all() and sampler.state_dict()["seen"].tolist() == [1, 1]


def test_clipping_by_hand(tmp_path):
    for clip, factor in ((0.0, 1.0), (0.5, 0.5 / 1.5), (2.0, 1.0)):
        # y = 1.5 and the gradient is y x = (1.5, 0, 0)
        loop, seen = tiny(tmp_path, half_square, iterations=1, grad_clip=clip)
        loop.opt = torch.optim.SGD(loop.model.parameters(), lr=0.1)
        loop.run_loop()
        assert torch.allclose(seen[0], torch.tensor(START) - 0.1 * factor * torch.tensor([1.5, 0, 0]), atol=1e-6)
        row = rows(tmp_path)[-1]
        assert row["grad_norm"] == 1.5 and row.get("clipped") == {0.0: None, 0.5: 1.0, 2.0: 0.0}[clip]


# -------------------------------------------------------------------- signals, and a disk that is full


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["training", "saving"])
def test_a_signal_saves_and_ends(tmp_path, monkeypatch, capsys, number, status, moment):
    def send(*args):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    sent = []
    if moment == "saving":  # the second file of the checkpoint of step 2
        write = files.write_bytes

        def sending(path, data):
            if "ema" in path:
                send()
            write(path, data)

        monkeypatch.setattr(files, "write_bytes", sending)
    loop, _seen = tiny(tmp_path, plain_sum, save_interval=2)
    if moment == "training":
        loop.after_step = lambda loop: send() if loop.step == 3 else None
    with pytest.raises(SystemExit) as ended:
        loop.run_loop()
    assert ended.value.code == status
    assert "saved at step 3; --resume_checkpoint auto goes on" in capsys.readouterr().err
    assert manifest.steps(tmp_path) == [3, 2]
    for complete in (2, 3):
        manifest.check(tmp_path, complete)


def test_a_signal_after_a_bad_step_keeps_the_last_good_checkpoint(tmp_path, capsys):
    loop, _ = tiny(tmp_path, poisoned(plain_sum, [1, 1, NAN, 1]), save_interval=2)
    loop.after_step = lambda loop: os.kill(os.getpid(), signal.SIGTERM) if loop.step == 3 else None
    with pytest.raises(SystemExit) as ended:
        loop.run_loop()
    said = capsys.readouterr().err
    assert ended.value.code == 143 and manifest.steps(tmp_path) == [2]
    assert "step 3 is not saved" in said and "the checkpoint of step 2 is whole; --resume_checkpoint auto" in said


def test_a_full_disk_ends_the_run_in_a_sentence_and_keeps_the_last_checkpoint(tmp_path):
    loop, _ = tiny(tmp_path, plain_sum, iterations=2)
    loop.run_loop()
    before = {path.name for path in tmp_path.glob("*0000*")}
    start = str(tmp_path / "model000002.pt")
    loop, _ = tiny(tmp_path, plain_sum, iterations=4, resume_checkpoint=start)
    logger.configure(str(tmp_path), "csv")  # a log is too large for the limit
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "opt000002.pt").stat().st_size - 1  # model and average still fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            loop.run_loop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for words in ("checkpoint of step 4 cannot be written", "of step 2 is whole", "make room", "auto"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.glob("*0000*")} == before and not list(tmp_path.glob("*.tmp"))
    manifest.check(tmp_path, 2)
