"""How large a list of headers may be, and the end of a call made to fit.

A peer that gets more than it takes refuses the headers, or closes the connection with all its calls; and libnghttp2
drops what is over its own limit. So metadata that is too large is refused before it is sent; and where that is the end
of a call, its details and trailers are cut, since code and text must arrive. Pure. Source: RFC 9113, section 6.5.2.
"""

from collections.abc import Sequence
from itertools import chain
from urllib.parse import unquote_to_bytes

from onelane.wire.framing import RESERVED, RESOURCE_EXHAUSTED, BadWire, Headers, write_message

FIELD_OVERHEAD = 32
"""Bytes that RFC 9113 adds to the size of each header field."""
LONGEST_FIELD = 65_535
"""Bytes of a name or of a value that siblings take of each other: with a longer one libnghttp2 ends the connection, and
so the calls of all clients that are forwarded on it."""
CUT = "onelane-cut"
"""Trailer that names what was left out of the end of a call: `details`, and the trailers by their names."""
MARK_BYTES = 256
"""Kept free for that trailer."""


class TooMuchMetadata(BadWire, ValueError):
    """Metadata that the peer does not take, or this end does not send."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"metadata of {size} bytes, at most {limit}", code=RESOURCE_EXHAUSTED)


def size_of(headers: Sequence[tuple[bytes, bytes]]) -> int:
    """Bytes of a header list, as SETTINGS_MAX_HEADER_LIST_SIZE counts them."""
    return sum(map(len, chain.from_iterable(headers))) + FIELD_OVERHEAD * len(headers)


def has_long_field(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a name or a value is over LONGEST_FIELD."""
    return max(map(len, chain.from_iterable(headers)), default=0) > LONGEST_FIELD


def cut_to(headers: Headers, limit: int) -> tuple[Headers, list[str]]:
    """The end of a call in `limit` bytes, and the names of what was cut.

    Details get half of the room, and what trailers leave; of the trailers the largest are left out.
    """
    fixed = [(name, value) for name, value in headers if name in RESERVED and name != b"grpc-message"]
    trailers = [(name, value) for name, value in headers if name not in RESERVED]
    details = dict(headers).get(b"grpc-message")
    room = max(0, limit - size_of(fixed) - MARK_BYTES)
    cut: list[str] = []
    if details is not None:
        overhead = size_of([(b"grpc-message", b"")])
        for_details = max(room // 2, room - size_of(trailers)) - overhead
        if len(details) > for_details:
            details = _shortened(details, max(0, for_details))
            cut.append("details")
        fixed.append((b"grpc-message", details))
        room -= overhead + len(details)
    small = _smallest(trailers, room)
    names = [name.decode() for at, (name, _) in enumerate(trailers) if at not in small]
    mark = (CUT.encode(), ",".join([*cut, *names]).encode()[: MARK_BYTES - FIELD_OVERHEAD - len(CUT)])
    return [*fixed, *(pair for at, pair in enumerate(trailers) if at in small), mark], [*cut, *names]


def _smallest(trailers: Headers, room: int) -> set[int]:
    """The places of as many trailers as there is room for."""
    places: set[int] = set()
    for at in sorted(range(len(trailers)), key=lambda at: size_of([trailers[at]])):
        room -= size_of([trailers[at]])
        if room < 0:
            break
        places.add(at)
    return places


def _shortened(details: bytes, length: int) -> bytes:
    """A `grpc-message` of at most `length` bytes that says how long it was; cut between two characters."""
    mark = b" [cut from %d bytes]" % len(details)
    begin = details[: max(0, length - len(mark))]
    escape = begin.rfind(b"%", max(0, len(begin) - 2))
    if escape >= 0:
        begin = begin[:escape]
    return write_message(unquote_to_bytes(begin).decode("utf-8", "ignore")) + mark
