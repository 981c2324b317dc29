"""Starts workers and scripts as processes of their own: alone, or as the ranks of mpirun, torchrun or srun."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
WORKERS = Path(__file__).parent / "workers"
MPIRUN = Path(sys.executable).parent / "mpirun"
LAUNCHER_MARKS = ("SLURM_", "PMI", "OMPI_", "MPI_", "MV2_", "TORCHELASTIC_", "MASTER_", "LOCAL_", "OPENAI_")

# Seconds after which a process that should have ended by itself is said to hang, on a machine however busy.
HANGS = 250


def slow(*values):
    """Values of a parameter that the slow suite alone tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python: pip install mpich mpi4py")


def clean_env(**extra):
    """The environment without any launcher's traces, and `extra`."""
    single = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_MARKS) and k not in single}
    return kept | {"PYTHONPATH": str(ROOT)} | extra


def run(*command, **env):
    return subprocess.run(
        list(map(str, command)),
        env=clean_env(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


def mpirun(n, worker, *args):
    return run(MPIRUN, "-n", n, sys.executable, WORKERS / worker, *args)


def torchrun(n, worker, *args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", n]
    return run(*command, WORKERS / worker, *args)


def srun(n, worker, *args):
    """Start `n` processes as srun would, with nobody to end the others when one dies."""
    job = dict(SLURM_JOB_ID=str(os.getpid()), SLURM_STEP_ID="0", SLURM_NTASKS=str(n), SLURM_JOB_NODELIST="localhost")
    job |= dict(SLURM_NODEID="0", SLURM_TASKS_PER_NODE=str(n), SLURM_CPUS_PER_TASK="1")
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKERS / worker, *args],
            env=clean_env(**job, SLURM_PROCID=str(r), SLURM_LOCALID=str(r)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(n)
    ]
    errors = [process.communicate(timeout=HANGS)[1] for process in ranks]
    return SimpleNamespace(returncodes=[p.returncode for p in ranks], stderr="".join(errors))


class Job:
    """A training that runs, on one or more ranks; `said` is what it has printed so far."""

    def __init__(self, words, place):
        self.path = place / f"said{len(list(place.glob('said*')))}.txt"
        with open(self.path, "w") as out:
            self.process = subprocess.Popen(
                words,
                env=clean_env(OMP_NUM_THREADS="1"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    @property
    def said(self):
        return self.path.read_text()

    def trains(self, steps=1):
        """Wait until it has logged so many steps, or has ended."""
        while self.process.poll() is None and self.said.count("grad_norm") < steps:
            time.sleep(0.01)

    def ranks(self):
        """The process id of each rank."""
        return list(map(int, re.findall(r"rank \d \(process (\d+) on", self.said))) or [self.process.pid]

    def ended(self):
        """Its exit status, once it has ended."""
        return self.process.wait(timeout=HANGS)
