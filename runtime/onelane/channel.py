"""A channel for any generated stub that knows the ring: it goes straight to the owner of a call's key.

It asks the target for its topology and follows it. Until the owner's connection stands, and whenever it breaks, calls
go to the shared port, where the server forwards them: routing here only saves the hop. Where the target knows no
topology, it is an ordinary grpc.aio channel.

Deadlines only shrink: the sooner of the caller's, what is left of the call in progress, and the channel's default.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from onelane import keys, methods
from onelane.errors import BadKey
from onelane.forward import CHANNEL_OPTIONS
from onelane.keys import FieldKey
from onelane.placement import Member, Placement
from onelane.retry import backoff_s
from onelane.scope import current, sooner
from onelane.spans import TraceContext
from onelane.telemetry import Span, Tracer, context_of, outbound
from onelane.v1 import topology_pb2, topology_pb2_grpc

READY = grpc.ChannelConnectivity.READY
CONNECT_S = 5.0


def connect(target: str, *, deadline_s: float | None = 30.0, name: str = "") -> "Channel":
    """A channel to the app at `target` ("host:port" of its shared port), for any generated stub.

    deadline_s: of a unary call that has no other; None for none. name: what errors call the peer.
    Use it as `async with`, which waits until the owners' connections stand, or close it by `await channel.close()`.

    Raises:
        RuntimeError: no event loop is running.
    """
    asyncio.get_running_loop()
    return Channel(target, deadline_s=deadline_s, name=name or target)


class Channel(grpc.aio.Channel):
    """See `connect`. Owned by the loop that made it."""

    def __init__(self, target: str, *, deadline_s: float | None, name: str, tracer: Tracer | None = None) -> None:
        self.name = name
        self.target = target
        self.deadline_s = deadline_s
        self.tracer = tracer
        self.placement: Placement | None = None
        self.configured_keys: dict[str, str] = {}
        self._shared = grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        self._owners: dict[str, grpc.aio.Channel] = {}
        self._placed = asyncio.Event()
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    # grpc.aio.Channel

    def unary_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return _Method(self, "unary_unary", method, *serializers, **more)

    def unary_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return _Method(self, "unary_stream", method, *serializers, **more)

    def stream_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return _Method(self, "stream_unary", method, *serializers, **more)

    def stream_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return _Method(self, "stream_stream", method, *serializers, **more)

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

    def channel_for(self, key: str | None) -> grpc.aio.Channel:
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
                self._owners[member.address] = grpc.aio.insecure_channel(member.address, CHANNEL_OPTIONS)
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
        self._sends: dict[grpc.aio.Channel, Any] = {}
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
        span = self._start(scope.trace if scope else None)
        trace = context_of(span)
        if trace is not None:
            given = (*(pair for pair in given if pair[0] not in ("traceparent", "tracestate")), *outbound(trace))
        left = None if scope is None or scope.deadline_at is None else max(0.0, scope.deadline_at - time.monotonic())
        limit = sooner(timeout, left)
        if limit is None and self._has_default:
            limit = self._channel.deadline_s
        sent = self._send(self._channel.channel_for(key))(
            request,
            timeout=limit,
            metadata=given,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        return ClientCall(sent, self._channel, span)

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

    def _send(self, channel: grpc.aio.Channel) -> Any:
        send = self._sends.get(channel)
        if send is None:
            send = self._sends[channel] = getattr(channel, self._shape)(self._method, *self._serializers)
        return send

    def _start(self, parent: TraceContext | None) -> Span:
        tracer = self._channel.tracer
        return parent if tracer is None else tracer.start(self._method[1:], "CLIENT", parent)


class ClientCall:
    """A grpc.aio call whose failures name the peer, and whose span ends with it. All else is the call's own."""

    __slots__ = ("_call", "_channel", "_span")

    def __init__(self, call: Any, channel: Channel, span: Span) -> None:
        self._call = call
        self._channel = channel
        self._span = span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._answer().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._answers()

    async def read(self) -> Any:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from None
        if message is grpc.aio.EOF:
            self._end("OK")
        return message

    async def _answer(self) -> Any:
        status = "CANCELLED"
        try:
            answer = await self._call
            status = "OK"
            return answer
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            raise self._failed(error) from None
        finally:
            self._end(status)

    async def _answers(self) -> AsyncIterator[Any]:
        status = "CANCELLED"
        try:
            async for answer in self._call:
                yield answer
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            raise self._failed(error) from None
        finally:
            self._end(status)

    def _failed(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        self._end(error.code().name)
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return error
        details = f"{self._channel.name}: {error.details()}"
        return grpc.aio.AioRpcError(
            error.code(),
            error.initial_metadata(),
            error.trailing_metadata(),
            details=details,
            debug_error_string=error.debug_error_string(),
        )

    def _end(self, status: str) -> None:
        span, self._span = self._span, None
        if self._channel.tracer is not None and span is not None:
            self._channel.tracer.end_call(span, status=status, server=False)
