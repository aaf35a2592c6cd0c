"""Traces as a real Jaeger tells them: every call type, a forward, a failure, a retry, a hop across two apps.

One cluster and one Jaeger for all; over OTLP by gRPC, the arena's test has HTTP.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.cli import admin_client

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.jaeger import Jaeger, Trace, jaeger
from tests.running_app import ROOT, RunningApp, eventually, running

pytestmark = pytest.mark.slow
SLOWER_S = 0.25
"""As below: how long a call takes at least that is kept as a slow one."""
CALLER = "b7ad6b7169203331"
Context = grpc.aio.ServicerContext[Any, Any]


class Front(echo_pb2_grpc.EchoServicer):
    """Each method calls its like in the app behind it, once that can be reached without a forward."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.back: Any = shard.stub(self._stub, to="back")

    def _stub(self, channel: grpc.aio.Channel) -> echo_pb2_grpc.EchoStub:
        # Until the connection to the owner of a key stands, a call goes by the shared address, and may be forwarded.
        self.back_ready = channel.channel_ready
        return echo_pb2_grpc.EchoStub(channel)

    async def Unary(self, request: EchoRequest, context: Context) -> EchoReply:
        await self.back_ready()
        reply: EchoReply = await self.back.Unary(request)
        return reply

    async def Download(self, request: EchoRequest, context: Context) -> AsyncIterator[EchoReply]:
        await self.back_ready()
        async for reply in self.back.Download(request):
            yield reply

    async def Upload(self, request_iterator: AsyncIterator[EchoRequest], context: Context) -> EchoReply:
        await self.back_ready()
        requests = [request async for request in request_iterator]
        reply: EchoReply = await self.back.Upload(requests, metadata=(("onelane-key", requests[0].key),))
        return reply

    async def Chat(self, request_iterator: AsyncIterator[EchoRequest], context: Context) -> AsyncIterator[EchoReply]:
        await self.back_ready()
        requests = [request async for request in request_iterator]
        async for reply in self.back.Chat(requests, metadata=(("onelane-key", requests[0].key),)):
            yield reply


class Back(echo_pb2_grpc.EchoServicer):
    """Answers, and fails to order."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.failed: set[str] = set()
        self.calls = shard.keyed("calls", int)

    async def Unary(self, request: EchoRequest, context: Context) -> EchoReply:
        self.calls[request.key] = self.calls.get(request.key, 0) + 1
        if request.order == "fail":
            raise ValueError("odd")
        if request.order == "flaky" and request.key not in self.failed:
            self.failed.add(request.key)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        if request.order == "slow":
            # Nothing is awaited: a call that takes longer than `slower_s` is what the test is about.
            await asyncio.sleep(0.3)
        return EchoReply(text=request.text)

    async def Download(self, request: EchoRequest, context: Context) -> AsyncIterator[EchoReply]:
        for _ in range(3):
            yield EchoReply()

    async def Upload(self, request_iterator: AsyncIterator[EchoRequest], context: Context) -> EchoReply:
        return EchoReply(text=str(len([request async for request in request_iterator])))

    async def Chat(self, request_iterator: AsyncIterator[EchoRequest], context: Context) -> AsyncIterator[EchoReply]:
        async for request in request_iterator:
            yield EchoReply(text=request.text)


TOML = """
[apps.front]
services = ["tests.interop.test_jaeger:Front"]
listen = "127.0.0.1:0"
shards = 2
tail = { slower_s = 0.25 }

[[apps.front.stubs.back.methodConfig]]
name = [{ service = "echo.v1.Echo", method = "Unary" }]

[apps.front.stubs.back.methodConfig.retryPolicy]
maxAttempts = 3
initialBackoff = "0.01s"
maxBackoff = "0.02s"
backoffMultiplier = 1
retryableStatusCodes = ["UNAVAILABLE"]

