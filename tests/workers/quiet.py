"""Run a script of the project by one process that may not touch a socket: SCRIPT and its arguments."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def forbid_sockets(event, _):
    if event in ("socket.__new__", "socket.bind", "socket.connect"):
        raise AssertionError(f"a single process used {event}")


sys.addaudithook(forbid_sockets)

from open_sockets import sockets  # noqa: E402

sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
assert sockets() == []
print("no socket is open")
