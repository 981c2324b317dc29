"""torch.distributed, as published code asks it after setup_dist(): alone, and on two ranks."""

import contextlib
import json
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import ROOT, WORKERS, mpirun, needs_mpirun, run, slow, torchrun

from guided_diffusion import dist_util, dist_util_1gpu
from guided_diffusion.distributed import alone, launchers
from guided_diffusion.errors import UserError


@pytest.fixture
def group_of_one():
    alone.join()
    yield
    dist.destroy_process_group()


def answers(folder, size):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def check(seen, size):
    ranks = list(range(size))
    for rank, answer in zip(ranks, seen):
        assert (answer["rank"], answer["size"]) == (rank, size)
        assert answer["parts"] == [[r, 10.0] for r in ranks]
        assert answer["total"] == sum(1 + r for r in ranks)
        assert answer["told"] == 5.0
        assert answer["objects"] == [{"rank": r} for r in ranks]
        assert answer["gradient"] == [1.0 + rank, np.mean([1.0 + r for r in ranks])]


@pytest.mark.parametrize("module", ["dist_util", *slow("dist_util_1gpu")])
def test_a_plain_process_asks_and_opens_no_socket(tmp_path, module):
    done = run(sys.executable, WORKERS / "asks_torch.py", tmp_path, module, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    seen = answers(tmp_path, 1)
    check(seen, 1)
    assert seen[0]["opened"] == 0 and seen[0]["sockets"] == []


@needs_mpirun
@pytest.mark.parametrize("size", [*slow(1), 2])
def test_ranks_of_mpirun_ask(tmp_path, size):
    done = mpirun(size, "asks_torch.py", tmp_path)
    assert done.returncode == 0, done.stderr
    check(answers(tmp_path, size), size)


def test_a_group_that_the_program_made_stays(tmp_path):
    done = torchrun(2, "own_group.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path, 2) == [[0, 2, True, [1.0, 1.0]], [1, 2, False, [1.0, 1.0]]]


def test_a_script_of_the_project_uses_no_socket(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    told = "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions 8"
    told += f" --iterations 1 --batch_size 2 --data_dir {tmp_path / 'x.npz'} --out_dir {tmp_path / 'run'} --device cpu"
    script = ROOT / "scripts" / "image_train.py"
    done = run(sys.executable, WORKERS / "quiet.py", script, *told.split(), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no socket is open\n")


def test_before_and_after_there_is_no_group(capsys):
    assert not dist.is_initialized()
    dist_util.setup_dist("cpu")
    try:
        assert (dist.is_initialized(), dist.get_rank(), dist.get_world_size()) == (True, 0, 1)
        dist_util.setup_dist()
        assert "1 rank on 1 host, no backend" in capsys.readouterr().err
    finally:
        dist_util.cleanup()
    assert not dist.is_initialized() and dist_util.world_size() == 1


def test_a_traceback_looks_as_ever(group_of_one):
    assert sys.excepthook is sys.__excepthook__


# ------------------------------------------------- every collective of a group of one is a copy


X = torch.arange(6.0).reshape(2, 3)


def into(call, *shape):
    """What a collective writes into a tensor."""

    def result():
        out = torch.zeros(shape)
        call(out)
        return out

    return result


def into_list(call):
    """What a collective writes into a list of one tensor."""

    def result():
        out = [torch.zeros(2, 3)]
        call(out)
        return out[0]

    return result


def in_place(call):
    """What a collective leaves of a tensor."""

    def result():
        out = X.clone()
        call(out)
        return out

    return result


COLLECTIVES = {
    "all_reduce": in_place(dist.all_reduce),
    "all_reduce_max": in_place(lambda x: dist.all_reduce(x, op=dist.ReduceOp.MAX)),
    "all_reduce_avg": in_place(lambda x: dist.all_reduce(x, op=dist.ReduceOp.AVG)),
    "reduce": in_place(lambda x: dist.reduce(x, 0)),
    "broadcast": in_place(lambda x: dist.broadcast(x, src=0)),
    "all_gather": into_list(lambda out: dist.all_gather(out, X)),
    "gather": into_list(lambda out: dist.gather(X, out, dst=0)),
    "gather_default": into_list(lambda out: dist.gather(X, out)),
    "scatter": into(lambda out: dist.scatter(out, [X], src=0), 2, 3),
    "reduce_scatter": into(lambda out: dist.reduce_scatter(out, [X]), 2, 3),
    "reduce_scatter_tensor": into(lambda out: dist.reduce_scatter_tensor(out, X), 2, 3),
    "all_gather_into_tensor": into(lambda out: dist.all_gather_into_tensor(out, X), 2, 3),
    "all_gather_stacked": into(lambda out: dist.all_gather_into_tensor(out, X), 1, 2, 3),
    "all_to_all": into_list(lambda out: dist.all_to_all(out, [X])),
    "all_to_all_single": into(lambda out: dist.all_to_all_single(out, X), 2, 3),
    "strided": into_list(lambda out: dist.all_gather(out, X.t().contiguous().t())),
    "subgroup": in_place(lambda x: dist.all_reduce(x, group=dist.new_group([0]))),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch renames some
@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_of_one_gives_its_own_part(group_of_one, name):
    assert torch.equal(COLLECTIVES[name]().reshape(2, 3), X)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bool])
def test_any_dtype_is_gathered(group_of_one, dtype):
    x = torch.tensor([0, 1, 1]).to(dtype)
    out = [torch.zeros_like(x)]
    dist.all_gather(out, x)
    assert torch.equal(out[0], x) and out[0].data_ptr() != x.data_ptr()


def test_objects_and_works(group_of_one):
    seen = [None]
    dist.all_gather_object(seen, {"a": [1, "b"]})
    box = ["kept"]
    dist.broadcast_object_list(box, src=0)
    gathered = [None]
    dist.gather_object((1, 2), gathered, dst=0)
    assert (seen, box, gathered) == ([{"a": [1, "b"]}], ["kept"], [(1, 2)])
    x = torch.ones(3, requires_grad=True)
    work = dist.all_reduce(x.detach(), async_op=True)
    work.wait()
    assert work.is_completed() and torch.equal(work.get_future().wait()[0], torch.ones(3))
    dist.barrier(async_op=True).wait()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "options", [{}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}, {"broadcast_buffers": True}]
)
def test_a_wrapped_network_has_the_gradients_of_a_bare_one(group_of_one, options):
    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 1, 3))

    bare, inner = network(), network()
    wrapped = torch.nn.parallel.DistributedDataParallel(inner, **options)
    x = torch.randn(4, 3, 8, 8)
    for wait in (True, False):
        with wrapped.no_sync() if wait else contextlib.nullcontext():
            wrapped(x).square().mean().backward()
        bare(x).square().mean().backward()
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-6) for a, b in zip(inner.parameters(), bare.parameters()))


