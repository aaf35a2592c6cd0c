"""A channel for any generated stub that knows the ring: it goes straight to the owner of a call's key.

It asks the target for its topology and follows it. Until the owner's connection stands, and whenever it breaks, calls
go to the shared port, where the server forwards them: routing here only saves the hop. Where the target knows no
topology, it is an ordinary channel.

Deadlines only shrink: the sooner of the caller's, what is left of the call in progress, and the channel's default.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from time import monotonic, perf_counter, time_ns
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from onelane.client.call import ClientCall
from onelane.client.channel import NativeChannel
from onelane.client.hedging import HedgedCall
from onelane.client.interceptors import checked, intercepted
from onelane.client.options import Dialling
from onelane.client.outlier import Endpoint
from onelane.client.propagation import PREVIOUS_ATTEMPTS, outgoing, repeated
from onelane.client.retry import Budget, policy_of, pushback_s, wait_s
from onelane.core import addresses, keys
from onelane.core.backoff import backoff_s
from onelane.core.context import current_baggage, current_call, current_trace, earlier
from onelane.core.keys import FieldKey
from onelane.core.placement import Member, Placement
from onelane.core.service_config import ServiceConfig
from onelane.errors import BadKey
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Histogram, HistogramSeries, Stats
from onelane.telemetry.tracer import ERROR, METHOD, STATUS, SYSTEM, Span, Tracer, context_of
from onelane.v1 import topology_pb2, topology_pb2_grpc

USUAL = ServiceConfig()
LEVELS = {0: "", 1: "NO_SIDE_EFFECTS", 2: "IDEMPOTENT"}
"""google.protobuf.MethodOptions.IdempotencyLevel."""
DECISIONS = {
    "retries": "Attempts after one that failed",
    "hedges": "Attempts beside one that was late",
    "ejections": "Endpoints left alone for a while, because they failed on and on",
    "refusals": "Calls not sent, because too many were under way",
}
OK = grpc.StatusCode.OK
DURATION = "rpc.client.call.duration"
READY = grpc.ChannelConnectivity.READY
CONNECT_S = 5.0
DIALLING = Dialling(initial_backoff_s=0.1, max_backoff_s=0.5, keepalive_s=30.0, ping_timeout_s=5.0)
"""Shards come back within moments, so their clients look again soon."""


def connect(
    target: str,
    *,
    deadline_s: float | None = 30.0,
    name: str = "",
    dialling: Dialling = DIALLING,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    service_config: Mapping[str, Any] | None = None,
) -> "Channel":
    """A channel to the app at `target` ("host:port" of its shared port), for any generated stub.

    deadline_s: of a unary call that has no other; None for none. name: what errors call the peer.
    service_config: gRPC's, for how calls are made: see `onelane.core.service_config`.
    Use it as `async with`, which waits until the owners' connections stand, or close it by `await channel.close()`.

    Raises:
        RuntimeError: no event loop is running.
        ValueError: `target` is no target, one of `interceptors` is none of grpc.aio's, or the service config is not
            right.
    """
    asyncio.get_running_loop()
    said = ServiceConfig.model_validate(service_config) if service_config is not None else USUAL
    return Channel(
        target, deadline_s=deadline_s, name=name or target, dialling=dialling, interceptors=interceptors, said=said
    )


@dataclass(frozen=True, slots=True)
class Owner:
    """One shard of the app, by its own address."""

    channel: NativeChannel
    health: Endpoint


class Channel(grpc.aio.Channel):
    """See `connect`. Owned by the loop that made it."""

    def __init__(
        self,
        target: str,
        *,
        deadline_s: float | None,
        name: str,
        tracer: Tracer | None = None,
        dialling: Dialling = DIALLING,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        said: ServiceConfig = USUAL,
        stats: Stats | None = None,
    ) -> None:
        self.said = said
        self.budget = Budget(said.retryThrottling)
        self.in_flight = 0
        self.rng = Random()
        self._stats = stats
        self.where = _where(target)
        """Who is called, as attributes of spans and durations."""
        self.duration = (
            stats.histogram(DURATION, unit="s", description="Duration of calls to others") if stats else None
        )
        self.name = name
        self.target = target
        self.deadline_s = deadline_s
        self.tracer = tracer
        self.placement: Placement | None = None
        self.configured_keys: dict[str, str] = {}
        self._dialling = dialling
        self._interceptors = checked(interceptors)
        self._shared = NativeChannel(target, dialling)
        self._owners: dict[str, Owner] = {}
        self._placed = asyncio.Event()
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    # grpc.aio.Channel

    def unary_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("unary_unary", method, *serializers, **more)

    def unary_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("unary_stream", method, *serializers, **more)

    def stream_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("stream_unary", method, *serializers, **more)

    def stream_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("stream_stream", method, *serializers, **more)

    def _method(self, shape: str, method: str, *serializers: Any, **more: Any) -> Any:
        multi = _Method(self, shape, method, *serializers, **more)
        return intercepted(multi, shape, method, self._interceptors) if self._interceptors else multi

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._shared.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._shared.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the topology is known and every owner's connection stands."""
        await self._shared.channel_ready()
        await self._placed.wait()
        for owner in list(self._owners.values()):
            await owner.channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        self._follower.cancel()
        with suppress(asyncio.CancelledError):
            await self._follower
        for channel in (self._shared, *(owner.channel for owner in self._owners.values())):
            await channel.close(grace)

    async def __aenter__(self) -> "Channel":
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await self.channel_ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Routing

    def pick(self, key: str | None, attempt: int = 0) -> tuple[NativeChannel, Endpoint | None]:
        """Where a call goes: to the owner while its connection stands and it is well, else by the shared address.

        attempt: those of one call without a key go to one shard after another.
        """
        if self.placement is None or (key is None and not attempt):
            return self._shared, None
        if key is None:
            owner = list(self._owners.values())[attempt % len(self._owners)]
        else:
            owner = self._owners[self.placement.owner_of(key).address]
        if owner.channel.get_state(try_to_connect=True) is READY and owner.health.allows(monotonic()):
            return owner.channel, owner.health
        return self._shared, None

    def unsent(self, shape: str, deserialize: Callable[[bytes], Any] | None) -> ClientCall:
        """A call that will not be sent."""
        return self._shared.unsent(shape, deserialize)

    def count(self, what: str, reason: str) -> None:
        """Count a decision about a call: retries, hedges, ejections, refusals."""
        if self._stats is not None:
            counter = self._stats.counter(f"onelane.client.{what}", unit="{call}", description=DECISIONS[what])
            counter.add(1, {"onelane.peer": self.name, "onelane.reason": reason})

    async def _follow(self) -> None:
        attempt = 0
        rng = Random()
        watch = topology_pb2_grpc.TopologyStub(self._shared).Watch
        while True:
            try:
                async for update in watch(topology_pb2.WatchRequest(), wait_for_ready=True):
                    attempt = 0
                    await self._place(update)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self._placed.set()
                    return
            attempt += 1
            await asyncio.sleep(0.05 + backoff_s(attempt, base_s=0.05, cap_s=1.0, rng=rng))

    async def _place(self, update: topology_pb2.Placement) -> None:
        members = tuple(Member(m.name, m.address, "") for m in update.members)
        placement = Placement(update.epoch, members, update.points, dict(update.pins))
        for member in members:
            if member.address not in self._owners:
                channel = NativeChannel(member.address, self._dialling)
                self._owners[member.address] = Owner(channel, Endpoint())
                channel.get_state(try_to_connect=True)
        self.configured_keys = dict(update.keys)
        self.placement = placement
        self._placed.set()
        for address in set(self._owners) - {m.address for m in members}:
            await self._owners.pop(address).channel.close(grace=None)


