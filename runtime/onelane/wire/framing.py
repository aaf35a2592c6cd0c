"""gRPC's encoding on HTTP/2, for both ends: message framing, timeouts, metadata, status.

Source: grpc/doc/PROTOCOL-HTTP2.md, grpc/doc/http-grpc-status-mapping.md.
"""

import re
import zlib
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from onelane.core.hop import HOP_HEADERS
from onelane.errors import caused
from onelane.wire.statuses import CANCELLED as CANCELLED
from onelane.wire.statuses import DEADLINE_EXCEEDED as DEADLINE_EXCEEDED
from onelane.wire.statuses import INTERNAL as INTERNAL
from onelane.wire.statuses import INVALID_ARGUMENT as INVALID_ARGUMENT
from onelane.wire.statuses import OK as OK
from onelane.wire.statuses import PERMISSION_DENIED as PERMISSION_DENIED
from onelane.wire.statuses import RESOURCE_EXHAUSTED as RESOURCE_EXHAUSTED
from onelane.wire.statuses import UNAUTHENTICATED as UNAUTHENTICATED
from onelane.wire.statuses import UNAVAILABLE as UNAVAILABLE
from onelane.wire.statuses import UNIMPLEMENTED as UNIMPLEMENTED
from onelane.wire.statuses import UNKNOWN as UNKNOWN
from onelane.wire.statuses import BadMetadata as BadMetadata
from onelane.wire.statuses import BadMetadataType as BadMetadataType
from onelane.wire.statuses import BadWire as BadWire

Metadata = Sequence[tuple[str, str | bytes]]
Headers = list[tuple[bytes, bytes]]
HeaderTuple = tuple[tuple[bytes, bytes], ...]
"""Headers that have come."""

PREFIX: Final = 5
"""Bytes of the prefix of each message: a compressed flag (1) and the length (4)."""
ENCODINGS: Final = b"identity,deflate,gzip"
KNOWN_ENCODINGS = frozenset({b"", *ENCODINGS.split(b",")})
"""Values of `grpc-encoding` that can be read; b"" where there is none."""
WINDOW_BITS = {b"deflate": 15, b"gzip": 31}
"""For zlib. Source: compression.md; `deflate` is zlib's format (RFC 1950), as everywhere in HTTP."""
_LEVEL = 6
MAX_TIMEOUT_DIGITS: Final = 8
MAX_STATUS_DIGITS: Final = 9
_NOT_FOR_APPLICATIONS = frozenset({b"grpc-previous-rpc-attempts", b"grpc-tags-bin", b"grpc-trace-bin"})
"""Names that are sent as metadata, and that applications do not see; as in grpcio."""
_PER_SECOND = {b"n": 1e9, b"u": 1e6, b"m": 1e3, b"S": 1.0, b"M": 1 / 60, b"H": 1 / 3600}
_PRINTABLE = bytes(set(range(0x20, 0x7F)) - {0x25})
_NAME = re.compile(rb"[0-9a-z_.-]+")
_VALUE = re.compile(rb"[\x20-\x7e]*")
RESERVED = frozenset(
    {
        *(b":method", b":scheme", b":path", b":authority", b":status"),
        *(b"te", b"content-type", b"user-agent", b"host", b"accept-encoding", b"content-length"),
        *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status", b"grpc-message"),
        *HOP_HEADERS,
    }
)
"""Header names of HTTP, of gRPC and of a forward between shards: no application sends or receives them as metadata."""


def is_one_message(data: bytes, limit: int) -> bool:
    """Whether `data` is exactly one message, not compressed, of `limit` bytes at most. Nearly every DATA frame is."""
    return len(data) >= PREFIX and data[0] == 0 and int.from_bytes(data[1:5], "big") == len(data) - PREFIX <= limit


