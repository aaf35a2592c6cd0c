"""A channel to one server over our own wire, for any generated stub: what `grpc.aio.insecure_channel` is, cheaper."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from onelane.client.call import ClientCall
from onelane.client.interceptors import ClientInterceptors
from onelane.client.multi_callable import CALL_TYPES, MultiCallable
from onelane.client.options import DEFAULT_DIALLING, Dialling
from onelane.client.subchannel import Subchannel
from onelane.wire import framing


def dial(
    target: str,
    *,
    dialling: Dialling = DEFAULT_DIALLING,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    compression: grpc.Compression | None = None,
) -> "NativeChannel":
    """A channel to `target`: host:port, dns:///host:port, ipv4:…, ipv6:…, unix:path. It connects at its first call.

    Raises:
        ValueError: a target of another kind, an interceptor that is none of grpc.aio's, or no `grpc.Compression`.
    """
    return NativeChannel(target, dialling, interceptors, compression)


class NativeChannel(grpc.aio.Channel):
    """See `dial`. Owned by the loop in which it is first used; it may be made before one runs."""

    def __init__(
        self,
        target: str,
        dialling: Dialling = DEFAULT_DIALLING,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        compression: grpc.Compression | None = None,
    ) -> None:
        self._interceptors = ClientInterceptors(interceptors)
        self._compression = None if compression is None else grpc.Compression(compression)
        self.subchannel = Subchannel(target, dialling)

    def unary_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("unary_unary", method, *serializers, **more)

    def unary_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("unary_stream", method, *serializers, **more)

    def stream_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("stream_unary", method, *serializers, **more)

    def stream_stream(self, method: str, *serializers: Any, **more: Any) -> Any:
        return self._method("stream_stream", method, *serializers, **more)

    def _method(self, shape: str, method: str, *serializers: Any, **more: Any) -> Any:
        def multi_of(method: str) -> MultiCallable:
            return MultiCallable(self.subchannel, shape, method, *serializers, compression=self._compression, **more)

        return self._interceptors.around(multi_of, shape, method)

    def unsent(self, shape: str, deserialize: Callable[[bytes], Any] | None) -> ClientCall:
        """A call of a shape that is not sent; the caller must finish it."""
        call: Any = CALL_TYPES[shape](self.subchannel, [], deserialize, None, False)
        if shape.startswith("stream_"):
            call.prepare(None, None, framing.frame)
        return call  # type: ignore[no-any-return]

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if try_to_connect and self.subchannel.state is grpc.ChannelConnectivity.IDLE:
            self.subchannel.connect()
        return self.subchannel.state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.subchannel.state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until a connection stands."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.subchannel.state_change(state)

    async def close(self, grace: float | None = None) -> None:
        self.subchannel.begin_close(grace)
        await asyncio.gather(self._interceptors.close(grace), self.subchannel.close(grace))

    async def __aenter__(self) -> "NativeChannel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
