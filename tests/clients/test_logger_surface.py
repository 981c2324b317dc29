"""The logger as programs written for the published one use it: formats of their own, averages, profiles."""

import csv
import io
import json
import sys
import time

import numpy as np
import pytest
import torch

from guided_diffusion import logger
from guided_diffusion.errors import UserError
from guided_diffusion.logger import CSVOutputFormat, HumanOutputFormat, JSONOutputFormat, KVWriter, Logger, SeqWriter


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("OPENAI_LOGDIR", "OPENAI_LOG_FORMAT", "OPENAI_LOG_FORMAT_MPI"):
        monkeypatch.delenv(name, raising=False)
    logger.reset()
    yield
    logger.reset()


def csv_rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


FILES = {"csv": "progress{}.csv", "json": "progress{}.json", "log": "log{}.txt"}


@pytest.mark.parametrize("suffix", ["", "-x"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_there_once_configured(tmp_path, kind, suffix):
    logger.configure(str(tmp_path / "run"), [kind], None, suffix)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILES[kind].format(suffix)]
    assert logger.get_dir() == str(tmp_path / "run")


def test_the_environment_names_folder_and_formats(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "env"))
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "csv")
    logger.configure()
    assert [path.name for path in (tmp_path / "env").iterdir()] == ["progress.csv"]


