"""A bar on a terminal, lines elsewhere; both say how many, how fast and how long."""

import io
import re
import sys
import types

import pytest
import torch

from evaluations import cmmd, fid_infinity, jackknife, kid, metric, precision_recall
from evaluations.fid import moments_of
from guided_diffusion import logger
from guided_diffusion.jobs import progress, trial


class Clock:
    """Seconds that pass as told, and a standard error that is a terminal or not."""

    def __init__(self, monkeypatch, terminal):
        self.now, self.shown = 100.0, io.StringIO()
        self.shown.isatty = lambda: terminal
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress.sys, "stderr", self.shown)


@pytest.fixture(autouse=True)
def unconfigured():
    logger.reset()


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    clock = Clock(monkeypatch, terminal=False)
    with progress.shown(1000, 400, "image") as add:
        for _ in range(60):
            clock.now += 2
            add(10)
    assert clock.shown.getvalue() == ""
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "410 of 1000 images, 5 images/s, 0:01:58 left"
    assert lines[-1] == "1000 of 1000 images, 5 images/s, 0:00:00 left"
    assert len(lines) == 5  # after 2, 32, 62, 92 and 120 seconds


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    clock = Clock(monkeypatch, terminal=True)
    with progress.shown(1000, 400, "image") as add:
        add(300)
    assert re.search(r"700/1000 .*image/s", clock.shown.getvalue())
    assert capsys.readouterr().out == ""


def test_other_ranks_show_nothing(monkeypatch, capsys):
    for terminal in (False, True):
        clock = Clock(monkeypatch, terminal)
        monkeypatch.setattr(progress.dist_util, "is_main", lambda: False)
        with progress.shown(10, 0, "image") as add:
            clock.now += 1
            add(10)
        assert clock.shown.getvalue() == capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_of_steps_within_a_batch(monkeypatch, capsys, terminal):
    clock = Clock(monkeypatch, terminal)
    with progress.shown(2, 0, "image"):
        assert list(progress.steps(iter("abcd"), 4)) == [*"abcd"]
        assert bool(re.search(r"0/4 .*step", clock.shown.getvalue())) is terminal
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("after", [0, 5, 31, 1000])
def test_what_mostly_takes_less_says_nothing_before(monkeypatch, capsys, after):
    clock = Clock(monkeypatch, terminal=False)
    with progress.shown(100, 0, "step", "KID", after) as add:
        for _ in range(100):
            clock.now += 1
            add(1)
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[1] for line in lines[:1]]
    assert first == ([str(max(after, 1))] if after <= 100 else [])
    assert not lines or lines[-1].startswith("KID: 100 of 100 steps")


SLOW = {
    "KID": lambda x, y: kid.kid(x, y),
    "CMMD": lambda x, y: cmmd.cmmd(x, y),
    "radii": lambda x, y: precision_recall.radii(x, precision_recall.fp32),
    "precision and recall": lambda x, y: precision_recall.precision_recall(x, y),
    "density and coverage": lambda x, y: precision_recall.density_coverage(x, y),
    "extrapolation": lambda x, y: fid_infinity.extrapolated(x, moments_of(y)),
    "standard error": lambda x, y: jackknife.standard_error(x, moments_of(y)),
}


@pytest.mark.parametrize("name", SLOW)
def test_metrics_of_many_images_say_how_far_they_are(monkeypatch, capsys, name):
    """To the last step, and no further."""
    clock = Clock(monkeypatch, terminal=False)
    ticking = iter(range(1, 10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now + next(ticking))
    monkeypatch.setattr(metric, "PATIENCE", 0)
    x, y = (torch.randn(300, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    SLOW[name](x, y)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name}: ")]
    last = re.match(rf"{name}: (\d+) of (\d+) steps, ", lines[-1])
    assert last[1] == last[2]


@pytest.mark.parametrize("platform, factor", [("linux", 1024), ("darwin", 1), ("win32", None)])
def test_peak_memory_is_in_the_units_of_the_system(monkeypatch, platform, factor):
    """getrusage has KiB on Linux and bytes on macOS; Windows has none."""
    used = 3 * 2**30 // (factor or 1)
    resource = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: types.SimpleNamespace(ru_maxrss=used))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "resource", resource if factor else None)
    lines = []
    monkeypatch.setattr(trial.logger, "log", lines.append)
    trial.tried(lambda: None, 1)
    assert [line for line in lines if "peak" in line] == (["peak memory of the process: 3.00 GiB"] if factor else [])
