"""Numbers and messages of a run: to the terminal, a text file, JSON lines, CSV and TensorBoard.

`configure` once, then `logkv("loss", 0.1)` as often as there is something to say and `dumpkvs()` to write
one row of it all. Before `configure`, messages and rows go to the terminal of rank 0 only.
"""

import csv
import importlib.util
import io
import json
import math
import os
import sys
from contextlib import contextmanager
from numbers import Number
from pathlib import Path

from . import dist_util, files
from .errors import UserError

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50

DEFAULT_FORMATS = "stdout,log,csv,json"


def _prepare_folder(folder):
    """Make `folder` and try to write in it; UserError with the reason if that fails."""
    try:
        probe = files.join(folder, f".writable-{dist_util.rank()}-{os.getpid()}")
        files.make_folder(folder)
        files.write_text(probe, "")
        files.remove(probe)
    except Exception as error:  # every cloud has exceptions of its own
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out_dir (or OPENAI_LOGDIR) {folder} cannot be written: {reason}") from error


def _whole_lines(path):
    """The text of a file so far, without a last line that was cut off, as when its process was killed."""
    text = files.read_text(path) if files.exists(path) else ""
    return text[: text.rfind("\n") + 1]


def _not_beyond(step, last):
    """Whether a row of `step`, which may be no number, is not of a later step than `last`."""
    try:
        return float(step) <= last
    except (TypeError, ValueError):
        return True


# ------------------------------------------- one writer per format: write(row, step) or say(line)


class TableWriter:
    """Aligned rows and messages for a reader, given to `put` as text."""

    def __init__(self, put):
        self.say = put

    def write(self, row, step):
        shown = {key: f"{value:.5g}" if isinstance(value, float) else str(value) for key, value in row.items()}
        left = max(map(len, shown))
        right = max(map(len, shown.values()))
        self.say("".join(f"  {key:<{left}}  {shown[key]:>{right}}\n" for key in sorted(shown)))


class JsonWriter:
    """One JSON object a line."""

    def __init__(self, path):
        self.path = path

    def write(self, row, step):
        files.append_text(self.path, json.dumps(row, default=str) + "\n")

    def rewind(self, last):
        if files.exists(self.path):
            lines = _whole_lines(self.path).splitlines(keepends=True)
            files.write_text(self.path, "".join(line for line in lines if _not_beyond(_step_in(line), last)))


def _step_in(line):
    """The step of a line of JSON, None where there is none."""
    try:
        return json.loads(line).get("step")
    except (ValueError, AttributeError):
        return None


