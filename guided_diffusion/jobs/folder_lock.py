"""One job to an output folder: a second one that is pointed there is refused.

The kernel holds the lock and lets go of it when the process ends, however it ends: a killed job blocks nothing.
Remote folders, and systems or file systems without such locks, have none.
"""

import contextlib
import errno
import os
import socket
import stat
import time

from .. import dist_util, files
from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held = set()


def _let_go_in_child():
    # A forked worker that outlives its killed parent would hold the lock for it.
    for file in _held:
        file.close()
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def locked(folder, part=""):
    """Hold `folder` for this job during the with-block; every rank has to call it, and rank 0 holds it for all.

    Who has it alone deletes what earlier jobs left unfinished there.

    :param folder: which exists; the lock lies there as `.lock`, and stays when it is let go.
    :param part: jobs with different parts, such as "3-of-8", may share a folder, each with a lock `.lock-PART`; a
        job without a part has the folder alone.
    :raises UserError: on every rank, if another job holds it; the sentence names folder, host and process id.
    """
    with contextlib.ExitStack() as stack:
        holder, began = None, time.time()
        if dist_util.is_main() and _can_lock(folder):
            holder = _lock(stack, os.path.join(folder, ".lock"), shared=bool(part))
            if part and holder is None:
                holder = _lock(stack, os.path.join(folder, f".lock-{part}"))
        holder = dist_util.broadcast_object(holder)
        if holder is not None:
            raise UserError(f"{folder} is in use by {holder}; wait for it or give another --out_dir")
        if dist_util.is_main() and not part:
            files.remove_unfinished(folder, began)
        yield


@contextlib.contextmanager
def claimed(folder, work):
    """Yield None if the calling process alone may do `work` in `folder` during the with-block, else who does it.

    Unlike `locked` it is no collective, and several works may go on at once, each under a lock `.lock-WORK`.
    """
    with contextlib.ExitStack() as stack:
        yield _lock(stack, os.path.join(folder, f".lock-{work}")) if _can_lock(folder) else None


def _can_lock(folder):
    return fcntl is not None and not files.is_remote(folder)


def _lock(stack, path, shared=False):
    """Lock a file until `stack` is closed; returns who has it, if that is another, else None."""
    try:
        file = stack.enter_context(open(path, "a+", encoding="utf-8", opener=_opened))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        raise UserError(f"{path} is no regular file, so {os.path.dirname(path)} cannot be locked") from error
    try:
        fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return _holder(path) or "another job"
    except OSError as error:  # a network file system without locks
        files.remark(f"{path} cannot be locked ({error.strerror}): nothing keeps a second job out of its folder")
        return None
    _held.add(file)
    stack.callback(_held.discard, file)
    if not shared:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return None


def _opened(path, flags):
    """A handle of a regular file: a pipe of this name would be waited for."""
    handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.ENOTSUP, "it is no regular file", path)
    return handle


def _holder(path):
    """Who holds the lock at `path`; where jobs share it, one of those that have a part of the folder."""
    folder, name = os.path.split(path)
    for other in sorted(entry for entry in os.listdir(folder) if entry.startswith(name)):
        with open(os.path.join(folder, other), encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_NB | fcntl.LOCK_SH)
            except BlockingIOError:
                return file.read(200)
    return None
