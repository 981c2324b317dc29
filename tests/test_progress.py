"""A bar on a terminal, lines elsewhere; both say how many, how fast and how long."""

import io
import re

import pytest

from guided_diffusion import logger
from guided_diffusion.jobs import progress


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
