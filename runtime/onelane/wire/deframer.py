"""The messages of one stream: cut out of its bytes, and unpacked where they are compressed.

A server does not unpack a message when it comes, but once its call is admitted and its reader asks for it: of a few
kilobytes, gzip makes megabytes. So there a compressed message is `Packed`, and unpacked in pieces.
"""

from onelane.wire.framing import PREFIX, UNIMPLEMENTED, WINDOW_BITS, BadWire
from onelane.wire.http2 import Body
from onelane.wire.packed import SLICE, Packed, too_large


class Deframer:
    """Cuts the bytes of one stream into messages. Buffers at most one message of `limit` bytes, and its prefix."""

    __slots__ = ("_body", "_encoding", "_flag", "_limit", "_missing", "_prefix", "_unpacks")

    def __init__(self, *, limit: int, encoding: bytes, unpacks: bool = True) -> None:
        """encoding: the stream's `grpc-encoding`; b"" or b"identity" for none. Used for compressed messages alone.
        unpacks: at once; else a compressed message is `Packed`."""
        self._encoding = encoding
        self._unpacks = unpacks
        self._limit = limit
        self._prefix = b""
        """The first bytes of a prefix that is not complete."""
        self._flag = 0
        self._body: Body | None = None
        """The bytes so far of a message that is not complete."""
        self._missing = 0
        """Bytes that `_body` still lacks."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; returns the messages that they complete.

        Raises:
            BadWire: a message is over the limit (RESOURCE_EXHAUSTED), compressed in an unknown encoding
                (UNIMPLEMENTED), or malformed (INTERNAL). It has the messages before; nothing after it can be read.
        """
        messages: list[bytes] = []
        try:
            self._cut(data, messages)
        except BadWire as error:
            error.messages = messages
            raise
        return messages

    def _cut(self, data: bytes, messages: list[bytes]) -> None:
        """Append the messages that `data` completes."""
        if self._body is not None:
            chunk, data = (data, b"") if len(data) <= self._missing else (data[: self._missing], data[self._missing :])
            self._body.add(chunk)
            self._missing -= len(chunk)
            if self._missing:
                return
            body, self._body = self._body, None
            messages.append(self._message(self._flag, body.take()))
        if self._prefix:
            data = self._prefix + data
        at = 0
        while len(data) - at >= PREFIX:
            size = int.from_bytes(data[at + 1 : at + PREFIX], "big")
            if size > self._limit:
                raise too_large(size, self._limit)
            begin, end = at + PREFIX, at + PREFIX + size
            if end > len(data):
                self._flag, self._body, self._missing = data[at], Body(size), end - len(data)
                self._body.add(memoryview(data)[begin:])
                self._prefix = b""
                return
            messages.append(self._message(data[at], data[begin:end]))
            at = end
        self._prefix = data[at:]

    @property
    def is_between(self) -> bool:
        """Whether no message is incomplete: the stream may end here."""
        return not self._prefix and not self._missing

    @property
    def missing(self) -> int:
        """Bytes that a message lacks whose prefix is complete."""
        return self._missing

    @property
    def buffered(self) -> int:
        """Bytes of the message that is not complete."""
        return len(self._prefix) + (0 if self._body is None else len(self._body))

    def _message(self, flag: int, message: bytes) -> bytes:
        if len(message) > self._limit:
            raise too_large(len(message), self._limit)
        if flag == 0:
            return message
        if flag != 1:
            raise BadWire(f"compressed flag is {flag}, expected 0 or 1")
        if self._encoding in (b"", b"identity"):
            raise BadWire("a message is compressed, but the stream has no grpc-encoding")
        if self._encoding not in WINDOW_BITS:
            raise BadWire(f"grpc-encoding {self._encoding.decode('latin-1')!r} is not supported", code=UNIMPLEMENTED)
        packed = Packed(message, self._encoding, self._limit)
        if not self._unpacks:
            return packed
        while not packed.advance(SLICE):
            pass
        return packed.message()


def message_of(frame: bytes, encoding: bytes) -> bytes:
    """The message of a `frame`, which a sibling has sent.

    Raises:
        BadWire: it is compressed, and cannot be unpacked.
    """
    if not frame[0]:
        return frame[PREFIX:]
    return Deframer(limit=2**32, encoding=encoding).feed(frame)[0]
