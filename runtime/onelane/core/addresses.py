"""Addresses and targets as text: taken apart, put together, as gRPC writes them."""

import ipaddress
from typing import Any, Protocol


class Transport(Protocol):
    """The part of `asyncio.BaseTransport` that knows the peer."""

    def get_extra_info(self, name: str) -> Any: ...


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


def peer(transport: Transport) -> str:
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
