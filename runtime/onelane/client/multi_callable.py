"""One method of a channel to one server: each call of it, from the request and its options to a call that is sent."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain
from math import inf
from typing import Any, Final

import grpc
import grpc.aio

from onelane.client.call import ClientCall, UnaryUnaryCall
from onelane.client.call_types import StreamStreamCall, StreamUnaryCall, UnaryStreamCall
from onelane.client.credentials import Plugin, headers_after, headers_from, no_headers, plugins_of
from onelane.client.subchannel import Subchannel
from onelane.core.context import seconds_of
from onelane.wire import framing, header_size
from onelane.wire.framing import Headers

USER_AGENT: Final = b"grpc-python-onelane"
FEW, LITTLE_BYTES = 64, 4096
"""Items and bytes of metadata that every server takes; what is larger is measured."""
CALL_TYPES: dict[str, type[Any]] = {
    "unary_unary": UnaryUnaryCall,
    "unary_stream": UnaryStreamCall,
    "stream_unary": StreamUnaryCall,
    "stream_stream": StreamStreamCall,
}


class MultiCallable:
    """One method of one channel: `grpc.aio`'s four multi-callables in one class."""

    def __init__(
        self,
        subchannel: Subchannel,
        shape: str,
        method: str | bytes,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
        *,
        compression: grpc.Compression | None = None,
    ) -> None:
        self._subchannel = subchannel
        self._start: Callable[[Any], None] = subchannel.start if shape == "unary_unary" else partial(_start, subchannel)
        self._call_type = CALL_TYPES[shape]
        self._has_request_stream = shape.startswith("stream_")
        self._serialize = request_serializer
        self._deserialize = response_deserializer
        self._compression = compression
        self._before_sending: Callable[[], Callable[[], Awaitable[None]] | None] | None = None
        self._last_timeout: float | None = None
        """The last call's: its headers are used again, as nearly all callers of a method give the same timeout."""
        self._headers_with_timeout: Headers = []
        self._path = method.encode() if isinstance(method, str) else method
        self._headers: Headers = [
            (b":method", b"POST"),
            (b":scheme", b"https" if subchannel.dialling.tls else b"http"),
            (b":path", self._path),
            (b":authority", subchannel.authority),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", USER_AGENT),
            (b"grpc-accept-encoding", framing.ENCODINGS),
        ]

    def __call__(
        self,
        request: Any = None,
        timeout: Any = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: Any = None,
        compression: grpc.Compression | None = None,
    ) -> ClientCall:
        plugins = self._plugins_of(credentials) if credentials is not None else None
        headers = self._headers
        if timeout is not None:
            if type(timeout) is not float:
                timeout = seconds_of(timeout)
            if timeout != self._last_timeout:
                if not 0 < timeout < inf:
                    return self._expired()
                self._last_timeout = timeout
                self._headers_with_timeout = [*headers, (b"grpc-timeout", framing.write_timeout(timeout))]
            headers = self._headers_with_timeout
        frame: Callable[[bytes], bytes] = framing.frame
        if compression is None:
            compression = self._compression
        if compression:
            encoding, frame = framing.FRAMERS[grpc.Compression(compression)]
            headers = [*headers, (b"grpc-encoding", encoding)]
        size = 0
        if metadata:
            custom = framing.write_metadata(metadata)
            headers = [*headers, *custom]
            if len(custom) > FEW or sum(map(len, chain.from_iterable(custom))) > LITTLE_BYTES:
                size = header_size.size_of(headers)
        if not self._has_request_stream:
            # Before the call has a deadline: what cannot be serialized leaves nothing behind.
            request = frame(self._serialize(request) if self._serialize else request)
        call: Any = self._call_type(self._subchannel, headers, self._deserialize, timeout, bool(wait_for_ready))
        if size:
            call.headers_size = size
        if self._has_request_stream:
            call.prepare(request, self._serialize, frame)
        else:
            call.request = request
        if plugins is None:
            self._start(call)
        else:
            headers_later: Callable[[], Awaitable[Headers]] = partial(
                headers_from, plugins, self._subchannel.authority, self._path
            )
            if self._before_sending is not None and (wait := self._before_sending()) is not None:
                headers_later = partial(headers_after, wait, headers_later)
            self._subchannel.start_later(call.outgoing, headers_later)
        return call  # type: ignore[no-any-return]

    def send_again(self, call: ClientCall, credentials: grpc.CallCredentials | None) -> None:
        """Send a call of this method anew, with the headers that it has now, and with fresh ones of its credentials.

        Raises:
            UsageError: see `Subchannel.start`.
        """
        call.moves_to(self._subchannel)
        if credentials is None:
            self._subchannel.restart(call.outgoing)
        else:
            headers_later = partial(headers_from, self._plugins_of(credentials), self._subchannel.authority, self._path)
            self._subchannel.start_later(call.outgoing, headers_later)

    def hold_back(self, before_sending: Callable[[], Callable[[], Awaitable[None]] | None]) -> None:
        """Send each call once what `before_sending` returns for it is done; at once where that is None. A call fails
        with what that raises."""
        self._before_sending = before_sending
        start = self._start

        def start_in_time(call: ClientCall) -> None:
            wait = before_sending()
            if wait is None:
                start(call)
            else:
                self._subchannel.start_later(call.outgoing, partial(headers_after, wait, no_headers))

        self._start = start_in_time

    def _expired(self) -> ClientCall:
        """A call that ends before anything of it is sent: its timeout is 0, negative, infinite or no number. grpc.aio
        takes the last two so, too."""
        call: Any = self._call_type(self._subchannel, [], self._deserialize, None, False)
        if self._has_request_stream:
            call.prepare(None, self._serialize, framing.frame)
        call.expire_unsent()
        return call  # type: ignore[no-any-return]

    def _plugins_of(self, credentials: grpc.CallCredentials) -> list[Plugin]:
        if self._subchannel.dialling.tls is None:
            raise grpc.aio.UsageError("Call credentials are only valid on secure channels")
        return plugins_of(credentials)


def _start(subchannel: Subchannel, call: ClientCall) -> None:
    """Start a call of which its subchannel holds another object (`HeldWeakly`)."""
    subchannel.start(call.outgoing)
