"""What is logged comes back from every format."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from processes import MPIRUN, mpirun, needs_mpirun, torchrun

from guided_diffusion import logger
from guided_diffusion.errors import UserError


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch):
    monkeypatch.delenv("OPENAI_LOGDIR", raising=False)
    monkeypatch.delenv("OPENAI_LOG_FORMAT", raising=False)
    logger.reset()
    yield
    logger.reset()


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def objects_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folder_is_the_first_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger.configure("here")
    assert capsys.readouterr().out == f"logging to {tmp_path / 'here'}\n"
    assert logger.get_dir() == str(tmp_path / "here")


def test_default_folder_is_runs_and_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scripts/image_train.py"])
    logger.configure()
    assert logger.get_dir() == str(tmp_path / "runs" / "image_train")


def test_environment_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "env"))
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "json, csv")
    logger.configure()
    logger.logkv("a", 1)
    logger.dumpkvs()
    assert sorted(p.name for p in (tmp_path / "env").iterdir()) == ["progress.csv", "progress.json"]
    logger.configure(tmp_path / "flag", ["json"])
    assert logger.get_dir() == str(tmp_path / "flag")


def test_table_is_aligned(tmp_path, capsys):
    logger.configure(tmp_path)
    capsys.readouterr()
    logger.logkvs({"step": 1200, "loss": 0.123456789, "note": "warm"})
    logger.dumpkvs()
    table = "  loss  0.12346\n  note     warm\n  step     1200\n"
    assert capsys.readouterr().out == table
    assert (tmp_path / "log.txt").read_text() == f"logging to {tmp_path}\n" + table


@pytest.mark.parametrize("formats, whole", [("stdout,log", True), ("stdout,csv", True), ("stdout", False)])
def test_a_line_on_the_terminal_where_files_keep_the_row(tmp_path, capsys, formats, whole):
    logger.configure(tmp_path, formats)
    logger.show_lines(lambda row: f"at {row['step']}")
    capsys.readouterr()
    logger.logkvs({"step": 12, "loss": 0.5})
    logger.dumpkvs()
    table = "  loss  0.5\n  step   12\n"
    assert capsys.readouterr().out == ("at 12\n" if whole else table)
    if "log" in formats:
        assert (tmp_path / "log.txt").read_text().endswith(table)


def test_every_format_comes_back(tmp_path):
    logger.configure(tmp_path, "log,csv,json")
    logger.logkv("loss", torch.tensor(0.5, requires_grad=True))
    logger.logkv("count", np.int64(3))
    logger.logkv_mean("norm", np.float32(1.0))
    logger.logkv_mean("norm", torch.tensor(2.0))
    row = {"loss": 0.5, "count": 3, "norm": 1.5}
    assert logger.getkvs().keys() == row.keys()
    assert logger.dumpkvs() == row
    assert logger.getkvs() == {}
    assert objects_of(tmp_path / "progress.json") == [row]
    assert rows_of(tmp_path / "progress.csv") == [{"count": "3", "loss": "0.5", "norm": "1.5"}]


def test_csv_header_grows(tmp_path):
    logger.configure(tmp_path, ["csv"])
    for row in ({"a": 1}, {"a": 2, "c": 'x, "y"\nz'}, {"b": 3}):
        logger.logkvs(row)
        logger.dumpkvs()
    assert rows_of(tmp_path / "progress.csv") == [
        {"a": "1", "c": "", "b": ""},
        {"a": "2", "c": 'x, "y"\nz', "b": ""},
        {"a": "", "c": "", "b": "3"},
    ]


def test_a_second_run_continues_the_files(tmp_path):
    for row in ({"a": 1}, {"a": 2, "b": 3}):
        logger.configure(tmp_path, ["csv", "json"])
        logger.logkvs(row)
        logger.dumpkvs()
    assert rows_of(tmp_path / "progress.csv") == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]
    assert objects_of(tmp_path / "progress.json") == [{"a": 1}, {"a": 2, "b": 3}]


def test_a_killed_run_is_continued_without_its_torn_line_and_its_later_rows(tmp_path):
    def write(*steps):
        for step in steps:
            logger.logkvs({"loss": step / 4, "step": step, "note": 'a, "b"'})
            logger.dumpkvs()

    logger.configure(tmp_path, ["csv", "json"])
    write(1, 10, 20)
    for name, torn in (("progress.csv", "0.5,3"), ("progress.json", '{"loss": 0.5, "st')):
        with open(tmp_path / name, "a") as file:
            file.write(torn)
    logger.configure(tmp_path, ["csv", "json"])
    logger.rewind()
    write(30)
    assert [int(row["step"]) for row in rows_of(tmp_path / "progress.csv")] == [1, 10, 20, 30]
    assert [row["step"] for row in objects_of(tmp_path / "progress.json")] == [1, 10, 20, 30]
    logger.configure(tmp_path, ["csv", "json"])
    logger.rewind(10)
    write(11)
    whole = [{"loss": step / 4, "step": step, "note": 'a, "b"'} for step in (1, 10, 11)]
    assert objects_of(tmp_path / "progress.json") == whole
    assert rows_of(tmp_path / "progress.csv") == [{key: str(value) for key, value in row.items()} for row in whole]


def test_a_torn_header_is_no_header(tmp_path):
    (tmp_path / "progress.csv").write_text("loss,st")
    logger.configure(tmp_path, ["csv"])
    logger.rewind()
    logger.logkv("loss", 1)
    logger.dumpkvs()
    assert rows_of(tmp_path / "progress.csv") == [{"loss": "1"}]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.configure(tmp_path, ["tensorboard"])
    for step in (10, 20):
        logger.logkvs({"step": step, "loss": step / 4, "note": "text"})
        logger.dumpkvs()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 2.5), (20, 5.0)]
    assert "note" not in events.Tags()["scalars"]


def test_no_tensorboard_is_one_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logger.importlib.util, "find_spec", lambda name: None)
    logger.configure(tmp_path, ["stdout", "tensorboard"])
    logger.logkv("a", 1)
    logger.dumpkvs()
    assert capsys.readouterr().out.count("warning: no TensorBoard logs: pip install tensorboard") == 1


def test_levels(tmp_path, capsys):
    logger.configure(tmp_path, "stdout")
    capsys.readouterr()
    logger.debug("hidden")
    logger.info("step", 3)
    logger.warn("slow")
    logger.set_level(logger.ERROR)
    logger.warn("hidden")
    logger.error("broken")
    assert capsys.readouterr().out == "step 3\nwarning: slow\nerror: broken\n"


def test_unconfigured_prints_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger.log("hello")
    logger.logkv("a", 1)
    logger.dumpkvs()
    logger.dumpkvs()  # an empty row is no row
    assert capsys.readouterr().out == "hello\n  a  1\n"
    assert logger.get_dir() is None and not list(tmp_path.iterdir())


def test_scoped_configure(tmp_path):
    logger.configure(tmp_path / "outer", ["json"])
    with pytest.raises(KeyError), logger.scoped_configure(tmp_path / "inner", ["json"], log_suffix="-x"):
        logger.logkv("a", 1)
        logger.dumpkvs()
        raise KeyError
    assert logger.get_dir() == str(tmp_path / "outer")
    assert objects_of(tmp_path / "inner" / "progress-x.json") == [{"a": 1}]


def test_other_ranks_write_their_own_log_only(tmp_path, capsys):
    logger.configure(tmp_path, rank=3)
    logger.logkv("a", 1)
    logger.dumpkvs()
    assert [p.name for p in tmp_path.iterdir()] == ["log-rank003.txt"]
    assert capsys.readouterr().out == ""


def test_a_remote_folder(monkeypatch):
    blobfile = pytest.importorskip("blobfile")
    store = {}
    monkeypatch.setattr(blobfile, "exists", store.__contains__)
    monkeypatch.setattr(blobfile, "makedirs", lambda path: None)
    monkeypatch.setattr(blobfile, "remove", store.pop)
    monkeypatch.setattr(blobfile, "read_bytes", lambda path: store[path].encode())
    monkeypatch.setattr(blobfile, "write_bytes", lambda path, data: store.update({path: data.decode()}))
    logger.configure("gs://bucket/run")
    for row in ({"a": 1}, {"b": 2}):
        logger.logkvs(row)
        logger.dumpkvs()
    assert store["gs://bucket/run/progress.csv"] == "a,b\n1,\n,2\n"
    assert store["gs://bucket/run/progress.json"] == '{"a": 1}\n{"b": 2}\n'
    assert store["gs://bucket/run/log.txt"].startswith("logging to gs://bucket/run\n")
    assert len(store) == 3


@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere"])
def test_folder_that_can_not_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out_dir .*/(below|nowhere) cannot be written: \w+") as caught:
        logger.configure(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert logger.get_dir() is None


def test_unknown_format(tmp_path):
    with pytest.raises(UserError, match="'xml' is unknown, expected stdout"):
        logger.configure(tmp_path / "x", ["xml"])
    assert not (tmp_path / "x").exists()


def check_weighted_means(done, folder):
    assert done.returncode == 0, done.stderr
    assert objects_of(folder / "progress.json") == [{"step": 7, "loss": 4.0, "only_there": 3.0}]
    assert done.stdout.splitlines()[0] == f"logging to {folder}"
    assert "hello from 0" in done.stdout and "hello from 1" not in done.stdout
    assert "hello from 1" in (folder / "log-rank001.txt").read_text()


@needs_mpirun
def test_means_are_weighted_over_ranks_of_mpirun(tmp_path):
    check_weighted_means(mpirun(2, "means.py", tmp_path), tmp_path)


@pytest.mark.skipif(MPIRUN.exists(), reason="mpirun has shown it")
def test_means_are_weighted_over_ranks_of_torchrun(tmp_path):
    check_weighted_means(torchrun(2, "means.py", tmp_path), tmp_path)
