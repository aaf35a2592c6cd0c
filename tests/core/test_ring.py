"""The ring is gRPC's: held to the real grpcio client, owner by owner."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.placement import POINTS, Member, Placement
from onelane.core.ring import Ring, first_point_of, hash_of
from onelane.errors import NoShards

from tests import tools
from tests.bounds import BOUND_S
from tests.servers import servers_that_say_their_addresses

KEYS = [f"room-{i}" for i in range(2000)]
AT_ONCE = 200
"""Calls that a client makes before it waits for their answers."""
JAVA_END = 2**63
"""grpc-java's hashes are signed: its ring ends here. Up to 1.85 it gives keys beyond the last point to that point."""
endpoints = st.sets(st.integers(1024, 65535).map("127.0.0.1:{}".format), min_size=1, max_size=6)


def test_the_hash_never_changes() -> None:
    """A new value here would send every key to another shard."""
    assert [hash_of(k) for k in (b"", b"ada")] == [0xEF46DB3751D8E999, 0xD36C3934091206D0]


def test_a_ring_of_nothing_is_refused() -> None:
    with pytest.raises(NoShards):
        Ring([], points=512)


@given(endpoints, st.integers(1024, 65535).map("127.0.0.2:{}".format))
def test_a_new_shard_takes_keys_and_nobody_else_gains_any(old: set[str], new: str) -> None:
    before, after = Ring(list(old), points=64), Ring([*old, new], points=64)
    moved = {k for k in KEYS[:300] if before.owner_of(k.encode()) != after.owner_of(k.encode())}
    assert {after.owner_of(k.encode()) for k in moved} <= {new}


@given(endpoints, st.integers(1, 64))
def test_the_first_point_of_a_shard_is_its_own(names: set[str], points: int) -> None:
    ring = Ring(list(names), points=points)
    assert {name: ring.owner_of(first_point_of(name).encode()) for name in names} == {name: name for name in names}


@given(endpoints)
def test_the_order_of_shards_does_not_matter(names: set[str]) -> None:
    forth, back = Ring(sorted(names), points=8), Ring(sorted(names, reverse=True), points=8)
    assert [forth.owner_of(k.encode()) for k in KEYS[:50]] == [back.owner_of(k.encode()) for k in KEYS[:50]]


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 3, 5, 7, 16])
def test_the_stock_grpcio_client_finds_the_same_owner(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "true")
    with servers_that_say_their_addresses(shards) as addresses, ExitStack() as stack:
        placement = Placement(epoch=1, members=tuple(Member(a, a, "") for a in addresses))
        channel = stack.enter_context(_stock_channel(placement))
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/Where")
        differences = set()
        for part in batched(KEYS, AT_ONCE):
            asked = [(k, ask.future(b"", metadata=(("onelane-key", k),), timeout=BOUND_S)) for k in part]
            differences |= {k for k, f in asked if f.result().decode() != placement.owner_of(k).address}
    assert differences == set()


@pytest.mark.slow
@pytest.mark.parametrize("shards", [3, 16])
def test_the_stock_grpc_java_client_finds_the_same_owner(shards: int) -> None:
    """With addresses whose text is `ip:port`: tests/java/src/Shards.java. But for keys at the end of its ring."""
    with servers_that_say_their_addresses(shards) as addresses:
        placement = Placement(epoch=1, members=tuple(Member(a, a, "") for a in addresses))
        arguments = (placement.service_config_json(), ",".join(addresses), str(len(KEYS)), str(AT_ONCE))
        run = subprocess.run([tools.grpc_java(), "Owners", *arguments], capture_output=True, text=True, timeout=BOUND_S)
    assert run.returncode == 0, run.stderr
    owners = {str(number): owner for number, owner in enumerate(run.stdout.split())}
    assert len(owners) == len(KEYS)
    differences = {key for key, owner in owners.items() if owner != placement.owner_of(key).address}
    last_point = max(point for point in _points_of(addresses) if point < JAVA_END)
    assert {key for key in differences if not last_point < hash_of(key.encode()) < JAVA_END} == set()


def _points_of(addresses: list[str]) -> list[int]:
    return [hash_of(f"{address}_{k}".encode()) for address in addresses for k in range(POINTS)]


def batched(keys: list[str], size: int) -> Iterator[list[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


@contextmanager
def _stock_channel(placement: Placement) -> Iterator[grpc.Channel]:
    target = "ipv4:" + ",".join(m.address for m in placement.members)
    options = [
        ("grpc.service_config", json.dumps(placement.service_config())),
        ("grpc.lb.ring_hash.ring_size_cap", placement.ring_size),
    ]
    with grpc.insecure_channel(target, options) as channel:
        yield channel
