"""SIGTERM and Ctrl-C are answered between two units of work, by every rank at the same place."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import HANGS, MPIRUN, WORKERS, clean_env, needs_mpirun

from guided_diffusion.jobs import interruption

ASKING = [sys.executable, WORKERS / "asking.py"]


@contextlib.contextmanager
def begun(*command, ranks=1, stdin=subprocess.DEVNULL):
    """The process, and the process id of each rank, once all of them have begun their first unit."""
    with subprocess.Popen(
        list(map(str, command)),
        env=clean_env(),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            pids = {}
            while len(pids) < ranks:
                said = re.fullmatch(r"rank (\d) process (\d+) unit \d+\n", process.stdout.readline())
                pids[int(said[1])] = int(said[2])
            yield process, pids
        finally:
            process.kill()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_unit_in_hand_is_finished_and_the_way_on_is_said(number, status):
    with begun(*ASKING, "lines", stdin=subprocess.PIPE) as (process, _):
        process.send_signal(number)
        out, err = process.communicate("end of the unit\n", timeout=HANGS)
    assert process.returncode == status
    assert "rank 0 did 1\n" in out and err.endswith(f"stopped by {signal.Signals(number).name}: begin again\n")


@needs_mpirun
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_mpirun_passes_it_on_and_all_ranks_stop_alike(number, status):
    with begun(MPIRUN, "-n", 2, *ASKING, ranks=2) as (process, _):
        process.send_signal(number)
        out, err = process.communicate(timeout=HANGS)
    assert process.returncode == status
    done = re.findall(r"rank (\d) did (\d+)\n", out)
    assert sorted(rank for rank, _ in done) == ["0", "1"] and len({count for _, count in done}) == 1
    assert err.count("begin again") == 1 and "Traceback" not in err


@needs_mpirun
def test_one_rank_stops_all():
    with begun(MPIRUN, "-n", 2, *ASKING, ranks=2) as (process, pids):
        os.kill(pids[1], signal.SIGTERM)
        out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 143 and len(re.findall(r"rank \d did", out)) == 2
    assert err.count("stopped by SIGTERM: begin again") == 1


def test_a_second_request_ends_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruption.awaited() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 0.9 * interruption.SAME_REQUEST
        os.kill(os.getpid(), signal.SIGINT)  # the same one, by way of the launcher
        assert asked() == signal.SIGINT
        now[0] += interruption.SAME_REQUEST
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it goes on")
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_nothing_is_asked_for_and_handlers_come_back():
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with interruption.awaited() as asked:
        assert asked() == 0
        assert [signal.getsignal(number) for number in interruption.SIGNALS] != before
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before
