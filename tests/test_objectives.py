"""The seam of objectives: one that owns a second network, enrolled by a line in the table."""

import json
import os
import signal
import sys
from pathlib import Path

import critic
import numpy as np
import pytest
import script_runs
import torch
from processes import MPIRUN, Job, needs_mpirun
from tiny_loop import NAN, assert_same, tiny, weights

from guided_diffusion import logger
from guided_diffusion.checkpoints import manifest
from guided_diffusion.errors import UserError
from guided_diffusion.objectives import OBJECTIVES, AuxiliaryNetwork, Loss, Objective, ObjectiveFlags

RUN = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= --learn_sigma True "
    "--diffusion_steps 6 --noise_schedule cosine --dropout 0.3 --batch_size 4 --microbatch 3 --lr 1e-3 "
    "--schedule_sampler loss-second-moment --num_workers 0 --log_interval 1 --objective critic --critic_lr 0.02"
).split()


@pytest.fixture(autouse=True)
def terminal_afterwards():
    yield
    logger.reset()


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "critic", critic.Critic)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(256, size=(13, 8, 8, 3), dtype=np.uint8))
    return path


def train(name, images, folder, *flags):
    return script_runs.run(name, "--data_dir", images, "--out_dir", folder, *flags)


def bytes_of(folder, step):
    found = {path.name: path.read_bytes() for path in folder.glob(f"*{step:06d}.pt")}
    assert {name.split("0000")[0] for name in found} == {"model", "ema_0.9999_", "opt", "state"}
    return found


# ------------------------------------------------------------------------------------ the table line


@pytest.mark.parametrize(
    "name, flags", [("image_train", []), ("super_res_train", ["--large_size", 8, "--small_size", 4])]
)
def test_a_table_line_puts_it_into_the_scripts(table, images, tmp_path, name, flags):
    words = [*(RUN if name == "image_train" else RUN[2:]), *flags]
    train(name, images, tmp_path / "whole", *words, "--iterations", 4, "--save_interval", 2)
    states = [weights(tmp_path / "whole" / f"state{step:06d}.pt") for step in (2, 4)]
    assert states[1]["critic"]["optimizer"]["param_groups"][0]["lr"] == 0.02
    assert states[1]["critic"]["optimizer"]["state"][0]["step"] == 4
    before, after = (state["critic"]["network"] for state in states)
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert_same(*(state["teacher"] for state in states))

    (tmp_path / "on").mkdir()
    for path in (tmp_path / "whole").glob("*000002.*"):
        (tmp_path / "on" / path.name).write_bytes(path.read_bytes())
    said = train(name, images, tmp_path / "on", *words, "--iterations", 4, "--resume_checkpoint", "auto")
    assert "warning" not in said and bytes_of(tmp_path / "on", 4) == bytes_of(tmp_path / "whole", 4)


def test_without_the_line_it_is_unknown(images, tmp_path, capsys):
    for words, sentence in (
        (RUN[:-2], "argument --objective: 'critic' is not known; expected one of diffusion"),
        (["--critic_lr", 1], "--critic_lr is not a flag of this script"),
    ):
        with pytest.raises(SystemExit):
            train("image_train", images, tmp_path, *words)
        assert sentence in capsys.readouterr().err


def test_a_checkpoint_may_name_an_objective_that_is_not_there():
    with pytest.raises(UserError, match="--objective is 'critic'; expected one of diffusion"):
        ObjectiveFlags(objective="critic")


def test_flags_of_another_objective_are_warned_of(table, images, tmp_path):
    words = ["--objective", "diffusion", "--iterations", 1]
    said = train("image_train", images, tmp_path, *RUN, *words)
    assert "--critic_lr does nothing with --objective diffusion" in said
    assert "--schedule_sampler does nothing" not in said


