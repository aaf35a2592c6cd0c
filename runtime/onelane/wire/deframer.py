"""The messages of one stream: cut out of its bytes, and unpacked where they are compressed.

A server does not unpack a message when it comes, but once its call is admitted and its reader asks for it: of a few
kilobytes, gzip makes megabytes. So there a compressed message is `Packed`, and unpacked in pieces.
"""

import zlib

from onelane.wire.framing import PREFIX, RESOURCE_EXHAUSTED, UNIMPLEMENTED, WINDOW_BITS, BadWire

SLICE = 64 * 1024
"""Compressed bytes that are given to zlib at once."""


class Packed(bytes):
    """A compressed message, and as much of it as `advance` has unpacked."""

    def __new__(cls, data: bytes, encoding: bytes, limit: int) -> "Packed":
        return super().__new__(cls, data)

    def __init__(self, data: bytes, encoding: bytes, limit: int) -> None:
        """limit: bytes of the message at most, unpacked."""
        self.size = 0
        """Bytes unpacked so far."""
        self.is_whole = False
        self._at = 0
        self._encoding = encoding.decode()
        self._limit = limit
        self._chunks: list[bytes] = []
        self._error: BadWire | None = None
        self._unpacker = zlib.decompressobj(wbits=WINDOW_BITS[encoding])

    def advance(self, amount: int) -> bool:
        """Unpack some more, with the work for about `amount` bytes; whether all is unpacked.

        Raises:
            BadWire: the message is over the limit (RESOURCE_EXHAUSTED), or malformed (INTERNAL). So does every further
                call.
        """
        if self._error is not None:
            raise self._error
        try:
            while amount > 0 and not self.is_whole:
                amount -= self._unpack_piece(amount)
        except zlib.error as error:
            self._fail(BadWire(f"a message is no valid {self._encoding}: {error}"))
        return self.is_whole

    def message(self) -> bytes:
        """The message, which is whole."""
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def _unpack_piece(self, amount: int) -> int:
        """Take a slice of the data; returns how much work that was."""
        unpacker = self._unpacker
        source = unpacker.unconsumed_tail
        if not source:
            source = self[self._at : self._at + SLICE]
            self._at += len(source)
        chunk = unpacker.decompress(source, min(amount, self._limit + 1 - self.size))
        self.size += len(chunk)
        if chunk:
            self._chunks.append(chunk)
        if self.size > self._limit:
            self._fail(too_large(self.size, self._limit))
        if unpacker.eof:
            self._end()
        elif not source and not chunk:
            self._fail(BadWire(f"a {self._encoding} message is truncated"))
        return max(len(chunk), len(source) - len(unpacker.unconsumed_tail), 1)

    def _end(self) -> None:
        if self._unpacker.unused_data or self._at < len(self):
            self._fail(BadWire(f"a {self._encoding} message has bytes after its end"))
        self.is_whole = True

    def _fail(self, error: BadWire) -> None:
        self._chunks, self._error = [], error
        raise error


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
        self._body = bytearray()
        """The bytes so far of a message that is not complete. No list of chunks: a peer may send them byte by byte."""
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
        if self._missing:
            chunk, data = data[: self._missing], data[self._missing :]
            self._body += chunk
            self._missing -= len(chunk)
            if self._missing:
                return
            body, self._body = self._body, bytearray()
            messages.append(self._message(self._flag, bytes(body)))
        if self._prefix:
            data = self._prefix + data
        at = 0
        while len(data) - at >= PREFIX:
            size = int.from_bytes(data[at + 1 : at + PREFIX], "big")
            if size > self._limit:
                raise too_large(size, self._limit)
            begin, end = at + PREFIX, at + PREFIX + size
            if end > len(data):
                self._flag, self._body, self._missing = data[at], bytearray(data[begin:]), end - len(data)
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
        return len(self._prefix) + len(self._body)

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


def too_large(size: int, limit: int) -> BadWire:
    return BadWire(f"Received message larger than max ({size} vs. {limit})", code=RESOURCE_EXHAUSTED)


def message_of(frame: bytes, encoding: bytes) -> bytes:
    """The message of a `frame`, which a sibling has sent.

    Raises:
        BadWire: it is compressed, and cannot be unpacked.
    """
    if not frame[0]:
        return frame[PREFIX:]
    return Deframer(limit=2**32, encoding=encoding).feed(frame)[0]