class _Method:
    """One method of a stub: picks the channel of each call."""

    def __init__(
        self,
        channel: Channel,
        shape: str,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> None:
        self._channel = channel
        self._shape = shape
        self._method = method
        self._serializers = (request_serializer, response_deserializer)
        self._sends: dict[NativeChannel, Any] = {}
        self._spreads: dict[str, HistogramSeries] = {}
        self._rule: FieldKey | None = None
        self._ruled_by: Placement | None = None
        self._has_default = shape.endswith("_unary")
        said = channel.said
        descriptor = keys.describe(method)
        level = LEVELS[descriptor.GetOptions().idempotency_level] if descriptor is not None else ""
        self._policy = policy_of(method[1:], level, said)
        if shape != "unary_unary":
            # gRFC A6 would repeat a stream of which nothing has come yet; here a stream is its caller's.
            self._policy = replace(self._policy, attempts=1, hedge_after_s=None)

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        channel, policy = self._channel, self._policy
        if channel.in_flight >= channel.said.max_in_flight:
            return self._refused()
        metadata = tuple(metadata or ())
        key = keys.header_of(metadata)
        if key is None and (key := self._read_key(request)) is not None:
            metadata = (*metadata, (keys.HEADER, key))
        span = self._start_span()
        began = perf_counter()
        metadata, timeout = outgoing(
            metadata,
            earlier(timeout, policy.timeout_s),
            context=current_call(),
            trace=context_of(span),
            baggage=current_baggage(),
            now=monotonic,
        )
        if timeout is None and self._has_default:
            timeout = channel.deadline_s
        arguments: dict[str, Any] = {
            "timeout": timeout,
            "metadata": metadata,
            "credentials": credentials,
            "wait_for_ready": policy.wait_for_ready if wait_for_ready is None else wait_for_ready,
            "compression": compression,
        }
        if policy.hedge_after_s is not None:
            return self._hedge(request, arguments, key, span, began)
        return self._attempt(request, arguments, key, span, began, 0)

    def _hedge(self, request: Any, arguments: dict[str, Any], key: str | None, span: Span, began: float) -> HedgedCall:
        timeout = arguments["timeout"]
        deadline_at = None if timeout is None else monotonic() + timeout
        attempt = partial(self._hedged_attempt, request, arguments, key, span, began, deadline_at)
        hedged = HedgedCall(attempt, self._unsent, self._policy, self._channel.budget, deadline_at)
        hedged.add_done_callback(partial(self._close, span, began))
        return hedged

    def _hedged_attempt(
        self,
        request: Any,
        arguments: dict[str, Any],
        key: str | None,
        span: Span,
        began: float,
        deadline_at: float | None,
        number: int,
    ) -> ClientCall:
        if number:
            self._decided("hedges", "late", span, {"attempt": number + 1})
            arguments = arguments | {
                "timeout": None if deadline_at is None else max(0.0, deadline_at - monotonic()),
                "metadata": repeated(arguments["metadata"], number),
            }
        return self._attempt(request, arguments, key, span, began, number)

    def _start_span(self) -> Span:
        """Begin the span of a call; where calls are not traced here, the trace that it is made in goes on."""
        tracer, parent = self._channel.tracer, current_trace()
        if tracer is None:
            return parent
        span = tracer.start(self._method[1:], "CLIENT", parent)
        if isinstance(span, SpanRecord):
            span.attributes = dict(self._channel.where)
        return span

    def _attempt(
        self, request: Any, arguments: dict[str, Any], key: str | None, span: Span, began: float, number: int
    ) -> ClientCall:
        channel = self._channel
        to, health = channel.pick(key, number)
        call: ClientCall = self._send(to)(request, **arguments)
        call.peer_name, call.health = channel.name, health
        channel.in_flight += 1
        if self._policy.attempts > 1 and self._policy.hedge_after_s is None:
            call.repeats = partial(self._repeat, key, span)
        call.tell(partial(self._ended, span, began))
        return call

    def _ended(self, span: Span, began: float, call: ClientCall) -> None:
        channel = self._channel
        channel.in_flight -= 1
        assert call.status is not None
        self._attempt_ended(call, call.status.name, span)
        if self._policy.hedge_after_s is not None:
            # Of one attempt; the hedged call itself keeps the budget, and ends the span.
            return
        if call.status is OK and self._policy.attempts > 1:
            channel.budget.succeeded()
        self._close(span, began, call)

    def _attempt_ended(self, call: ClientCall, code: str, span: Span) -> None:
        """Tell the endpoint that an attempt went to what became of it."""
        health, call.health = call.health, None
        if health is not None and health.ended(code, monotonic()):
            self._decided("ejections", code, span, {})

    def _close(self, span: Span, began: float, call: Any) -> None:
        """The call, with all of its attempts, is over."""
        status: str = call.status.name
        if self._channel.duration is not None:
            spread = self._spreads.get(status) or self._spread(self._channel.duration, status)
            seconds = perf_counter() - began
            spread.record(seconds)
            if isinstance(span, SpanRecord) and span.sampled:
                spread.add_exemplar(seconds, span)
        if self._channel.tracer is not None and span is not None:
            self._channel.tracer.end_call(span, status=status, server=False)

    def _spread(self, duration: Histogram, status: str) -> HistogramSeries:
        attributes = {SYSTEM: "grpc", METHOD: self._method[1:], STATUS: status}
        if status != "OK":
            attributes[ERROR] = status
        where = {name: str(value) for name, value in self._channel.where.items()}
        made = self._spreads[status] = duration.at(attributes | where)
        return made

    def _repeat(self, key: str | None, span: Span, call: ClientCall, code: grpc.StatusCode, trailers: Any) -> bool:
        """Make another attempt of a call that has failed, where that is safe and there is time; whether one is made."""
        channel, policy = self._channel, self._policy
        wait = wait_s(policy, call.retries + 1, code.name, pushback_s(trailers), channel.budget, channel.rng)
        left = call.time_remaining()
        if wait is None or (left is not None and wait >= left):
            return False
        call.retries += 1
        self._attempt_ended(call, code.name, span)
        call.forget_attempt()
        self._decided("retries", code.name, span, {"attempt": call.retries + 1, "after_s": round(wait, 4)})
        asyncio.get_running_loop().call_later(wait, self._again, key, call)
        return True

    def _again(self, key: str | None, call: ClientCall) -> None:
        if call.status is None:
            to, call.health = self._channel.pick(key, call.retries)
            call.send_again(to.subchannel, PREVIOUS_ATTEMPTS.encode())

    def _unsent(self) -> ClientCall:
        return self._channel.unsent(self._shape, self._serializers[1])

    def _refused(self) -> ClientCall:
        """A call that is over before it was sent: too many are under way."""
        channel = self._channel
        span = None if channel.tracer is None else channel.tracer.start(self._method[1:], "CLIENT", current_trace())
        self._decided("refusals", "in_flight", span, {})
        made = self._unsent()
        made.tell(partial(self._close, span, perf_counter()))
        most = channel.said.max_in_flight
        made.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{most} calls to {channel.name} are under way already")
        return made

    def _decided(self, what: str, reason: str, span: Span, attributes: dict[str, Any]) -> None:
        """Make a decision visible: in the statistics, and in the span of its call."""
        self._channel.count(what, reason)
        if isinstance(span, SpanRecord):
            span.add_event(f"onelane.client.{what}", {"onelane.reason": reason, **attributes}, time_ns())

    def _read_key(self, request: Any) -> str | None:
        """The key in a request message, where the topology is known and says where it is."""
        placement = self._channel.placement
        if placement is None or self._shape.startswith("stream_"):
            return None
        if self._ruled_by is not placement:
            self._ruled_by = placement
            rule = keys.rule_for(self._method, keys.describe(self._method), self._channel.configured_keys)
            self._rule = rule if isinstance(rule, FieldKey) else None
        try:
            return self._rule.read(request) if self._rule else None
        except BadKey:
            # The server refuses it, with the same words.
            return None

    def _send(self, channel: NativeChannel) -> Any:
        send = self._sends.get(channel)
        if send is None:
            send = self._sends[channel] = getattr(channel, self._shape)(self._method, *self._serializers)
        return send


def _where(target: str) -> dict[str, str | int]:
    """`server.address` and `server.port` of a target."""
    dialled = addresses.parse_target(target)
    if dialled.startswith("unix:"):
        return {"server.address": dialled.removeprefix("unix:")}
    host, port = addresses.split(dialled)
    return {"server.address": host, "server.port": port}