def test_a_run_remembers_its_objective_and_may_change_it(table, images, tmp_path, capsys):
    train("image_train", images, tmp_path, *RUN[:-4], "--iterations", 1)
    resume = ["--resume_checkpoint", "auto"]
    said = train("image_train", images, tmp_path, *RUN, *resume, "--iterations", 2)
    for name in ("critic", "teacher"):
        assert f"the checkpoint has no {name} of --objective, which starts afresh" in said
    assert "--schedule_sampler starts afresh" not in said
    # it is remembered from here on, and its networks are not dropped without a word
    assert "starts afresh" not in train("image_train", images, tmp_path, *RUN[:-4], *resume, "--iterations", 3)
    assert "critic" in weights(tmp_path / "state000003.pt")
    with pytest.raises(SystemExit):
        train("image_train", images, tmp_path, *RUN[:-4], *resume, "--iterations", 4, "--objective", "diffusion")
    said = capsys.readouterr().err
    assert "networks that --objective does not know (critic, teacher)" in said and "Traceback" not in said


@needs_mpirun
@pytest.mark.slow
def test_two_ranks_killed_go_on_bit_for_bit(images, tmp_path):
    def start(folder, steps):
        worker = Path(__file__).parent / "workers" / "with_critic.py"
        words = [MPIRUN, "-n", 2, sys.executable, worker, "image_train", "--data_dir", images, "--out_dir", folder]
        words += [*RUN, "--iterations", steps, "--save_interval", 2, "--resume_checkpoint", "auto"]
        return Job(list(map(str, words)), tmp_path)

    with start(tmp_path / "killed", 10**6) as job:
        job.trains(9)
        os.kill(job.ranks()[1], signal.SIGKILL)
        assert job.ended() != 0
    last = max(manifest.steps(tmp_path / "killed"))
    end = last + 4
    with start(tmp_path / "killed", end) as again, start(tmp_path / "whole", end) as whole:
        assert again.ended() == 0 and whole.ended() == 0, again.said + whole.said
        assert (again.said.count("grad_norm"), whole.said.count("grad_norm")) == (4, end)
    assert last >= 8 and bytes_of(tmp_path / "killed", end) == bytes_of(tmp_path / "whole", end)


# --------------------------------------------------------------------------------- by hand, one weight


