"""Printing is not the job: a reader that goes away, or a character that a terminal cannot show, ends no work."""

import contextlib
import os
import sys


@contextlib.contextmanager
def lasting():
    """Within it sys.stdout and sys.stderr can be written to, whatever becomes of what is behind them."""
    before = sys.stdout, sys.stderr
    for number in range(3):  # a file that takes the place of a closed one would get what C libraries print
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = map(_Lasting, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Lasting):
                stream.end()
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream that drops what cannot be written, and escapes what its encoding does not have.

    :param stream: None is one that was closed before the program began.
    """

    def __init__(self, stream):
        self._given, self._stream = stream, stream or _nowhere()

    def write(self, text):
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            self._drop()
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self):
        """Let everything from here on go nowhere, what is still in the buffer too: Python flushes it at its end."""
        nowhere = _nowhere()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere.fileno(), self._stream.fileno())
        self._stream = nowhere

    def end(self):
        """Write what is in the buffer, and let go of what was opened in the place of the stream."""
        self.flush()
        if self._stream is not self._given:
            self._stream.close()

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _nowhere():
    return open(os.devnull, "w", encoding="utf-8", errors="replace")
