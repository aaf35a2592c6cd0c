"""The xDS server on its port: clients that are as they should be, and others."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from onelane.cluster.coordination import Snapshot, StoredEntry
from onelane.cluster.machines import ClusterKeys, ClusterView
from onelane.cluster.placements import AppEntry, entry_bytes
from onelane.cluster.xds.resources import CLUSTER, ENDPOINTS, LISTENER
from onelane.cluster.xds.routed_app import RoutedApp
from onelane.core.placement import Placement
from onelane.errors import PortTaken
from onelane.supervisor.xds_connection import MAX_REQUEST, SERVICE, STREAMS_PER_CONNECTION, XdsStream
from onelane.supervisor.xds_server import XdsLimits, XdsServer
from onelane.v1 import xds_pb2

from tests import frames
from tests.bounds import BOUND_S
from tests.cluster.xds.apps import endpoints_in, placement
from tests.cluster.xds.test_delta import request as delta_request
from tests.cluster.xds.test_state_of_the_world import request

SOTW, DELTA = f"{SERVICE.decode()}StreamAggregatedResources", f"{SERVICE.decode()}DeltaAggregatedResources"
OPEN = frames.headers(1, frames.request(SOTW.encode()))
KEYS = ClusterKeys("arena")


@asynccontextmanager
async def serving(*ports: int, **limits: Any) -> AsyncIterator[XdsServer]:
    """A server that shows the app `lobby` with shards at these ports; without ports it knows of nothing yet."""
    server = XdsServer("127.0.0.1:0", XdsLimits(**limits))
    await server.start()
    if ports:
        show(server, placement(*ports))
    try:
        yield server
    finally:
        await server.close()


def show(server: XdsServer, *placements: Placement) -> None:
    server.show({name: RoutedApp(shown) for name, shown in zip(["lobby", "shop"], placements, strict=False)})


@asynccontextmanager
async def stream_to(server: XdsServer, method: str = SOTW, **options: Any) -> AsyncIterator[Any]:
    """A stream of bytes, by grpcio."""
    # Each its own connection.
    arguments = [("grpc.use_local_subchannel_pool", 1), *options.items()]
    async with grpc.aio.insecure_channel(server.address, options=arguments) as channel:
        yield channel.stream_stream(method)(timeout=BOUND_S)


async def endpoints(call: Any) -> list[str]:
    """The endpoints of the one resource of the next response; its nonce is the last item."""
    response = xds_pb2.DiscoveryResponse.FromString(await call.read())
    [packed] = response.resources
    return [*endpoints_in(packed.value), response.nonce]


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


async def holds(condition: Callable[[], object]) -> None:
    """Wait until it does; the suite's timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - of other tasks' making, without an event of its own
        await asyncio.sleep(0.005)


async def test_what_is_shown_is_pushed_after_each_acknowledgement() -> None:
    async with serving(1, 2) as server, stream_to(server) as call:
        await call.write(request(ENDPOINTS, "lobby"))
        assert await endpoints(call) == ["127.0.0.1:1", "127.0.0.1:2", "1"]
        show(server, placement(1, 2, 3))
        show(server, placement(1, 2, 3, 4))
        await call.write(request(ENDPOINTS, "lobby", nonce="1"))
        assert (await endpoints(call))[-2:] == ["127.0.0.1:4", "2"]
        await call.write(request(ENDPOINTS, "lobby", nonce="2"))
        show(server, placement(1))
        assert await endpoints(call) == ["127.0.0.1:1", "3"]


async def test_the_incremental_variant_is_served_too() -> None:
    async with serving(1) as server, stream_to(server, DELTA) as call:
        await call.write(delta_request(ENDPOINTS, "lobby", "shop"))
        response = xds_pb2.DeltaDiscoveryResponse.FromString(await call.read())
        assert [resource.name for resource in response.resources] == ["lobby"]
        assert list(response.removed_resources) == ["shop"]
        await call.write(delta_request(ENDPOINTS, nonce=response.nonce))
        show(server, placement(1), placement(7))
        response = xds_pb2.DeltaDiscoveryResponse.FromString(await call.read())
        assert [resource.name for resource in response.resources] == ["shop"]