def linear(weight, optimizer=True, **options):
    network = torch.nn.Linear(len(weight), 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([weight]))
    return AuxiliaryNetwork(network, torch.optim.SGD(network.parameters(), lr=0.1) if optimizer else None, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", [[5], [2, 3], [4, 1], [1, 1, 1, 1, 1]])
def test_it_steps_by_the_mean_gradient_of_its_microbatches(dtype, sizes):
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    own = linear([1.0, -2.0, 0.5], dtype=dtype)
    for part in rows.split(sizes):
        own.backward(own(part)[:, 0])  # the gradient of w x is x
    assert own.step()
    assert torch.allclose(own.network.weight[0], torch.tensor([1.0, -2.0, 0.5]) - 0.1 * rows.mean(dim=0), atol=1e-6)
    after = own.network.weight.clone()
    assert not own.step() and torch.equal(own.network.weight, after), "nothing was told since"


def test_its_gradients_are_clipped():
    own = linear([0.0, 0.0], grad_clip=1.0)
    own.backward(own(torch.tensor([[3.0, 4.0]]))[:, 0])
    own.step()
    assert torch.allclose(own.network.weight[0], torch.tensor([-0.06, -0.08]))


def test_fixed_weights_pass_gradients_to_the_arguments_alone():
    own, x = linear([3.0, 1.0]), torch.ones(1, 2, requires_grad=True)
    own.fixed(x).sum().backward()
    assert x.grad.tolist() == [[3.0, 1.0]] and own.network.weight.grad is None


def test_a_frozen_network_has_no_gradients_and_does_not_step():
    own, x = linear([3.0, 1.0], optimizer=False), torch.ones(1, 2, requires_grad=True)
    own(x).sum().backward()
    assert x.grad.tolist() == [[3.0, 1.0]] and own.network.weight.grad is None
    assert not own.step() and own.state_dict().keys() == {"network"}


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_losses_that_are_not_finite_move_nothing_and_end_the_run_in_the_end(bad, capsys):
    own = linear([1.0])
    for step in range(20):
        own.backward(own(torch.ones(2, 1))[:, 0] * torch.tensor([1.0, bad]))
        if step < 19:
            assert not own.step() and own.network.weight.item() == 1
    assert "of the Linear of --objective is not finite" in capsys.readouterr().out
    with pytest.raises(UserError, match="training diverged: the Linear of --objective"):
        own.step()


def test_weights_thrown_too_far_end_the_run():
    own = linear([1.0])
    own.optimizer.param_groups[0]["lr"] = 1e30
    own.backward(own(torch.full((1, 1), 1e15))[:, 0])
    with pytest.raises(UserError, match="training diverged"):
        own.step()


def test_another_network_is_refused_and_changes_nothing():
    own = linear([1.0, 2.0])
    others = [linear([1.0]), linear([1.0, 2.0], optimizer=False)]
    for other in others:
        with pytest.raises(UserError, match="another network or optimiser"):
            own.load_state_dict(other.state_dict())
    two = torch.nn.Linear(2, 1, bias=False)
    groups = [{"params": [two.weight]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}]
    with pytest.raises(UserError, match="another optimiser"):
        own.load_state_dict(AuxiliaryNetwork(two, torch.optim.SGD(groups, lr=1.0)).state_dict())
    assert own.network.weight.tolist() == [[1.0, 2.0]]


def test_rates_stay_those_of_this_run():
    old, own = linear([1.0]), linear([2.0])
    old.optimizer.param_groups[0]["lr"] = 7.0
    own.load_state_dict(old.state_dict())
    assert own.network.weight.item() == 1 and own.optimizer.param_groups[0]["lr"] == 0.1


# ---------------------------------------------------------------------------------------- in the loop


class Owner(Objective):
    """The sum of the weights, times factors[step]; its own network has the gradient 1, 2, 3 ... in its one weight."""

    num_timesteps = 4

    def __init__(self, factors=(), weight=(1.0,)):
        self.own = linear(list(weight))
        self.factors = iter(factors)
        self.step = 0

    def __call__(self, model, x, cond):
        self.step += 1
        self.own.backward(self.own(torch.full((len(x), 1), float(self.step)))[:, 0])
        value = sum(p.sum() for p in model.parameters()).expand(len(x)) * next(self.factors, 1.0)
        return Loss(value, {"loss": value}, torch.zeros(len(x), dtype=torch.long))


def own_loop(folder, objective, **flags):
    loop, _ = tiny(folder, None, **flags)
    loop.objective, loop.after_step = objective, None
    return loop


def test_a_step_that_is_skipped_is_skipped_for_all(tmp_path):
    objective = Owner([1, NAN, 1])
    own_loop(tmp_path, objective, iterations=3).run_loop()
    assert objective.own.network.weight.item() == pytest.approx(1 - 0.1 * (1 + 3))


def test_a_state_that_does_not_fit_is_named(tmp_path):
    own_loop(tmp_path, Owner(), iterations=1).run_loop()
    start = tmp_path / "model000001.pt"
    loop, _ = tiny(tmp_path, lambda *_: None, iterations=2)
    loop.files.source = str(start)
    with pytest.raises(UserError, match="state000001.pt: the own of the checkpoint does not fit --objective"):
        loop.files.load_state(0, loop.precision, Owner(weight=(1.0, 2.0)), loop.device)


class Many(Owner):
    """Two more networks in a list, and one in a dict within a dict."""

    def __init__(self, weight=(1.0,)):
        super().__init__()
        self.critics = [linear(list(weight)), linear([2.0])]
        self.named = {"a": {"b": linear([3.0])}, "number": 1}
        self.again = self.critics[0]

    def __call__(self, model, x, cond):
        for own in (*self.critics, self.named["a"]["b"]):
            own.backward(own(torch.ones(len(x), 1))[:, 0])
        return super().__call__(model, x, cond)

    def weights(self):
        return [own.network.weight.item() for own in (*self.critics, self.named["a"]["b"])]


def test_networks_in_lists_and_dicts_are_trained_and_saved(tmp_path):
    objective = Many()
    own_loop(tmp_path, objective, iterations=3).run_loop()
    assert objective.weights() == pytest.approx([0.7, 1.7, 2.7])
    state = weights(tmp_path / "state000003.pt")
    assert {"own", "critics.0", "critics.1", "named.a.b"} <= state.keys() and "again" not in state
    fresh = Many()
    fresh.load_state_dict(objective.state_dict())
    assert fresh.weights() == objective.weights()
    with pytest.raises(UserError, match="networks that --objective does not know"):
        Owner().load_state_dict(objective.state_dict())
    with pytest.raises(UserError, match="critics.0 of the checkpoint does not fit"):
        Many((1.0, 2.0)).load_state_dict(objective.state_dict())


# -------------------------------------------------------------------------------- a learned variance

UPSAMPLER = (
    "--large_size 8 --small_size 4 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= "
    "--learn_sigma True --diffusion_steps 6 --noise_schedule cosine --batch_size 4 --lr 1e-3 --num_workers 0 "
    "--iterations 2"
).split()


@pytest.fixture(scope="module")
def begun(images, tmp_path_factory):
    """An upsampler with a learned variance, and what objectives open beside it."""
    folder = tmp_path_factory.mktemp("begun")
    train("super_res_train", images, folder / "first", *UPSAMPLER)
    words = "--image_size 8 --num_classes 2 --classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1"
    words += " --classifier_attention_resolutions 8 --classifier_num_head_channels 32 --batch_size 4 --num_workers 0"
    np.savez(folder / "classes.npz", arr_0=np.load(images)["arr_0"], arr_1=np.arange(13) % 2)
    train("classifier_train", folder / "classes.npz", folder / "judge", *words.split(), "--iterations", 1)
    return folder


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "adversarial"])  # which refuses one
def test_a_variance_that_is_not_trained_is_said(begun, images, tmp_path, name):
    first = begun / "first" / "model000002.pt"
    words = {
        "progressive_distillation": ["--teacher", first, "--student_steps", 2],
        "consistency_distillation": ["--teacher", first, "--consistency_steps", 3],
        "scale_distillation": ["--scale_schedule", 2],
        "unrolled": ["--identity_path", begun / "judge" / "model000001.pt", "--unroll_steps", 2],
    }.get(name, [])
    said = train(
        "super_res_train",
        images,
        tmp_path,
        *UPSAMPLER,
        *words,
        "--init_from",
        first,
        "--objective",
        name,
        "--prediction",
        "v",
    )
    before, after = (weights(path)["out.2.weight"] for path in (first, tmp_path / "model000002.pt"))
    kept = torch.equal(before[3:], after[3:])
    assert before[3:].any() and not torch.equal(before[:3], after[:3])
    assert said.count(f"--objective {name} does not train the variance of --learn_sigma True") == kept


def test_what_is_trained_on_a_grid_is_shown_and_sampled_on_it(images, tmp_path):
    grid = ["--diffusion_steps", 100, "--timestep_respacing", 4]
    script_runs.train_diffusion(images, tmp_path, *grid)
    saved = json.loads((tmp_path / "model000002.json").read_text())
    assert saved["trained_timesteps"] == [0, 33, 66, 99] and saved["sampled_by"] == {"timestep_respacing": "4"}
    words = ["--model_path", tmp_path / "model000002.pt", "--num_samples", 2]
    said = script_runs.run("image_sample", *words, "--out_dir", tmp_path / "own")
    assert "4 steps by way of the timesteps: 99 66 33 0 -1" in said and "was not trained at" not in said
    said = script_runs.run("image_sample", *words, "--timestep_respacing", 5, "--out_dir", tmp_path / "other")
    assert "was not trained at 3 of the 5 timesteps of this grid" in said
