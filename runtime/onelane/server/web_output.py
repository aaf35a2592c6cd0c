"""The HTTP response of one request of gRPC-Web or Connect, over HTTP/2 or HTTP/1.1 alike."""

import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from onelane.server.message_codec import AS_PROTO, MessageCodec
from onelane.wire import framing
from onelane.wire.deframer import message_of
from onelane.wire.framing import PREFIX, WINDOW_BITS, Headers
from onelane.wire.http2 import StreamEnded

_LEVEL = 6


class WebOutput:
    """See the module. What is written once the request has ended is dropped."""

    def __init__(self, http: Any, number: int, cors: Callable[[Headers], Headers]) -> None:
        """http: the session of HTTP/2 or HTTP/1.1. cors: what the answer with these headers says to a browser."""
        self._http = http
        self._number = number
        self._cors = cors

    def begin(self, status: bytes, headers: Headers, *, end: bool = False) -> None:
        with suppress(StreamEnded):
            self._http.send_response(
                self._number, [(b":status", status), *headers, *self._cors(headers)], end_stream=end
            )

    def write(self, data: bytes) -> None:
        with suppress(StreamEnded):
            self._http.send_data(self._number, data)

    def end(self, data: bytes = b"") -> None:
        with suppress(StreamEnded):
            self._http.send_data(self._number, data, end_stream=True)

    def whole(self, status: bytes, headers: Headers, body: bytes = b"") -> None:
        """A response of known length."""
        self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)


def translated(frame: bytes, encoding: bytes, codec: MessageCodec) -> bytes:
    """A message with gRPC's prefix, as the client's codec has it; compressed where it was."""
    if codec is AS_PROTO:
        return frame
    message = codec.write(message_of(frame, encoding))
    flag = frame[0]
    if flag:
        message = compressed(message, encoding)
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def body_of(frame: bytes, encoding: bytes, codec: MessageCodec) -> bytes:
    """The same without the prefix."""
    return translated(frame, encoding, codec)[PREFIX:]


def compressed(data: bytes, encoding: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, wbits=WINDOW_BITS[encoding])
    return packer.compress(data) + packer.flush()


def accepted(value: bytes) -> bytes:
    """Of an `accept-encoding`, what can be written, as gRPC's header lists it."""
    names = [
        part.split(b";")[0].strip().lower()
        for part in value.split(b",")
        if not part.replace(b" ", b"").endswith(b";q=0")
    ]
    return b",".join(name for name in names if name in framing.KNOWN_ENCODINGS and name)
