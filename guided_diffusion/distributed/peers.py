"""A rank that dies takes the others along within seconds, and they say which one it was.

Each rank keeps a connection to rank 0 open in a thread. The kernel closes it when a process ends, however it ends,
and keep-alive packets find a host that is gone; so the end of a connection that was not announced is a death.
"""

import contextlib
import secrets
import selectors
import socket
import threading

BYE, FAILED = b"bye\n", b"failed\n"

# Seconds of silence after which packets ask whether a host is still there, between them, and their number.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
CONNECT_SECONDS = 30

# How long one who has begun to say to rank 0 who it is may take: nobody is watched meanwhile.
WELCOME_SECONDS = 2


class Watch:
    """Watches over the other ranks of a job in a thread; every rank makes one.

    Where connections to rank 0 are not let through, nothing is watched.

    :param names: what each rank is called in a message.
    :param host: of rank 0.
    :param broadcast: `object -> the object of rank 0`, a collective.
    :param lost: called in the thread when a rank has died, with a sentence, or with None where it or another rank
        says why; it has to end the process.
    """

    def __init__(self, rank, names, host, broadcast, lost):
        self._rank, self._names, self._lost = rank, names, lost
        self._connections = {}  # rank: socket
        self._left = threading.Event()
        server = _listener() if rank == 0 else None
        port, token = broadcast((server.getsockname()[1], secrets.token_hex(8).encode()) if server else None)
        work, args = (self._serve, (server, token)) if server else (self._attend, (host, port, token))
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
        with selectors.DefaultSelector() as ready:
            ready.register(server, selectors.EVENT_READ)
            while not self._left.is_set():
                for key, _ in ready.select(timeout=1):
                    if key.fileobj is server:
                        ready.register(server.accept()[0], selectors.EVENT_READ)
                        continue
                    ready.unregister(key.fileobj)
                    if key.data is not None:
                        with self._connections.pop(key.data) as connection:
                            self._heard(key.data, _receive(connection))
                        continue
                    other = _welcome(key.fileobj, token)
                    if other is not None:
                        self._connections[other] = key.fileobj
                        ready.register(key.fileobj, selectors.EVENT_READ, other)
            for key in ready.get_map().values():
                if key.data is None:  # the ranks may still have to hear that this one leaves
                    key.fileobj.close()

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


def _listener():
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _welcome(connection, token):
    """The rank of who has begun to say who it is; None, and the connection closed, if it is no rank of this job."""
    connection.settimeout(WELCOME_SECONDS)
    with contextlib.suppress(OSError, ValueError):
        with connection.makefile("rb") as lines:
            said, number = lines.readline(64).split()
        if said == token:
            _keep_alive(connection)
            return int(number)
    connection.close()
    return None


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
