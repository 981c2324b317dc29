"""Sampling that is killed, stopped or starved at any moment, continued, and compared byte for byte."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import HANGS, MPIRUN, WORKERS, clean_env, needs_mpirun
from processes import run as start
from script_runs import FOLDER, run

from guided_diffusion import checkpoints
from guided_diffusion.errors import UserError
from guided_diffusion.jobs.folder_lock import claimed, locked
from guided_diffusion.jobs.sampling import ShardFlags
from guided_diffusion.networks import UNetFlags
from guided_diffusion.script_util import DiffusionFlags

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "models" / "digits16.pt"
COUNT, BATCH = 47, 2
NPZ = f"samples_{COUNT}x16x16x3.npz"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(path, size):
    """A checkpoint of a small class-conditional network, every weight random so that each part counts."""
    unet = UNetFlags(
        image_size=size,
        num_channels=32,
        num_res_blocks=1,
        channel_mult="1,1",
        attention_resolutions="8" if size > 8 else "",
        class_cond=True,
        num_classes=3,
    )
    process = DiffusionFlags(diffusion_steps=100)
    model = unet.create(learn_sigma=False)
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in model.state_dict().items()}
    checkpoints.write(str(path), state, {**vars(unet), **vars(process)})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def sample(place):
    """The command all these runs give, but for its folder."""
    model = network(place / "small.pt", 16)
    return ["--model_path", model, "--num_samples", COUNT, "--batch_size", BATCH, "--timestep_respacing", 5]


@pytest.fixture(scope="module")
def whole(place, sample):
    """The npz of a run that nothing disturbed, on one process."""
    run("image_sample", *sample, "--out_dir", place / "whole")
    return (place / "whole" / NPZ).read_bytes()


def refused(capsys, *command):
    """The sentence with which a script refuses, in this process."""
    with pytest.raises(SystemExit) as ended:
        run(*command)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said
    (sentence,) = said.split(f"{command[0]}: ")[1].splitlines()
    return sentence


def chunks(folder):
    """How many finished chunks lie in a folder."""
    return len(list(folder.glob("samples.chunks/images_*.chunk")))


# --------------------------------------------------------------------------------- killed, stopped


class Job:
    """image_sample under mpirun."""

    def __init__(self, ranks, folder, sample):
        self.folder, self.before = folder, chunks(folder)
        command = [MPIRUN, "-n", ranks, sys.executable, FOLDER / "image_sample.py", *sample, "--out_dir", folder]
        self.process = subprocess.Popen(
            list(map(str, command)),
            env=clean_env(OMP_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self):
        """The process of each rank that lives."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                rank = re.search(rb"\0PMI_RANK=(\d+)\0", (entry / "environ").read_bytes())
                if rank and str(self.folder).encode() in words:
                    found[int(rank[1])] = int(entry.name)
        return found

    def await_chunks(self, count):
        """Return once so many more are finished, or the job has ended."""
        while self.process.poll() is None and chunks(self.folder) < self.before + count:
            time.sleep(0.001)

    def end(self):
        out, err = self.process.communicate(timeout=HANGS)
        return self.process.returncode, out, err


