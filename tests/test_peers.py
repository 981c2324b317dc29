"""The death of a rank is noticed by the others and named; leaving in order is no death."""

import functools
import re
import signal
import socket
import threading
from types import SimpleNamespace

import pytest
from processes import mpirun, needs_mpirun, slow, srun, torchrun

from guided_diffusion import logger
from guided_diffusion.distributed import peers
from guided_diffusion.jobs import sampling, slow_steps


@pytest.mark.parametrize("victim", [0, *slow(1)])
def test_a_killed_rank_ends_the_job_and_is_named(victim):
    """srun is the launcher that ends nobody: the ranks have to do it themselves."""
    done = srun(3, "dying.py", str(victim))
    assert done.returncodes[victim] == -signal.SIGKILL
    assert all(code not in (0, -signal.SIGKILL) for rank, code in enumerate(done.returncodes) if rank != victim)
    assert len(re.findall(rf"rank {victim} \(process \d+ on .*\) has died without a word", done.stderr)) == 1


@needs_mpirun
def test_under_mpirun_too():
    done = mpirun(2, "dying.py", 1)
    assert done.returncode != 0
    number = re.search(r"rank 1 \(process (\d+) on", done.stderr)[1]
    # mpirun ends rank 0 at once, which may not have had the time to speak; its own words name the process
    assert f"process {number} on" in done.stderr
    assert "has died without a word" in done.stderr or f"PID {number}" in done.stdout + done.stderr


def test_a_rank_that_raises_is_named_with_its_reason():
    done = torchrun(2, "dying.py", 1, "raise")
    assert done.returncode != 0
    assert re.search(r"dying: rank 1 \(process \d+ on .*\) failed: RuntimeError: out of luck", done.stderr)
    assert "has died without a word" not in done.stderr


def test_a_slow_step_says_what_it_waits_for():
    heard = threading.Event()

    def say(sentence):  # before, it may have waited for the next batch just as long
        if re.fullmatch(r"step 7 has taken \d+ s so far and waits for its gradient", sentence):
            heard.set()

    with slow_steps.told(say, long=0.05) as doing:
        doing("the next batch", step=7)
        doing("its gradient")
        assert heard.wait(60)
        doing("the next batch", step=8)


def test_a_slow_batch_of_samples_says_so(monkeypatch):
    heard = threading.Event()

    def say(sentence):
        if re.fullmatch(r"batch 2 has taken \d+ s so far and waits for its images", sentence):
            heard.set()

    def make_batch(chunk):
        assert chunk.start == 0 or heard.wait(60)

    monkeypatch.setattr(slow_steps, "told", functools.partial(slow_steps.told, long=0.05))
    monkeypatch.setattr(logger, "log", say)
    store = SimpleNamespace(save=lambda chunk, made: None)
    sampling.fill(store, [range(2), range(2, 4)], 4, make_batch, "it goes on")
    assert heard.is_set()


def test_quick_steps_say_nothing():
    with slow_steps.told(pytest.fail, long=1000) as doing:
        doing("the next batch", step=1)


def test_a_stranger_does_not_keep_the_watch():
    """One who connects first and is silent, and one who begins a line and stops, leave the rank behind them watched."""
    sent, heard, said = [], threading.Event(), []

    def lost(sentence):
        said.append(sentence)
        heard.set()

    watch = peers.Watch(0, ["rank 0", "rank 1"], "localhost", lambda told: sent.append(told) or told, lost)
    port, token = sent[0]
    with socket.create_connection(("localhost", port)), socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET")
        with socket.create_connection(("localhost", port)) as rank:
            rank.sendall(token + b" 1\n")
        assert heard.wait(60)
    watch.leave()
    assert said[0].startswith("rank 1 has died")