# ------------------------------------------------------------------------------- the other names


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"map_location": "cpu"},
        {"map_location": torch.device("cpu"), "weights_only": True},
        {"weights_only": False},
        {"map_location": lambda storage, place: storage},
    ],
)
def test_load_state_dict_takes_what_torch_load_takes(tmp_path, options):
    torch.save({"w": torch.arange(3.0), "step": 4}, tmp_path / "m.pt")
    for module in (dist_util, dist_util_1gpu):
        content = module.load_state_dict(str(tmp_path / "m.pt"), **options)
        assert content["w"].tolist() == [0, 1, 2] and content["step"] == 4


class Code:
    def __reduce__(self):
        return print, ("it ran",)


def test_load_state_dict_runs_nothing_whatever_it_is_told(tmp_path, capsys):
    torch.save({"w": Code()}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="was refused"):
        dist_util.load_state_dict(tmp_path / "m.pt", weights_only=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("per_node, local_rank, device", [(8, 9, 9), (8, 3, 3), (4, 9, 1), (1, 3, 0), (2, 3, 1)])
def test_gpus_per_node_is_obeyed_where_it_is_set(monkeypatch, per_node, local_rank, device):
    chosen = []

    def choose(wanted, place, gpus):
        chosen.append(place)
        raise UserError("far enough")

    monkeypatch.setattr(dist_util, "GPUS_PER_NODE", per_node)
    monkeypatch.setattr(launchers, "choose_device", choose)
    monkeypatch.setattr(dist_util, "_find_launch", lambda env: launchers.Launch("torchrun", 9, 16, local_rank, 16))
    with pytest.raises(UserError, match="far enough"):
        dist_util.setup_dist()
    assert chosen == [device]


def test_published_constants():
    assert (dist_util.GPUS_PER_NODE, dist_util.SETUP_RETRY_COUNT) == (8, 3)
    for name in ("GPUS_PER_NODE", "SETUP_RETRY_COUNT", "setup_dist", "dev", "load_state_dict", "sync_params"):
        assert getattr(dist_util_1gpu, name) is getattr(dist_util, name)
