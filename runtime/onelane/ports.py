"""Ports: is one free, who has it, and holding it until the shards have bound it."""

import ipaddress
import os
import socket
from pathlib import Path

from onelane.errors import PortTaken


def split(address: str) -> tuple[str, int]:
    """Host and port of `ip:port` or `[ip6]:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def reachable(address: str) -> str:
    """`address` as this machine itself can connect to it: loopback where it listens on all."""
    host, port = split(address)
    if not is_wildcard(host):
        return address
    return join("::1" if ":" in host else "127.0.0.1", port)


def claim(address: str, *, shared: bool) -> tuple[str, socket.socket]:
    """Make sure nobody listens on `address`, and hold it without listening. Port 0 takes a free one.

    shared: others may bind it with SO_REUSEPORT meanwhile; nobody else can. Returns the address with its real port.

    Raises:
        PortTaken: somebody has it; names the process where the system tells.
    """
    host, port = split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = _bound(family, host, port, address, shared=False)
    port = probe.getsockname()[1]
    if not shared:
        return join(host, port), probe
    probe.close()
    return join(host, port), _bound(family, host, port, address, shared=True)


def _bound(family: socket.AddressFamily, host: str, port: int, address: str, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
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
    """Who listens on a TCP port: "name (pid 123)", "another user's process", or "" where nobody does. Linux only."""
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