class CsvWriter:
    """One row a line under a header that grows when new keys come; an existing file is continued."""

    def __init__(self, path):
        self.path = path
        self.keys = next(csv.reader(io.StringIO(_whole_lines(path))), [])

    def write(self, row, step):
        new = sorted(row.keys() - set(self.keys))
        if new:
            old = self._rows()
            self.keys += new
            files.write_text(self.path, self._text([dict(zip(self.keys, self.keys)), *old, row]))
        else:
            files.append_text(self.path, self._text([row]))

    def rewind(self, last):
        if files.exists(self.path):
            kept = [row for row in self._rows() if _not_beyond(row.get("step"), last)]
            header = [dict(zip(self.keys, self.keys))] if self.keys else []
            files.write_text(self.path, self._text([*header, *kept]))

    def _rows(self):
        return list(csv.DictReader(io.StringIO(_whole_lines(self.path))))

    def _text(self, rows):
        text = io.StringIO()
        csv.DictWriter(text, self.keys, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
        return text.getvalue()


class TensorBoardWriter:
    """Scalars for TensorBoard, at the step logged as "step" or else at the number of the row."""

    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(folder)

    def write(self, row, step):
        for key, value in row.items():
            if isinstance(value, Number):
                self.events.add_scalar(key, value, step)
        self.events.flush()


def _to_terminal(text):
    print(text, end="", flush=True)


def _make_writer(kind, folder, suffix):
    if kind == "stdout":
        return TableWriter(_to_terminal)
    if kind == "log":
        path = files.join(folder, f"log{suffix}.txt")
        return TableWriter(lambda text: files.append_text(path, text))
    if kind == "json":
        return JsonWriter(files.join(folder, f"progress{suffix}.json"))
    if kind == "csv":
        return CsvWriter(files.join(folder, f"progress{suffix}.csv"))
    return TensorBoardWriter(files.join(folder, f"tb{suffix}"))


def _check_formats(formats):
    """Return the formats that can be had, and a warning or None."""
    for kind in formats:
        if kind not in ("stdout", "log", "json", "csv", "tensorboard"):
            raise UserError(f"log format {kind!r} is unknown, expected stdout, log, json, csv or tensorboard")
    if "tensorboard" in formats and importlib.util.find_spec("tensorboard") is None:
        return [f for f in formats if f != "tensorboard"], "no TensorBoard logs: pip install tensorboard"
    return formats, None


# ------------------------------------------------------------------------------------ the logger


class Logger:
    """What was logged since the last row, and where rows and messages go."""

    def __init__(self, folder, writers):
        self.folder = folder
        self.writers = writers
        self.level = INFO
        self.rows = 0
        self.values = {}
        self.sums = {}

    def logkv(self, key, value):
        self.sums.pop(key, None)
        self.values[key] = _detached(value)

    def logkv_mean(self, key, value):
        self.values.pop(key, None)
        total, count = self.sums.get(key, (0.0, 0))
        self.sums[key] = total + _detached(value), count + 1

    def getkvs(self):
        return self.values | {key: total / count for key, (total, count) in self.sums.items()}

    def rewind(self, last):
        for writer in self.writers:
            if isinstance(writer, (JsonWriter, CsvWriter)):
                writer.rewind(last)

    def dumpkvs(self):
        if dist_util.world_size() > 1:
            self._average_over_ranks()
        row = {key: _plain(value) for key, value in self.getkvs().items()}
        if row and self.level < DISABLED:
            step = row.get("step", self.rows)
            for writer in self.writers:
                writer.write(row, int(step))
        self.rows += 1
        self.values, self.sums = {}, {}
        return row

    def _average_over_ranks(self):
        mine = {key: (float(total), count) for key, (total, count) in self.sums.items()}
        everyone = dist_util.gather_object(mine)
        if everyone is None:
            return
        self.sums = {}
        for key, (total, count) in (item for sums in everyone for item in sums.items()):
            sofar = self.sums.get(key, (0.0, 0))
            self.sums[key] = sofar[0] + total, sofar[1] + count
        self.values = {key: value for key, value in self.values.items() if key not in self.sums}

    def log(self, *args, level=INFO):
        if level < self.level:
            return
        mark = {WARN: "warning: ", ERROR: "error: "}.get(level, "")
        for writer in self.writers:
            if isinstance(writer, TableWriter):
                writer.say(mark + " ".join(map(str, args)) + "\n")


def _detached(value):
    # A tensor stays on its device until the row is written, but must not hold a graph alive.
    return value.detach().clone() if hasattr(value, "detach") else value


def _plain(value):
    """Turn a number of torch or numpy into Python's; leave the rest."""
    return value.item() if getattr(value, "size", None) == 1 or hasattr(value, "detach") else value


def _unconfigured():
    return Logger(None, [TableWriter(_to_terminal)] if dist_util.is_main() else [])


_current = None


def _logger():
    global _current
    if _current is None:
        _current = _unconfigured()
    return _current


def configure(dir=None, format_strs=None, log_suffix="", rank=None):
    """Write from now on to the folder `dir`, and print its absolute path.

    `dir` is a local path or an address that blobfile writes; by default OPENAI_LOGDIR, else ./runs/NAME of
    the script. `format_strs` are some of stdout, log, csv, json, tensorboard; by default OPENAI_LOG_FORMAT,
    else "stdout,log,csv,json". Ranks other than 0 write only "log", to a file of their own. `log_suffix`
    goes into the file names; `rank` is this process's own unless given. Existing files are continued.
    UserError if the folder cannot be written or a format is unknown.
    """
    global _current
    rank = dist_util.rank() if rank is None else rank
    folder = str(dir or os.environ.get("OPENAI_LOGDIR") or _default_folder())
    if not files.is_remote(folder):
        folder = os.path.abspath(os.path.expanduser(folder))
    formats = format_strs or os.environ.get("OPENAI_LOG_FORMAT") or DEFAULT_FORMATS
    formats = [f.strip() for f in (formats.split(",") if isinstance(formats, str) else formats)]
    formats, warning = _check_formats(formats)
    if rank > 0:
        formats = [f for f in formats if f == "log"]
        log_suffix += f"-rank{rank:03d}"
    _prepare_folder(folder)
    _current = Logger(folder, [_make_writer(f, folder, log_suffix) for f in formats])
    log(f"logging to {folder}")
    if warning and rank == 0:
        warn(warning)


def _default_folder():
    name = Path(sys.argv[0]).stem
    return os.path.join("runs", name if name and not name.startswith("-") else "python")


def reset():
    """Go back to the terminal only, as before `configure`."""
    global _current
    _current = None


@contextmanager
def scoped_configure(dir=None, format_strs=None, log_suffix="", rank=None):
    """`configure` for the length of a with-block; the logger of before comes back after it."""
    global _current
    before = _current
    configure(dir, format_strs, log_suffix, rank)
    try:
        yield
    finally:
        _current = before


def logkv(key, value):
    """Set `key` in the next row, replacing what it had; on several ranks the value of rank 0 counts."""
    _logger().logkv(key, value)


def logkv_mean(key, value):
    """Add `value` to the mean that the next row shows at `key`, over calls and over ranks."""
    _logger().logkv_mean(key, value)


def logkvs(values):
    """`logkv` for every item of a dict."""
    for key, value in values.items():
        logkv(key, value)


def getkvs():
    """Return the next row as it stands on this rank, as a dict."""
    return _logger().getkvs()


def dumpkvs():
    """Write the row, begin a new one, and return what was written (on other ranks than 0, their own part).

    With several ranks every rank has to call this: means are weighted by the number of calls on each.
    """
    return _logger().dumpkvs()


def rewind(last=math.inf):
    """Mend CSV and JSON files of an earlier run that this one continues: no row of a step after `last` stays there.

    A last line that was cut off, as when the process was killed, goes as well.
    """
    _logger().rewind(last)


def log(*args, level=INFO):
    """Write a line of words joined by spaces to the terminal and the text file, if `level` is high enough."""
    _logger().log(*args, level=level)


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


def set_level(level):
    """Hide messages below `level`; DISABLED also hides rows."""
    _logger().level = level


def get_dir():
    """Return the folder of `configure` as an absolute path or address, None before it."""
    return _logger().folder
