"""What gRPC writes over HTTP/2, both sides: message framing, timeouts, metadata, status.

Source: grpc/doc/PROTOCOL-HTTP2.md, grpc/doc/http-grpc-status-mapping.md.
"""

import gzip
import re
import zlib
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Iterable, Sequence
from urllib.parse import quote_from_bytes, unquote_to_bytes

from onelane.errors import OnelaneError

Metadata = Sequence[tuple[str, str | bytes]]
Headers = list[tuple[bytes, bytes]]

OK = 0
CANCELLED = 1
UNKNOWN = 2
DEADLINE_EXCEEDED = 4
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

PREFIX = 5
"""Bytes before each message: a flag that says whether it is compressed, and its length."""
ENCODINGS = b"identity,gzip"
MAX_TIMEOUT_DIGITS = 8
_PASSED = frozenset({b"grpc-status-details-bin", b"grpc-retry-pushback-ms"})
"""Of gRPC's own names, those that applications see."""
_PER_SECOND = {b"n": 1e9, b"u": 1e6, b"m": 1e3, b"S": 1.0, b"M": 1 / 60, b"H": 1 / 3600}
_PRINTABLE = bytes(set(range(0x20, 0x7F)) - {0x25})
_NAME = re.compile(rb"[0-9a-z_.-]+")
_VALUE = re.compile(rb"[\x20-\x7e]*")
OURS = frozenset(
    {
        *(b":method", b":scheme", b":path", b":authority", b":status"),
        *(b"te", b"content-type", b"user-agent", b"host", b"accept-encoding", b"content-length"),
        *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status", b"grpc-message"),
    }
)


class BadWire(OnelaneError):
    """The peer broke gRPC's protocol on one stream; `code` is the gRPC status to answer with."""

    status = "INTERNAL"

    def __init__(self, text: str, *, code: int = INTERNAL) -> None:
        super().__init__(text)
        self.code = code


def whole(data: bytes, limit: int) -> bool:
    """`data` is exactly one message that is not compressed and within `limit`, as nearly every piece is."""
    return len(data) >= PREFIX and data[0] == 0 and int.from_bytes(data[1:5], "big") == len(data) - PREFIX <= limit


def frame(message: bytes) -> bytes:
    """One message as it goes on the wire, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def frame_gzip(message: bytes) -> bytes:
    """One message, compressed."""
    packed = gzip.compress(message, compresslevel=6, mtime=0)
    return b"\1" + len(packed).to_bytes(4, "big") + packed


class Deframer:
    """Cuts the bytes of one stream into messages. Holds at most one message of `limit` bytes, and its prefix."""

    __slots__ = ("_body", "_encoding", "_flag", "_limit", "_missing", "_prefix")

    def __init__(self, *, limit: int, encoding: bytes) -> None:
        """encoding: the stream's `grpc-encoding`; b"" or b"identity" for none. Only compressed messages ask for it."""
        self._encoding = encoding
        self._limit = limit
        self._prefix = b""
        """The beginning of a prefix whose rest has not come."""
        self._flag = 0
        self._body = bytearray()
        """Of a message whose prefix has come. Not a list of pieces: a peer may make them as small as it likes."""
        self._missing = 0
        """Bytes of it that have not come."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now.

        Raises:
            BadWire: a message over the limit (RESOURCE_EXHAUSTED), one that is compressed in an encoding that is not
                known here (UNIMPLEMENTED), or one that breaks the rules (INTERNAL).
        """
        messages: list[bytes] = []
        if self._missing:
            piece, data = data[: self._missing], data[self._missing :]
            self._body += piece
            self._missing -= len(piece)
            if self._missing:
                return messages
            body, self._body = self._body, bytearray()
            messages.append(self._message(self._flag, bytes(body)))
        if self._prefix:
            data = self._prefix + data
        at = 0
        while len(data) - at >= PREFIX:
            size = int.from_bytes(data[at + 1 : at + PREFIX], "big")
            if size > self._limit:
                self._refuse(size)
            begin, end = at + PREFIX, at + PREFIX + size
            if end > len(data):
                self._flag, self._body, self._missing = data[at], bytearray(data[begin:]), end - len(data)
                self._prefix = b""
                return messages
            messages.append(self._message(data[at], data[begin:end]))
            at = end
        self._prefix = data[at:]
        return messages

    @property
    def is_between(self) -> bool:
        """No message has been begun: the stream may end here."""
        return not self._prefix and not self._missing

    def _message(self, flag: int, message: bytes) -> bytes:
        if len(message) > self._limit:
            self._refuse(len(message))
        if flag == 0:
            return message
        if flag != 1:
            raise BadWire(f"compressed flag is {flag}, expected 0 or 1")
        if self._encoding in (b"", b"identity"):
            raise BadWire("a compressed message in a stream without grpc-encoding")
        if self._encoding != b"gzip":
            raise BadWire(f"grpc-encoding {self._encoding.decode('latin-1')!r} is not supported", code=UNIMPLEMENTED)
        return self._unpack(message)

    def _unpack(self, message: bytes) -> bytes:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            unpacked = unpacker.decompress(message, self._limit + 1)
        except zlib.error as error:
            raise BadWire(f"a message is not gzip: {error}") from error
        if len(unpacked) > self._limit:
            self._refuse(len(unpacked))
        if not unpacker.eof:
            raise BadWire("a gzip message ends too soon")
        if unpacker.unused_data:
            raise BadWire("a gzip message goes on after its end")
        return unpacked

    def _refuse(self, size: int) -> None:
        raise BadWire(f"Received message larger than max ({size} vs. {self._limit})", code=RESOURCE_EXHAUSTED)


