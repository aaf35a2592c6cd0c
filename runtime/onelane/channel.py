"""A channel for any generated stub that knows the ring: it goes straight to the owner of a call's key.

It asks the target for its topology and follows it. Until the owner's connection stands, and whenever it breaks, calls
go to the shared port, where the server forwards them: routing here only saves the hop. Where the target knows no
topology, it is an ordinary channel.

Deadlines only shrink: the sooner of the caller's, what is left of the call in progress, and the channel's default.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from onelane import keys, methods
from onelane.client_call import ClientCall
from onelane.client_interceptors import checked, intercepted
from onelane.errors import BadKey
from onelane.keys import FieldKey
from onelane.native_channel import NativeChannel
from onelane.placement import Member, Placement
from onelane.retry import backoff_s
from onelane.scope import current, sooner
from onelane.subchannel import Dialling
from onelane.telemetry import Tracer, context_of, outbound
from onelane.turns import CHAIN
from onelane.v1 import topology_pb2, topology_pb2_grpc

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
) -> "Channel":
    """A channel to the app at `target` ("host:port" of its shared port), for any generated stub.

    deadline_s: of a unary call that has no other; None for none. name: what errors call the peer.
    Use it as `async with`, which waits until the owners' connections stand, or close it by `await channel.close()`.

    Raises:
        RuntimeError: no event loop is running.
        ValueError: `target` is no target, or one of `interceptors` is none of grpc.aio's.
    """
    asyncio.get_running_loop()
    return Channel(target, deadline_s=deadline_s, name=name or target, dialling=dialling, interceptors=interceptors)


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
    ) -> None:
        self.name = name
        self.target = target
        self.deadline_s = deadline_s
        self.tracer = tracer
        self.placement: Placement | None = None
        self.configured_keys: dict[str, str] = {}
        self._dialling = dialling
        self._interceptors = checked(interceptors)
        self._shared = NativeChannel(target, dialling)
        self._owners: dict[str, NativeChannel] = {}
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
        for channel in list(self._owners.values()):
            await channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        self._follower.cancel()
        with suppress(asyncio.CancelledError):
            await self._follower
        for channel in (self._shared, *self._owners.values()):
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

    def channel_for(self, key: str | None) -> NativeChannel:
        """The owner's channel while its connection stands, else the shared one."""
        if key is None or self.placement is None:
            return self._shared
        owner = self._owners[self.placement.owner_of(key).address]
        return owner if owner.get_state(try_to_connect=True) is READY else self._shared

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
                self._owners[member.address] = NativeChannel(member.address, self._dialling)
                self._owners[member.address].get_state(try_to_connect=True)
        self.configured_keys = dict(update.keys)
        self.placement = placement
        self._placed.set()
        for address in set(self._owners) - {m.address for m in members}:
            await self._owners.pop(address).close(grace=None)


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
        self._rule: FieldKey | None = None
        self._ruled_by: Placement | None = None
        self._has_default = shape.endswith("_unary")

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
        given = tuple(metadata or ())
        key = self._key(request, given)
        if key is not None and not any(name == keys.HEADER for name, _ in given):
            given = (*given, (keys.HEADER, key))
        scope = current.get()
        tracer = self._channel.tracer
        parent = scope.trace if scope else None
        span = parent if tracer is None else tracer.start(self._method[1:], "CLIENT", parent)
        trace = context_of(span)
        if trace is not None:
            given = (*(pair for pair in given if pair[0] not in ("traceparent", "tracestate")), *outbound(trace))
        if scope is not None and (chain := scope.onward):
            given = (*given, (CHAIN, chain))
        left = None if scope is None or scope.deadline_at is None else max(0.0, scope.deadline_at - time.monotonic())
        limit = sooner(timeout, left)
        if limit is None and self._has_default:
            limit = self._channel.deadline_s
        call: ClientCall = self._send(self._channel.channel_for(key))(
            request,
            timeout=limit,
            metadata=given,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        call.peer_name = self._channel.name
        if tracer is not None and span is not None:
            call.tell(lambda call: tracer.end_call(span, status=call.status.name, server=False))
        return call

    def _key(self, request: Any, given: tuple[tuple[str, Any], ...]) -> str | None:
        header = keys.header_of(given)
        if header is not None:
            return header
        placement = self._channel.placement
        if placement is None or self._shape.startswith("stream_"):
            return None
        if self._ruled_by is not placement:
            self._ruled_by = placement
            rule = methods.rule_for(self._method, methods.describe(self._method), self._channel.configured_keys)
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
