"""SIGTERM and Ctrl-C are answered between two units of work, by every rank at the same place."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from test_dist_util import MPIRUN, WORKERS, clean_env, needs_mpirun

from guided_diffusion.jobs import interruption

ASKING = [sys.executable, WORKERS / "asking.py"]


def begin(*command):
    """The process, once each of its ranks has begun its first unit."""
    process = subprocess.Popen(
        list(map(str, command)), env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(2 if MPIRUN in command else 1):
        assert re.match(r"rank \d unit 0\n", process.stdout.readline())
    return process


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_unit_in_hand_is_finished_and_the_way_on_is_said(number, status):
    process = begin(*ASKING, 100)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert "rank 0 did 1\n" in out and err.endswith(f"stopped by {signal.Signals(number).name}: begin again\n")


@needs_mpirun
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_mpirun_passes_it_on_and_all_ranks_stop_alike(number, status):
    process = begin(MPIRUN, "-n", 2, *ASKING, 100)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    done = re.findall(r"rank (\d) did (\d+)\n", out)
    assert sorted(rank for rank, _ in done) == ["0", "1"] and len({count for _, count in done}) == 1
    assert err.count("begin again") == 1 and "Traceback" not in err


@needs_mpirun
def test_one_rank_stops_all():
    mark = f"of {os.getpid()}"  # another suite may run beside this one
    process = begin(MPIRUN, "-n", 2, *ASKING, 100, mark)
    ranks = subprocess.run(["pgrep", "-f", f"asking.py 100 {mark}"], capture_output=True, text=True).stdout.split()
    (last,) = [pid for pid in ranks if b"PMI_RANK=1\0" in open(f"/proc/{pid}/environ", "rb").read()]
    os.kill(int(last), signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and len(re.findall(r"rank \d did", out)) == 2
    assert err.count("stopped by SIGTERM: begin again") == 1


def test_a_second_request_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruption.awaited() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same one, by way of the launcher
        assert asked() == signal.SIGINT
        time.sleep(interruption.SAME_REQUEST)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_nothing_is_asked_for_and_handlers_come_back():
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with interruption.awaited() as asked:
        assert asked() == 0
        assert [signal.getsignal(number) for number in interruption.SIGNALS] != before
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before
