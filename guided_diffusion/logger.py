"""Numbers and messages of a run: to the terminal, a text file, JSON lines, CSV, TensorBoard and wandb.

`configure` once, then `logkv("loss", 0.1)` as often as there is something to say and `dumpkvs()` to write
one row of it all. Before `configure`, messages and rows go to the terminal of rank 0 only.
"""

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import sys
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from numbers import Number
from pathlib import Path

from . import dist_util, files
from .distributed import launchers
from .errors import UserError

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50

DEFAULT_FORMATS = "stdout,log,csv,json"


def _prepare_folder(folder):
    """Make `folder` and try to write in it; UserError with the reason if that fails."""
    try:
        probe = files.join(folder, f".writable-{dist_util.rank()}-{os.getpid()}")
        files.make_folder(folder)
        files.write_text(probe, "")
        with contextlib.suppress(FileNotFoundError):  # another job may have cleared it away
            files.remove(probe)
    except Exception as error:  # every cloud has exceptions of its own
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out_dir (or OPENAI_LOGDIR) {folder} cannot be written: {reason}") from error


def _whole_lines(path):
    """The text of a file so far, without a last line that was cut off, as when its process was killed.

    One that is no text is set aside.
    """
    try:
        text = files.read_text(path) if files.exists(path) else ""
    except UnicodeDecodeError as error:
        _set_aside(path, error.reason)
        return ""
    return text[: text.rfind("\n") + 1]


def _set_aside(path, reason):
    if files.is_remote(path):
        raise UserError(f"{path} is damaged ({reason}); expected rows of a log")
    files.set_aside(path, reason)


def _not_beyond(step, last):
    """Whether a row of `step`, which may be no number, is not of a later step than `last`."""
    try:
        return float(step) <= last
    except (TypeError, ValueError):
        return True


# ----------------------------------------------------- what is written: rows, or words, or both


class KVWriter:
    """Writes rows; a format of one's own is a subclass, put into `get_current().output_formats`."""

    def writekvs(self, kvs):
        """Write a row, {key: number or text}."""
        raise NotImplementedError

    def close(self):
        """Let go of what is open; nothing is written afterwards."""

    def writepicture(self, name, pixels, step):
        """Show a picture, uint8 [H, W, C], of a step; formats without pictures pass it by."""


class SeqWriter:
    """Writes messages."""

    def writeseq(self, seq):
        """Write a line of words."""
        raise NotImplementedError

    def close(self):
        """Let go of what is open; nothing is written afterwards."""


class HumanOutputFormat(KVWriter, SeqWriter):
    """Aligned rows and messages for a reader.

    :param filename_or_file: a path, at whose end is written, or an open text file.
    :ivar on_terminal: whether it writes to standard output.
    :ivar line: `row -> text`, one line in place of the table; None for the table.
    """

    line = None

    def __init__(self, filename_or_file):
        self.on_terminal = filename_or_file is sys.stdout
        if isinstance(filename_or_file, (str, os.PathLike)):
            self._put = partial(files.append_text, filename_or_file)
            self._put("")
        else:
            # None is whatever sys.stdout is when something is said
            file = None if self.on_terminal else filename_or_file
            self._put = partial(print, end="", file=file, flush=True)

    def writekvs(self, kvs):
        if not kvs:
            return
        row = _plain_row(kvs)
        if self.line is not None:
            self._put(self.line(row) + "\n")
            return
        shown = {key: f"{value:.5g}" if isinstance(value, float) else str(value) for key, value in row.items()}
        left = max(map(len, shown))
        right = max(map(len, shown.values()))
        self._put("".join(f"  {key:<{left}}  {shown[key]:>{right}}\n" for key in sorted(shown)))

    def writeseq(self, seq):
        self._put(" ".join(seq) + "\n")


