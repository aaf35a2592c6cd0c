"""`grpc.aio`'s client interceptors around the methods of any channel; a channel without interceptors skips this."""

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


def checked(interceptors: Sequence[Any] | None) -> tuple[Any, ...]:
    """The same interceptors, as a tuple.

    Raises:
        ValueError: one of them derives from none of grpc.aio's client interceptors.
    """
    known = tuple(INTERCEPTOR_TYPES.values())
    if unknown := [interceptor for interceptor in interceptors or () if not isinstance(interceptor, known)]:
        raise ValueError(f"{unknown} derive from none of grpc.aio's client interceptors")
    return tuple(interceptors or ())


def intercepted(multi_of: Callable[[str], Any], shape: str, method: str, interceptors: Sequence[Any]) -> Any:
    """The multi-callable of `method` behind the interceptors of its shape, the first outermost.

    multi_of: makes the multi-callable of a method; an interceptor may send a call to another one.
    """
    of_shape = tuple(interceptor for interceptor in interceptors if isinstance(interceptor, INTERCEPTOR_TYPES[shape]))
    return InterceptedMethod(multi_of, shape, method, of_shape) if of_shape else multi_of(method)


class InterceptedMethod:
    """A multi-callable whose calls pass through interceptors."""

    def __init__(
        self, multi_of: Callable[[str], Any], shape: str, method: str | bytes, interceptors: Sequence[Any]
    ) -> None:
        self._multi_of = multi_of
        self._call_type = INTERCEPTED_CALL_TYPES[shape]
        self._method = method.decode() if isinstance(method, bytes) else method
        self._multi = multi_of(self._method)
        self._interceptors = interceptors

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
        return self._call_type(self._interceptors, partial(self._send, compression), details, request)

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
