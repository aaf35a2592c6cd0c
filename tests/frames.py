"""HTTP/2 frames and HPACK literals by hand, for peers that no library would be."""

import asyncio
from collections.abc import AsyncIterator, Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
FLOW_CONTROL_ERROR, CANCEL = 3, 8
INITIAL_WINDOW_SIZE = 4
MAX_WINDOW = 2**31 - 1


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; of what it may say, the tests say only `initial_window_size`."""
    numbers = {"initial_window_size": INITIAL_WINDOW_SIZE}
    entries = (numbers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(SETTINGS, b"".join(entries))


HELLO = PREFACE + settings()
"""All that a client must say."""


def field(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """One header as an HPACK literal. indexed: it goes into the dynamic table, where it is number 62."""
    return (b"\x40" if indexed else b"\0") + _string(name) + _string(value)


def request(path: bytes, *more: bytes) -> bytes:
    """The header block of a gRPC request; `more` are further HPACK fields."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"here")]
    fields += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    return b"".join([*(field(*pair) for pair in fields), *more])


def headers(stream: int, block: bytes, *, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, block, flags=flags, stream=stream)


def response(stream: int, *fields: tuple[bytes, bytes], last: bool = False) -> bytes:
    """The HEADERS of a server. last: they end the stream."""
    return headers(stream, b"".join(field(*pair) for pair in fields), flags=END_HEADERS | (END_STREAM if last else 0))


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def pieces(message: bytes, *, stream: int, size: int = 16_384) -> Iterable[bytes]:
    """One gRPC message as DATA frames."""
    data = b"\0" + number(len(message)) + message
    return (frame(DATA, data[n : n + size], stream=stream) for n in range(0, len(data), size))


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of what comes, until the peer closes."""
    try:
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            yield head[3], head[4], int.from_bytes(head[5:9], "big"), payload
    except (asyncio.IncompleteReadError, ConnectionError):
        return


def _string(text: bytes) -> bytes:
    return _integer(len(text), 7) + text


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541, 5.1, with the bits before it 0."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = bytearray([most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
