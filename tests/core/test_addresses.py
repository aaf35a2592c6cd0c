"""Addresses and targets are read and written as gRPC does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core import addresses

ports = st.integers(0, 65535)
hosts = st.ip_addresses().map(str)


class FakeTransport:
    """The part of a transport that knows its two ends."""

    def __init__(self, **info: Any) -> None:
        self._info = info

    def get_extra_info(self, name: str) -> Any:
        return self._info.get(name)


@given(hosts, ports)
def test_what_is_joined_can_be_split(host: str, port: int) -> None:
    assert addresses.split(addresses.join(host, port)) == (host, port)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert addresses.join("::1", 80) == "[::1]:80"


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("ipv4:127.0.0.1:80", "127.0.0.1:80"),
        ("ipv6:[::1]:80", "[::1]:80"),
        ("dns:host:80", "host:80"),
        ("dns:///host:80", "host:80"),
        ("unix:relative/path", "unix:relative/path"),
        ("unix:/run/s", "unix:/run/s"),
        ("unix:///run/s", "unix:/run/s"),
    ],
)
def test_a_target_leads_to_an_address(target: str, address: str) -> None:
    assert addresses.parse_target(target) == address


@pytest.mark.parametrize(
    "target", ["", "host", "host:", "host:0", "host:99999", "host:http", "xds:///a", "a/b:80", "unix:"]
)
def test_a_target_of_another_kind_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        addresses.parse_target(target)


@pytest.mark.parametrize(
    ("info", "peer"),
    [
        ({"peername": ("10.0.0.1", 50)}, "ipv4:10.0.0.1:50"),
        ({"peername": ("::1", 50, 0, 0)}, "ipv6:[::1]:50"),
        ({"peername": "/run/client"}, "unix:/run/client"),
        ({"peername": "", "sockname": "/run/server"}, "unix:/run/server"),
        ({}, "unix:"),
    ],
)
def test_a_peer_is_written_as_grpc_writes_it(info: dict[str, Any], peer: str) -> None:
    assert addresses.peer(FakeTransport(**info)) == peer


@pytest.mark.parametrize(
    ("listening", "reachable"),
    [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "[::1]:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
    ],
)
def test_a_wildcard_address_is_reached_by_loopback(listening: str, reachable: str) -> None:
    assert addresses.reachable(listening) == reachable
