"""The seams: a paper is one file and one table line, and composes with the others.

Objectives have test_objectives.py, metrics test_evaluator.py.
"""

import json
import sys

import numpy as np
import papers
import pytest
import sampled
import script_runs
import torch
from goldens import closed_form
from processes import MPIRUN, WORKERS, needs_mpirun, run
from recipe import tensor

from guided_diffusion import conditioning, methods
from guided_diffusion.conditioning import Conditioning
from guided_diffusion.denoiser import NetworkDenoiser, bound
from guided_diffusion.errors import UserError
from guided_diffusion.flags import at_least, flag
from guided_diffusion.generate import IndexedNoise
from guided_diffusion.methods import Clipping, Method, Thresholding
from guided_diffusion.process import DiffusionFlags, Process
from guided_diffusion.sampling import sample
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.solvers import DDIM, SOLVERS
from guided_diffusion.solvers import flags as solver_flags

SHAPE = (3, 3, 8, 8)
SAMPLING = {
    "solver": ["--solver", "lazy", "--share", 0.5],
    "denoiser": ["--dimming", 0.3],
    "coupling": ["--late", 7],
    "correction": ["--pull", 0.1],
    "conditioning": ["--by_brightness", True],
    "all": "--solver lazy --share 0.5 --dimming 0.3 --late 7 --pull 0.1 --by_brightness True".split(),
}
IDENTITY = "--solver lazy --share 1 --dimming 0 --late 0 --pull 0 --by_brightness False".split()
TRAINING = {
    "corruption": ["--slowed", 9],
    "conditioning": ["--by_brightness", True],
    "dropout": ["--class_dropout", 0.5],
}


def guide(guided):
    return ["--guidance_scale", 2] if guided else []


def sampling(folder, *flags, count=4):
    """The command of `count` images in folder/name, as image_sample's words."""
    words = ["image_sample", "--model_path", folder.parent / "model" / "model000002.pt", "--out_dir", folder]
    words += ["--num_samples", count, "--batch_size", 2, "--timestep_respacing", 5]
    return [*words, *([] if "--solver" in flags else ["--solver", "lazy"]), *flags]


def images(folder):
    with np.load(folder / "samples_4x16x16x3.npz") as npz:
        return npz["arr_0"]


def training(folder, iterations, *flags):
    words = ["image_train", "--data_dir", folder.parent / "data", "--out_dir", folder, "--iterations", iterations]
    words += [*script_runs.NETWORK, *script_runs.PROCESS, "--class_cond", True, "--num_classes", 3]
    words += "--batch_size 4 --log_interval 1 --num_workers 0 --learn_sigma True --save_interval 1".split()
    return [*words, *flags]


def weights(folder, step=3):
    return (folder / f"model{step:06d}.pt").read_bytes()


