"""Ports: is one free, who has it, and holding it until the shards have bound it."""

import asyncio
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


def dialled(target: str) -> str:
    """The `host:port` or `unix:path` of a gRPC target: with `dns:`, `ipv4:`, `ipv6:` or no scheme, or `unix:`.

    Raises:
        ValueError: it is none of these.
    """
    scheme, colon, rest = target.partition(":")
    if scheme == "unix" and rest:
        return "unix:" + (rest.removeprefix("//") if rest.startswith("///") else rest)
    if scheme in ("dns", "ipv4", "ipv6") and colon:
        target = rest.removeprefix("///").removeprefix("//")
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65535 or "/" in host:
        raise ValueError(f"target {target!r}: expected host:port, ipv4:…, ipv6:…, dns:///host:port or unix:path")
    return target


def peer(transport: asyncio.BaseTransport) -> str:
    """Who is at the other end, as gRPC writes it: `ipv4:1.2.3.4:5`, `ipv6:[::1]:5`, `unix:path`."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return f"ipv6:{join(*name[:2])}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"
    return f"unix:{name or transport.get_extra_info('sockname') or ''}"


def is_wildcard(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def reachable(address: str) -> str:
    """`address` as this machine itself can connect to it: loopback where it listens on all."""
    host, port = split(address)
    if not is_wildcard(host):
        return address
    return join("::1" if ":" in host else "127.0.0.1", port)


BACKLOG = 1024


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


def listening(address: str, *, shared: bool = False) -> socket.socket:
    """A socket that listens on `ip:port` or `unix:path`; shared: with others, by SO_REUSEPORT.

    Raises:
        PortTaken: somebody has it.
    """
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(address.removeprefix("unix:"))
    else:
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
