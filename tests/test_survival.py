"""Training that is killed at random moments ends with the files of a run that was not, byte for byte.

Real processes under mpirun. A run is killed again and again and started with the same command, until it is through.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import MPIRUN, Job, needs_mpirun
from script_runs import FOLDER

from guided_diffusion.checkpoints import manifest

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


def kill_at_random(job, folder, rng, whole_job):
    """Kill all ranks, or one, at a moment of its first 14 steps or more: half of the times while it saves."""
    job.trains(int(rng.integers(1, 15)))
    if rng.random() < 0.5:
        while job.process.poll() is None and not list(folder.glob("*.pt.*.unfinished")):
            time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.05))
    ranks = job.ranks()
    for pid in ranks if whole_job else [ranks[int(rng.integers(len(ranks)))]]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return job.ended()


def survive(images, tmp_path, ranks, precision, sampler, kills, seed):
    """Kill a run so many times and compare its end with that of an uninterrupted one."""
    whole = Job(command(ranks, images, tmp_path / "whole", precision, sampler), tmp_path)
    assert whole.ended() == 0, whole.said
    rng, folder, moments = np.random.default_rng(seed), tmp_path / "killed", []
    words = command(ranks, images, folder, precision, sampler)
    names = sorted(path.name for path in (tmp_path / "whole").glob(f"*{STEPS:06d}.pt"))
    assert len(names) == 5

    def ends_alike():
        assert [n for n in names if (tmp_path / "whole" / n).read_bytes() != (folder / n).read_bytes()] == []
        assert not list(folder.glob("*.unfinished"))

    for _ in range(10 * kills):
        whole_job = len(moments) % 2 == 0
        job = Job(words, tmp_path)
        if kill_at_random(job, folder, rng, whole_job) != 0:
            moments.append((job.said.count("grad_norm"), sorted(path.name for path in folder.glob("*.unfinished"))))
            if ranks > 1 and not whole_job:
                assert "has died without a word" in job.said or "BAD TERMINATION" in job.said
        if len(moments) == kills:
            break
        if (folder / f"manifest{STEPS:06d}.json").exists():  # it was faster than its kill: once more
            ends_alike()
            shutil.rmtree(folder)
    print(f"{ranks} ranks {precision} {sampler}: killed after (steps, unfinished files) {moments}")
    assert len(moments) == kills
    if not (folder / f"manifest{STEPS:06d}.json").exists():
        job = Job(words, tmp_path)
        assert job.ended() == 0, job.said
    ends_alike()


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(images, tmp_path):
    survive(images, tmp_path, 1, "bf16", "loss-second-moment", kills=1, seed=0)


CASES = [(ranks, precision, sampler) for ranks in (2, 1) for precision in PRECISION
         for sampler in ("uniform", "loss-second-moment")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_mpirun
@pytest.mark.parametrize("ranks, precision, sampler", CASES)
def test_killed_at_random_moments(images, tmp_path, ranks, precision, sampler):
    seed = CASES.index((ranks, precision, sampler)) + 1
    survive(images, tmp_path, ranks, precision, sampler, kills=2, seed=seed)


@pytest.mark.slow
@needs_mpirun
def test_sigterm_to_mpirun_saves_on_all_ranks_and_the_run_goes_on(images, tmp_path):
    with Job(command(2, images, tmp_path / "stopped", steps=10**6), tmp_path) as job:
        job.trains()
        job.process.send_signal(signal.SIGTERM)
        assert job.ended() == 143 and "Traceback" not in job.said
    step = int(re.search(r"stopped by SIGTERM: saved at step (\d+)", job.said)[1])
    again = Job(command(2, images, tmp_path / "stopped", steps=step + 1), tmp_path)
    assert again.ended() == 0 and f"{step + 1}/{step + 1}" in again.said, again.said


@pytest.mark.slow
def test_a_second_job_in_the_folder_is_refused(images, tmp_path):
    with Job(command(1, images, tmp_path / "run", steps=10**6), tmp_path) as first:
        first.trains()
        second = Job(command(1, images, tmp_path / "run"), tmp_path)
        assert second.ended() == 2 and "Traceback" not in second.said
    assert f"is in use by process {first.process.pid}" in second.said


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MB, which holds one checkpoint of 4 MB and not two."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_in_a_sentence(images, small_disk, tmp_path):
    job = Job(command(1, images, small_disk), tmp_path)
    assert job.ended() == 2 and "Traceback" not in job.said
    assert "No space left on device" in job.said and "make room and go on with --resume_checkpoint auto" in job.said
    assert "the checkpoint of step 4 is whole" in job.said and not list(small_disk.glob("*0008*"))
    assert not list(small_disk.glob("*.unfinished"))
    manifest.check(small_disk, 4)


def test_a_read_only_disk_is_said_at_once(images, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    job = Job(command(1, images, small_disk), tmp_path)
    assert job.ended() == 2 and "Traceback" not in job.said
    assert f"{small_disk} cannot be written: Read-only file system" in job.said
