"""Training that is killed at random moments ends with the files of a run that was not, byte for byte.

Real processes under mpirun. A run is killed again and again and started with the same command, until it is through.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from script_runs import FOLDER
from test_dist_util import MPIRUN, clean_env, needs_mpirun

NETWORK = (
    "--image_size 8 --num_channels 32 --num_res_blocks 1 --channel_mult 1 --attention_resolutions= --class_cond True "
    "--num_classes 3 --learn_sigma True --diffusion_steps 6 --noise_schedule cosine --dropout 0.3"
).split()
PRECISION = {"fp32": [], "bf16": ["--use_bf16", "True"]}
STEPS, SAVES = 48, 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = np.random.default_rng(0).integers(256, size=(13, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=pixels, arr_1=np.arange(13) % 3)
    return path


def command(ranks, images, folder, precision="fp32", sampler="uniform", steps=STEPS):
    words = [] if ranks == 1 else [MPIRUN, "-n", ranks]
    words += [sys.executable, FOLDER / "image_train.py", "--data_dir", images, "--out_dir", folder, *NETWORK]
    words += ["--batch_size", 4, "--lr", 1e-3, "--ema_rate", "0.9,0.5", "--iterations", steps, "--save_interval", SAVES]
    words += ["--log_interval", 1, "--schedule_sampler", sampler, *PRECISION[precision], "--resume_checkpoint", "auto"]
    return list(map(str, words))


def start(words):
    return subprocess.Popen(
        words,
        env=clean_env(OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(words):
    process = start(words)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def ranks_of(process):
    """{rank: process id} of a job, {0: ...} of a single process."""
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == process.pid or os.getppid() == pid:
                pass
            with open(f"/proc/{pid}/environ", "rb") as file:
                marks = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                python = b"image_train.py" in file.read() and b"PMI_RANK" in marks
            if python and _descends(pid, process.pid):
                found[int(marks[b"PMI_RANK"])] = pid
    return found or {0: process.pid}


def _descends(pid, ancestor):
    while pid > 1 and pid != ancestor:
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return pid == ancestor


def kill_at(process, folder, rng, whole_job):
    """Kill one rank, or all, at a moment after it trains again: within a step, or while it saves. Returns what was said."""
    log = folder / "progress.csv"
    before = log.stat().st_size if log.exists() else 0
    while process.poll() is None and not (log.exists() and log.stat().st_size > before):
        time.sleep(0.002)
    if rng.random() < 0.5:
        while process.poll() is None and not list(folder.glob("*.tmp")):
            time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.1))
    ranks = ranks_of(process)
    victims = list(ranks.values()) if whole_job else [ranks[int(rng.integers(len(ranks)))]]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    return said, process.returncode


def different(a, b, step=STEPS):
    """(number of files compared, names of those whose bytes differ) of the last step."""
    names = sorted(path.name for path in a.glob(f"*{step:06d}.pt"))
    return len(names), [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()]


def survive(images, tmp_path, ranks, precision, sampler, kills, seed):
    """Kill a run so many times and compare its end with that of an uninterrupted one."""
    finish(command(ranks, images, tmp_path / "whole", precision, sampler))
    rng, folder, done = np.random.default_rng(seed), tmp_path / "killed", 0
    words = command(ranks, images, folder, precision, sampler)
    for number in range(kills):
        said, status = kill_at(start(words), folder, rng, whole_job=number % 2 == 0)
        if status == 0:  # it was through before its end came
            shutil.rmtree(folder)
            continue
        done += 1
        if ranks > 1 and number % 2:
            assert "has died without a word" in said or "BAD TERMINATION" in said
    if not (folder / f"manifest{STEPS:06d}.json").exists():
        finish(words)
    compared, differ = different(tmp_path / "whole", folder)
    print(
        f"{ranks} ranks, {precision}, {sampler}: killed at {done} moments, {compared} files compared, differ: {differ}"
    )
    assert compared == 5 and not differ and done > 0
    assert not list(folder.glob("*.tmp"))


def test_a_killed_run_goes_on_bit_for_bit(images, tmp_path):
    survive(images, tmp_path, 1, "bf16", "loss-second-moment", kills=1, seed=0)


CASES = [(ranks, precision, sampler) for ranks in (1, 2) for precision in PRECISION
         for sampler in ("uniform", "loss-second-moment")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_mpirun
@pytest.mark.parametrize("ranks, precision, sampler", CASES)
def test_killed_at_random_moments(images, tmp_path, ranks, precision, sampler):
    seed = CASES.index((ranks, precision, sampler)) + 1
    survive(images, tmp_path, ranks, precision, sampler, kills=2, seed=seed)


@needs_mpirun
def test_sigterm_to_mpirun_saves_on_all_ranks_and_the_run_goes_on(images, tmp_path):
    words = command(2, images, tmp_path / "stopped", steps=10**6)
    process = start(words)
    for line in process.stdout:
        if "grad_norm" in line:
            break
    process.send_signal(signal.SIGTERM)
    said = process.stdout.read()
    assert process.wait(timeout=60) == 143
    assert "stopped by SIGTERM: saved at step" in said and "Traceback" not in said


def test_a_second_job_in_the_folder_is_refused(images, tmp_path):
    first = start(command(1, images, tmp_path, steps=10**6))
    for line in first.stdout:
        if "grad_norm" in line:
            break
    second = start(command(1, images, tmp_path))
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 2 and f"is in use by process {first.pid}" in said and "Traceback" not in said
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_in_a_sentence(images, small_disk):
    process = start(command(1, images, small_disk))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in said
    assert "No space left on device" in said and "make room and go on with --resume_checkpoint auto" in said
    assert not list(small_disk.glob("*.tmp"))


def test_a_read_only_disk_is_said_at_once(images, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    process = start(command(1, images, small_disk))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in said
    assert f"{small_disk} cannot be written: Read-only file system" in said