@pytest.mark.parametrize("told, names", [("csv,log", ["log-rank002.txt", "progress-rank002.csv"]), ("", [])])
def test_the_environment_names_the_formats_of_other_ranks(tmp_path, monkeypatch, told, names):
    monkeypatch.setenv("OPENAI_LOG_FORMAT_MPI", told)
    logger.configure(str(tmp_path), rank=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("start", ["PMI_", "OMPI_COMM_WORLD_"])
def test_a_rank_is_known_before_it_has_met_the_others(tmp_path, monkeypatch, start):
    monkeypatch.setenv(f"{start}RANK", "3")
    monkeypatch.setenv(f"{start}SIZE", "4")
    logger.configure(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["log-rank003.txt"]


def test_no_formats_write_nothing(tmp_path, capsys):
    logger.configure(str(tmp_path), [])
    logger.log("unheard")
    logger.logkv("a", 1)
    assert logger.dumpkvs() == {"a": 1}
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


# ------------------------------------------------------------------ rows


def test_values_and_means_by_hand(tmp_path):
    logger.configure(str(tmp_path), ["csv", "json"])
    logger.record_tabular("a", 1)
    logger.logkv("a", 2)
    for value in (1.0, 2.0, 6.0):
        logger.logkv_mean("m", value)
    logger.logkvs({"b": np.float32(0.5), "c": "text"})
    assert dict(logger.getkvs()) == {"a": 2, "m": 3.0, "b": 0.5, "c": "text"}
    assert logger.get_current().name2cnt == {"m": 3}
    logger.getkvs()["d"] = 4
    row = logger.dump_tabular()
    assert row == {"a": 2, "m": 3.0, "b": 0.5, "c": "text", "d": 4}
    assert logger.getkvs() == {} and json.loads((tmp_path / "progress.json").read_text()) == row
    assert csv_rows(tmp_path / "progress.csv") == [{"a": "2", "b": "0.5", "c": "text", "d": "4", "m": "3.0"}]


@pytest.mark.parametrize("value", [torch.tensor(0.25), torch.tensor([0.25]), np.float64(0.25), np.array([0.25]), 0.25])
@pytest.mark.parametrize("put", [logger.logkv, logger.logkv_mean])
def test_numbers_of_any_library_become_numbers(tmp_path, value, put):
    logger.configure(str(tmp_path), ["json"])
    put("x", value)
    assert logger.dumpkvs() == {"x": 0.25} == json.loads((tmp_path / "progress.json").read_text())


def test_a_profile_adds_up_seconds(tmp_path):
    logger.configure(str(tmp_path), ["csv"])

    @logger.profile("work")
    def work(x, *, y):
        """Sums."""
        time.sleep(0.02)
        return x + y

    assert [work(1, y=2), work(3, y=4)] == [3, 7] and work.__doc__ == "Sums."
    with pytest.raises(KeyError), logger.profile_kv("broken"):
        raise KeyError
    row = logger.dumpkvs()
    assert 0.04 <= row["wait_work"] < 5 and 0 <= row["wait_broken"] < 1


# ------------------------------------------------------------------ formats


class Kept(KVWriter, SeqWriter):
    """Keeps what it is given."""

    def __init__(self):
        self.rows, self.lines = [], []

    def writekvs(self, kvs):
        self.rows.append(kvs)

    def writeseq(self, seq):
        self.lines.append(list(seq))


class OnlyRows(KVWriter):
    def __init__(self):
        self.rows = []

    def writekvs(self, kvs):
        self.rows.append(dict(kvs))


def test_a_format_of_ones_own_is_written(tmp_path):
    logger.configure(str(tmp_path), ["csv"])
    both, plain = Kept(), OnlyRows()
    logger.get_current().output_formats += [both, plain]
    logger.logkv("a", 1)
    logger.dumpkvs()
    logger.info("said", 2)
    assert both.rows == plain.rows == [{"a": 1}] and both.lines == [["said", "2"]]
    assert csv_rows(tmp_path / "progress.csv") == [{"a": "1"}]


def test_a_logger_of_ones_own_is_used():
    kept = Kept()
    mine = Logger(dir="somewhere", output_formats=[kept])
    Logger.CURRENT = mine
    assert logger.get_current() is mine and logger.get_dir() == "somewhere" == mine.get_dir()
    logger.logkv_mean("a", 1)
    mine.logkv_mean("a", 3)
    logger.set_level(logger.WARN)
    logger.info("hidden")
    logger.warn("seen")
    logger.dumpkvs()
    assert kept.rows == [{"a": 2}] and kept.lines[-1][-1] == "seen" and len(kept.lines) == 1


def test_reset_goes_back_to_the_terminal(tmp_path, capsys):
    assert logger.get_current() is Logger.CURRENT is Logger.DEFAULT
    logger.configure(str(tmp_path), ["csv"])
    assert logger.get_current() is not Logger.DEFAULT
    logger.reset()
    logger.log("here")
    assert logger.get_current() is Logger.DEFAULT and capsys.readouterr().out == "here\n"


WRITERS = {
    "csv": (CSVOutputFormat, lambda text: [{"a": float(r["a"])} for r in csv.DictReader(io.StringIO(text))]),
    "json": (JSONOutputFormat, lambda text: [json.loads(line) for line in text.splitlines()]),
    "human": (HumanOutputFormat, lambda text: [{"a": float(line.split()[1])} for line in text.splitlines()]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_stands_alone(tmp_path, name):
    kind, read = WRITERS[name]
    writer = kind(str(tmp_path / "out"))
    assert isinstance(writer, KVWriter) and isinstance(writer, SeqWriter) == (name == "human")
    for value in (1.5, np.float32(2.5), torch.tensor(3.5)):
        writer.writekvs({"a": value})
    writer.close()
    assert read((tmp_path / "out").read_text()) == [{"a": 1.5}, {"a": 2.5}, {"a": 3.5}]


def test_a_human_reads_from_any_open_file():
    file = io.StringIO()
    writer = HumanOutputFormat(file)
    writer.writeseq(["two", "words"])
    writer.writekvs({"loss": 0.5, "step": 10})
    writer.writekvs({})
    writer.close()
    assert not file.closed and file.getvalue() == "two words\n  loss  0.5\n  step   10\n"


def test_outputs_are_made_by_name(tmp_path, capsys):
    for name, kind in (("log", HumanOutputFormat), ("json", JSONOutputFormat), ("csv", CSVOutputFormat)):
        assert type(logger.make_output_format(name, str(tmp_path / "new"), "-s")) is kind
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["log-s.txt", "progress-s.csv", "progress-s.json"]
    logger.make_output_format("stdout", str(tmp_path)).writeseq(["to", "the", "terminal"])
    assert capsys.readouterr().out == "to the terminal\n"
    with pytest.raises(ValueError, match="'xml' is unknown"):
        logger.make_output_format("xml", str(tmp_path))
    assert issubclass(UserError, ValueError)


def test_scalars_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = logger.make_output_format("tensorboard", str(tmp_path))
    assert type(writer) is logger.TensorBoardOutputFormat
    for value in (1.0, 2.0):
        writer.writekvs({"a": value, "note": "text"})
    writer.close()
    scalars = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("a")
    assert [(e.step, e.value) for e in scalars] == [(0, 1.0), (1, 2.0)]


# ------------------------------------------------------------------ communicators, scopes


class Communicator:
    """Rank `rank` of two, of which the other one has sent `other`."""

    def __init__(self, rank, other):
        self.rank, self.other = rank, other

    def gather(self, mine):
        return [mine, self.other] if self.rank == 0 else None


def test_numbers_are_averaged_over_a_communicator(tmp_path):
    comm = Communicator(0, {"loss": (5.0, 3), "step": (8, 1), "theirs": (2.0, 2)})
    logger.configure(str(tmp_path), ["json"], comm=comm)
    logger.logkv_mean("loss", 1.0)
    logger.logkv("step", 6)
    assert logger.dumpkvs() == {"loss": 4.0, "step": 7.0, "theirs": 2.0}
    logger.set_comm(None)
    logger.logkv("step", 6)
    assert logger.dumpkvs() == {"step": 6}
    logger.set_comm(Communicator(1, {}))
    logger.logkv("step", 6)
    assert logger.dumpkvs() == {}


@pytest.mark.filterwarnings("ignore:no mean of note")
def test_the_weighted_mean_of_dicts():
    mine = {"a": (np.float32(1.0), 1), "note": ("text", 1), "number": ("2.5", 1)}
    mean = logger.mpi_weighted_mean(Communicator(0, {"a": (4.0, 2)}), mine)
    assert mean == {"a": 3.0, "number": 2.5}
    assert logger.mpi_weighted_mean(Communicator(1, {}), mine) == {}


def test_a_scope_has_a_logger_of_its_own(tmp_path):
    logger.configure(str(tmp_path / "outer"), ["csv"])
    outer = logger.get_current()
    comm = Communicator(0, {"a": (3.0, 1)})
    with logger.scoped_configure(dir=str(tmp_path / "inner"), format_strs=["json"], comm=comm):
        logger.logkv("a", 1)
        assert logger.get_dir() == str(tmp_path / "inner") and logger.dumpkvs() == {"a": 2.0}
    assert logger.get_current() is outer
    assert (tmp_path / "inner" / "progress.json").read_text() == '{"a": 2.0}\n'


def test_levels_are_the_published_numbers(tmp_path, capsys):
    levels = (logger.DEBUG, logger.INFO, logger.WARN, logger.ERROR, logger.DISABLED)
    assert levels == (10, 20, 30, 40, 50)
    logger.configure(str(tmp_path), ["stdout"])
    capsys.readouterr()
    logger.set_level(logger.DEBUG)
    logger.debug("a")
    logger.log("b", 1, level=logger.DEBUG)
    logger.set_level(logger.DISABLED)
    logger.error("c")
    assert capsys.readouterr().out == "a\nb 1\n" and sys.stdout is not None
