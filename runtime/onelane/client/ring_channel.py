"""A channel for any generated stub that knows the ring: it goes straight to the owner of a call's key.

It asks the target for its topology and follows it (`ring_router`); where the target serves none, it is an ordinary
channel. Deadlines only shrink: the sooner of the caller's, what is left of the call in progress, and the channel's
default.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from onelane.client.asserting_method import AssertingMethod
from onelane.client.interceptors import ClientInterceptors
from onelane.client.options import APP_DIALLING, Dialling
from onelane.client.peer import DEFAULT_SERVICE_CONFIG, Peer
from onelane.client.reopening import FOLLOW, Streams
from onelane.client.ring_method import RingMethod
from onelane.client.ring_router import RingRouter
from onelane.core.service_config import ServiceConfig, read_service_config
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

READY_S = 5.0
"""How long `async with` waits for the owners' connections."""


def connect(
    target: str,
    *,
    deadline_s: float | None = 30.0,
    name: str = "",
    dialling: Dialling = APP_DIALLING,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    service_config: Mapping[str, Any] | None = None,
    compression: grpc.Compression | None = None,
    reopen: bool | None = None,
    marks: bool = False,
) -> "Channel":
    """A channel to the app at `target` ("host:port" of its shared port), for any generated stub.

    deadline_s: of a unary call that has no other; None for none. name: of the peer, in error texts.
    service_config: gRPC's, for how calls are made: see `onelane.core.service_config`.
    reopen, marks: of server streams whose key moves to another shard, see `Channel.with_streams`.
    Use it as `async with`, which waits until the owners' connections stand, or close it by `await channel.close()`.

    Raises:
        ValueError: `target` is no target, one of `interceptors` is none of grpc.aio's, the service config is not
            valid, or `compression` is none of gRPC's.
    """
    config = read_service_config(service_config) if service_config is not None else DEFAULT_SERVICE_CONFIG
    return Channel(
        target,
        deadline_s=deadline_s,
        name=name or target,
        dialling=dialling,
        interceptors=interceptors,
        service_config=config,
        compression=compression,
        streams=Streams(reopen, marks),
    )


class Channel(grpc.aio.Channel):
    """See `connect`. Owned by the loop in which it is first used."""

    def __init__(
        self,
        target: str,
        *,
        deadline_s: float | None,
        name: str,
        tracer: Tracer | None = None,
        dialling: Dialling = APP_DIALLING,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        service_config: ServiceConfig = DEFAULT_SERVICE_CONFIG,
        stats: Stats | None = None,
        compression: grpc.Compression | None = None,
        assert_identity: Callable[[], str] | None = None,
        streams: Streams = FOLLOW,
    ) -> None:
        """assert_identity: writes what calls assert of their client; None where they assert nothing."""
        self._assert_identity = assert_identity
        self._streams = streams
        self._compression = None if compression is None else grpc.Compression(compression)
        self._interceptors = ClientInterceptors(interceptors)
        self.peer = Peer(name, target, deadline_s=deadline_s, service_config=service_config, tracer=tracer, stats=stats)
        self.router = RingRouter(target, dialling)

    def with_streams(self, *, reopen: bool | None = None, marks: bool = False) -> "Channel":
        """This very channel, for stubs whose server streams follow their keys in another way. It closes with this one.

        reopen: True: every server stream whose key moves to another shard is opened again there, with the same
        request; False: none is; None: those of methods whose `idempotency_level` is NO_SIDE_EFFECTS.
        marks: its reader gets an `onelane.Moved` in between, in place of a message.
        """
        streams = Streams(reopen, marks)
        if streams == self._streams:
            return self
        channel = copy(self)
        channel._streams = streams
        return channel

    def unary_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("unary_unary", method, *serializers, **more)

    def unary_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("unary_stream", method, *serializers, **more)

    def stream_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("stream_unary", method, *serializers, **more)

    def stream_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("stream_stream", method, *serializers, **more)

    def _method(self, shape: str, method: str | bytes, *serializers: Any, **more: Any) -> Any:
        def multi_of(method: str) -> RingMethod:
            assert_identity = self._assert_identity
            kind = RingMethod if assert_identity is None else AssertingMethod
            options = {"compression": self._compression, "streams": self._streams, **more}
            multi = kind(self.peer, self.router, shape, method, *serializers, **options)
            if assert_identity is not None and isinstance(multi, AssertingMethod):
                multi.assert_identity = assert_identity
            return multi

        return self._interceptors.around(multi_of, shape, method)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.router.shared.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.router.shared.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the topology is known and every owner's connection stands."""
        await self.router.wait_ready()

    async def close(self, grace: float | None = None) -> None:
        self.router.begin_close(grace)
        await asyncio.gather(self._interceptors.close(grace), self.router.close(grace))

    async def __aenter__(self) -> "Channel":
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                await self.channel_ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
