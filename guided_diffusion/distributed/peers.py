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


def watch(rank, names, host, broadcast, lost):
    """Watch over the other ranks of a job in a thread; every rank calls this.

    Where connections to rank 0 are not let through, nothing is watched.

    :param names: what each rank is called in a message.
    :param host: of rank 0.
    :param broadcast: `object -> the object of rank 0`, a collective.
    :param lost: called in the thread when a rank has died, with a sentence, or with None where it or another rank
        says why; it has to end the process.
    :return: `leave(word=BYE)`, to be called before the process ends: BYE in good order, FAILED after saying why.
    """
    server = _listener() if rank == 0 else None
    port, token = broadcast((server.getsockname()[1], secrets.token_hex(8).encode()) if rank == 0 else None)
    connections, left = {}, threading.Event()

    def leave(word=BYE):
        if not left.is_set():
            left.set()
            for connection in list(connections.values()):
                _send(connection, word)

    def serve():
        with server, selectors.DefaultSelector() as ready:
            ready.register(server, selectors.EVENT_READ)
            while not left.is_set():
                for key, _ in ready.select(timeout=1):
                    if key.fileobj is server:
                        ready.register(server.accept()[0], selectors.EVENT_READ)
                        continue
                    if key.data is None:
                        ready.unregister(key.fileobj)
                        other = _welcome(key.fileobj, token)
                        if other is not None:
                            connections[other] = key.fileobj
                            ready.register(key.fileobj, selectors.EVENT_READ, other)
                        continue
                    word = _receive(key.fileobj)
                    ready.unregister(connections.pop(key.data))
                    if word != BYE and not left.is_set():
                        leave(FAILED)
                        lost(None if word == FAILED else _obituary(names[key.data]))

    def attend():
        with contextlib.suppress(OSError):
            connections[0] = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        if connections:
            _keep_alive(connections[0])
            _send(connections[0], token + b" %d\n" % rank)
            word = _receive(connections[0])
            if word != BYE and not left.is_set():
                left.set()
                lost(None if word == FAILED or rank > 1 else _obituary(names[0]))

    threading.Thread(target=attend if rank else serve, name="peers", daemon=True).start()
    return leave


def _obituary(name):
    return f"{name} has died without a word, as when it is killed or out of memory; this ends the job"


def _listener():
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _welcome(connection, token):
    """The rank of who has begun to say who it is, or None, and no connection, if it is no rank of this job."""
    connection.settimeout(WELCOME_SECONDS)
    with contextlib.suppress(OSError, ValueError):
        said, number = connection.makefile("rb").readline(64).split()
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
