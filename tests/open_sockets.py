"""The internet sockets that a process has open, as the Linux kernel lists them."""

import os
from pathlib import Path


def sockets(pid="self"):
    """[(protocol, local address in the kernel's hexadecimal, whether it listens, inode)], of TCP and UDP."""
    links = [_link(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    mine = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in mine:
                found.append((protocol, fields[1].split(":")[0], fields[3] == "0A", fields[9]))
    return found


def _link(path):
    try:
        return os.readlink(path)
    except OSError:  # that of the listing itself
        return ""