def frame(message: bytes) -> bytes:
    """One message with its prefix, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def frame_compressed(encoding: bytes, message: bytes) -> bytes:
    """One message with its prefix, compressed where that makes it smaller."""
    packer = zlib.compressobj(_LEVEL, wbits=WINDOW_BITS[encoding])
    packed = packer.compress(message) + packer.flush()
    return b"\1" + len(packed).to_bytes(4, "big") + packed if len(packed) < len(message) else frame(message)


FRAMERS: Mapping[int, tuple[bytes, Callable[[bytes], bytes]]] = {
    number: (encoding, partial(frame_compressed, encoding)) for number, encoding in enumerate([b"deflate", b"gzip"], 1)
}
"""The number of an algorithm, which `grpc.Compression` has → its `grpc-encoding`, and what frames a message so."""


def accepts(accepted: bytes, encoding: bytes) -> bool:
    """Whether a `grpc-accept-encoding` has an encoding."""
    return encoding in (token.strip() for token in accepted.split(b","))


class FrameCutter:
    """Cuts the bytes of one stream into messages that keep their prefix, and are not decompressed: to be sent on."""

    __slots__ = ("_rest", "_size")

    def __init__(self) -> None:
        self._rest = bytearray()
        """The first bytes of a message that is not complete. No list of chunks: a peer may send them byte by byte."""
        self._size = PREFIX
        """The size at which `_rest` is to be looked at again."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; returns the messages that they complete."""
        if not self._rest and len(data) >= PREFIX and int.from_bytes(data[1:PREFIX], "big") == len(data) - PREFIX:
            return [data]
        self._rest += data
        frames: list[bytes] = []
        at = 0
        while len(self._rest) - at >= self._size:
            end = at + PREFIX + int.from_bytes(self._rest[at + 1 : at + PREFIX], "big")
            if len(self._rest) < end:
                self._size = end - at
                break
            frames.append(bytes(self._rest[at:end]))
            at, self._size = end, PREFIX
        del self._rest[:at]
        return frames

    @property
    def is_between(self) -> bool:
        """Whether no message is incomplete: the stream may end here."""
        return not self._rest

    @property
    def missing(self) -> int:
        """See `Deframer`."""
        return self._size - len(self._rest) if self._rest else 0


class Discarder:
    """Stands where a `Deframer` has failed: what follows cannot be read."""

    __slots__ = ()
    is_between = True
    missing = 0
    buffered = 0

    def feed(self, data: bytes) -> list[bytes]:
        return []


def write_timeout(seconds: float) -> bytes:
    """`grpc-timeout` in the finest unit that fits 8 digits; rounded down, so no deadline grows; at least 1 ns."""
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


def write_metadata(metadata: Iterable[Any]) -> Headers:
    """Custom metadata as headers; `-bin` values in base64.

    Reserved names are left out, as grpcio does, so that no metadata can change a status.

    Raises:
        BadMetadata: a name or a value cannot be sent.
        BadMetadataType: it is not made of pairs of a str, and a str, or bytes where the name ends in `-bin`.
    """
    if isinstance(metadata, dict):
        # Its keys, where they are of two letters, would pass for pairs.
        raise BadMetadataType(f"Invalid metadata: {metadata!r}, expected pairs of a name and a value")
    headers: Headers = []
    try:
        for name, value in metadata:
            is_binary = isinstance(name, str) and name.endswith("-bin")
            if not isinstance(name, str) or not isinstance(value, bytes if is_binary else str | bytes):
                wanted = "bytes" if is_binary else "str or bytes"
                raise BadMetadataType(f"Invalid metadata: {name!r}: {value!r}, expected str: {wanted}")
            key = name.encode("utf-8", "surrogatepass")
            raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
            if is_binary:
                raw = b64encode(raw).rstrip(b"=")
            if not _NAME.fullmatch(key) or not _VALUE.fullmatch(raw):
                raise BadMetadata(f"Invalid metadata: {name!r}: {value!r}")
            if key not in RESERVED:
                headers.append((key, raw))
    except BadWire:
        raise
    except (TypeError, ValueError):
        raise BadMetadataType(f"Invalid metadata: {metadata!r}, expected pairs of a name and a value") from None
    return headers


