"""Who started this process - torchrun, mpirun, srun or nobody - and what that launcher says about it.

Each launcher tells it in variables of the environment, which the functions here take as a dict `env`.
"""

import os
import re
import socket
import stat
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from . import messages

MPIRUN_MARKS = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE")
# srun gives these too, to programs that are linked with MPI: there they say nothing about mpirun. PMIX_RANK never
# does: who starts by PMIx and is mpirun says OMPI_ as well.
PMI_MARKS = ("PMI_RANK", "PMI_SIZE")
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Launch:
    """What the launcher says about this process.

    :ivar launcher: its name: torchrun, mpirun, srun or python.
    :ivar rank: number of this process in the job, 0..size-1.
    :ivar local_rank: its number on this host, 0..local_size-1.
    :ivar host: where rank 0 listens, at `port`; empty, and 0, for a single process.
    """

    launcher: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: str = ""
    port: int = 0


def launcher_of(env):
    """Name the launcher whose marks stand in the environment: torchrun, mpirun, srun or python."""
    if "RANK" in env and "WORLD_SIZE" in env:
        return "torchrun"
    # A shell of sbatch has SLURM_NTASKS as well; only what srun started has a step.
    in_step = "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and _in_several(env)
    if any(mark in env for mark in MPIRUN_MARKS + (() if in_step else PMI_MARKS)):
        return "mpirun"
    return "srun" if in_step else "python"


def torchrun_launch(env):
    """Return the Launch that torchrun's variables describe.

    :raises UserError: where a variable is missing or no number.
    """
    size = _number(env, "WORLD_SIZE")
    if size > 1 and "MASTER_ADDR" not in env:
        raise UserError(f"WORLD_SIZE is {size} but MASTER_ADDR, the host of rank 0, is not set: start with torchrun")
    return Launch(
        "torchrun",
        rank=_number(env, "RANK"),
        size=size,
        local_rank=_number_or(env, "LOCAL_RANK", 0),
        local_size=_number_or(env, "LOCAL_WORLD_SIZE", 1),
        host=env.get("MASTER_ADDR", ""),
        port=_number(env, "MASTER_PORT") if size > 1 else 0,
    )