def run_all(path, commands, ranks=1):
    """Run commands one after the other in one job, since each process would import everything anew."""
    path.write_text(json.dumps([list(map(str, words)) for words in commands]))
    launcher = [MPIRUN, "-n", ranks] if ranks > 1 else []
    done = run(*launcher, sys.executable, WORKERS / "enrolled.py", path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of what one process made."""
    place = tmp_path_factory.mktemp("seams")
    script_runs.draw_images(place / "data")
    dropped = ["--class_dropout", 0.5, "--by_brightness", True, "--lr", 0.05]
    commands = [training(place / "model", 2, *dropped)]
    for guided in (False, True):
        commands.append(sampling(place / f"plain_{guided}", *guide(guided)))
        for seam, flags in SAMPLING.items():
            commands.append(sampling(place / f"{seam}_{guided}", *flags, *guide(guided)))
    for seam, flags in SAMPLING.items():
        parts = place / f"{seam}_parts"
        commands += [sampling(parts, *flags, *guide(True), count=count) for count in (2, 4)]
    commands += [sampling(place / "identity", *IDENTITY), training(place / "no_paper", 3)]
    for seam, flags in TRAINING.items():
        repeated = flags if seam == "conditioning" else []
        commands += [training(place / f"{seam}_whole", 3, *flags), training(place / f"{seam}_run", 2, *flags)]
        commands.append(training(place / f"{seam}_run", 3, "--resume_checkpoint", "auto", *repeated))
    run_all(place / "alone.json", commands)
    return place


@pytest.fixture(scope="module")
def on_two_ranks(alone):
    commands = [
        sampling(alone / f"{seam}_{guided}_ranks", *flags, *guide(guided))
        for seam, flags in SAMPLING.items()
        for guided in (False, True)
        if guided or seam == "all"
    ]
    commands += [training(alone / f"{seam}_ranks", 2, *flags) for seam, flags in TRAINING.items()]
    run_all(alone / "ranks.json", commands, ranks=2)
    return alone


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("seam", SAMPLING)
def test_a_paper_of_sampling_is_a_file_and_a_line(seam, guided, alone):
    """It moves the images, guided or not, and in a folder that goes on they are the same."""
    once = images(alone / f"{seam}_{guided}")
    assert not np.array_equal(once, images(alone / f"plain_{guided}"))
    if guided:
        assert np.array_equal(images(alone / f"{seam}_parts"), once)


@needs_mpirun
@pytest.mark.parametrize("seam, guided", [*((seam, True) for seam in SAMPLING), ("all", False)])
def test_two_ranks_make_the_same_images(seam, guided, on_two_ranks):
    name = f"{seam}_{guided}"
    assert np.array_equal(images(on_two_ranks / f"{name}_ranks"), images(on_two_ranks / name))


def test_papers_at_their_identity_change_no_bit(alone):
    assert np.array_equal(images(alone / "identity"), images(alone / "plain_False"))


@pytest.mark.parametrize("seam", TRAINING)
def test_a_paper_of_training_is_a_file_and_a_line(seam, alone):
    """It moves the weights, and goes on byte for byte, its flag without being repeated."""
    whole = weights(alone / f"{seam}_whole")
    assert whole != weights(alone / "no_paper")
    assert weights(alone / f"{seam}_run") == whole


@needs_mpirun
@pytest.mark.parametrize("seam", TRAINING)
def test_a_paper_of_training_runs_on_two_ranks(seam, on_two_ranks):
    assert weights(on_two_ranks / f"{seam}_ranks", step=2)


# -- how they combine ------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch):
    kinds = [papers.Dimmed, papers.Late, papers.Pulled, papers.Slowed]
    monkeypatch.setattr(methods, "STACK", [*methods.STACK, *kinds])
    monkeypatch.setitem(SOLVERS, "lazy", papers.Lazy)


def test_couplings_corrections_and_corruptions_chain(table):
    """Two of each: those of the package and of papers.py are, in the table's order, what they are by hand."""
    flags = {"diffusion": {"noise_schedule": "cosine", "timestep_respacing": "10"}}
    shift = {"do_time_shift": True, "time_shift_variant": "paper", "time_shift_constant": 3, "cutoff": 100}
    noise = {"input_perturbation": 0.1}
    both = sampled.process("ddim", **flags, methods={**shift, **noise, "late": 5, "slowed": 20, "pull": 0.1})
    first = sampled.process("ddim", **flags, methods={**shift, **noise})
    x, t, s = tensor("x", *SHAPE), torch.full((3,), both.grid[5]), torch.full((3,), both.grid[4])
    moved, target = both.coupling(5, x, t, s)
    assert torch.equal(moved, t + 8) and torch.equal(target, s)
    assert torch.equal(first.coupling(5, x, t, s)[0], t + 3)
    torch.manual_seed(0)
    level_noise, level = both.corruption(x, t)
    torch.manual_seed(0)
    alone, same = first.corruption(x, t)
    assert torch.equal(level_noise, alone) and torch.equal(level, t + 20) and torch.equal(same, t)
    torch.testing.assert_close(both.correction(x, None, t, s), 0.9 * x)


@pytest.mark.parametrize(
    "flags, skipped, expected",
    [
        ({"late": 5}, 0, [[999] * 3, [888] * 3, [893] * 3, [782] * 3]),
        # what starts from a noised image is where it says that it is
        ({"late": 5}, 3, [[666] * 3, [555] * 3, [560] * 3, [449] * 3]),
        ({"do_time_shift": True, "time_shift_variant": "paper", "time_shift_constant": 3, "cutoff": 0}, 3, None),
    ],
)
def test_plms_of_the_class_api_asks_at_the_moved_times(table, flags, skipped, expected):
    diffusion, told = create_gaussian_diffusion(timestep_respacing="10", **flags), []

    def model(x, t):
        told.append(t.tolist())
        return 0.1 * x

    diffusion.plms_sample_loop(model, SHAPE, noise=tensor("x", *SHAPE), skip_timesteps=skipped, device="cpu")
    grid = diffusion.timestep_map
    assert grid[:3] == [0, 111, 222]
    assert told[:4] == (expected or [[t] * 3 for t in (666, 555, 558, 447)])


def test_a_method_stands_where_its_base_does_and_once():
    class Mine(Thresholding):
        pass

    schedule = sampled.process().schedule
    mine = Mine(thresholding="dynamic")
    made = Process(schedule, methods=[mine, Clipping()])
    assert made.method(Thresholding) is mine
    assert [type(method) for method in made.methods] == [Clipping, Mine]
    with pytest.raises(UserError, match="methods has more than one Clipping; expected at most one of a class"):
        Process(schedule, methods=[Clipping(), mine, Clipping(clip_denoised=False)])


def test_two_corrections_follow_each_other(table, monkeypatch):
    class Lifted(Method):
        def correct(self, process):
            return lambda x, prediction, t, s: x + 1

    monkeypatch.setattr(methods, "STACK", [*methods.STACK, Lifted])
    process = DiffusionFlags().create([Lifted(), papers.Pulled(0.5)])
    x = tensor("x", *SHAPE)
    torch.testing.assert_close(process.correction(x, None, None, None), 0.5 * x + 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_grid_of_each_sample_gives_what_the_common_one_gives(name):
    process = sampled.process(name, diffusion={"noise_schedule": "cosine", "timestep_respacing": "6"})
    denoise = process.denoiser(closed_form({"steps": 1000, "noise_schedule": "cosine"}))
    start, grid = tensor("start", *SHAPE), torch.tensor(process.grid)
    own = grid[:, None].expand(-1, 3)
    *_, common = sample(denoise, process.solver, grid, start, IndexedNoise(0, range(3)))
    *_, each = sample(denoise, process.solver, own, start, IndexedNoise(0, range(3)))
    assert torch.equal(common.x, each.x)


def test_each_sample_may_have_times_of_its_own():
    process = sampled.process("ddim", diffusion={"noise_schedule": "cosine"})
    denoise = process.denoiser(closed_form({"steps": 1000, "noise_schedule": "cosine"}))
    grids = torch.tensor([[10, 0, 100], [400, 300, 500], [900, 800, 999]])
    start = tensor("start", *SHAPE)
    *_, together = sample(denoise, process.solver, grids, start)
    for i in range(3):
        *_, alone = sample(denoise, process.solver, grids[:, i], start[i : i + 1])
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_whole_run():
    """Of the sum of a DDIM image with respect to a factor of the network, against a difference quotient."""
    process = sampled.process("ddim", clip=False, diffusion={"noise_schedule": "linear", "timestep_respacing": "5"})
    network = closed_form({"steps": 1000, "noise_schedule": "linear"})

    def total(factor):
        adapter = NetworkDenoiser(
            lambda x, t: factor * network(x, t).double(), process.schedule, process.mean_type, process.var_type
        )
        start = tensor("start", *SHAPE).double()
        *_, last = sample(bound(adapter, {}), DDIM(process.schedule), process.grid, start)
        return last.x0.sum()

    factor = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    total(factor).backward()
    step = 1e-3
    with torch.no_grad():
        quotient = (total(torch.tensor(1 + step)) - total(torch.tensor(1 - step))) / (2 * step)
    assert factor.grad.item() == pytest.approx(quotient.item(), rel=1e-3)


@pytest.mark.parametrize("shifts", [[], [3], [3, 5], [3, None, 5], [None]])
def test_clocks_follow_each_other(shifts):
    class Told(Method):
        def __init__(self, shift):
            self.shift = shift

        def clock(self, process):
            return self.shift and (lambda x, t: 2 * t + self.shift)

    heard = []
    process = DiffusionFlags().create([type("Told", (Told,), {})(shift) for shift in shifts])
    process.denoiser(lambda x, t: heard.append(t) or x)(torch.zeros(2, 3, 4, 4), torch.tensor([10, 20]))
    expected = torch.tensor([10, 20])
    for shift in filter(None, shifts):
        expected = 2 * expected + shift
    assert torch.equal(heard[0], expected)


class Says(Conditioning):
    """Tells the network 1 by some names."""

    def __init__(self, *names):
        self.names = names

    def _all(self, *_):
        return {name: torch.ones(2, dtype=torch.long) for name in self.names}

    of_data = shown = of_indices = dropped = _all


@pytest.mark.parametrize("what, arguments", [("of_data", 2), ("shown", 3), ("of_indices", 2), ("dropped", 1)])
def test_conditionings_side_by_side_merge_and_may_not_share_a_name(what, arguments):
    arguments = [None] * arguments
    merged = getattr(conditioning.Together([Says("a", "b"), None, Says("c")]), what)(*arguments)
    assert set(merged) == {"a", "b", "c"}
    with pytest.raises(UserError, match="Says and Says both tell the network b"):
        getattr(conditioning.Together([Says("a", "b"), Says("b")]), what)(*arguments)


@pytest.mark.parametrize("takes, told", [((), "bright"), (("y",), "bright"), (("y", "low_res"), "text"), (None, "")])
def test_a_network_is_told_what_it_takes(takes, told):
    class Network(torch.nn.Module):
        def forward(self, x, t, **cond):
            return x

    network, cond = Network(), {"y": torch.zeros(2), "bright": torch.ones(2), "text": torch.ones(2)}
    if takes is not None:
        network.takes = takes
        cond = {"y": cond["y"], told: cond[told]}
        with pytest.raises(UserError, match=f"cannot be told {told}"):
            DiffusionFlags().create().denoiser(network, cond)
        cond = {name: torch.zeros(2) for name in (*takes, "y")}
    DiffusionFlags().create().denoiser(network, cond)(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]))


