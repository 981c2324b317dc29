"""The body that every script shares: flags, ranks, output folder, errors."""

import contextlib
import io
import json
import os
import re
import sys
import time
import traceback
from dataclasses import dataclass

import torch

from .. import dist_util, files, flags, logger, presets
from ..distributed import launchers
from ..errors import UserError
from ..flags import flag, flags_of
from ..networks import ConvFlags, computing_by, described, slow_halves
from . import folder_lock, terminal

# seconds that other ranks leave rank 0 to say an error first
PATIENCE = 2
LESS = "expected a smaller --batch_size, image or network"


@dataclass
class RunFlags(flags.FlagGroup):
    """The run."""

    out_dir: str = flag(
        "", "Folder for all output; else $OPENAI_LOGDIR, else ./runs/NAME.", idle=True, essential="out_dir"
    )
    device: str = flag("", "cpu, cuda, cuda:N or mps; empty takes the GPU of the local rank, else the CPU.", idle=True)
    preset: str = flag(
        "",
        "Published setting, or FILE.json, that fills in flags; flags given by hand win; list prints all.",
        idle=True,
        essential="preset",
    )
    dry_run: bool = flag(
        False,
        "Print the resolved flags and, where a network trains or samples, what a step of it takes; then stop.",
        idle=True,
        essential="dry_run",
    )


@terminal.lasting()
def run(name, description, groups, body, overrides=None, argv=None, positional=()):
    """Parse the command line, join the ranks, open the output folder, and call `body(parsed)`.

    A UserError, or an OSError such as a full disk, is printed without a traceback, and the process exits with
    status 2.

    :param name: of the script, and of its folder below ./runs.
    :param description: shown by --help.
    :param groups: the flag groups the script takes; RunFlags is added.
    :param body: the work, `parsed -> None`.
    :param overrides: {flag: default} of this script; None takes a flag away.
    :param argv: default the process's own.
    :param positional: as for `flags.parse`.
    """
    parsed = None
    try:
        argv = sys.argv[1:] if argv is None else argv
        parsed = flags.parse(argv, [*groups, RunFlags], description, overrides, _preset, positional)
        settings = parsed[RunFlags]
        if settings.preset == "list":
            if launchers.told_rank(os.environ) == 0:
                print(presets.table())
            return
        with _held_back():
            dist_util.setup_dist(settings.device or None)
            logger.configure(settings.out_dir or os.environ.get("OPENAI_LOGDIR") or os.path.join("runs", name))
        body(parsed)
        dist_util.cleanup()
    except (UserError, OSError) as error:
        _complain(f"{name}: {files.told(error)}", everywhere=parsed is None)
        dist_util.abort(2)
    except Exception as error:
        if _is_memory(error):
            asked = re.search(r"tried to allocate [\d.]+ ?\w+", str(error), re.IGNORECASE)
            reason = asked[0] if asked else str(error).partition("\n")[0]
            _complain(f"{name}: there is not enough memory ({reason}); {LESS}", everywhere=False)
            dist_util.abort(2)
        if dist_util.world_size() == 1:
            raise
        time.sleep(PATIENCE)  # if another rank has died, its end is said now, and that of this one is no news
        traceback.print_exc()
        dist_util.say(f"{name}: {dist_util.place()} failed: {type(error).__name__}: {error}")
        dist_util.abort(1)
    except KeyboardInterrupt:
        dist_util.say(f"{name}: interrupted")
        dist_util.abort(130)


def _is_memory(error):
    """Whether an error is that of memory which could not be had, on whatever device."""
    said = isinstance(error, RuntimeError) and re.search("out of memory|t allocate memory", str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(said)


def alone(body):
    """The body of a script, for `run`, that refuses to start while another job writes to the output folder."""

    def locked(parsed):
        with folder_lock.locked(logger.get_dir()):
            body(parsed)

    return locked


@contextlib.contextmanager
def _held_back():
    """Holds standard error back to the end, so that the output folder is the first line a terminal shows."""
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            yield
    finally:
        sys.stdout.flush()
        print(held.getvalue(), end="", file=sys.stderr, flush=True)


def _preset(given, known):
    name = given.get("preset", "")
    return {} if name in ("", "list") else presets.expand(name, known)


def _complain(sentence, everywhere):
    """Print an error, once where all ranks fail alike: for certain `everywhere`, else as far as timing tells."""
    if launchers.told_rank(os.environ) > 0:
        if everywhere:
            return
        time.sleep(PATIENCE)  # within this, rank 0 has said it too and ended the job
    dist_util.say(sentence)


def warn_of_unread(parsed):
    """Warn of given flags that nothing reads, since another is off."""
    for name, switch in flags.marked(parsed.groups, "needs").items():
        if name in parsed.given and parsed.values().get(switch) is False:
            logger.warn(f"--{name} does nothing without --{switch} True")


def warn_of_slow_halves(parsed):
    """Warn of flags that ask a CPU for 16-bit numbers that it has no instructions for."""
    if dist_util.dev().type == "cpu":
        for dtype in slow_halves(*_dtypes(parsed)):
            logger.warn(
                f"this processor has no instructions for {_in_words(dtype)}, which takes about 25 times as long as "
                "float32 there; expected float32, or a GPU"
            )


def _dtypes(parsed):
    """What the networks of Parsed flags compute in."""
    return [group.dtype for group in parsed.groups.values() if hasattr(group, "dtype")]


def _in_words(dtype):
    return str(dtype).removeprefix("torch.")


def announce(parsed, file_name="flags.json"):
    """Print the resolved flags that are not at their defaults, and save all in the output folder, on rank 0.

    A dry run prints all and saves none.

    :param file_name: of what is saved.
    :return: False if this is a dry run, which ends here.
    """
    values, dry_run = parsed.values(), parsed[RunFlags].dry_run
    warn_of_unread(parsed)
    if dist_util.is_main():
        if ConvFlags in parsed.groups and dist_util.dev().type == "cpu":
            lower = {dtype for dtype in _dtypes(parsed) if dtype != torch.float32}
            if lower:
                logger.log(f"{' and '.join(sorted(map(_in_words, lower)))}: computed by torch, whatever --conv is")
            elif "conv" in values:
                whatever = ", whatever --conv is" if values["compile"] != "off" and values["conv"] != "auto" else ""
                logger.log(f"{described(computing_by())}{whatever}")
            warn_of_slow_halves(parsed)
            if values.get("tf32"):
                logger.warn("--tf32 True rounds the products of a GPU, and does nothing on a CPU")
        defaults = {} if dry_run else parsed.defaults()
        words = {field.name: field.metadata["words"] for group in parsed.groups for field in flags_of(group)}
        spelt = {(name, number): word for name, known in words.items() for word, number in (known or {}).items()}
        shown = {k: spelt.get((k, v), v) for k, v in values.items() if k not in defaults or v != defaults[k]}
        words = " ".join(f"--{k} {v!r}" if v == "" else f"--{k} {v}" for k, v in shown.items())
        logger.log(f"flags: {words or 'their defaults'}" + (f"; all: {file_name}" if defaults else ""))
        if not dry_run:
            files.write_text(files.join(logger.get_dir(), file_name), json.dumps(values, indent=1) + "\n")
    return not dry_run
