"""A rank that dies takes the others along within seconds, and they say which one it was.

Each rank keeps a connection to rank 0 open in a thread. The kernel closes it when a process ends, however it ends,
and keep-alive packets find a host that is gone; so the end of a connection that was not announced is a death.
"""

import contextlib
import hmac
import re
import secrets
import selectors
import socket
import threading
import time

LOOPBACK = "127.0.0.1"
BYE, FAILED = b"bye\n", b"failed\n"

# Seconds of silence after which packets ask whether a host is still there, between them, and their number.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
CONNECT_SECONDS = 30

# How long one may take to say to rank 0 who it is, and how many may be about it: the oldest of more have to go.
WELCOME_SECONDS = 5
STRANGERS = 64

# Bytes of a token and a rank, at most.
GREETING = 64


class Watch:
    """Watches over the other ranks of a job in a thread; every rank makes one.

    Where connections to rank 0 are not let through, nothing is watched.

    :param names: what each rank is called in a message.
    :param host: of rank 0.
    :param broadcast: `object -> the object of rank 0`, a collective.
    :param lost: called in the thread when a rank has died, with a sentence, or with None where it or another rank
        says why; it has to end the process.
    :param near: whether all ranks are on one host, so that rank 0 listens on the loopback alone.
    """

    def __init__(self, rank, names, host, broadcast, lost, near=False):
        self._rank, self._names, self._lost = rank, names, lost
        self._connections = {}  # rank: socket
        self._left = threading.Event()
        server = _listener(near) if rank == 0 else None
        port, token = broadcast((server.getsockname()[1], secrets.token_hex(16).encode()) if server else None)
        work, args = (
            (self._serve, (server, token)) if server else (self._attend, (LOOPBACK if near else host, port, token))
        )
        threading.Thread(target=work, args=args, name="peers", daemon=True).start()

    def leave(self, word=BYE):
        """Say to the others that this rank leaves; to be called before its process ends.

        :param word: BYE in good order, FAILED after saying why.
        """
        if not self._left.is_set():
            self._left.set()
            for connection in list(self._connections.values()):
                _send(connection, word)

    def _serve(self, server, token):
        """Rank 0: hear from all the others."""
        server.setblocking(False)
        strangers = {}  # connection: (what it has said so far, until when it may say more), the oldest first
        with server, selectors.DefaultSelector() as ready:
            ready.register(server, selectors.EVENT_READ)

            def dismiss(connection):
                ready.unregister(connection)
                strangers.pop(connection, None)
                connection.close()

            while not self._left.is_set():
                for key, _ in ready.select(timeout=1):
                    if key.fileobj is server:
                        if len(strangers) >= STRANGERS:
                            dismiss(next(iter(strangers)))
                        connection = _accepted(server)
                        if connection is not None:
                            ready.register(connection, selectors.EVENT_READ)
                            strangers[connection] = b"", time.monotonic() + WELCOME_SECONDS
                        elif strangers:  # as when the process has no file left for one more
                            dismiss(next(iter(strangers)))
                    elif key.data is not None:
                        ready.unregister(key.fileobj)
                        with self._connections.pop(key.data) as connection:
                            self._heard(key.data, _receive(connection))
                    elif key.fileobj in strangers:
                        self._greet(key.fileobj, strangers, token, ready, dismiss)
                for connection in [c for c, (_, until) in strangers.items() if until < time.monotonic()]:
                    dismiss(connection)
            for connection in list(strangers):  # the ranks may still have to hear that this one leaves
                dismiss(connection)

    def _greet(self, connection, strangers, token, ready, dismiss):
        """Read on in a greeting; at its end its sender is a rank of this job, or has to go."""
        said, until = strangers[connection]
        try:
            more = connection.recv(GREETING - len(said))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        said += more
        if more and b"\n" not in said and len(said) < GREETING:
            strangers[connection] = said, until
            return
        word, _, number = said.rstrip(b"\n").partition(b" ")
        known = hmac.compare_digest(word, token) and re.fullmatch(rb"[0-9]{1,9}\n?", number)
        other = int(number) if known else 0
        if not 0 < other < len(self._names) or other in self._connections:
            dismiss(connection)
            return
        del strangers[connection]
        _keep_alive(connection)
        self._connections[other] = connection
        ready.modify(connection, selectors.EVENT_READ, other)

    def _attend(self, host, port, token):
        """Any other rank: hear from rank 0 alone."""
        with contextlib.suppress(OSError):
            self._connections[0] = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        if self._connections:
            _keep_alive(self._connections[0])
            _send(self._connections[0], token + b" %d\n" % self._rank)
            self._heard(0, _receive(self._connections[0]))

    def _heard(self, other, word):
        """End the job unless rank `other`, of which `word` was the last, or this rank has left in good order."""
        if word != BYE and not self._left.is_set():
            self.leave(FAILED)
            # of the ranks that see rank 0 die, one speaks
            silent = word == FAILED or self._rank > 1
            self._lost(None if silent else _obituary(self._names[other]))


def _obituary(name):
    return f"{name} has died without a word, as when it is killed or out of memory; this ends the job"


def _listener(near):
    if near:
        return socket.create_server((LOOPBACK, 0), backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _accepted(server):
    """Who connects; None where nobody does after all, or the process has too many files open for one more."""
    try:
        connection = server.accept()[0]
    except BlockingIOError:
        return None
    except OSError:
        time.sleep(0.1)  # it is asked again at once, for who waits still waits
        return None
    connection.setblocking(False)
    return connection


def _keep_alive(connection):
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(connection):
    """The word that comes, empty at the end of the connection."""
    try:
        return connection.recv(16)
    except OSError:
        return b""


def _send(connection, word):
    with contextlib.suppress(OSError):
        connection.sendall(word)