def test_what_no_network_takes_is_refused_in_training_and_in_sampling(monkeypatch, tmp_path, capsys):
    data = script_runs.draw_images(tmp_path / "data")
    path = script_runs.train_diffusion(data, tmp_path / "run")
    monkeypatch.setattr(conditioning, "CONDITIONINGS", [*conditioning.CONDITIONINGS, papers.Brightness])
    for name in ("image_train", "image_sample"):
        words = ["--by_brightness", True, "--out_dir", tmp_path / name]
        if name == "image_train":
            words += ["--data_dir", data, *script_runs.NETWORK, *script_runs.TRAINING]
        else:
            words += ["--model_path", path, "--num_samples", 1, "--timestep_respacing", 2]
        with pytest.raises(SystemExit):
            script_runs.run(name, *words)
        said = capsys.readouterr().err
        assert "the network cannot be told bright" in said and "Traceback" not in said


def test_solvers_agree_about_an_option(monkeypatch):
    mine = flag(0.5, "Mine.", legal=at_least(0), idle=True)
    other = flag(0.5, "Another's.", legal=at_least(1), idle=True)
    for kind, options in ((papers.Lazy, {"mine": mine}), (DDIM, {"mine": other})):
        monkeypatch.setattr(kind, "options", {**kind.options, **options})
    monkeypatch.setitem(SOLVERS, "lazy", papers.Lazy)
    monkeypatch.setattr(solver_flags, "READERS", {"mine": ["lazy"]})
    made = solver_flags._option("mine")
    assert made.default == 0.5 and dict(made.metadata) == dict(mine.metadata)
    monkeypatch.setattr(solver_flags, "READERS", {"mine": ["lazy", "ddim"]})
    with pytest.raises(TypeError, match="lazy and ddim declare --mine otherwise"):
        solver_flags._option("mine")
