"""What the clients of a draining shard are told is what is counted, of calls at home and of forwarded ones.

Not by the grpcio listener: a forwarded call (gRPC's core does not tell the owner with which error its sibling has reset
it: CANCELLED), and a stream of the client's (to its handler a cancelled one ends as if its client had half-closed: OK).
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from onelane.client.channel import NativeChannel, dial

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ECHO, RunningApp, eventually, http_request, running
from tests.shard.shards import Shards
from tests.shard.test_lifecycle_cut_off import calls_of, uploads_of

APP = f'[apps.echo]\n{ECHO}\nlisten = "127.0.0.1:0"\nshards = 2\ndrain_s = 1\n'
ENTRY = 0
UPLOADS = {"upload": "Upload", "chat": "Chat", "plain upload": "PlainUpload", "plain chat": "PlainChat"}
METHODS = UPLOADS | {
    **dict.fromkeys(("unary", "second in turn", "third in turn"), "Misbehave"),
    "without turns": "Hold",
    "any": "Who",
    "download": "Download",
}
Counts = Counter[tuple[str, str]]
"""(method, status) → calls."""


def counted(app: RunningApp) -> Counts:
    """The calls of the service that all shards have counted."""
    counts = Counts()
    for line in app.get("/metrics").splitlines():
        if line.startswith("onelane_calls_total{") and 'rpc_method="echo.v1.Echo/' in line:
            series, _, value = line.rpartition(" ")
            method = series.partition('rpc_method="echo.v1.Echo/')[2].partition('"')[0]
            status = series.partition('rpc_response_status_code="')[2].partition('"')[0]
            counts[method, status] += int(float(value))
    return counts


async def begin(
    app: RunningApp, stub: Any, keys: dict[str, str], until: asyncio.Event, *, uploads: bool
) -> list[tuple[str, Any]]:
    """Calls of all kinds, with their methods, once each is where it stays until its shard ends it."""
    before, in_flight, calls = app.in_flight(), 0, []
    for where, key in keys.items():
        # Not begun and cancelled where they are not wanted: such a call is in flight for a while, or never.
        streams = uploads_of(stub, key, until) if uploads else {}
        for kind, call in (calls_of(stub, key) | streams).items():
            if kind.endswith(("download", "chat")):
                await call.read()
            calls.append((METHODS[kind], call))
            in_flight += 2 if where == "away" and kind != "any" else 1
    await eventually(lambda: app.in_flight() == before + in_flight)
    return calls


async def calls_until_it_drains(app: RunningApp, channel: NativeChannel, restarting: "asyncio.Task[Any]") -> Counts:
    """Call the entry shard until it takes no new calls, or is the next process; how these calls ended."""
    expected = Counts()
    await eventually(lambda: app.shards()[ENTRY]["state"] == "draining")
    stub: Any = echo_pb2_grpc.EchoStub(channel)
    # By our own wire it says so by a GOAWAY, after which the channel waits for the next process; so does a call that is
    # sent at that moment, and the channel is ready again when it is answered.
    while channel.get_state() is grpc.ChannelConnectivity.READY and not restarting.done():
        code = (await stub.Who(EchoRequest(), timeout=BOUND_S).code()).name
        expected["Who", code] += 1
        if code != "OK":
            break
    return expected


@pytest.mark.parametrize("listener", ["native", "grpcio"])
async def test_what_the_clients_of_a_draining_shard_are_told_is_what_is_counted(listener: str, tmp_path: Path) -> None:
    is_native, ended = listener == "native", asyncio.Event()
    # Else a restart would hand the keys over first, and end their streams by that.
    with running(tmp_path, f'{APP}listener = "{listener}"\nmembership = "static"\n') as app:
        shards = Shards(app)
        address = shards.members[ENTRY].address
        keys = {"home": shards.keys[ENTRY]} | ({"away": shards.keys[1 - ENTRY]} if is_native else {})
        async with dial(address) as channel, dial(address) as cancelling, asyncio.timeout(60):
            stubs: list[Any] = [echo_pb2_grpc.EchoStub(channel), echo_pb2_grpc.EchoStub(cancelling)]
            cut_off = await begin(app, stubs[0], keys, ended, uploads=is_native)
            cancelled = await begin(app, stubs[1], keys, ended, uploads=is_native)
            before = counted(app)
            url = f"http://{app.admin}/shards/echo/{ENTRY}/restart"
            restarting = asyncio.create_task(asyncio.to_thread(http_request, url, method="POST", X_Onelane="1"))
            expected = await calls_until_it_drains(app, channel, restarting)
            for method, call in cancelled:
                # Where it has waited for the next process, they have been cut off as well.
                status = "CANCELLED" if call.cancel() else "UNAVAILABLE"
                assert (await call.code()).name == status
                expected[method, status] += 1
            for method, call in cut_off:
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
                expected[method, "UNAVAILABLE"] += 1
            ended.set()
            assert (await restarting)[0] == 200
        await eventually(lambda: (counted(app) - before).total() >= expected.total())
        assert counted(app) - before == expected