def slurm_launch(env):
    """Return the Launch that srun's variables describe; MASTER_ADDR and MASTER_PORT override the meeting point.

    :raises UserError: where a variable is missing or no number.
    """
    tasks = _task_counts(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", ""))
    node = _number_or(env, "SLURM_NODEID", 0)
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
    # Two steps of a job, or two jobs on a host, should not meet at one port; 32768 and up belong to the system.
    near = len(tasks) > node and tasks[node] == _slurm_size(env)
    port = 12000 + (101 * _number_or(env, "SLURM_JOB_ID", 0) + _number(env, "SLURM_STEP_ID")) % 20000
    return Launch(
        "srun",
        rank=_number(env, "SLURM_PROCID"),
        size=_slurm_size(env),
        local_rank=_number_or(env, "SLURM_LOCALID", 0),
        local_size=tasks[node] if node < len(tasks) else 1,
        host=env.get("MASTER_ADDR") or ("127.0.0.1" if near else first_host(nodes)),
        port=_number_or(env, "MASTER_PORT", port),
    )


def mpi_launch(env, comm, local):
    """Return the Launch of an MPI rank; all ranks call this together.

    Rank 0 tells the others where it listens: on the loopback if they share its host, else at the address that leads
    outside, and always at its MASTER_ADDR and MASTER_PORT where these are set.

    :param comm: the communicator of the job.
    :param local: the communicator of this host.
    :raises UserError: if mpirun and mpi4py do not agree about the number of processes.
    """
    told = mpi_size(env)
    if told not in (0, comm.size):
        raise UserError(
            f"mpirun started {told} processes but mpi4py sees {comm.size}: they belong to different MPIs, so start "
            "with the mpirun beside this python (pip install mpi4py mpich)"
        )
    here = None
    if comm.rank == 0:
        host = "127.0.0.1" if local.size == comm.size else _outward_address()
        here = env.get("MASTER_ADDR") or host, _number_or(env, "MASTER_PORT", 0) or free_port()
    host, port = _told_by_rank_0(comm, here)
    return Launch("mpirun", comm.rank, comm.size, local.rank, local.size, host, port)


def _told_by_rank_0(comm, value):
    """The plain value of rank 0 on all ranks: mpi4py's own would be a pickle."""
    length = np.zeros(1, np.int64)
    message = np.frombuffer(messages.packed(value), np.uint8).copy()
    if comm.rank == 0:
        length[0] = len(message)
    comm.Bcast(length, root=0)
    if comm.rank > 0:
        message = np.empty(length[0], np.uint8)
    comm.Bcast(message, root=0)
    return messages.unpacked(message)


def refuse_left_over(env):
    """Validate that an mpirun is there that PMI_* speak of, for MPI would end in a trace.

    :raises UserError: where they are left over from another job, as in a shell that was started by one.
    """
    if "PMI_FD" in env:
        try:
            alive = stat.S_ISSOCK(os.fstat(_number(env, "PMI_FD")).st_mode)
        except OSError:
            alive = False
        if not alive:
            names = " ".join(f"-u {name}" for name in sorted(env) if name.startswith(("PMI_", "MPI_LOCAL")))
            raise UserError(f"PMI_FD is left over from an mpirun that is not there; expected env {names} before python")


def mpi_size(env):
    """Return the number of processes mpirun started, 0 if the environment does not tell."""
    return next((_number(env, name) for name in MPI_SIZES if name in env), 0)


def told_rank(env):
    """Return the rank that the launcher's variables tell, for use before the ranks have met; 0 where they do not."""
    names = {"torchrun": ("RANK",), "mpirun": MPI_RANKS, "srun": ("SLURM_PROCID",), "python": ()}[launcher_of(env)]
    return next((int(env[name]) for name in names if re.fullmatch("[0-9]{1,18}", env.get(name, ""))), 0)


def first_host(nodes):
    """Return the first name of a SLURM node list: "node[03-07,9],login" gives "node03"."""
    return re.sub(r"\[(\w+)[^]]*]", r"\1", nodes).split(",")[0]


def free_port():
    """Return a TCP port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def choose_device(wanted, local_rank, gpus):
    """Return the torch.device of a process.

    :param wanted: None, "cpu", "cuda", "cuda:N" or "mps". None means cuda where there is one; without an index the
        process takes the GPU of its local rank.
    :param gpus: how many are visible.
    :raises UserError: for another word, and for a GPU that is not there.
    """
    name = wanted or ("cuda" if gpus else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,6})?", name):
        raise UserError(f"--device {name}: expected cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine or this build of torch has no Metal GPU")
    if device.type != "cuda":
        return device
    index = local_rank if device.index is None else device.index
    if index >= gpus and device.index is not None:
        raise UserError(f"--device {name}: only {gpus} GPUs are visible, expected an index below that")
    if not gpus:
        raise UserError(f"--device {name}: no GPU is visible, expected cpu")
    if index >= gpus:
        raise UserError(
            f"local rank {local_rank} has no GPU, for {gpus} are visible: start at most {gpus} processes on a host, "
            "or give --device cuda:0 where every process sees only its own, or --device cpu"
        )
    return torch.device("cuda", index)


def threads_per_rank(env, launch, cores):
    """Return how many CPU threads a rank may use of `cores`, or None to leave what is set already."""
    if "OMP_NUM_THREADS" in env or launch.local_size == 1:
        return None
    if launch.launcher == "srun" and "SLURM_CPUS_PER_TASK" in env:
        return _number(env, "SLURM_CPUS_PER_TASK")
    return max(1, cores // launch.local_size)


def usable_cores():
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _number(env, name):
    """The integer from 0 that the variable `name` holds; it has to be there."""
    text = env.get(name, "")
    if not re.fullmatch("[0-9]{1,18}", text):
        raise UserError(f"environment variable {name} is {text!r}, expected a whole number from the launcher")
    return int(text)


def _number_or(env, name, default):
    """The integer from 0 that the variable `name` holds, `default` where there is no such variable."""
    return _number(env, name) if name in env else default


def _task_counts(text):
    """Expand SLURM's "4(x2),3" to [4, 4, 3]."""
    return [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def _slurm_size(env):
    """The number of tasks of this step; of the job where the step does not tell, or tells 0."""
    return _number_or(env, "SLURM_STEP_NUM_TASKS", 0) or _number_or(env, "SLURM_NTASKS", 1)


def _in_several(env):
    """Whether SLURM's step has several tasks, or a number that `slurm_launch` will refuse."""
    try:
        return _slurm_size(env) > 1
    except UserError:
        return True


def _outward_address():
    """The address other hosts reach this one by. Connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
