"""Calls of methods that run once for each id: sent with one by themselves, and so repeated."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import onelane
import pytest
from onelane.client.retry import SAFE_RETRY
from onelane.client.ring_channel import Channel
from onelane.v1 import topology_pb2

from tests.bounds import BOUND_S
from tests.client.scripted import UNAVAILABLE, Scripted
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest

ID = "idempotency-key"
ONCE = ("echo.v1.Echo/Unary", "echo.v1.Echo/Who")


@pytest.fixture
async def channel(server: tuple[Scripted, str]) -> AsyncIterator[Channel]:
    async with onelane.connect(server[1]) as channel:
        yield channel


async def place(channel: Channel, address: str, *once_methods: str, epoch: int = 1) -> Any:
    """Tell the channel a topology; returns a stub."""
    member = topology_pb2.Member(name="app-0", address=address)
    await channel.router._place(
        topology_pb2.Placement(epoch=epoch, members=[member], points=8, once_methods=once_methods)
    )
    return echo_pb2_grpc.EchoStub(channel)


async def test_a_call_that_runs_once_is_repeated_with_the_same_id_and_the_next_has_another(
    server: tuple[Scripted, str], channel: Channel
) -> None:
    scripted, address = server
    stub = await place(channel, address, *ONCE)
    scripted.steps = [UNAVAILABLE, UNAVAILABLE]
    for _ in range(2):
        await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)
    ids = [seen[ID] for seen in scripted.seen]
    assert len(ids[0]) >= 16
    assert (len(set(ids[:3])), len(set(ids))) == (1, 2)
    assert [seen.get("grpc-previous-rpc-attempts") for seen in scripted.seen] == [None, "1", "2", None]


async def test_attempts_with_an_id_are_bounded_as_those_of_any_safe_call(
    server: tuple[Scripted, str], channel: Channel
) -> None:
    scripted, address = server
    stub = await place(channel, address, *ONCE)
    scripted.steps = [UNAVAILABLE] * 9
    assert await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S).code() is UNAVAILABLE
    assert len(scripted.seen) == SAFE_RETRY.attempts


async def test_the_id_of_the_caller_is_sent_and_no_other(server: tuple[Scripted, str], channel: Channel) -> None:
    scripted, address = server
    stub = await place(channel, address, *ONCE)
    scripted.steps = [UNAVAILABLE]
    channel.peer.nested_id = lambda peer, method: "derived"
    await stub.Unary(EchoRequest(key="k"), metadata=((ID, "mine"),), timeout=BOUND_S)
    assert [seen[ID] for seen in scripted.seen] == ["mine", "mine"]


async def test_a_method_without_durable_state_one_without_side_effects_and_a_stream_have_no_id(
    server: tuple[Scripted, str], channel: Channel
) -> None:
    scripted, address = server
    stub = await place(channel, address, *ONCE)
    await stub.Who(EchoRequest(key="k"), timeout=BOUND_S)
    await stub.Plain(EchoRequest(key="k"), timeout=BOUND_S)
    serialize = EchoRequest.SerializeToString
    await channel.unary_stream("/echo.v1.Echo/Unary", serialize)(EchoRequest(key="k"), timeout=BOUND_S).read()
    assert [seen.get(ID) for seen in scripted.seen] == [None] * 3


async def test_an_app_that_is_older_or_has_become_another_gets_no_id_and_each_call_once(
    server: tuple[Scripted, str], channel: Channel
) -> None:
    scripted, address = server
    for once_methods in ((), ONCE, ()):
        stub = await place(channel, address, *once_methods)
        await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)
    await place(channel, address, epoch=2)
    scripted.steps = [UNAVAILABLE]
    assert await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S).code() is UNAVAILABLE
    assert [ID in seen for seen in scripted.seen] == [False, True, False, False]


async def test_inside_a_call_that_has_an_id_the_derived_one_is_sent_also_before_the_topology_is_known(
    server: tuple[Scripted, str], channel: Channel
) -> None:
    scripted, address = server
    channel.peer.nested_id = lambda peer, method: f"of {method}"
    stub: Any = echo_pb2_grpc.EchoStub(channel)
    channel.router.serves_no_topology = False
    scripted.steps = [UNAVAILABLE]
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)
    await (await place(channel, address, *ONCE)).Unary(EchoRequest(key="k"), timeout=BOUND_S)
    assert [seen.get(ID) for seen in scripted.seen] == ["of echo.v1.Echo/Unary"] * 2


async def test_a_server_that_is_no_app_gets_no_id(server: tuple[Scripted, str], channel: Channel) -> None:
    scripted, _ = server
    channel.peer.nested_id = lambda peer, method: "derived"
    stub: Any = echo_pb2_grpc.EchoStub(channel)
    await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)
    assert ID not in scripted.seen[0]
