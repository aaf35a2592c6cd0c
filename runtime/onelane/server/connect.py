"""The Connect protocol, as a server: unary calls are plain HTTP with one message as their body, streams have envelopes.

Source: https://connectrpc.com/docs/protocol.
"""

import json
from base64 import b64encode
from typing import Any

from google.protobuf import json_format
from google.rpc import status_pb2

from onelane.server.message_codec import MessageCodec
from onelane.server.web_output import WebOutput, body_of, translated
from onelane.wire import framing
from onelane.wire.framing import BadWire, Headers

CODES = (
    ("ok", 200),
    ("canceled", 499),
    ("unknown", 500),
    ("invalid_argument", 400),
    ("deadline_exceeded", 504),
    ("not_found", 404),
    ("already_exists", 409),
    ("permission_denied", 403),
    ("resource_exhausted", 429),
    ("failed_precondition", 400),
    ("aborted", 409),
    ("out_of_range", 400),
    ("unimplemented", 501),
    ("internal", 500),
    ("unavailable", 503),
    ("data_loss", 500),
    ("unauthenticated", 401),
)
"""Connect's name and HTTP status of each of gRPC's status codes."""
_MAX_TIMEOUT_DIGITS = 10
_END_STREAM = 2
"""The flag of the last envelope."""
_DETAILS = b"grpc-status-details-bin"
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]


def read_timeout(text: bytes) -> float:
    """Seconds of a `connect-timeout-ms`.

    Raises:
        BadWire: it is malformed.
    """
    if not text.isdigit() or len(text) > _MAX_TIMEOUT_DIGITS:
        raise BadWire(f"connect-timeout-ms {text.decode('latin-1')!r}: expected up to 10 digits")
    return int(text) / 1000


class UnaryAnswer:
    """One message, or an error as JSON. Nothing is sent before the status is known. See `wire.web.WebAnswer`."""

    def __init__(self, output: WebOutput, codec: MessageCodec) -> None:
        self._output = output
        self._codec = codec
        self._metadata: Headers = []
        self._encoding: Headers = []
        self._body = b""

    def begin(self, encoding: bytes, metadata: Headers) -> None:
        self._metadata += metadata

    def send(self, encoding: bytes, frame: bytes) -> None:
        self._body = body_of(frame, encoding, self._codec)
        if frame[0]:
            self._encoding = [(b"content-encoding", encoding)]

    def finish(self, code: int, details: str, trailers: Headers) -> None:
        more = [(b"trailer-" + name, value) for name, value in trailers if name != _DETAILS]
        if code == framing.OK:
            kind = (b"content-type", b"application/" + self._codec.name)
            self._output.whole(b"200", [kind, *self._encoding, *self._metadata, *more], self._body)
        else:
            # What compressions there are: an unknown one may have been the fault.
            unknown = [(b"accept-encoding", framing.ENCODINGS)] if code == framing.UNIMPLEMENTED else []
            body = json.dumps(error_of(code, details, trailers)).encode()
            self._output.whole(b"%d" % CODES[code][1], [*JSON_HEADERS, *unknown, *self._metadata, *more], body)


class StreamAnswer:
    """Envelopes, the last of which has the status and the trailers. See `wire.web.WebAnswer`."""

    def __init__(self, output: WebOutput, codec: MessageCodec) -> None:
        self._output = output
        self._codec = codec
        self._is_begun = False

    def begin(self, encoding: bytes, metadata: Headers) -> None:
        if self._is_begun:
            return
        self._is_begun = True
        packed = [(b"connect-content-encoding", encoding)] if encoding else []
        kind = (b"content-type", b"application/connect+" + self._codec.name)
        accepts = (b"connect-accept-encoding", framing.ENCODINGS)
        self._output.begin(b"200", [kind, *packed, accepts, *metadata])

    def send(self, encoding: bytes, frame: bytes) -> None:
        self.begin(encoding, [])
        self._output.write(translated(frame, encoding, self._codec))

    def finish(self, code: int, details: str, trailers: Headers) -> None:
        self.begin(b"", [])
        end: dict[str, Any] = {}
        if code != framing.OK:
            end["error"] = error_of(code, details, trailers)
        metadata: dict[str, list[str]] = {}
        for name, value in trailers:
            if name != _DETAILS:
                metadata.setdefault(name.decode(), []).append(value.decode())
        if metadata:
            end["metadata"] = metadata
        body = json.dumps(end).encode()
        self._output.end(bytes([_END_STREAM]) + len(body).to_bytes(4, "big") + body)


def error_of(code: int, details: str, trailers: Headers) -> dict[str, Any]:
    """A status as Connect's JSON_HEADERS, with the rich errors that are in its trailers."""
    error: dict[str, Any] = {"code": CODES[code][0]}
    if details:
        error["message"] = details
    for name, value in framing.read_metadata(pair for pair in trailers if pair[0] == _DETAILS):
        if rich := _rich_details(value if isinstance(value, bytes) else name.encode()):
            error["details"] = rich
    return error


def _rich_details(raw: bytes) -> list[dict[str, Any]]:
    try:
        status = status_pb2.Status.FromString(raw)
    except Exception:
        # A handler may put anything into its trailers.
        return []
    return [_detail(detail) for detail in status.details]


def _detail(detail: Any) -> dict[str, Any]:
    value = b64encode(detail.value).rstrip(b"=").decode()
    entry: dict[str, Any] = {"type": detail.type_url.rpartition("/")[2], "value": value}
    try:
        # For people: what has its proto here is shown as text.
        debug = json_format.MessageToDict(detail)
    except Exception:
        return entry
    debug.pop("@type", None)
    return entry | {"debug": debug}
