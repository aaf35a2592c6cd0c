"""`grpc.aio`'s client interceptors around the methods of any channel; a channel without interceptors skips this."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio

from onelane.client.intercepted_call import (
    InterceptedCall,
    InterceptedStreamStreamCall,
    InterceptedStreamUnaryCall,
    InterceptedUnaryStreamCall,
    InterceptedUnaryUnaryCall,
)
from onelane.wire.framing import pairs_of

INTERCEPTOR_TYPES = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor,
    "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor,
    "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}
INTERCEPTED_CALL_TYPES: dict[str, type[InterceptedCall]] = {
    "unary_unary": InterceptedUnaryUnaryCall,
    "unary_stream": InterceptedUnaryStreamCall,
    "stream_unary": InterceptedStreamUnaryCall,
    "stream_stream": InterceptedStreamStreamCall,
}


class ClientInterceptors:
    """The interceptors of one channel, and its calls that they have not passed on yet."""

    def __init__(self, interceptors: Sequence[Any] | None) -> None:
        """interceptors: the first is the outermost.

        Raises:
            ValueError: one of them derives from none of grpc.aio's client interceptors.
        """
        known = tuple(INTERCEPTOR_TYPES.values())
        self._interceptors = tuple(interceptors or ())
        if unknown := [interceptor for interceptor in self._interceptors if not isinstance(interceptor, known)]:
            raise ValueError(f"{unknown} derive from none of grpc.aio's client interceptors")
        self._pending: set[InterceptedCall] = set()

    def around(self, multi_of: Callable[[str], Any], shape: str, method: str | bytes) -> Any:
        """The multi-callable of `method` behind the interceptors of its shape.

        multi_of: makes the multi-callable of a method; an interceptor may send a call to another one.
        """
        path = method.decode() if isinstance(method, bytes) else method
        kind = INTERCEPTOR_TYPES[shape]
        of_shape = tuple(interceptor for interceptor in self._interceptors if isinstance(interceptor, kind))
        return InterceptedMethod(multi_of, shape, path, of_shape, self._pending) if of_shape else multi_of(path)

    async def close(self, grace: float | None) -> None:
        """Let interceptors that run finish for `grace` seconds (None: 0), then cancel their calls."""
        if grace and self._pending:
            await asyncio.wait([call.interception for call in self._pending], timeout=grace)
        for call in tuple(self._pending):
            call.cancel()


class InterceptedMethod:
    """A multi-callable whose calls pass through interceptors."""

    def __init__(
        self,
        multi_of: Callable[[str], Any],
        shape: str,
        method: str,
        interceptors: Sequence[Any],
        pending: set[InterceptedCall],
    ) -> None:
        self._multi_of = multi_of
        self._call_type = INTERCEPTED_CALL_TYPES[shape]
        self._method = method
        self._multi = multi_of(method)
        self._interceptors = interceptors
        self._pending = pending

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> InterceptedCall:
        pairs = pairs_of(metadata) if metadata else ()
        # In grpc.aio interceptors see the method as bytes.
        path: Any = self._method.encode()
        details = grpc.aio.ClientCallDetails(path, timeout, grpc.aio.Metadata(*pairs), credentials, wait_for_ready)
        call = self._call_type(self._interceptors, partial(self._send, compression), details, request)
        self._pending.add(call)
        call.interception.add_done_callback(lambda _: self._pending.discard(call))
        return call

    def _send(self, compression: grpc.Compression | None, details: Any, request: Any) -> Any:
        """Begin the RPC, as the innermost interceptor wants it."""
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        multi = self._multi if method == self._method else self._multi_of(method)
        return multi(
            request,
            timeout=details.timeout,
            metadata=details.metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
            compression=compression,
        )
