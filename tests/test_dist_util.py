"""Who started a process, which device it takes, and what ranks say to each other."""

import json
import os
import pickle
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import WORKERS, mpirun, needs_mpirun, run, srun, torchrun
from refusals import one_sentence

from guided_diffusion import dist_util
from guided_diffusion.distributed import launchers, messages
from guided_diffusion.distributed.launchers import Launch
from guided_diffusion.tensor_files import load_checkpoint, load_state_dict

# ----------------------------------------------------------------------------- fake environments

TORCHRUN = dict(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4", MASTER_ADDR="n0", MASTER_PORT="29500")
MPICH = dict(PMI_RANK="1", PMI_SIZE="2", MPI_LOCALNRANKS="2", MPI_LOCALRANKID="1")
OPENMPI = dict(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1", PMIX_RANK="1")
SBATCH = dict(
    SLURM_JOB_ID="1234",
    SLURM_NTASKS="6",
    SLURM_PROCID="0",
    SLURM_LOCALID="0",
    SLURM_JOB_NODELIST="node[03-07,9],login",
    SLURM_TASKS_PER_NODE="2(x3)",
)
SRUN = SBATCH | dict(SLURM_STEP_ID="0", SLURM_PROCID="5", SLURM_LOCALID="1", SLURM_NODEID="2")


@pytest.mark.parametrize(
    "env, launcher",
    [
        ({}, "python"),
        (dict(MASTER_ADDR="n0", MASTER_PORT="1", LOCAL_RANK="3"), "python"),
        (TORCHRUN, "torchrun"),
        (MPICH, "mpirun"),
        (OPENMPI, "mpirun"),
        (dict(PMIX_RANK="0"), "python"),
        (SRUN, "srun"),
        (SBATCH, "python"),
        (SRUN | dict(SLURM_NTASKS="1"), "python"),
        (SRUN | dict(SLURM_STEP_NUM_TASKS="1"), "python"),
        (TORCHRUN | MPICH | SRUN, "torchrun"),
        (MPICH | SRUN, "mpirun"),
        (OPENMPI | SRUN, "mpirun"),
        (SRUN | dict(PMI_RANK="5", PMI_SIZE="6"), "srun"),
        (SRUN | dict(PMIX_RANK="5"), "srun"),
        (SBATCH | MPICH, "mpirun"),
    ],
)
def test_launcher_of(env, launcher):
    assert launchers.launcher_of(env) == launcher


def test_told_rank():
    for env, rank in ((TORCHRUN, 5), (MPICH, 1), (OPENMPI, 1), (SRUN, 5), (SBATCH, 0), ({}, 0), (dict(RANK="4"), 0)):
        assert launchers.told_rank(env) == rank
    assert launchers.told_rank(TORCHRUN | dict(RANK="x")) == 0


def test_torchrun_launch():
    assert launchers.torchrun_launch(TORCHRUN) == Launch("torchrun", 5, 8, 1, 4, "n0", 29500)
    assert launchers.torchrun_launch(dict(RANK="0", WORLD_SIZE="1")) == Launch("torchrun")
    one_sentence(lambda: launchers.torchrun_launch(TORCHRUN | dict(RANK="x")), "RANK", "'x'")
    one_sentence(lambda: launchers.torchrun_launch(TORCHRUN | dict(LOCAL_RANK="-1")), "LOCAL_RANK", "'-1'")
    one_sentence(lambda: launchers.torchrun_launch(dict(RANK="0", WORLD_SIZE="2")), "MASTER_ADDR")
    one_sentence(lambda: launchers.torchrun_launch(dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="n0")), "MASTER_PORT")


def test_slurm_launch():
    launch = launchers.slurm_launch(SRUN)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (5, 6, 1, 2)
    assert launch.host == "node03" and 1024 < launch.port < 32768
    assert launchers.slurm_launch(SRUN | dict(SLURM_PROCID="0")).port == launch.port
    assert launchers.slurm_launch(SRUN | dict(SLURM_STEP_ID="1")).port != launch.port
    assert launchers.slurm_launch(SRUN | dict(SLURM_STEP_NODELIST="gpu7")).host == "gpu7"
    assert launchers.slurm_launch(SRUN | dict(SLURM_TASKS_PER_NODE="1,1,3")).local_size == 3
    moved = launchers.slurm_launch(SRUN | dict(MASTER_ADDR="10.0.0.1", MASTER_PORT="4000"))
    assert (moved.host, moved.port) == ("10.0.0.1", 4000)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node[03-07,9]", "node03"),
        ("node[9,11-12]", "node9"),
        ("a1,a2", "a1"),
        ("gpu-3", "gpu-3"),
        ("rack[2-3]n[01-04],x", "rack2n01"),
        ("n[1-2].cluster", "n1.cluster"),
    ],
)
def test_first_host(nodes, first):
    assert launchers.first_host(nodes) == first


