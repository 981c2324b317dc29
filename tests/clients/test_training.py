"""The published training classes: fine-tuning against plain torch, and loops whose methods a subclass replaces."""

import copy
import csv
import json
import math

import numpy as np
import pytest
import torch
import toy_diffusion
from processes import mpirun, needs_mpirun, slow

from guided_diffusion import fp16_util, logger, train_util
from guided_diffusion.errors import UserError
from guided_diffusion.fp16_util import MixedPrecisionTrainer
from guided_diffusion.resample import LossAwareSampler, LossSecondMomentResampler, UniformSampler
from guided_diffusion.train_util import TrainLoop


@pytest.fixture(autouse=True)
def terminal_afterwards():
    yield
    logger.reset()


def rows(folder):
    with open(folder / "progress.csv") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def copies(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, **tolerance):
    return all(torch.allclose(x, y, **tolerance) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------ fine-tuning with the trainer


def batches(n):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 3, 4, 4, generator=generator), torch.arange(4)) for _ in range(n)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("parts", [1, 2])
def test_float32_fine_tuning_is_plain_adamw(tmp_path, decay, parts):
    logger.configure(str(tmp_path), ["csv"])
    plain, model = toy_diffusion.Network(), toy_diffusion.Network()
    trainer = MixedPrecisionTrainer(model=model)
    assert trainer.master_params == trainer.model_params == list(model.parameters())
    assert (trainer.use_fp16, trainer.param_groups_and_shapes, trainer.lg_loss_scale) == (False, None, 20.0)
    opt = torch.optim.AdamW(trainer.master_params, lr=0.02, weight_decay=decay)
    oracle = torch.optim.AdamW(plain.parameters(), lr=0.02, weight_decay=decay)
    for x, t in batches(5):
        trainer.zero_grad()
        oracle.zero_grad()
        for part in x.chunk(parts):
            trainer.backward(model(part, t[: len(part)]).square().mean())
            plain(part, t[: len(part)]).square().mean().backward()
        assert trainer.optimize(opt) is True
        norms = [
            math.sqrt(sum(v.square().sum().item() for v in values))
            for values in ([p.grad for p in plain.parameters()], copies(plain))
        ]
        oracle.step()
        assert equal(copies(model), copies(plain))
        assert equal([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
        logged = logger.dumpkvs()
        assert [logged["grad_norm"], logged["param_norm"]] == pytest.approx(norms, rel=1e-5)


def halves(model):
    return [p.dtype for p in model.parameters()]


def by_hand(model, x, t, scale, masters, lr):
    """Master weights after a step of gradient descent, by float16 gradients of a loss times `scale`."""
    model.zero_grad()
    (model(x, t).square().mean() * scale).backward()
    return [w - lr * p.grad.float() / scale for w, p in zip(masters, model.parameters())]


def test_float16_keeps_float32_master_weights_and_scales_the_loss(tmp_path):
    logger.configure(str(tmp_path), ["csv"])
    model, other = toy_diffusion.Network(), toy_diffusion.Network()
    masters = copies(model)
    trainer = MixedPrecisionTrainer(model=model, use_fp16=True, fp16_scale_growth=0.25, initial_lg_loss_scale=6.0)
    other.convert_to_fp16()
    assert halves(model) == halves(other) and torch.float16 in halves(model) and torch.float32 in halves(model)
    assert [tuple(p.shape) for p in trainer.master_params] == [(3 + 3,), (1, 81 + 3)]
    assert [shape for _, shape in trainer.param_groups_and_shapes] == [(-1,), (1, -1)]
    opt = torch.optim.SGD(trainer.master_params, lr=0.1)
    for i, (x, t) in enumerate(batches(4)):
        masters = by_hand(other, x, t, 2 ** (6 + 0.25 * i), masters, 0.1)
        with torch.no_grad():
            for p, w in zip(other.parameters(), masters):
                p.copy_(w)
        trainer.zero_grad()
        trainer.backward(model(x, t).square().mean())
        assert trainer.optimize(opt) is True
        assert trainer.lg_loss_scale == 6.25 + 0.25 * i
        assert close(copies(model), copies(other))
        state = trainer.master_params_to_state_dict(trainer.master_params)
        assert list(state) == list(model.state_dict())
        assert all(v.dtype is torch.float32 for v in state.values())
        assert close(state.values(), masters, atol=1e-6)
        assert logger.dumpkvs()["lg_loss_scale"] == 6 + 0.25 * i


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_float16_leaves_out_a_step_that_is_not_finite(tmp_path, bad):
    logger.configure(str(tmp_path), ["log"])
    model = toy_diffusion.Network()
    trainer = MixedPrecisionTrainer(model=model, use_fp16=True)
    opt = torch.optim.AdamW(trainer.master_params, lr=0.1)
    before, masters = copies(model), copy.deepcopy(trainer.master_params)
    ((x, t),) = batches(1)
    trainer.zero_grad()
    trainer.backward(model(x, t).mean() * bad)
    assert trainer.optimize(opt) is False
    assert trainer.lg_loss_scale == 19.0 and not opt.state
    assert equal(copies(model), before) and equal(trainer.master_params, masters)
    assert all(p.grad is None for p in trainer.master_params)
    trainer.zero_grad()
    assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("use_fp16", [False, True])
def test_a_state_dict_goes_to_master_weights_and_back(use_fp16):
    trainer = MixedPrecisionTrainer(model=toy_diffusion.Network(), use_fp16=use_fp16)
    state = toy_diffusion.Network(seed=5).state_dict()
    masters = trainer.state_dict_to_master_params(state)
    assert [p.shape for p in masters] == [p.shape for p in trainer.master_params]
    back = trainer.master_params_to_state_dict(masters)
    assert list(back) == list(state) and equal(back.values(), state.values())


@pytest.mark.parametrize("method, use_fp16", [("_optimize_normal", False), ("_optimize_fp16", True)])
def test_a_step_of_a_subclass_is_taken(method, use_fp16):
    def step(self, opt):
        self.seen = opt
        return "mine"

    trainer = type("Mine", (MixedPrecisionTrainer,), {method: step})(model=toy_diffusion.Network(), use_fp16=use_fp16)
    opt = object()
    assert trainer.optimize(opt) == "mine" and trainer.seen is opt


def test_parameters_without_gradient_are_no_hindrance():
    model = toy_diffusion.Network()
    model.time.requires_grad_(False)
    trainer = MixedPrecisionTrainer(model=model)
    before = copies(model.time)
    ((x, t),) = batches(1)
    trainer.backward(model(x, t).square().mean())
    assert trainer.optimize(torch.optim.AdamW(trainer.master_params, lr=0.1, weight_decay=0.0)) is True
    assert equal(copies(model.time), before)


# ------------------------------------------------------------------ small functions


@pytest.mark.parametrize(
    "name, step",
    [
        ("model000123.pt", 123),
        ("a/model1/model000020.pt", 20),
        ("gs://bucket/run/model1234567.pt", 1234567),
        ("models/model000000.pt", 0),
        ("model.pt", 0),
        ("ema_0.9999_000123.pt", 0),
        ("models/checkpoint12.pt", 0),
        ("model12x.pt", 0),
        ("", 0),
    ],
)
def test_the_step_in_a_name(name, step):
    assert train_util.parse_resume_step_from_filename(name) == step


def test_a_moving_average_beside_a_model(tmp_path):
    (tmp_path / "ema_0.9_000007.pt").write_bytes(b"")
    main = str(tmp_path / "model000007.pt")
    assert train_util.find_ema_checkpoint(main, 7, 0.9) == str(tmp_path / "ema_0.9_000007.pt")
    assert train_util.find_ema_checkpoint(main, 8, 0.9) is None
    assert train_util.find_ema_checkpoint(None, 7, 0.9) is None
    assert train_util.find_resume_checkpoint() is None


def test_the_folder_of_checkpoints_is_that_of_the_logger(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "env"))
    assert train_util.get_blob_logdir() == str(tmp_path / "env")
    logger.configure(str(tmp_path / "run"), ["csv"])
    assert train_util.get_blob_logdir() == str(tmp_path / "run")


def test_constants():
    assert train_util.INITIAL_LOG_LOSS_SCALE == fp16_util.INITIAL_LOG_LOSS_SCALE == 20.0


@pytest.mark.parametrize("steps", [toy_diffusion.STEPS, 1000, 7])
def test_losses_are_logged_by_quartiles(tmp_path, steps):
    class Diffusion:
        num_timesteps = steps

    logger.configure(str(tmp_path), ["csv"])
    ts = torch.randint(steps, (50,), generator=torch.Generator().manual_seed(1))
    losses = {"loss": torch.rand(50, requires_grad=True), "vb": torch.rand(50)}
    train_util.log_loss_dict(Diffusion(), ts, losses)
    row = logger.dumpkvs()
    for name, values in losses.items():
        assert row[name] == pytest.approx(values.mean().item())
        for quartile in range(4):
            mine = [v.item() for t, v in zip(ts, values) if int(4 * t.item() / steps) == quartile]
            assert row.get(f"{name}_q{quartile}") == (pytest.approx(np.mean(mine)) if mine else None)


# ------------------------------------------------------------------ the loop


def loop(folder, kind=TrainLoop, classes=False, **options):
    """A TrainLoop on toys that logs to `folder`; the generators are seeded for what it draws."""
    logger.configure(str(folder), ["csv", "log"])
    options = {"batch_size": 4, "microbatch": -1, "lr": 0.05, "ema_rate": "0.5,0.9", "log_interval": 1} | options
    diffusion = toy_diffusion.diffusion()
    made = kind(
        **{
            "model": toy_diffusion.Network(),
            "diffusion": diffusion,
            "data": toy_diffusion.data(options["batch_size"], classes=classes),
            "save_interval": 100,
            "resume_checkpoint": "",
            **options,
        }
    )
    np.random.seed(1)
    torch.manual_seed(1)
    return made


def expected(steps, microbatch=4, lr=0.05, decay=0.0, anneal=0, rates=(0.5, 0.9), classes=False):
    """(weights, averages) after so many steps, written out with torch alone."""
    model, diffusion, data = toy_diffusion.Network(), toy_diffusion.diffusion(), toy_diffusion.data(4, classes=classes)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    averages = [copies(model) for _ in rates]
    np.random.seed(1)
    torch.manual_seed(1)
    for step in range(steps):
        batch, cond = next(data)
        opt.zero_grad()
        for start in range(0, 4, microbatch):
            x = batch[start : start + microbatch]
            told = {k: v[start : start + microbatch] for k, v in cond.items()}
            uniform = np.full(toy_diffusion.STEPS, 1 / toy_diffusion.STEPS)
            t = torch.from_numpy(np.random.choice(toy_diffusion.STEPS, size=len(x), p=uniform))
            noise = torch.randn_like(x)
            ab = torch.from_numpy(diffusion.alphas_cumprod)[t].float()[:, None, None, None]
            x_t = ab.sqrt() * x + (1 - ab).sqrt() * noise
            (noise - model(x_t, t, **told)).square().flatten(1).mean(1).mean().backward()
        opt.step()
        for rate, average in zip(rates, averages):
            for a, p in zip(average, model.parameters()):
                a.mul_(rate).add_(p.detach(), alpha=1 - rate)
        if anneal:
            for group in opt.param_groups:
                group["lr"] = lr * (1 - step / anneal)
    return copies(model), averages


LOOPS = {
    "plain": ({}, {}),
    "microbatches": ({"microbatch": 2}, {"microbatch": 2}),
    "uneven": ({"microbatch": 3}, {"microbatch": 3}),
    "decay": ({"weight_decay": 0.1}, {"decay": 0.1}),
    "classes": ({"classes": True}, {"classes": True}),
    "one average": ({"ema_rate": 0.7}, {"rates": (0.7,)}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_steps_are_those_of_plain_torch(tmp_path, name):
    options, told = LOOPS[name]
    training = loop(tmp_path, lr_anneal_steps=6, **options)
    training.run_loop()
    weights, averages = expected(6, anneal=6, **told)
    assert close(copies(training.model), weights, atol=1e-6)
    for mine, average in zip(training.ema_params, averages, strict=True):
        assert close(mine, average, atol=1e-6)


def test_names_steps_and_rows_are_the_published_ones(tmp_path):
    training = loop(tmp_path, lr_anneal_steps=6, save_interval=2, log_interval=2)
    assert (training.batch_size, training.microbatch, training.global_batch) == (4, 4, 4)
    assert (training.step, training.resume_step, training.ema_rate) == (0, 0, [0.5, 0.9])
    assert training.ddp_model is training.model and training.use_ddp is False
    assert training.sync_cuda == torch.cuda.is_available()
    assert isinstance(training.schedule_sampler, UniformSampler)
    assert isinstance(training.mp_trainer, MixedPrecisionTrainer) and isinstance(training.opt, torch.optim.AdamW)
    training.run_loop()
    assert training.step == 6
    kinds = ("model", "ema_0.5_", "ema_0.9_", "opt")
    written = {f"{kind}{step:06d}.pt" for kind in kinds for step in (0, 2, 4, 6)}
    assert {path.name for path in tmp_path.glob("*.pt")} == written
    weights, averages = expected(6, anneal=6)
    saved = {kind: torch.load(tmp_path / f"{kind}000006.pt", weights_only=True) for kind in kinds}
    assert list(saved["model"]) == list(training.model.state_dict())
    assert close(saved["model"].values(), weights, atol=1e-6)
    assert close(saved["ema_0.9_"].values(), averages[1], atol=1e-6)
    assert saved["opt"]["param_groups"][0]["lr"] == pytest.approx(0.05 * (1 - 5 / 6))
    assert [(row["step"], row["samples"]) for row in rows(tmp_path)] == [(0, 4), (2, 12), (4, 20)]
    assert {"loss", "mse", "grad_norm", "param_norm"} <= rows(tmp_path)[1].keys()


def test_a_last_step_that_is_saved_is_saved_once(tmp_path):
    loop(tmp_path, lr_anneal_steps=5, save_interval=4).run_loop()
    assert sorted(path.name for path in tmp_path.glob("model*.pt")) == ["model000000.pt", "model000004.pt"]


def test_a_run_resumes_from_published_names(tmp_path):
    first = loop(tmp_path / "a", lr_anneal_steps=6)
    first.run_loop()
    again = loop(
        tmp_path / "b",
        model=toy_diffusion.Network(seed=9),
        lr_anneal_steps=8,
        resume_checkpoint=str(tmp_path / "a" / "model000006.pt"),
    )
    assert (again.step, again.resume_step) == (0, 6)
    assert equal(copies(again.model), copies(first.model))
    assert all(equal(a, b) for a, b in zip(again.ema_params, first.ema_params))
    for a, b in zip(first.opt.state.values(), again.opt.state.values(), strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) and a["step"] == b["step"] == 6
    again.run_loop()
    assert [row["step"] for row in rows(tmp_path / "b")] == [6, 7]
    assert sorted(path.name for path in (tmp_path / "b").glob("model*.pt")) == ["model000006.pt", "model000008.pt"]


def test_what_is_not_beside_a_checkpoint_starts_afresh(tmp_path):
    start = toy_diffusion.Network(seed=4)
    torch.save(start.state_dict(), tmp_path / "model000010.pt")
    training = loop(tmp_path / "run", resume_checkpoint=str(tmp_path / "model000010.pt"))
    assert equal(copies(training.model), copies(start)) and not training.opt.state
    assert all(equal(params, copies(start)) for params in training.ema_params)


@pytest.mark.parametrize("wrong", ["missing", "other"])
def test_a_checkpoint_that_cannot_be_had_is_named(tmp_path, wrong):
    path = tmp_path / "model000010.pt"
    if wrong == "other":
        torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(UserError, match="--resume_checkpoint") as caught:
        loop(tmp_path / "run", resume_checkpoint=str(path))
    assert str(path) in str(caught.value)


def test_float16_loops_save_and_resume_float32(tmp_path):
    first = loop(tmp_path / "a", use_fp16=True, fp16_scale_growth=0.5, lr_anneal_steps=4)
    assert first.mp_trainer.lg_loss_scale == 20.0
    first.mp_trainer.lg_loss_scale = 8.0
    first.run_loop()
    assert first.mp_trainer.lg_loss_scale == 8.0 + 4 * 0.5
    saved = torch.load(tmp_path / "a" / "model000004.pt", weights_only=True)
    assert all(v.dtype is torch.float32 for v in saved.values())
    assert close(saved.values(), expected(4, anneal=4)[0], atol=5e-3)
    again = loop(tmp_path / "b", use_fp16=True, resume_checkpoint=str(tmp_path / "a" / "model000004.pt"))
    assert equal(again.mp_trainer.master_params, first.mp_trainer.master_params)
    assert all(equal(a, b) for a, b in zip(again.ema_params, first.ema_params))


def test_a_sampler_that_learns_is_told_the_losses(tmp_path):
    diffusion = toy_diffusion.diffusion()
    sampler = LossSecondMomentResampler(diffusion, history_per_term=2)
    assert isinstance(sampler, LossAwareSampler) and sampler.diffusion is diffusion
    loop(tmp_path, schedule_sampler=sampler, microbatch=2, lr_anneal_steps=5).run_loop()
    assert sampler.state_dict()["seen"].sum() == 5 * 4


def test_the_test_variable_ends_a_run_at_its_second_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_TRAINING_TEST", "1")
    training = loop(tmp_path, save_interval=3)
    training.run_loop()
    assert training.step == 3 and (tmp_path / "model000003.pt").exists()


# ------------------------------------------------------------------ overriding


METHODS = {
    "run_step": 3,
    "forward_backward": 3,
    "_update_ema": 3,
    "_anneal_lr": 3,
    "log_step": 3,
    "save": 2,
    "_load_and_sync_parameters": 1,
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_a_subclass_is_called(tmp_path, name):
    calls = []

    def method(self, *args):
        calls.append(len(args))
        return getattr(TrainLoop, name)(self, *args)

    loop(tmp_path, type("Mine", (TrainLoop,), {name: method}), lr_anneal_steps=3).run_loop()
    assert calls == [2 if name in ("run_step", "forward_backward") else 0] * METHODS[name]
    assert (
        torch.load(tmp_path / "model000003.pt", weights_only=True).keys() == toy_diffusion.Network().state_dict().keys()
    )


@pytest.mark.parametrize("name, args", [("_load_ema_parameters", [(0.5,), (0.9,)]), ("_load_optimizer_state", [()])])
def test_every_method_of_a_subclass_that_resumes_is_called(tmp_path, name, args):
    torch.save(toy_diffusion.Network().state_dict(), tmp_path / "model000010.pt")
    calls = []

    def method(self, *told):
        calls.append(told)
        return [torch.zeros(1)]

    mine = type("Mine", (TrainLoop,), {name: method})
    training = loop(tmp_path / "run", mine, resume_checkpoint=str(tmp_path / "model000010.pt"))
    assert calls == args
    if name == "_load_ema_parameters":
        assert training.ema_params == [[torch.zeros(1)]] * 2


def test_a_step_of_ones_own(tmp_path):
    """As in forks that bring their own optimiser step."""

    class Own(TrainLoop):
        def run_step(self, batch, cond):
            self.forward_backward(batch, cond)
            self.optimize_normal()
            self.log_step()

        def optimize_normal(self):
            with torch.no_grad():
                for p in self.mp_trainer.master_params:
                    p.sub_(p.grad.sign(), alpha=0.125)
            self._update_ema()

    training = loop(tmp_path, Own, lr_anneal_steps=1)
    training.run_loop()
    moved = [(a - b).abs() for a, b in zip(copies(training.model), copies(toy_diffusion.Network()))]
    assert close(moved, [torch.full_like(m, 0.125) for m in moved], atol=1e-6) and not training.opt.state
    average = [(a + b) / 2 for a, b in zip(copies(training.model), copies(toy_diffusion.Network()))]
    assert close(training.ema_params[0], average, atol=1e-6)


def test_a_loss_of_ones_own(tmp_path):
    class Sum(TrainLoop):
        def forward_backward(self, batch, cond):
            self.mp_trainer.zero_grad()
            loss = sum(p.sum() for p in self.ddp_model.parameters())
            train_util.log_loss_dict(self.diffusion, torch.zeros(1, dtype=torch.long), {"own": loss.detach()[None]})
            self.mp_trainer.backward(loss)

    training = loop(tmp_path, Sum, lr_anneal_steps=1)
    training.run_loop()
    after = [p - 0.05 for p in copies(toy_diffusion.Network())]  # Adam's first step is the learning rate
    assert close(copies(training.model), after, atol=1e-5)
    assert {"own", "own_q0"} <= rows(tmp_path)[0].keys() and "loss" not in rows(tmp_path)[0]


def test_saving_of_ones_own(tmp_path):
    class Own(TrainLoop):
        def save(self):
            state = self.mp_trainer.master_params_to_state_dict(self.ema_params[0])
            torch.save(state, f"{train_util.get_blob_logdir()}/mine{self.step + self.resume_step}.pth")

    training = loop(tmp_path, Own, lr_anneal_steps=3, save_interval=2)
    training.run_loop()
    assert {path.name for path in tmp_path.glob("*.pt*")} == {"mine0.pth", "mine2.pth"}
    saved = torch.load(tmp_path / "mine2.pth", weights_only=True)
    assert close(saved.values(), expected(3, anneal=3)[1][0], atol=1e-6)


def test_a_loop_of_ones_own_over_data_that_end(tmp_path):
    class Epochs(TrainLoop):
        def run_loop(self):
            for batch, cond in self.data:
                self.run_step(batch, cond)
                self.step += 1
            self.save()

    finite = [next(toy_diffusion.data(4)) for _ in range(3)]
    training = loop(tmp_path, Epochs, data=iter(finite))
    training.run_loop()
    assert training.step == 3 and (tmp_path / "model000003.pt").exists()


def test_a_diffusion_of_ones_own_decides_the_loss(tmp_path):
    seen = []

    class Diffusion:
        num_timesteps = 8

        def training_losses(self, model, x_start, t, model_kwargs=None):
            seen.append((type(model), tuple(x_start.shape), t.dtype, sorted(model_kwargs)))
            return {"loss": model(x_start, t, **model_kwargs).square().flatten(1).mean(1)}

    loop(tmp_path, diffusion=Diffusion(), classes=True, microbatch=2, lr_anneal_steps=1).run_loop()
    assert seen == [(toy_diffusion.Network, (2, 3, 4, 4), torch.int64, ["y"])] * 2


def test_functions_of_the_module_may_be_replaced(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    start = toy_diffusion.Network(seed=7)
    torch.save(start.state_dict(), elsewhere / "model000005.pt")
    logged = []
    monkeypatch.setattr(train_util, "get_blob_logdir", lambda: str(elsewhere))
    monkeypatch.setattr(train_util, "find_resume_checkpoint", lambda: str(elsewhere / "model000005.pt"))
    monkeypatch.setattr(train_util, "log_loss_dict", lambda diffusion, ts, losses: logged.append(sorted(losses)))
    training = loop(tmp_path / "run", lr_anneal_steps=6)
    assert training.resume_step == 5 and equal(copies(training.model), copies(start))
    training.run_loop()
    assert (elsewhere / "opt000005.pt").exists() and not list((tmp_path / "run").glob("*.pt"))
    assert logged == [["loss", "mse"]]


@needs_mpirun
@pytest.mark.parametrize("microbatch", [1, *slow(-1)])
def test_two_ranks_train_as_one_on_both_batches(tmp_path, microbatch):
    done = mpirun(2, "published_loop.py", tmp_path, microbatch)
    assert done.returncode == 0, done.stderr
    alone = mpirun(1, "published_loop.py", tmp_path / "alone", microbatch)
    assert alone.returncode == 0, alone.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    (one,) = (json.loads((tmp_path / "alone" / f"{rank}.json").read_text()) for rank in (0,))
    assert first["weights"] == second["weights"] and first["averages"] == second["averages"]
    assert first["global_batch"] == 4 and first["use_ddp"] and not one["use_ddp"]
    assert np.allclose(first["weights"], one["weights"], atol=1e-6)
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == [f"{kind}{step:06d}.pt" for kind in ("ema_0.9_", "model", "opt") for step in (0, 3)]
