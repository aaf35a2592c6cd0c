"""The frames of the link between siblings, see `link`: their kinds, lengths and header blocks. Pure."""

import re
from collections.abc import Sequence
from struct import Struct, error
from typing import Final

from onelane.wire.framing import HeaderTuple

MAGIC: Final = b"onelane link\r\n\r\n"
NEWEST: Final = 1
OLDEST: Final = 1
"""Versions of this protocol that this release speaks."""
HEAD: Final = Struct("<IIBB")
"""Bytes that follow, stream, kind, flags."""
HELLO_FIELDS: Final = Struct("<HHIII")
"""Newest version, oldest, credit of a stream, bytes of the largest header list, concurrent streams. A later release
may append to it."""
NUMBER: Final = Struct("<I")
PAIR: Final = Struct("<HI")
GOODBYE: Final = Struct("<II")
HELLO: Final = 1
REQUEST: Final = 2
HEADERS: Final = 3
DATA: Final = 4
TRAILERS: Final = 5
RESET: Final = 6
CREDIT: Final = 7
PING: Final = 8
PONG: Final = 9
GOAWAY: Final = 10
KNOWN: Final = 11
CALL: Final = 12
ANSWER: Final = 13
ENDS: Final = 1
HAS_DEADLINE: Final = 2
UNSAMPLED_CALL: Final = 4
"""Flags. ENDS: of a frame that is the last of its end of the stream. The others are a CALL's: it has a deadline; its
trace is not recorded and has no id."""
CALL_FIELDS: Final = Struct("<IdQI")
"""Of a CALL: number of the header block, deadline by the monotonic clock, epoch, bytes of its own headers."""
CALL_HEAD: Final = Struct("<IIBBIdQI")
"""HEAD and CALL_FIELDS."""
ANSWER_HEAD: Final = Struct("<IIBBI")
"""HEAD, and the number of the block with the trailers."""
FAR: Final = 1e12
"""No deadline is later, in seconds."""
MAX_FRAME: Final = 65_536
"""Bytes of the largest frame, but for those with headers."""
WHOLE: Final = 16_384
"""Bytes of the largest message that goes in one frame with its headers or trailers, and needs no credit."""
MAX_PONGS: Final = 1000
MAX_KNOWN: Final = 256
MAX_KNOWN_BLOCK: Final = 2048
"""Header blocks that each end remembers, and the bytes of the largest of them."""
WITH_HEADERS: Final = (REQUEST, HEADERS, TRAILERS, CALL)
MAX_STREAM: Final = 2_147_483_647
_NAME: Final = re.compile(rb":?[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(rb"[^\0\r\n]*")
Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, and what follows."""


MALFORMED = error
"""Raised where a frame has not the bytes of its kind."""


class LinkBroken(Exception):
    """The peer has broken the protocol of the link."""


def frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    return HEAD.pack(len(payload), stream, kind, flags) + payload


def write_block(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Headers, each with the lengths of its name and value before it."""
    parts: list[bytes] = []
    for name, value in headers:
        parts += (PAIR.pack(len(name), len(value)), name, value)
    return b"".join(parts)


def read_block(block: bytes, max_headers: int) -> HeaderTuple:
    """Headers that have come.

    Raises:
        LinkBroken: the lengths are wrong, or there are more than `max_headers`.
    """
    headers: list[tuple[bytes, bytes]] = []
    at, end = 0, len(block)
    while at < end:
        if end - at < PAIR.size:
            raise LinkBroken("a header is shorter than its lengths")
        of_name, of_value = PAIR.unpack_from(block, at)
        begin = at + PAIR.size
        middle = begin + of_name
        at = middle + of_value
        if at > end:
            raise LinkBroken("a header is longer than its block")
        headers.append((block[begin:middle], block[middle:at]))
        if len(headers) > max_headers:
            raise LinkBroken(f"a block of more than {max_headers} headers")
    return tuple(headers)


def are_valid(headers: HeaderTuple) -> bool:
    """Whether HTTP/2 takes these headers. A client may have sent others by way of the `grpcio` listener."""
    return all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers)


RESPONSE_BLOCK: Final = write_block([(b":status", b"200"), (b"content-type", b"application/grpc")])
OK_BLOCK: Final = write_block([(b"grpc-status", b"0")])