class JSONOutputFormat(KVWriter):
    """One JSON object a line.

    :param filename: a path; an existing file is continued.
    """

    def __init__(self, filename):
        self.path = filename
        files.append_text(filename, "")

    def writekvs(self, kvs):
        files.append_text(self.path, json.dumps(_plain_row(kvs), default=str) + "\n")

    def rewind(self, last):
        """Keep no row of a step after `last`, and no line that was cut off."""
        lines = _whole_lines(self.path).splitlines(keepends=True)
        files.write_text(self.path, "".join(line for line in lines if _not_beyond(_step_in(line), last)))


def _step_in(line):
    """The step of a line of JSON, None where there is none."""
    try:
        return json.loads(line).get("step")
    except (ValueError, AttributeError, RecursionError):
        return None


class CSVOutputFormat(KVWriter):
    """One row a line under a header that grows when new keys come.

    :param filename: a path; an existing file is continued.
    """

    def __init__(self, filename):
        self.path = filename
        self.keys = []
        self._rows()
        files.append_text(filename, "")

    def writekvs(self, kvs):
        row = _plain_row(kvs)
        if row.keys() - set(self.keys):
            old = self._rows()
            self.keys += sorted(row.keys() - set(self.keys))
            files.write_text(self.path, self._text([dict(zip(self.keys, self.keys)), *old, row]))
        else:
            files.append_text(self.path, self._text([row]))

    def rewind(self, last):
        """Keep no row of a step after `last`, and no line that was cut off."""
        kept = [row for row in self._rows() if _not_beyond(row.get("step"), last)]
        header = [dict(zip(self.keys, self.keys))] if self.keys else []
        files.write_text(self.path, self._text([*header, *kept]))

    def _rows(self):
        """The rows so far, under the keys of their header; a file in which they are not as written is set aside."""
        try:
            text = io.StringIO(_whole_lines(self.path).lstrip("\ufeff"))  # the mark of a spreadsheet
            table = [row for row in csv.reader(text, strict=True) if row]
            reason = "" if len(set(map(len, table))) < 2 else "its lines have different numbers of columns"
        except csv.Error as error:
            reason = str(error)
        if reason:
            _set_aside(self.path, reason)
            table = []
        if table:
            self.keys = table[0]
        return [dict(zip(self.keys, row)) for row in table[1:]]

    def _text(self, rows):
        text = io.StringIO()
        csv.DictWriter(text, self.keys, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
        return text.getvalue()


class TensorBoardOutputFormat(KVWriter):
    """Scalars for TensorBoard, at the step logged as "step" or else at the number of the row.

    :param dir: the folder of its files.
    """

    def __init__(self, dir):
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(dir)
        self.rows = 0

    def writekvs(self, kvs):
        row = _plain_row(kvs)
        for key, value in row.items():
            if isinstance(value, Number):
                self.events.add_scalar(key, value, int(row.get("step", self.rows)))
        self.events.flush()
        self.rows += 1

    def writepicture(self, name, pixels, step):
        self.events.add_image(name, pixels, step, dataformats="HWC")
        self.events.flush()

    def close(self):
        self.events.close()


class WandbOutputFormat(KVWriter):
    """Rows and pictures for Weights & Biases, at the step logged as "step" or else at the number of the row.

    Project, mode, entity and name are those of its WANDB_ variables.

    :param dir: the folder of its files.
    """

    def __init__(self, dir):
        import wandb

        self.wandb, self.rows = wandb, 0
        files.make_folder(dir)
        self.run = wandb.init(dir=dir, name=os.path.basename(os.path.dirname(dir)), resume="allow")

    def writekvs(self, kvs):
        row = _plain_row(kvs)
        self.run.log(row, step=int(row.get("step", self.rows)))
        self.rows += 1

    def writepicture(self, name, pixels, step):
        self.run.log({name: self.wandb.Image(pixels)}, step=step)

    def close(self):
        self.run.finish()


def make_output_format(format, ev_dir, log_suffix=""):
    """The writer called `format`: stdout, log, json, csv, tensorboard or wandb.

    :param ev_dir: folder of its file, made where it is missing.
    :param log_suffix: stands in the file's name.
    :raises UserError: for another format.
    """
    _check_formats([format])
    files.make_folder(ev_dir)
    if format == "stdout":
        return HumanOutputFormat(sys.stdout)
    if format == "log":
        return HumanOutputFormat(files.join(ev_dir, f"log{log_suffix}.txt"))
    if format == "json":
        return JSONOutputFormat(files.join(ev_dir, f"progress{log_suffix}.json"))
    if format == "csv":
        return CSVOutputFormat(files.join(ev_dir, f"progress{log_suffix}.csv"))
    if format == "wandb":
        return WandbOutputFormat(files.join(ev_dir, f"wandb{log_suffix}"))
    return TensorBoardOutputFormat(files.join(ev_dir, f"tb{log_suffix}"))


def _check_formats(formats):
    """Return the formats that can be had, and a warning or None."""
    for kind in formats:
        if kind not in ("stdout", "log", "json", "csv", "tensorboard", "wandb"):
            raise UserError(f"log format {kind!r} is unknown, expected stdout, log, json, csv, tensorboard or wandb")
    titles = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
    absent = [f for f in formats if f in titles and importlib.util.find_spec(f) is None]
    lacking = [f"no {titles[f]} logs: pip install {f}" for f in absent]
    return [f for f in formats if f not in absent], "; ".join(lacking) or None


# ------------------------------------------------------------------------------------ the logger


class Logger:
    """What was logged since the last row, and where rows and messages go.

    :param dir: the folder of its files, None without one.
    :param output_formats: a list of KVWriter and SeqWriter.
    :param comm: a communicator, to average every number over its ranks; see `mpi_weighted_mean`. By default means are
        averaged over the ranks of this job, and other values are those of rank 0.
    :cvar DEFAULT: the Logger that writes to the terminal alone, once it was needed.
    :cvar CURRENT: the one that the functions of this module use; None before the first is needed.
    :ivar name2val: {key: value} of the next row.
    :ivar name2cnt: {key: how many values its mean is of}, of keys that have a mean.
    """

    DEFAULT = None
    CURRENT = None

    def __init__(self, dir, output_formats, comm=None):
        self.dir = dir
        self.output_formats = output_formats
        self.comm = comm
        self.level = INFO
        self._begin_row()

    def _begin_row(self):
        self.name2val = defaultdict(float)
        self.name2cnt = defaultdict(int)

    def logkv(self, key, val):
        self.name2cnt.pop(key, None)
        self.name2val[key] = _detached(val)

    def logkv_mean(self, key, val):
        count = self.name2cnt[key] + 1
        before = self.name2val[key] * (count - 1) / count if count > 1 else 0.0
        self.name2val[key] = before + _detached(val) / count
        self.name2cnt[key] = count

    def rewind(self, last):
        for writer in self.output_formats:
            if isinstance(writer, (JSONOutputFormat, CSVOutputFormat)):
                writer.rewind(last)

    def dumpkvs(self):
        row = _plain_row(self._over_ranks())
        if row and self.level < DISABLED:
            for writer in self.output_formats:
                if isinstance(writer, KVWriter):
                    writer.writekvs(dict(row))
        self._begin_row()
        return row

    def _over_ranks(self):
        """The row of all ranks on rank 0; elsewhere what this rank adds to it, or nothing where there is a `comm`."""
        if self.comm is not None:
            counted = {key: (value, self.name2cnt.get(key, 1)) for key, value in self.name2val.items()}
            return mpi_weighted_mean(self.comm, counted)
        if dist_util.world_size() == 1:
            return self.name2val
        everyone = dist_util.gather_object({key: (float(self.name2val[key]), n) for key, n in self.name2cnt.items()})
        return self.name2val if everyone is None else self.name2val | _weighted_mean(everyone)

    def log(self, *args, level=INFO):
        if level < self.level:
            return
        lines = [(WARN, [files.remarks.pop(0)]) for _ in range(len(files.remarks))]
        for grade, words in [*lines, (level, map(str, args))]:
            said = [*{WARN: ["warning:"], ERROR: ["error:"]}.get(grade, []), *words]
            for writer in self.output_formats:
                if isinstance(writer, SeqWriter):
                    writer.writeseq(said)

    def get_dir(self):
        """The folder of its files, or None."""
        return self.dir

    def set_comm(self, comm):
        """Average every number over the ranks of a communicator from now on."""
        self.comm = comm

    def set_level(self, level):
        """Hide messages below `level`, and with DISABLED rows too."""
        self.level = level

    def close(self):
        """Close what its formats have open."""
        for writer in self.output_formats:
            writer.close()


def _detached(value):
    # A tensor stays on its device until the row is written, but must not hold a graph alive.
    return value.detach().clone() if hasattr(value, "detach") else value


def _plain_row(row):
    """The row with Python's numbers in place of those of torch and numpy."""
    return {key: _plain(value) for key, value in row.items()}


def _plain(value):
    return value.item() if getattr(value, "size", None) == 1 or hasattr(value, "detach") else value


def mpi_weighted_mean(comm, local_name2valcount):
    """Average numbers over the ranks of a communicator; every rank must call it.

    What is no number is left out with a warning.

    :param comm: has `rank` and `gather(object)`, as those of MPI do.
    :param local_name2valcount: {key: (value, its weight)} of this rank.
    :return: {key: mean over the ranks that have the key} on rank 0, {} elsewhere.
    """
    everyone = comm.gather(local_name2valcount)
    return _weighted_mean(everyone) if comm.rank == 0 else {}


def _weighted_mean(everyone):
    """{key: mean} of a list of {key: (value, weight)}."""
    sums = {}
    for key, (value, count) in (item for part in everyone for item in part.items()):
        try:
            value = float(value)
        except (TypeError, ValueError):
            warnings.warn(f"no mean of {key}, which is {value!r}", stacklevel=2)
            continue
        total, weight = sums.get(key, (0.0, 0))
        sums[key] = total + value * count, weight + count
    return {key: total / weight for key, (total, weight) in sums.items()}


def get_current():
    """The Logger in use: that of `configure`, or else one that writes to the terminal of rank 0."""
    if Logger.CURRENT is None:
        Logger.DEFAULT = Logger.CURRENT = Logger(None, [HumanOutputFormat(sys.stdout)] if dist_util.is_main() else [])
    return Logger.CURRENT


def configure(dir=None, format_strs=None, comm=None, log_suffix="", rank=None):
    """Write from now on to a folder, and print its absolute path. Existing files are continued.

    Ranks other than 0 write only "log", or the formats of OPENAI_LOG_FORMAT_MPI, to files of their own.

    :param dir: a local path or an address that blobfile writes; by default OPENAI_LOGDIR, else ./runs/NAME of the
        script.
    :param format_strs: some of stdout, log, csv, json, tensorboard, wandb, as a list or with commas; by default
        OPENAI_LOG_FORMAT, else "stdout,log,csv,json".
    :param comm: see `Logger`.
    :param log_suffix: stands in the files' names.
    :param rank: this process's own unless given.
    :raises UserError: if the folder cannot be written or a format is unknown.
    """
    rank = (dist_util.rank() or launchers.told_rank(os.environ)) if rank is None else rank
    folder = str(dir or os.environ.get("OPENAI_LOGDIR") or _default_folder())
    if not files.is_remote(folder):
        folder = os.path.abspath(os.path.expanduser(folder))
    formats, warning = _check_formats(_formats(format_strs, rank))
    if rank > 0:
        log_suffix += f"-rank{rank:03d}"
    _prepare_folder(folder)
    Logger.CURRENT = Logger(folder, [make_output_format(f, folder, log_suffix) for f in formats], comm)
    log(f"logging to {folder}")
    if warning and rank == 0:
        warn(warning)


def _formats(format_strs, rank):
    """The names of the formats that a rank writes."""
    if rank > 0 and format_strs is None and "OPENAI_LOG_FORMAT_MPI" in os.environ:
        return _names(os.environ["OPENAI_LOG_FORMAT_MPI"])
    if format_strs is None:
        format_strs = os.environ.get("OPENAI_LOG_FORMAT") or DEFAULT_FORMATS
    return [f for f in _names(format_strs) if rank == 0 or f == "log"]


def _names(formats):
    return [f.strip() for f in (formats.split(",") if isinstance(formats, str) else formats) if f and f.strip()]


def _default_folder():
    name = Path(sys.argv[0]).stem
    return os.path.join("runs", name if name and not name.startswith("-") else "python")


def reset():
    """Go back to the terminal only, as before `configure`."""
    if Logger.CURRENT is not None:
        Logger.CURRENT.close()
    Logger.CURRENT = Logger.DEFAULT = None


@contextmanager
def scoped_configure(dir=None, format_strs=None, comm=None, log_suffix="", rank=None):
    """`configure` for the length of a with-block; the logger of before comes back after it."""
    before = Logger.CURRENT
    configure(dir, format_strs, comm, log_suffix, rank)
    try:
        yield
    finally:
        Logger.CURRENT.close()
        Logger.CURRENT = before


def logkv(key, value):
    """Set `key` in the next row, replacing what it had; on several ranks the value of rank 0 counts."""
    get_current().logkv(key, value)


def logkv_mean(key, value):
    """Add `value` to the mean that the next row shows at `key`, over calls and over ranks."""
    get_current().logkv_mean(key, value)


def logkvs(values):
    """`logkv` for every item of a dict."""
    for key, value in values.items():
        logkv(key, value)


def getkvs():
    """Return the next row as it stands on this rank, as a dict, in which values may be set."""
    return get_current().name2val


def dumpkvs():
    """Write the row, begin a new one, and return what was written (on other ranks than 0, their own part).

    With several ranks every rank has to call this: means are weighted by the number of calls on each.
    """
    return get_current().dumpkvs()


def rewind(last=math.inf):
    """Mend CSV and JSON files of an earlier run that this one continues: no row of a step after `last` stays there.

    A last line that was cut off, as when the process was killed, goes as well.
    """
    get_current().rewind(last)


def log(*args, level=INFO):
    """Write a line of words joined by spaces to the terminal and the text file, if `level` is high enough."""
    get_current().log(*args, level=level)


def debug(*args):
    """`log` at level DEBUG, which is hidden unless `set_level(DEBUG)`."""
    log(*args, level=DEBUG)


def info(*args):
    """`log` at level INFO."""
    log(*args, level=INFO)


def warn(*args):
    """`log` at level WARN, with "warning:" before it."""
    log(*args, level=WARN)


def error(*args):
    """`log` at level ERROR, with "error:" before it."""
    log(*args, level=ERROR)


def picture(name, pixels, step):
    """Show a picture, uint8 [H, W, C] of 1, 3 or 4 channels, where TensorBoard or wandb are written."""
    for writer in get_current().output_formats:
        if isinstance(writer, KVWriter):
            writer.writepicture(name, pixels, step)


def show_lines(line):
    """Show each row in one line on the terminal, where files keep it whole.

    :param line: `row -> text`.
    """
    rows = [writer for writer in get_current().output_formats if isinstance(writer, KVWriter)]
    terminals = [writer for writer in rows if isinstance(writer, HumanOutputFormat) and writer.on_terminal]
    if len(terminals) < len(rows):
        for writer in terminals:
            writer.line = line


def set_level(level):
    """Hide messages below `level`; DISABLED also hides rows."""
    get_current().set_level(level)


def set_comm(comm):
    """Average every number of the rows from now on over the ranks of a communicator; see `Logger`."""
    get_current().set_comm(comm)


def get_dir():
    """Return the folder of `configure` as an absolute path or address, None before it."""
    return get_current().get_dir()


record_tabular, dump_tabular = logkv, dumpkvs


@contextmanager
def profile_kv(scopename):
    """Add the seconds that the with-block takes to "wait_" and its name in the next row."""
    start = time.time()
    try:
        yield
    finally:
        get_current().name2val[f"wait_{scopename}"] += time.time() - start


def profile(n):
    """A decorator that does for every call of a function what `profile_kv` does under the name `n`."""
    return profile_kv(n)