def fake_mpi(rank, size, local_rank, local_size, told=None):
    said = [messages.packed(told), np.array([len(messages.packed(told))]).tobytes()]

    def broadcast(array, root):
        if rank:
            array[:] = np.frombuffer(said.pop(), array.dtype)

    comm = SimpleNamespace(rank=rank, size=size, Bcast=broadcast)
    return comm, SimpleNamespace(rank=local_rank, size=local_size)


def test_mpi_launch_meets_on_the_loopback_of_one_host():
    launch = launchers.mpi_launch({}, *fake_mpi(0, 2, 0, 2))
    assert (launch.size, launch.local_size, launch.host) == (2, 2, "127.0.0.1") and launch.port > 0


def test_mpi_launch_meets_outside_on_several_hosts():
    launch = launchers.mpi_launch(OPENMPI, *fake_mpi(0, 2, 0, 1))
    assert launch.host not in ("", "localhost") and not launch.host.startswith("127.0.0.1")


def test_mpi_launch_takes_the_word_of_rank_0_and_of_the_user():
    told = ("10.0.0.9", 777)
    assert launchers.mpi_launch(MPICH, *fake_mpi(1, 2, 1, 2, told)) == Launch("mpirun", 1, 2, 1, 2, *told)
    launch = launchers.mpi_launch(dict(MASTER_ADDR="n7", MASTER_PORT="99"), *fake_mpi(0, 4, 0, 2))
    assert (launch.host, launch.port) == ("n7", 99)


def test_mpi_launch_notices_two_kinds_of_mpi():
    one_sentence(lambda: launchers.mpi_launch(OPENMPI, *fake_mpi(0, 1, 0, 1)), "2 processes", "sees 1")


def test_mpirun_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    one_sentence(lambda: dist_util._find_launch(MPICH), "pip install mpi4py mpich")


def test_one_process_under_mpirun_needs_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert dist_util._find_launch(MPICH | dict(PMI_RANK="0", PMI_SIZE="1")) == Launch("mpirun")


# ----------------------------------------------------------------------------- device and threads


@pytest.mark.parametrize(
    "wanted, local_rank, gpus, device",
    [
        (None, 0, 0, "cpu"),
        (None, 3, 0, "cpu"),
        (None, 0, 8, "cuda:0"),
        (None, 3, 8, "cuda:3"),
        ("cuda", 3, 4, "cuda:3"),
        ("cuda:1", 0, 2, "cuda:1"),
        ("cuda:0", 3, 1, "cuda:0"),
        ("cpu", 3, 8, "cpu"),
    ],
)
def test_choose_device(wanted, local_rank, gpus, device):
    assert launchers.choose_device(wanted, local_rank, gpus) == torch.device(device)


def test_device_that_is_not_there():
    one_sentence(lambda: launchers.choose_device(None, 4, 2), "local rank 4", "2 are visible", "--device cpu")
    one_sentence(lambda: launchers.choose_device("cuda:2", 0, 2), "--device cuda:2", "2 GPUs")
    one_sentence(lambda: launchers.choose_device("cuda", 0, 0), "no GPU is visible")
    one_sentence(lambda: launchers.choose_device("gpu", 0, 2), "--device gpu", "cuda:N")
    if not torch.backends.mps.is_available():
        one_sentence(lambda: launchers.choose_device("mps", 0, 0), "--device mps")