[apps.back]
services = ["tests.interop.test_jaeger:Back"]
listen = "127.0.0.1:0"
shards = 2
tail = {}
"""


@pytest.fixture(scope="module")
async def seen() -> AsyncIterator[Jaeger]:
    with jaeger() as jaeger_server:
        await eventually(jaeger_server.is_ready)
        yield jaeger_server


@pytest.fixture(scope="module")
def apps(seen: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": seen.otlp_grpc,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with running(tmp_path_factory.mktemp("apps"), TOML, "--app-dir", str(ROOT), **environment) as app:
        yield app


class Caller:
    """Calls the front app inside a trace of its own."""

    def __init__(self, cluster: RunningApp, number: int, *, sampled: bool = True) -> None:
        self.placement = cluster.placement("front")
        self.trace_id = f"{time.time_ns():024x}{number:08x}"
        flags = "01" if sampled else "00"
        self.metadata = (("traceparent", f"00-{self.trace_id}-{CALLER}-{flags}"), ("onelane-key", "k"))
        self.home = self.placement.owner_of("k")
        self.away = next(member for member in self.placement.members if member != self.home)

    async def call(self, method: str, request: Any, *, away: bool = False) -> Any:
        async with grpc.aio.insecure_channel((self.away if away else self.home).address) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            call = getattr(stub, method)(request, metadata=self.metadata, timeout=BOUND_S)
            return [reply async for reply in call] if method in ("Download", "Chat") else await call


async def whole(seen: Jaeger, caller: Caller, spans: int) -> Trace:
    """The trace, once so many spans of it have come."""
    traces: list[Trace] = []

    def has_come() -> bool:
        trace = seen.trace(caller.trace_id)
        traces[:] = [trace] if trace is not None else []
        return trace is not None and len(trace.spans) >= spans

    await eventually(has_come)
    return traces[0]


REQUEST = EchoRequest(key="k", text="hi")


async def call_quickly(apps: RunningApp, number: int) -> Caller:
    """Make a call that is neither sampled nor slow, however many it takes on a machine that is busy."""
    while True:
        caller = Caller(apps, number, sampled=False)
        began = time.monotonic()
        await caller.call("Unary", REQUEST)
        if time.monotonic() - began < SLOWER_S:
            return caller


@pytest.mark.parametrize(
    ("number", "method", "request_"),
    [(1, "Unary", REQUEST), (2, "Download", REQUEST), (3, "Upload", [REQUEST] * 2), (4, "Chat", [REQUEST] * 2)],
)
async def test_a_call_of_any_type_is_one_tree_over_both_apps(
    seen: Jaeger, apps: RunningApp, number: int, method: str, request_: Any
) -> None:
    caller = Caller(apps, number)
    await caller.call(method, request_)
    trace = await whole(seen, caller, 3)
    name = f"echo.v1.Echo/{method}"
    behind = ["back", "server", name, []]
    assert trace.tree(CALLER) == [["front", "server", name, [["front", "client", name, [behind]]]]]
    for span in trace.spans:
        tags = trace.tags(span)
        assert (tags["rpc.system.name"], tags["rpc.method"], tags["rpc.response.status_code"]) == ("grpc", name, "OK")
        assert "error" not in tags
        assert tags["onelane.shard"].startswith(trace.service(span))
    assert trace.tags(trace.children(CALLER)[0])["onelane.hop"] == "direct"


async def test_a_forward_is_a_client_span_between_the_two_shards(seen: Jaeger, apps: RunningApp) -> None:
    caller = Caller(apps, 5)
    await caller.call("Unary", REQUEST, away=True)
    trace = await whole(seen, caller, 4)
    (hop,) = trace.children(CALLER)
    (served,) = trace.children(hop["spanID"])
    reports = [
        (trace.tags(span)["span.kind"], trace.tags(span)["onelane.hop"], trace.tags(span)["onelane.shard"])
        for span in (hop, served)
    ]
    assert reports == [("client", "forwarded", caller.away.name), ("server", "forwarded", caller.home.name)]


async def test_a_failed_call_is_an_error_all_the_way_up(seen: Jaeger, apps: RunningApp) -> None:
    caller = Caller(apps, 6)
    with pytest.raises(grpc.aio.AioRpcError):
        await caller.call("Unary", EchoRequest(key="k", order="fail"))
    trace = await whole(seen, caller, 3)
    for span in trace.spans:
        tags = trace.tags(span)
        assert (tags["error"], tags["error.type"], tags["otel.status_code"]) == (True, "INTERNAL", "ERROR")
        assert tags["rpc.response.status_code"] == "INTERNAL"


async def test_a_retry_stands_in_its_call_with_both_attempts_below(seen: Jaeger, apps: RunningApp) -> None:
    caller = Caller(apps, 7)
    await caller.call("Unary", EchoRequest(key="k", order="flaky"))
    trace = await whole(seen, caller, 4)
    (client,) = [span for span in trace.spans if trace.tags(span)["span.kind"] == "client"]
    codes = {trace.tags(span)["rpc.response.status_code"] for span in trace.children(client["spanID"])}
    assert codes == {"UNAVAILABLE", "OK"}
    (event,) = client["logs"]
    fields = {field["key"]: field["value"] for field in event["fields"]}
    assert (fields["event"], fields["onelane.reason"], fields["attempt"]) == (
        "onelane.client.retries",
        "UNAVAILABLE",
        2,
    )
    assert trace.tags(client)["rpc.response.status_code"] == "OK"


@pytest.mark.parametrize(("number", "order"), [(8, "fail"), (9, "slow")])
async def test_what_failed_or_was_slow_is_kept_though_it_was_not_sampled(
    seen: Jaeger, apps: RunningApp, number: int, order: str
) -> None:
    ordinary, odd = await call_quickly(apps, number + 100), Caller(apps, number, sampled=False)
    if order == "fail":
        with pytest.raises(grpc.aio.AioRpcError):
            await odd.call("Unary", EchoRequest(key="k", order="fail"))
    else:
        await odd.call("Unary", EchoRequest(key="k", order="slow"))
    trace = await whole(seen, odd, 3)
    assert sorted(trace.service(span) for span in trace.spans) == ["back", "front", "front"]
    # Which came first to the same Jaeger, and by the same way.
    assert seen.trace(ordinary.trace_id) is None


async def test_a_change_of_placement_is_a_trace_with_what_its_shards_hand_over(seen: Jaeger, apps: RunningApp) -> None:
    async with onelane.connect(apps.listen["back"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        await asyncio.gather(
            *(stub.Unary(EchoRequest(key=f"moves-{number}"), timeout=BOUND_S) for number in range(100))
        )
    await asyncio.to_thread(admin_client.command, apps.admin, "/scale?app=back&shards=3")

    def moves() -> list[str]:
        return [row["trace_id"] for row in json.loads(apps.get("/traces"))["traces"] if row["name"] == "move"]

    # Spans are moved once per tick.
    await eventually(lambda: moves())
    [trace_id] = moves()
    traces: list[Trace] = []

    def has_come() -> bool:
        traces[:] = [trace for trace in [seen.trace(trace_id)] if trace is not None and len(trace.spans) >= 3]
        return bool(traces)

    await eventually(has_come)
    [trace] = traces
    assert trace.tree_of_roots() == [["back", "internal", "move", [["back", "internal", "handoff", []]] * 2]]
    root = next(span for span in trace.spans if span["operationName"] == "move")
    assert trace.tags(root)["onelane.change"] == "3 shards"
    assert "onelane.shard" not in trace.tags(root)
    hand_overs = [trace.tags(span) for span in trace.children(root["spanID"])]
    assert {tags["onelane.shard"] for tags in hand_overs} == {"back-0", "back-1"}
    assert {tags["onelane.handoff.to"] for tags in hand_overs} == {"back-2"}
    assert 0 < sum(tags["onelane.handoff.keys"] for tags in hand_overs) <= 101
    assert "moves-" not in str(trace.spans)