async def test_nobody_is_answered_before_a_placement_is_known() -> None:
    async with serving() as server, stream_to(server) as call:
        await call.write(request(LISTENER, "lobby"))
        answer = asyncio.ensure_future(call.read())
        await holds(lambda: server._names == 1)
        assert not answer.done()
        show(server, placement(1))
        assert xds_pb2.DiscoveryResponse.FromString(await answer).nonce == "1"


async def test_placements_are_followed_from_the_view_of_the_cluster(caplog: pytest.LogCaptureFixture) -> None:
    views: list[ClusterView | None] = [None]
    events = [anyio.Event()]

    def see(**entries: bytes) -> None:
        stored = {KEYS.app(name): StoredEntry(KEYS.app(name), value, 1, 1, 0) for name, value in entries.items()}
        views[0] = ClusterView(KEYS, Snapshot(1, stored))
        last, events[0] = events[0], anyio.Event()
        last.set()

    async with serving() as server, stream_to(server) as call, asyncio.TaskGroup() as tasks:
        following = tasks.create_task(server.follow(lambda: views[0], lambda: events[0]))
        await call.write(request(ENDPOINTS, "lobby"))
        entry = AppEntry(placement(1, 2))
        see(lobby=entry_bytes(entry))
        assert await endpoints(call) == ["127.0.0.1:1", "127.0.0.1:2", "1"]
        await call.write(request(ENDPOINTS, "lobby", nonce="1"))
        see(lobby=entry_bytes(entry.begun(placement(1, epoch=2))))
        response = xds_pb2.DiscoveryResponse.FromString(await call.read())
        assert endpoints_in(response.resources[0].value) == {"127.0.0.1:1": 1, "127.0.0.1:2": 3}
        see(lobby=b"{")
        await holds(lambda: "xds.not_followed app=lobby" in caplog.text)
        assert server.resources is not None
        assert "lobby" in server.resources.by_kind[LISTENER]
        following.cancel()


async def test_a_server_that_closes_sends_its_clients_elsewhere() -> None:
    async with serving(1) as server, stream_to(server) as call:
        await call.write(request(ENDPOINTS, "lobby"))
        await endpoints(call)
        await server.close()
        assert (await call.code()) == grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_half_closes_is_answered_first() -> None:
    async with serving(1) as server, stream_to(server) as call:
        await call.write(request(ENDPOINTS, "lobby"))
        await call.done_writing()
        assert await endpoints(call) == ["127.0.0.1:1", "1"]
        assert await call.read() is grpc.aio.EOF
        assert (await call.code()) == grpc.StatusCode.OK


async def test_a_taken_port_is_refused_by_its_name() -> None:
    async with serving(1) as server:
        with pytest.raises(PortTaken, match=server.address):
            await XdsServer(server.address).start()


def test_it_loads_no_grpcio() -> None:
    probe = "import sys, onelane.supervisor.xds_server; print(sorted({'grpc', 'opentelemetry'} & {*sys.modules}))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# Others