def test_threads_per_rank():
    four = Launch("mpirun", size=4, local_size=4)
    assert launchers.threads_per_rank({}, four, 10) == 2
    assert launchers.threads_per_rank({}, four, 2) == 1
    assert launchers.threads_per_rank(dict(OMP_NUM_THREADS="3"), four, 10) is None
    assert launchers.threads_per_rank({}, Launch("python"), 10) is None
    bound = Launch("srun", size=4, local_size=4)
    assert launchers.threads_per_rank(dict(SLURM_CPUS_PER_TASK="8"), bound, 8) == 8


def test_everything_works_before_setup():
    param = torch.nn.Parameter(torch.ones(3))
    dist_util.sync_params([param])
    dist_util.barrier()
    assert (dist_util.rank(), dist_util.local_rank(), dist_util.world_size()) == (0, 0, 1)
    assert dist_util.is_main() and dist_util.dev().type in ("cpu", "cuda")
    assert dist_util.all_reduce_sum(param) is param
    assert dist_util.gather_object(1) == [1]
    assert dist_util.broadcast_object("x") == "x"


# ------------------------------------------------------------------------------- real processes


def test_plain_process_needs_no_mpi_and_no_socket(tmp_path):
    done = run(sys.executable, WORKERS / "plain.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"logging to {tmp_path}"
    assert "plain and quiet" in done.stdout
    assert "started by python: 1 rank on 1 host, no backend, device cpu" in done.stderr


def check_two_ranks(done, folder, launcher, threads):
    assert done.returncode == 0, done.stderr
    first, second = seen = [json.loads((folder / f"{r}.json").read_text()) for r in (0, 1)]
    assert [s["launch"]["launcher"] for s in seen] == [launcher] * 2
    assert [s["launch"]["local_rank"] for s in seen] == [0, 1]
    assert [s["launch"]["local_size"] for s in seen] == [2, 2]
    assert [s["threads"] for s in seen] == [threads] * 2
    assert [s["main"] for s in seen] == [True, False]
    assert [s["total"] for s in seen] == [[3.0, 20.0]] * 2
    assert [s["leaf_total"] for s in seen] == [[2.0]] * 2
    assert [s["gathered"] for s in seen] == [[{"rank": 0}, {"rank": 1}], None]
    assert [s["joined"] for s in seen] == [[[0.0], [1.0]]] * 2
    assert [s["told"] for s in seen] == ["from 1"] * 2
    assert first["before"] == first["after"] == second["after"] != second["before"]
    assert all(s["trainable"] for s in seen)
    assert done.stderr.count(f"started by {launcher}: 2 ranks on 1 host, gloo backend, device cpu, 1 thread") == 1


@needs_mpirun
def test_two_ranks_of_mpirun(tmp_path):
    done = mpirun(2, "collectives.py", tmp_path)
    check_two_ranks(done, tmp_path, "mpirun", max(1, launchers.usable_cores() // 2))


def test_two_ranks_of_torchrun(tmp_path):
    # torchrun itself sets OMP_NUM_THREADS=1
    check_two_ranks(torchrun(2, "collectives.py", tmp_path, "gradient"), tmp_path, "torchrun", 1)
    seen = [json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1)]
    assert [s["gradient"] for s in seen] == [[[1.5]]] * 2


@needs_mpirun
def test_one_rank_of_mpirun(tmp_path):
    done = mpirun(1, "collectives.py", tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "0.json").read_text())
    assert seen["launch"]["launcher"] == "mpirun" and not seen["mpi"]
    assert seen["process_group"] and seen["new_sockets"] == 0


def test_two_ranks_of_srun(tmp_path):
    done = srun(2, "collectives.py", tmp_path)
    done.returncode = max(done.returncodes)
    check_two_ranks(done, tmp_path, "srun", 1)


@needs_mpirun
@pytest.mark.parametrize(
    "failure, status, message",
    [("bug", 1, "RuntimeError: rank one is broken"), ("user", 2, "--batch_size 0: expected a positive number")],
)
def test_a_failing_rank_ends_the_job(failure, status, message):
    done = mpirun(2, "failing.py", failure)
    assert done.returncode == status
    assert message in done.stderr.splitlines()
    assert (failure == "bug") == ("Traceback" in done.stderr)


def test_a_dead_peer_is_noticed():
    done = srun(2, "failing.py", "bug")
    assert done.returncodes[0] == 1 and done.returncodes[1] != 0
    assert "rank one is broken" in done.stderr and "Connection" in done.stderr


def test_no_rendezvous(monkeypatch):
    port = launchers.free_port()
    env = dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    call = lambda: dist_util.setup_dist("cpu", timeout=2)  # noqa: E731
    one_sentence(call, "rank 1 of 2", f"127.0.0.1:{port}", "gloo", "2 s", "MASTER_ADDR", "GLOO_SOCKET_IFNAME")
    assert time.monotonic() - start > 1.5
    monkeypatch.setenv("RANK", "0")
    one_sentence(call, "rank 0 of 2", "1/2 clients joined")
    assert dist_util.world_size() == 1


# -------------------------------------------------------------------------------- checkpoints


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("path", ["model.pt", "nested/model.pt"])
def test_checkpoint_comes_back(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    torch.save({"w": torch.arange(3.0)}, tmp_path / path)
    assert dist_util.load_state_dict(str(tmp_path / path))["w"].tolist() == [0, 1, 2]


def test_old_checkpoint_comes_back(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert dist_util.load_state_dict(tmp_path / "old.pt")["w"].sum() == 2


def test_remote_checkpoint_comes_back(tmp_path, monkeypatch):
    blobfile = pytest.importorskip("blobfile")
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    monkeypatch.setattr(blobfile, "read_bytes", lambda path: (tmp_path / path.split("/")[-1]).read_bytes())
    assert dist_util.load_state_dict("gs://bucket/m.pt")["w"].sum() == 2
    one_sentence(lambda: dist_util.load_state_dict("gs://bucket/none.pt"), "gs://bucket/none.pt", "does not exist")


def test_optimizer_state_is_a_checkpoint_but_no_state_dict(tmp_path):
    path = tmp_path / "opt.pt"
    torch.save(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.25).state_dict(), path)
    assert load_checkpoint(path)["param_groups"][0]["lr"] == 0.25
    assert dist_util.load_state_dict(path)["param_groups"][0]["lr"] == 0.25  # published scripts resume by it
    one_sentence(lambda: load_state_dict(path), path, "'state'", "dict of tensors")


def damaged(name, folder):
    """Write the bad checkpoint `name` into `folder`."""
    path = folder / "bad.pt"
    old = dict(_use_new_zipfile_serialization=name != "truncated old")
    torch.save({"w": torch.zeros(1000)}, path, **old)
    whole = path.read_bytes()
    if name == "list":
        torch.save([1, 2], path)
    elif name == "malicious":
        torch.save({"w": Malicious(str(folder / "ran"))}, path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "truncated": whole[: len(whole) // 2],
                "truncated old": whole[: len(whole) // 2],
                "three bytes": whole[:3],
                "text": b"hello world\n",
                "web page": b"<!DOCTYPE html>",
                "pickle": pickle.dumps(Malicious(str(folder / "ran"))),
                "old pickle": pickle.dumps(Malicious(str(folder / "ran")), protocol=2),
            }[name]
        )
    return path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "name, words",
    [
        ("empty", "is empty"),
        ("truncated", "truncated or damaged"),
        ("truncated old", "truncated or damaged"),
        ("three bytes", "damaged"),
        ("text", "b'hello wo'"),
        ("web page", "no file of torch.save"),
        ("malicious", "posix.mkdir" if os.name == "posix" else "nt.mkdir"),
        ("pickle", "refused"),
        ("old pickle", "refused"),
        ("list", "holds a list"),
    ],
)
def test_bad_checkpoint(tmp_path, name, words):
    path = damaged(name, tmp_path)
    for read in (dist_util.load_state_dict, load_state_dict):
        one_sentence(lambda read=read: read(str(path)), path, words)
    assert not (tmp_path / "ran").exists()


def test_no_checkpoint(tmp_path):
    one_sentence(lambda: dist_util.load_state_dict(tmp_path / "none.pt"), "none.pt", "does not exist")
    one_sentence(lambda: dist_util.load_state_dict(tmp_path), tmp_path, "directory")


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"])
def test_slurm_numbers_that_are_none_are_refused_in_a_sentence(name):
    env = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", name: "x"}
    assert launchers.launcher_of(env) == "srun" and launchers.told_rank(env) == 0
    one_sentence(lambda: launchers.slurm_launch(env), f"environment variable {name} is 'x', expected a whole number")