def pairs_of(metadata: Any) -> Metadata:
    """What a caller passes as metadata, as a tuple of pairs.

    Raises:
        BadMetadataType: it is none, such as a dict or a single pair.
    """
    try:
        pairs = tuple(metadata)
        if not isinstance(metadata, dict) and all(len(pair) == 2 and not isinstance(pair, str) for pair in pairs):
            return pairs
    except TypeError:
        pass
    raise BadMetadataType(f"Invalid metadata: {metadata!r}, expected pairs of a name and a value")


def read_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The application's metadata in `headers`, without HTTP's and gRPC's own.

    Raises:
        BadWire: a `-bin` value is not base64.
    """
    application = [pair for pair in headers if pair[0] not in RESERVED]
    if not application:
        return ()
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in application:
        if name in _NOT_FOR_APPLICATIONS:
            continue
        if name.endswith(b"-bin"):
            metadata += [(name.decode("ascii"), _unbase64(part)) for part in value.split(b",")]
        else:
            metadata.append((name.decode("ascii"), _text(value)))
    return tuple(metadata)


def _text(value: bytes) -> str:
    """A value as text: UTF-8, and where it is none, Latin-1; as in grpcio."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def unchecked_headers(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Metadata that a listener has taken from a client, as headers again. Not checked: names and values that the
    client could send, its call may also be sent on with."""
    headers: Headers = []
    for name, value in metadata:
        raw = value if isinstance(value, bytes) else value.encode()
        headers.append((name.encode(), b64encode(raw).rstrip(b"=") if name.endswith("-bin") else raw))
    return headers


def _unbase64(value: bytes) -> bytes:
    value = value.strip()
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except BadBase64 as error:
        raise caused(BadWire(f"metadata in -bin is not base64: {error}"), error) from error


def write_message(details: str) -> bytes:
    """`grpc-message`: percent-encoded UTF-8; a lone surrogate is a question mark."""
    raw = details.encode("utf-8", "replace")
    # Most details are printable ASCII, for which this test takes a tenth of the time that urllib takes.
    return quote_from_bytes(raw, safe=_PRINTABLE).encode() if raw.translate(None, _PRINTABLE) else raw


def read_message(text: bytes) -> str:
    """Decode a `grpc-message`; malformed escapes stay as they are."""
    return unquote_to_bytes(text).decode("utf-8", "replace")


def read_status(text: bytes) -> int:
    """The number of a `grpc-status`; UNKNOWN where gRPC has no such status, INTERNAL where it is no number."""
    if not text.isdigit() or len(text) > MAX_STATUS_DIGITS:
        return INTERNAL
    number = int(text)
    return number if number <= UNAUTHENTICATED else UNKNOWN


def status_of_http(status: int) -> int:
    """The gRPC status of a response that has only an HTTP status. Source: http-grpc-status-mapping.md."""
    mapped = {400: INTERNAL, 401: UNAUTHENTICATED, 403: PERMISSION_DENIED, 404: UNIMPLEMENTED}
    return mapped.get(status, UNAVAILABLE if status in (429, 502, 503, 504) else UNKNOWN)


_STATUS_OF_RESET = {0x7: UNAVAILABLE, 0x8: CANCELLED, 0xB: RESOURCE_EXHAUSTED, 0xC: PERMISSION_DENIED}
_RESET_OF_STATUS = {status: error for error, status in _STATUS_OF_RESET.items()} | {DEADLINE_EXCEEDED: 0x8}


def status_of_reset(error_code: int) -> int:
    """The gRPC status of a stream that the peer reset with an HTTP/2 error code. Source: PROTOCOL-HTTP2.md, Errors."""
    return _STATUS_OF_RESET.get(error_code, INTERNAL)


def reset_of_status(status: int) -> int:
    """The HTTP/2 error code with which a client resets a stream, so that its server knows the status of the call: the
    inverse of `status_of_reset`, as far as there is one."""
    return _RESET_OF_STATUS.get(status, 0x2)
