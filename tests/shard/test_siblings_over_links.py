"""Shards on machines of their own: forwards, calls between shards, published messages and hand-over go over links."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.server.machine_link_connection import MachineLinkConnection
from onelane.server.machine_link_tls import MachineLinkTls
from onelane.testing import Cluster

from services.examples.counter.service import Counter
from services.examples.counter.v1.counter_pb2 import AddRequest
from services.examples.counter.v1.counter_pb2_grpc import CounterStub
from tests.echo.service import Echo
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.machines import Certificates, apart
from tests.testing.test_cluster_changes import Load

SHARDS = 3


@pytest.fixture(params=["tls", "insecure"])
def certificates(request: pytest.FixtureRequest, tmp_path: Path) -> Certificates | None:
    return Certificates(tmp_path) if request.param == "tls" else None


@pytest.fixture
async def cluster(certificates: Certificates | None) -> AsyncIterator[Cluster]:
    with apart(certificates):
        async with Cluster(Echo, shards=SHARDS, trace=True) as running:
            yield running


def key_of(cluster: Cluster, index: int) -> str:
    return next(key for key in map(str, range(1000)) if cluster.owner_of(key) == index)


def links(cluster: Cluster, index: int) -> int:
    """Connections of other machines to a shard."""
    listener = cluster._shards(None)[index].lifecycle.parts.listener
    return sum(isinstance(connection, MachineLinkConnection) for connection in listener._connections)  # type: ignore[attr-defined]


async def ask(cluster: Cluster, index: int, order: str) -> str:
    """Have one shard carry out an order of `Echo.Across`."""
    reply = await cluster.stub(EchoStub, shard=index).Across(
        EchoRequest(key=key_of(cluster, index), order=order), timeout=60
    )
    return str(reply.text)


async def test_a_call_to_a_key_of_another_machine_is_forwarded_over_a_link(cluster: Cluster) -> None:
    reply = await cluster.stub(EchoStub, shard=0).Unary(EchoRequest(key=key_of(cluster, 1), text="hello"), timeout=60)
    assert (reply.text, reply.shard) == ("hello", "app-1")
    assert links(cluster, 1) == 1


async def test_a_stream_to_a_key_of_another_machine_is_forwarded_over_a_link(cluster: Cluster) -> None:
    key = key_of(cluster, 2)
    call = cluster.stub(EchoStub, shard=0).Chat(timeout=60)
    for text in ("one", "two"):
        await call.write(EchoRequest(key=key, text=text))
        reply: Any = await call.read()
        assert reply.shard == "app-2"
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert links(cluster, 2) == 1


async def test_a_forwarded_call_ends_with_its_clients_deadline(cluster: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.stub(EchoStub, shard=0).Hold(EchoRequest(key=key_of(cluster, 1)), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_shard_calls_the_owner_of_a_key_and_a_status_comes_back_as_it_is(cluster: Cluster) -> None:
    for to in range(1, SHARDS):
        assert await ask(cluster, 0, f"call {key_of(cluster, to)} began") == f"app-{to}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(cluster, 0, f"call {key_of(cluster, 1)} abort")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_call_of_a_call_to_its_own_key_enters(cluster: Cluster) -> None:
    """The chain of turns goes along, there and back."""
    key = key_of(cluster, 0)
    assert await ask(cluster, 1, f"call {key} add 3") == "app-0"


async def test_a_call_to_each_shard_and_a_message_for_all_go_to_other_machines_too(cluster: Cluster) -> None:
    assert await ask(cluster, 0, "each hello") == "app-0=app-0 app-1=app-1 app-2=app-2"
    for index in range(SHARDS):
        await ask(cluster, index, "subscribe news")
    await ask(cluster, 0, "publish news 2 at_once")
    for index in range(SHARDS):
        assert await ask(cluster, index, "wait_heard news 2") == "app-0:0 app-0:1"


async def test_the_trace_goes_along(cluster: Cluster) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)
    stub = cluster.stub(EchoStub, shard=0)
    await stub.Unary(EchoRequest(key=key_of(cluster, 1)), metadata=metadata, timeout=60)
    await cluster.advance(2)
    spans = [span for span in cluster.spans if span.trace_id == trace_id]
    (hop,) = (span for span in spans if span.kind == "CLIENT")
    (served,) = (span for span in spans if span.kind == "SERVER")
    assert (hop.hop, served.parent_id) == ("forwarded", hop.span_id)


async def test_shards_come_and_go_under_load_and_no_call_fails_and_no_sum_is_wrong(
    certificates: Certificates | None,
) -> None:
    """The state of keys is handed over by links."""
    with apart(certificates):
        async with Cluster(Counter, shards=2) as cluster:
            load = Load(cluster, shard=1)
            for shards in (3, 2):
                await asyncio.wait_for(cluster.scale(shards), 60)
            await asyncio.wait_for(cluster.restart(0), 60)
            await load.end()


async def test_a_machine_that_has_died_and_come_back_is_reached_again(certificates: Certificates | None) -> None:
    with apart(certificates):
        async with Cluster(Counter, shards=2) as cluster:
            stub, key = cluster.stub(CounterStub, shard=0), key_of(cluster, 1)
            await stub.Add(AddRequest(name=key, amount=1), timeout=60)
            await cluster.crash(1)
            assert (await stub.Add(AddRequest(name=key, amount=1), timeout=60, wait_for_ready=True)).total == 1


async def test_a_machine_with_another_ones_certificate_is_sent_nothing(tmp_path: Path) -> None:
    """It has the address of a life, and a certificate of the cluster, but not that of the machine."""
    certificates = Certificates(tmp_path)
    with apart(certificates):
        async with Cluster(Counter, shards=2) as cluster:
            links = cluster._shards(None)[1].lifecycle.parts.links
            assert links is not None
            assert links.server is not None
            links.server.newest = _server_of(certificates, "m7")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.stub(CounterStub, shard=0).Add(AddRequest(name=key_of(cluster, 1), amount=1), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "not of m1.arena.onelane.internal" in str(caught.value.details())
            assert cluster.service(Counter, shard=1).totals == {}


def _server_of(certificates: Certificates, machine: str) -> ssl.SSLContext:
    tls = MachineLinkTls(certificates.links(machine))
    assert tls.server is not None
    return tls.server.newest
