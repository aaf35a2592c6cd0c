"""Ports: is one free, who has it, and holding it for the shards, which share few listening sockets.

All shards of an app accept from one socket. So a shard that does not accept (it is draining, restarting or stopped, or
its lane is blocked) costs no connection: the others take it. The kernel wakes every idle shard for each connection, so
with 2 · SHARE shards and more there are several sockets of SO_REUSEPORT, each for at least SHARE shards.
"""

import os
import socket
from pathlib import Path

from onelane.core.addresses import join, split
from onelane.errors import PortTaken
from onelane.server import unix_sockets
from onelane.server.unix_sockets import BACKLOG

__all__ = ["BACKLOG", "SHARE", "claim", "holder_of", "listening", "shared_count"]
SHARE = 4
"""The least number of shards that accept from one shared socket, in apps that have so many."""


def claim(address: str, *, shared: bool) -> tuple[str, socket.socket]:
    """Make sure nobody listens on `address`, and hold it without listening. Port 0 takes a free one.

    shared: others may bind it with SO_REUSEPORT meanwhile; nobody else can. Returns the address with its real port.

    Raises:
        PortTaken: somebody has it; names the process where the system tells.
    """
    host, port = split(address)
    probe = _bound(host, port, address, shared=False)
    port = probe.getsockname()[1]
    if not shared:
        return join(host, port), probe
    probe.close()
    return join(host, port), _bound(host, port, address, shared=True)


def shared_count(shards: int) -> int:
    """How many sockets listen on the address that so many shards share."""
    return max(1, shards // SHARE)


def listening(address: str, *, shared: bool = False) -> socket.socket:
    """A socket that listens on `ip:port` or `unix:path`; shared: with others, by SO_REUSEPORT.

    Raises:
        PortTaken: somebody has it.
    """
    if address.startswith("unix:"):
        return unix_sockets.listening(address.removeprefix("unix:"))
    host, port = split(address)
    sock = _bound(host, port, address, shared=shared)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _bound(host: str, port: int, address: str, *, shared: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise PortTaken(address, "the system: this user may not bind it") from error
        raise PortTaken(address, holder_of(port) or f"somebody ({error.strerror or error})") from error
    return sock


def holder_of(port: int) -> str:
    """The process listening on a TCP port: "name (pid 123)", "another user's process", or "" for none. Linux only."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) in wanted for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return "another user's process"


def _listening(table: str, port: int) -> list[str]:
    try:
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