def write_timeout(seconds: float) -> bytes:
    """`grpc-timeout` in the finest unit that fits eight digits, rounded down: a deadline never grows. At least 1 ns."""
    for unit, per_second in _PER_SECOND.items():
        count = int(seconds * per_second)
        if count < 10**MAX_TIMEOUT_DIGITS:
            return b"%d%s" % (max(count, 1), unit)
    return b"99999999H"


def read_timeout(text: bytes) -> float:
    """Seconds of a `grpc-timeout`.

    Raises:
        BadWire: it is malformed.
    """
    digits, unit = text[:-1], text[-1:]
    if unit not in _PER_SECOND or not digits.isdigit() or len(digits) > MAX_TIMEOUT_DIGITS:
        raise BadWire(f"grpc-timeout {text.decode('latin-1')!r}: expected up to 8 digits and one of n u m S M H")
    return int(digits) / _PER_SECOND[unit]


def write_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Custom metadata as headers; `-bin` values in base64.

    What gRPC and HTTP write themselves is left out, as grpcio does: no metadata can change a status.

    Raises:
        BadWire: a name or a value that cannot be sent.
    """
    headers: Headers = []
    for name, value in metadata:
        if not isinstance(name, str) or not isinstance(value, str | bytes):
            raise BadWire(f"Invalid metadata: {name!r}: {value!r}, expected str: str or bytes")
        key = name.encode("utf-8", "surrogatepass")
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        if name.endswith("-bin"):
            raw = b64encode(raw).rstrip(b"=")
        if not _NAME.fullmatch(key) or not _VALUE.fullmatch(raw):
            raise BadWire(f"Invalid metadata: {name!r}: {value!r}")
        if key not in OURS:
            headers.append((key, raw))
    return headers


def read_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The application's metadata in `headers`: without HTTP's and gRPC's own."""
    application = [pair for pair in headers if pair[0] not in OURS]
    if not application:
        return ()
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in application:
        if name.startswith(b"grpc-") and name not in _PASSED:
            continue
        if name.endswith(b"-bin"):
            metadata += [(name.decode("ascii"), _unbase64(part)) for part in value.split(b",")]
        else:
            metadata.append((name.decode("ascii"), value.decode("latin-1")))
    return tuple(metadata)


def _unbase64(value: bytes) -> bytes:
    value = value.strip()
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except BadBase64 as error:
        raise BadWire(f"metadata in -bin is not base64: {error}") from error


def write_message(details: str) -> bytes:
    """`grpc-message`: percent-encoded UTF-8."""
    raw = details.encode()
    # Most are plain text, and urllib takes ten times as long to find that out.
    return quote_from_bytes(raw, safe=_PRINTABLE).encode() if raw.translate(None, _PRINTABLE) else raw


def read_message(text: bytes) -> str:
    """A `grpc-message`; what is malformed is kept as it came."""
    return unquote_to_bytes(text).decode("utf-8", "replace")


def status_of_http(status: int) -> int:
    """The gRPC status of an answer that has none of its own. Source: http-grpc-status-mapping.md."""
    mapped = {400: INTERNAL, 401: UNAUTHENTICATED, 403: PERMISSION_DENIED, 404: UNIMPLEMENTED}
    return mapped.get(status, UNAVAILABLE if status in (429, 502, 503, 504) else UNKNOWN)


def status_of_reset(error_code: int) -> int:
    """The gRPC status of a stream that the peer reset with an HTTP/2 error code. Source: PROTOCOL-HTTP2.md, Errors."""
    return {0x7: UNAVAILABLE, 0x8: CANCELLED, 0xB: RESOURCE_EXHAUSTED, 0xC: PERMISSION_DENIED}.get(error_code, INTERNAL)
