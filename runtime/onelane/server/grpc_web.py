"""gRPC-Web, as a server: its messages are gRPC's, its trailers the last of them; in binary, or all of it in base64.

Source: grpc/doc/PROTOCOL-WEB.md.
"""

from base64 import b64encode

from onelane.server.message_codec import MessageCodec
from onelane.server.web_output import WebOutput, translated
from onelane.wire import framing
from onelane.wire.framing import Headers

_TRAILERS = 0x80
"""The flag of the last message, which has the trailers."""


class GrpcWebAnswer:
    """See `wire.web.WebAnswer`."""

    def __init__(self, output: WebOutput, codec: MessageCodec, content_type: bytes) -> None:
        self._output = output
        self._codec = codec
        self._content_type = content_type
        self._is_text = content_type.startswith(b"application/grpc-web-text")
        self._is_begun = False

    def begin(self, encoding: bytes, metadata: Headers) -> None:
        if self._is_begun:
            return
        self._is_begun = True
        packed = [(b"grpc-encoding", encoding)] if encoding else []
        self._output.begin(b"200", [(b"content-type", self._content_type), *packed, *metadata])

    def send(self, encoding: bytes, frame: bytes) -> None:
        self.begin(encoding, [])
        self._output.write(self._wrapped(translated(frame, encoding, self._codec)))

    def finish(self, code: int, details: str, trailers: Headers) -> None:
        self.begin(b"", [])
        fields: Headers = [(b"grpc-status", b"%d" % code)]
        if details:
            fields.append((b"grpc-message", framing.write_message(details)))
        block = b"".join(b"%s: %s\r\n" % pair for pair in (*fields, *trailers))
        self._output.end(self._wrapped(bytes([_TRAILERS]) + len(block).to_bytes(4, "big") + block))

    def _wrapped(self, data: bytes) -> bytes:
        return b64encode(data) if self._is_text else data