def kill_again_and_again(ranks, folder, sample, whole, seed, kills):
    """Begin the job, kill it with SIGKILL at a random moment, and so on, until so many kills found it alive.

    Two of three moments are counted in finished chunks and a few milliseconds, so that they fall on computing,
    writing and joining; the others in time, from the start on. Every other kill takes one rank, the rest take all. A
    job that was faster than its kill has to be right, and is begun anew.
    """
    rng, alive, tries = random.Random(seed), 0, 0
    while alive < kills:
        tries += 1
        assert tries <= 10 * kills
        job = Job(ranks, folder, sample)
        if alive % 3 == 2:
            time.sleep(rng.uniform(0.5, 4))
        else:
            job.await_chunks(min(rng.randrange(1, 6), (COUNT + 1) // 2 - job.before))
            time.sleep(rng.uniform(0, 0.05))
        pids = job.pids()
        doomed = list(pids.values()) if alive % 2 else [pids[max(pids)]] if pids else []
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if job.end()[0] != 0:
            alive += bool(doomed)
        else:
            assert (folder / NPZ).read_bytes() == whole
            shutil.rmtree(folder)


def survives(ranks, folder, sample, whole, seed, kills):
    kill_again_and_again(ranks, folder, sample, whole, seed, kills)
    status, _, err = Job(ranks, folder, sample).end()
    assert status == 0, err
    assert (folder / NPZ).read_bytes() == whole
    left = {entry.name for entry in (folder / "samples.chunks").iterdir()}
    assert left == {"settings.json", f"finished_{COUNT}.json"} and not list(folder.glob("*.unfinished"))


@pytest.mark.slow
@needs_mpirun
def test_killed_at_three_moments_and_continued(tmp_path, sample, whole):
    survives(2, tmp_path, sample, whole, seed=0, kills=3)


@needs_mpirun
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_killed_at_many_moments_and_continued(tmp_path, sample, whole, ranks):
    survives(ranks, tmp_path, sample, whole, seed=ranks, kills=6)


@needs_mpirun
@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_batches_in_hand_and_says_how_to_go_on(tmp_path, sample, whole, number, status):
    for _ in range(10):
        job = Job(2, tmp_path, sample)
        job.await_chunks(3)
        job.process.send_signal(number)
        ended, _, err = job.end()
        if ended != 0:
            break
        shutil.rmtree(tmp_path)  # it was faster than its signal: once more
    assert ended == status and "Traceback" not in err
    kept = re.search(rf"stopped by {number.name}: (\d+) of {COUNT} images are kept, and the same command", err)
    assert int(kept[1]) == BATCH * chunks(tmp_path) < COUNT
    assert not list(tmp_path.rglob("*.unfinished"))
    printed = run("image_sample", *sample, "--out_dir", tmp_path)
    assert f"{kept[1]} of {COUNT} images are there already" in printed
    assert (tmp_path / NPZ).read_bytes() == whole


# ------------------------------------------------------------------------------ shards, extension


def test_shards_in_any_order_make_the_same_file_and_the_last_writes_it(tmp_path, sample, whole):
    for shard in ("3/3", "1/3", "2/3"):
        assert not (tmp_path / NPZ).exists()
        printed = run("image_sample", *sample, "--shard", shard, "--out_dir", tmp_path)
        assert ("images of other shards are missing" in printed) == (shard != "2/3")
    assert (tmp_path / NPZ).read_bytes() == whole
    assert "is complete: nothing to do" in run("image_sample", *sample, "--shard", "1/3", "--out_dir", tmp_path)


@pytest.mark.parametrize("text", ["3", "0/8", "9/8", "1/0", "-1/8", "a/b", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UserError, match="--shard"):
        ShardFlags(text)


def test_a_shard_is_its_place_and_their_number():
    assert [ShardFlags(text).place for text in ("", "1/1", "3/8", "8/8")] == [(1, 1), (1, 1), (3, 8), (8, 8)]


@pytest.mark.slow
def test_more_shards_than_batches(tmp_path, sample):
    few = [*sample, "--num_samples", 3, "--out_dir", tmp_path]
    assert "3 images of other shards" in run("image_sample", *few, "--shard", "7/7")
    for shard in ("1/7", "2/7"):
        printed = run("image_sample", *few, "--shard", shard)
    assert f"saved {tmp_path / 'samples_3x16x16x3.npz'}" in printed


def test_a_shard_that_ran_twice_at_once_is_refused_and_another_is_not(tmp_path, sample, capsys):
    with locked(tmp_path, "1-of-2"):
        sentence = refused(capsys, "image_sample", *sample, "--shard", "1/2", "--out_dir", tmp_path)
        assert str(tmp_path) in sentence and f"process {os.getpid()} " in sentence
        assert f"process {os.getpid()} " in refused(capsys, "image_sample", *sample, "--out_dir", tmp_path)
        run("image_sample", *sample, "--shard", "2/2", "--out_dir", tmp_path)


def test_one_shard_alone_writes_the_npz(tmp_path, sample):
    few = [*sample, "--num_samples", 3, "--timestep_respacing", 1, "--out_dir", tmp_path, "--shard"]
    run("image_sample", *few, "1/2")
    with claimed(tmp_path, "samples.chunks"):
        assert f"process {os.getpid()} on {socket.gethostname()} is writing the npz" in run("image_sample", *few, "2/2")
    assert chunks(tmp_path) == 2 and not list(tmp_path.glob("*.npz"))
    assert "saved" in run("image_sample", *few, "2/2")


def test_more_images_later_are_those_of_a_larger_run(tmp_path, sample, whole):
    run("image_sample", *sample, "--num_samples", 9, "--shard", "1/2", "--out_dir", tmp_path)
    run("image_sample", *sample, "--num_samples", 5, "--out_dir", tmp_path)
    assert chunks(tmp_path) == 5 and (tmp_path / "samples_5x16x16x3.npz").exists()
    assert f"6 of {COUNT} images are there already" in run("image_sample", *sample, "--out_dir", tmp_path)
    assert (tmp_path / NPZ).read_bytes() == whole and chunks(tmp_path) == 0


@needs_mpirun
@pytest.mark.slow
def test_a_solver_with_memory_and_noise_goes_on_with_other_ranks(tmp_path, sample):
    command = [*sample, "--num_samples", 9, "--solver", "dpmpp_sde_2m", "--out_dir"]
    run("image_sample", *command, tmp_path / "whole")
    run("image_sample", *command, tmp_path / "parts", "--shard", "2/3")
    script = [sys.executable, FOLDER / "image_sample.py"]
    done = start(MPIRUN, "-n", 2, *script, *command, tmp_path / "parts", OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "images are there already" in done.stdout, done.stderr
    whole, parts = ((tmp_path / name / "samples_9x16x16x3.npz").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_finished_run_does_nothing(place, sample, whole):
    path = place / "whole" / NPZ
    before = path.stat().st_mtime_ns
    assert f"{path} is complete: nothing to do" in run("image_sample", *sample, "--out_dir", place / "whole")
    assert path.stat().st_mtime_ns == before


def test_a_damaged_and_a_truncated_chunk_are_made_again(tmp_path, sample, whole):
    run("image_sample", *sample, "--shard", "1/2", "--out_dir", tmp_path)
    first, second, *_ = sorted((tmp_path / "samples.chunks").glob("images_*"))
    content = first.read_bytes()
    first.write_bytes(content[:400] + bytes([content[400] ^ 1]) + content[401:])
    second.write_bytes(second.read_bytes()[:-30])
    printed = run("image_sample", *sample, "--out_dir", tmp_path)
    assert f"{first} is damaged" in printed and f"{second} is damaged" in printed
    assert (tmp_path / NPZ).read_bytes() == whole


# ------------------------------------------------------------------------------------- settings


def test_other_settings_are_refused_and_spoil_nothing(tmp_path, sample, whole, capsys):
    run("image_sample", *sample, "--shard", "1/2", "--out_dir", tmp_path)
    flags = (tmp_path / "flags.json").read_bytes()
    other = ["--seed", 1, "--batch_size", 3, "--timestep_respacing", 4, "--solver", "ddim", "--classes", "0,1"]
    sentence = refused(capsys, "image_sample", *sample, *other, "--out_dir", tmp_path)
    named = re.findall(r"--(\w+) is (\S+), there it is (\S+?)[;)]", sentence)
    assert named == [
        ("batch_size", "3", "2"),
        ("classes", "'0,1'", "''"),
        ("seed", "1", "0"),
        ("solver", "'ddim'", "''"),
        ("timestep_respacing", "'4'", "'5'"),
    ]
    assert str(tmp_path) in sentence and (tmp_path / "flags.json").read_bytes() == flags
    run("image_sample", *sample, "--use_checkpoint", True, "--device", "cpu", "--out_dir", tmp_path)
    assert (tmp_path / NPZ).read_bytes() == whole


def test_a_folder_of_an_older_version_goes_on(tmp_path, sample, whole, capsys):
    """It was begun before there was --solver, and before --eta."""
    run("image_sample", *sample, "--shard", "1/2", "--out_dir", tmp_path)
    (path,) = tmp_path.glob("*.chunks/settings.json")
    settings = json.loads(path.read_text())
    del settings["decisive"]["solver"], settings["decisive"]["eta"]
    path.write_text(json.dumps(settings))
    sentence = refused(capsys, "image_sample", *sample, "--solver", "ddim", "--out_dir", tmp_path)
    assert "(--solver is 'ddim', there it is '')" in sentence
    run("image_sample", *sample, "--out_dir", tmp_path)
    assert (tmp_path / NPZ).read_bytes() == whole


def test_a_checkpoint_counts_by_its_content(tmp_path, sample, place, capsys):
    run("image_sample", *sample, "--shard", "1/2", "--out_dir", tmp_path / "out")
    state = torch.load(place / "small.pt", weights_only=True)
    flags = checkpoints.read_flags(str(place / "small.pt"))
    checkpoints.write(str(tmp_path / "same.pt"), state, flags)
    state["out.2.bias"][0] += 1
    checkpoints.write(str(tmp_path / "other.pt"), state, flags)
    command = ["image_sample", *sample[2:], "--out_dir", tmp_path / "out", "--model_path"]
    assert "--model_path" in refused(capsys, *command, tmp_path / "other.pt")
    run(*command, tmp_path / "same.pt")


def test_it_goes_on_with_the_threads_it_was_begun_with(tmp_path, sample):
    torch.set_num_threads(2)
    run("image_sample", *sample, "--num_samples", 4, "--shard", "1/2", "--out_dir", tmp_path)
    torch.set_num_threads(1)
    printed = run("image_sample", *sample, "--num_samples", 4, "--out_dir", tmp_path)
    assert "threads per rank: 2" in printed and torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_batches_of_other_sizes_have_the_same_labels_and_nearly_the_same_bytes(tmp_path):
    made = []
    for size in (16, 7, 1):
        flags = [
            "--num_samples",
            16,
            "--batch_size",
            size,
            "--timestep_respacing",
            5,
            "--out_dir",
            tmp_path / str(size),
        ]
        run("image_sample", "--model_path", DIGITS, *flags)
        with np.load(tmp_path / str(size) / "samples_16x16x16x1.npz") as npz:
            made.append((npz["arr_0"].astype(int), npz["arr_1"]))
    for images, labels in made[1:]:
        assert np.array_equal(labels, made[0][1])
        difference = np.abs(images - made[0][0])
        print(f"{(difference > 0).sum()} of {difference.size} bytes differ, by at most {difference.max()}")
        assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


# --------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("flags, classes", [([], [0, 1, 2]), (["--classes", "2,0"], [2, 0])])
def test_so_many_images_of_each_class(tmp_path, sample, flags, classes):
    wanted = [*flags, "--per_class", 3, "--timestep_respacing", 1]
    run("image_sample", *sample[:2], *wanted, "--out_dir", tmp_path)
    with np.load(tmp_path / f"samples_{3 * len(classes)}x16x16x3.npz") as npz:
        assert npz["arr_1"].tolist() == 3 * classes and len(npz["arr_0"]) == 3 * len(classes)


def test_a_number_of_images_that_contradicts_the_classes_is_refused(tmp_path, sample, capsys):
    sentence = refused(capsys, "image_sample", *sample, "--per_class", 3, "--out_dir", tmp_path)
    assert f"--num_samples {COUNT}" in sentence and "--per_class 3" in sentence and "9" in sentence
    agreeing = ["--num_samples", 9, "--per_class", 3, "--timestep_respacing", 1]
    run("image_sample", *sample, *agreeing, "--out_dir", tmp_path)


# ----------------------------------------------------------------------------------- bad folders


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 kB, and a function that mounts it anew with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        return start("mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", disk).returncode

    if mount("size=100k"):
        pytest.skip("may not mount")
    yield disk, lambda option: mount("remount", option)
    start("umount", disk)


def test_a_full_disk_is_told_in_a_sentence_and_loses_nothing(small_disk, sample, whole, capsys):
    disk, remount = small_disk
    sentence = refused(capsys, "image_sample", *sample, "--out_dir", disk)
    assert str(disk) in sentence and "No space left" in sentence and "the same command continues" in sentence
    kept = chunks(disk)
    assert 0 < kept < COUNT / BATCH and not list(disk.rglob("*.unfinished"))
    assert not remount("size=10m")
    assert f"{kept * BATCH} of {COUNT} images are there" in run("image_sample", *sample, "--out_dir", disk)
    assert (disk / NPZ).read_bytes() == whole


def test_a_read_only_folder_is_told_in_a_sentence(small_disk, sample, capsys):
    disk, remount = small_disk
    assert not remount("ro")
    sentence = refused(capsys, "image_sample", *sample, "--out_dir", disk)
    assert "--out_dir" in sentence and str(disk) in sentence and "Read-only" in sentence


def test_two_jobs_in_one_folder(tmp_path, sample, capsys):
    with locked(tmp_path):
        sentence = refused(capsys, "image_sample", *sample, "--out_dir", tmp_path)
    assert str(tmp_path) in sentence and f"process {os.getpid()} " in sentence
    assert not (tmp_path / "samples.chunks").exists()


# ---------------------------------------------------------------------------------------- memory


@needs_mpirun
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, place):
    """Peak resident memory of both ranks, for 200 and for 20,000 images of 8x8."""
    model, peaks = network(place / "tiny.pt", 8), {}
    for count in (200, 20_000):
        flags = ["--model_path", model, "--num_samples", count, "--batch_size", 50, "--timestep_respacing", 1]
        command = [WORKERS / "measured.py", FOLDER / "image_sample.py", *flags, "--out_dir", tmp_path / str(count)]
        done = subprocess.run(
            list(map(str, [MPIRUN, "-n", 2, sys.executable, *command])),
            env=clean_env(OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks[count] = [int(kb) for _, kb in sorted(re.findall(r"rank (\d) peaked at (\d+) kB", done.stdout))]
        with np.load(tmp_path / str(count) / f"samples_{count}x8x8x3.npz") as npz:
            assert npz["arr_0"].shape == (count, 8, 8, 3) and len(npz["arr_1"]) == count
    print(peaks)
    for few, many in zip(peaks[200], peaks[20_000], strict=True):
        assert many <= 1.05 * few
