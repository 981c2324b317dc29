"""Two jobs in one folder: the second is refused, and a killed one blocks nothing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import launched
import pytest
from processes import WORKERS, clean_env, mpirun, needs_mpirun, run

from guided_diffusion import logger
from guided_diffusion.errors import UserError
from guided_diffusion.jobs.folder_lock import claimed, locked

WAITING = [sys.executable, WORKERS / "waiting.py"]


@contextlib.contextmanager
def holding(folder, part=""):
    """A process that holds `folder`; its child lives until the end of this block, whatever becomes of it."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([*WAITING, folder, part, "long"], env=clean_env(), **pipes) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_job_is_refused_by_name(tmp_path):
    with holding(tmp_path) as holder:
        with pytest.raises(UserError) as caught, locked(tmp_path):
            pass
        for word in (str(tmp_path), f"process {holder.pid} ", socket.gethostname(), "--out_dir"):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError), locked(tmp_path, "1-of-2"):
            pass


def test_a_killed_job_blocks_nothing_though_its_forked_child_lives(tmp_path):
    with holding(tmp_path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with locked(tmp_path):
            pass


def test_parts_share_a_folder_but_no_part_twice(tmp_path):
    with holding(tmp_path, "1-of-2") as holder:
        with locked(tmp_path, "2-of-2"):
            pass
        for part in ("1-of-2", ""):
            with pytest.raises(UserError, match=f"process {holder.pid} "), locked(tmp_path, part):
                pass


def test_a_work_is_claimed_once_beside_the_parts_and_other_works(tmp_path):
    with locked(tmp_path, "1-of-2"), claimed(tmp_path, "samples") as first, claimed(tmp_path, "others") as other:
        with claimed(tmp_path, "samples") as second:
            assert first is other is None and second == f"process {os.getpid()} on {socket.gethostname()}"
    with claimed(tmp_path, "samples") as again:
        assert again is None


def test_it_is_let_go_after_the_block_and_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        assert run(*WAITING, tmp_path, "").returncode == 2
        raise ZeroDivisionError
    assert run(*WAITING, tmp_path, "").stdout == "held\n"


# they lock a part of the folder, once they know which: tests/test_resume_sampling.py
IN_PARTS = ["classifier_sample", "image_sample", "image_sample_1gpu", "inpaint_sample", "super_res_sample"]


@pytest.mark.parametrize("name", sorted({*launched.NAMES, *launched.EVALUATIONS} - {*IN_PARTS}))
def test_every_script_that_writes_is_refused_while_another_does(tmp_path, name):
    logger.configure(str(tmp_path))
    try:
        with locked(str(tmp_path)), pytest.raises(UserError, match="is in use by process"):
            launched.read(name).body(None)  # before it looks at a flag
    finally:
        logger.reset()


@needs_mpirun
def test_every_rank_is_refused(tmp_path):
    with locked(tmp_path):
        done = mpirun(2, "waiting.py", tmp_path, "")
    assert done.returncode == 2 and done.stdout.count(f"process {os.getpid()} ") == 1
    assert mpirun(2, "waiting.py", tmp_path, "").stdout == "held\n"