@pytest.mark.parametrize(
    ("data", "code", "details"),
    [
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT, "the message is no DiscoveryRequest"),
        (b"", grpc.StatusCode.INVALID_ARGUMENT, "the request has no type_url"),
        (b"x" * (MAX_REQUEST + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
        (
            request(ENDPOINTS, *(f"{number:x}" for number in range(40_000))),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"40000 names of {ENDPOINTS} on one stream, at most 1000",
        ),
        # More than one request may have.
        (request(ENDPOINTS, *map(str, range(100_000))), grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    ],
)
async def test_a_request_that_cannot_be_served_ends_its_stream(
    data: bytes, code: grpc.StatusCode, details: str
) -> None:
    async with serving(1) as server, stream_to(server) as call, stream_to(server) as other:
        await call.write(data)
        assert (await call.code()) == code
        assert details in (await call.details())
        await other.write(request(ENDPOINTS, "lobby"))
        assert await endpoints(other) == ["127.0.0.1:1", "1"]


async def test_an_unknown_method_is_refused_by_its_name() -> None:
    async with serving(1) as server, stream_to(server, f"{SERVICE.decode()}StreamSecrets") as call:
        code, details = await status_of(call)
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert "StreamSecrets" in details


async def test_an_unknown_type_is_left_unanswered_and_the_stream_goes_on() -> None:
    async with serving(1) as server, stream_to(server) as call:
        await call.write(request("envoy.service.runtime.v3.Runtime", "x"))
        await call.write(request(ENDPOINTS, "lobby"))
        assert await endpoints(call) == ["127.0.0.1:1", "1"]


async def test_who_refuses_for_ever_is_logged_now_and_then_and_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(1, log_s=BOUND_S) as server, stream_to(server) as call, stream_to(server) as other:
        await call.write(request(CLUSTER, "lobby"))
        for count in range(1, 20):
            response = xds_pb2.DiscoveryResponse.FromString(await call.read())
            show(server, placement(*range(1, count + 2)))
            await call.write(request(CLUSTER, "lobby", nonce=response.nonce, nack="\x1b[2Jno\n" + "x" * 5000))
        await other.write(request(ENDPOINTS, "lobby"))
        await endpoints(other)
        lines = [record.getMessage() for record in caplog.records if "xds.refused" in record.message]
        assert len(lines) == 1
        assert "\\x1b[2Jno\\n" in lines[0]
        assert len(lines[0]) < 500


async def test_who_never_reads_is_sent_one_response_of_each_type() -> None:
    async with serving(1) as server, stream_to(server) as call, stream_to(server) as other:
        for kind in (CLUSTER, ENDPOINTS, LISTENER):
            await call.write(request(kind, "lobby"))
        await other.write(request(ENDPOINTS, "lobby"))
        nonce = (await endpoints(other))[-1]
        for count in range(2, 60):
            show(server, placement(*range(1, count + 1)))
            await other.write(request(ENDPOINTS, "lobby", nonce=nonce))
            nonce = (await endpoints(other))[-1]
        await other.write(request(ENDPOINTS, "lobby", nonce=nonce))
        responses = [xds_pb2.DiscoveryResponse.FromString(await call.read()) for _ in range(3)]
        assert [response.nonce for response in responses] == ["1", "2", "3"]
        assert server.held_bytes.total < 64 * 1024


async def test_a_flood_of_requests_leaves_others_their_turn() -> None:
    async with serving(1) as server, stream_to(server) as flood, stream_to(server) as other:

        async def write_on() -> None:
            number = 0
            while True:
                number += 1
                await flood.write(request(ENDPOINTS, "lobby", str(number)))

        task = asyncio.ensure_future(write_on())
        await other.write(request(ENDPOINTS, "lobby"))
        nonce = (await endpoints(other))[-1]
        for count in range(2, 30):
            show(server, placement(*range(1, count + 1)))
            await other.write(request(ENDPOINTS, "lobby", nonce=nonce))
            nonce = (await endpoints(other))[-1]
        assert not task.done()
        task.cancel()
        [stream] = [s for c in server._connections for s in c.streams.values() if s.session.name_count == 2]
        assert sum(map(len, stream.inbox)) <= MAX_REQUEST


async def test_a_stream_may_go_on_for_ever() -> None:
    """What was handled is given back to the client's window."""
    async with serving(1) as server, stream_to(server) as call:
        for number in range(500):
            await call.write(request(ENDPOINTS, f"{number:0200d}"))
        await call.write(request(ENDPOINTS, "lobby"))
        assert await endpoints(call) == ["127.0.0.1:1", "1"]


async def test_all_clients_together_may_subscribe_to_so_many_names() -> None:
    async with serving(1, names=5) as server, stream_to(server) as first, stream_to(server) as second:
        await first.write(request(ENDPOINTS, "lobby", "a", "b", "c"))
        await endpoints(first)
        await second.write(request(ENDPOINTS, "lobby", "d"))
        code, details = await status_of(second)
        assert (code, details) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the clients of this server subscribe to too many names",
        )
        # What has ended gives its names back.
        first.cancel()
        await holds(lambda: server._names == 0)


async def test_a_connection_has_so_many_streams() -> None:
    async def first_endpoints(call: Any) -> list[str]:
        await call.write(request(ENDPOINTS, "lobby"))
        return await endpoints(call)

    async with serving(1) as server, grpc.aio.insecure_channel(server.address) as channel:
        calls: list[Any] = [channel.stream_stream(SOTW)(timeout=BOUND_S) for _ in range(STREAMS_PER_CONNECTION + 1)]
        answers = {call: asyncio.ensure_future(first_endpoints(call)) for call in calls}
        await holds(lambda: sum(answer.done() for answer in answers.values()) == STREAMS_PER_CONNECTION)
        next(call for call in calls if answers[call].done()).cancel()
        assert await asyncio.gather(*answers.values()) == [["127.0.0.1:1", "1"]] * (STREAMS_PER_CONNECTION + 1)


async def test_there_are_so_many_connections_of_one_peer(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(1, connections_of_peer=2) as server, stream_to(server) as first, stream_to(server) as second:
        for call in (first, second):
            await call.write(request(ENDPOINTS, "lobby"))
            await endpoints(call)
        async with stream_to(server) as third:
            assert (await third.code()) == grpc.StatusCode.UNAVAILABLE
        assert "xds.no_room peer=" in caplog.text
        first.cancel()


async def test_a_client_that_dies_midway_leaves_nothing() -> None:
    async with serving(1) as server:
        _, writer = await asyncio.open_connection(*server.address.split(":"))
        pieces = frames.pieces(request(ENDPOINTS, "lobby", "shop"), stream=1)
        writer.write(frames.HELLO + OPEN + b"".join(pieces) + frames.frame(frames.DATA, b"\0\0", stream=1))
        await holds(lambda: server._names == 2)
        writer.transport.abort()
        await holds(lambda: not server._connections)
        show(server, placement(1, 2))
        assert (server._names, server._slots.taken, server.held_bytes.total) == (0, 0, 0)


async def eof_of(server: XdsServer, *sent: bytes) -> bytes:
    """All that the server sends to a client that sends these bytes and then nothing, until it closes."""
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    try:
        for data in sent:
            writer.write(data)
            await writer.drain()
        return await reader.read(-1)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"", frames.PREFACE[:10], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", frames.PREFACE],
    ids=["nothing", "half a preface", "HTTP/1.1", "TLS", "no settings"],
)
async def test_who_does_not_begin_as_a_client_of_http2_is_cut_off(sent: bytes) -> None:
    async with serving(1, handshake_s=0.05, look_s=0.01) as server:
        await eof_of(server, sent)
        await holds(lambda: not server._connections)


async def test_a_client_without_a_stream_is_sent_away() -> None:
    async with serving(1, idle_s=0.05, look_s=0.01) as server:
        await eof_of(server, frames.HELLO)
        await holds(lambda: not server._connections)


async def test_a_client_that_is_silent_is_asked_and_cut_off() -> None:
    """As one is whose machine is cut off from the network, or that is stopped."""
    async with serving(1, quiet_s=0.05, pong_s=0.05, look_s=0.01) as server:
        await eof_of(server, frames.HELLO, OPEN)
        await holds(lambda: not server._connections)


async def test_half_a_request_is_not_waited_for_for_ever() -> None:
    async with serving(1, request_s=0.05, look_s=0.01) as server, stream_to(server) as other:
        _, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(frames.HELLO + OPEN + frames.frame(frames.DATA, b"\0\0\0\1\0half", stream=1))
        await other.write(request(ENDPOINTS, "lobby"))
        await endpoints(other)
        await holds(lambda: [len(c.streams) for c in server._connections if c.streams] == [1])
        writer.close()


async def test_a_defect_of_ours_ends_its_own_stream_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receive = XdsStream._receive

    def failing(self: XdsStream, data: bytes, owner: Any) -> None:
        if b"defect" in data:
            raise ZeroDivisionError
        receive(self, data, owner)

    monkeypatch.setattr(XdsStream, "_receive", failing)
    async with serving(1) as server, stream_to(server) as call, stream_to(server) as other:
        await call.write(request(ENDPOINTS, "defect"))
        assert (await call.code()) == grpc.StatusCode.INTERNAL
        assert "ZeroDivisionError" in caplog.text
        await other.write(request(ENDPOINTS, "lobby"))
        assert await endpoints(other) == ["127.0.0.1:1", "1"]


async def test_many_clients_follow_a_change() -> None:
    clients = 100
    async with serving(1) as server, AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(stream_to(server)) for _ in range(clients)]
        for call in calls:
            await call.write(request(ENDPOINTS, "lobby"))
        assert [await endpoints(call) for call in calls] == [["127.0.0.1:1", "1"]] * clients
        for call in calls:
            await call.write(request(ENDPOINTS, "lobby", nonce="1"))
        show(server, placement(1, 2))
        assert [(await endpoints(call))[-1] for call in calls] == ["2"] * clients


async def test_what_was_not_started_may_be_closed() -> None:
    await XdsServer("127.0.0.1:0").close()
