"""Addresses and gRPC targets as text: parse them, and write them as gRPC does."""

import ipaddress
from typing import Any, Protocol

from onelane.core import redaction


class Transport(Protocol):
    """The part of `asyncio.BaseTransport` that `peer` needs."""

    def get_extra_info(self, name: str) -> Any:
        """`peername` and `sockname`, as asyncio documents them."""


def split(address: str) -> tuple[str, int]:
    """Host and port of `ip:port` or `[ip6]:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join(host: str, port: int) -> str:
    """The `ip:port` or `[ip6]:port` of a host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_target(target: str) -> str:
    """The `host:port` or `unix:path` of a gRPC target. Its scheme may be `dns:`, `ipv4:`, `ipv6:`, `unix:` or none.

    Raises:
        ValueError: the target has another scheme, no port, or an authority.
    """
    scheme, colon, rest = target.partition(":")
    if scheme == "unix" and rest:
        return "unix:" + (rest.removeprefix("//") if rest.startswith("///") else rest)
    if scheme in ("dns", "ipv4", "ipv6") and colon:
        target = rest.removeprefix("///").removeprefix("//")
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65535 or "/" in host:
        expected = "expected host:port, ipv4:…, ipv6:…, dns:///host:port or unix:path"
        raise ValueError(f"target {redaction.without_user(target)!r}: {expected}")
    return target


def peer(transport: Transport) -> str:
    """The address of the peer, as gRPC writes it: `ipv4:1.2.3.4:5`, `ipv6:[::1]:5`, `unix:path`."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return f"ipv6:{join(*name[:2])}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"
    return f"unix:{name or transport.get_extra_info('sockname') or ''}"


def is_wildcard(host: str) -> bool:
    """Whether `host` means all addresses of the machine: 0.0.0.0 or ::."""
    return ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an IP address or a name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(address: str) -> str:
    """The `ip:port` by which this machine connects to `address`: on loopback if that is a wildcard address."""
    host, port = split(address)
    if not is_wildcard(host):
        return address
    return join("::1" if ":" in host else "127.0.0.1", port)
