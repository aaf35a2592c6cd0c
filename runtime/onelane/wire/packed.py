"""A compressed message, unpacked in pieces when its reader asks for it: of a few kilobytes, gzip makes megabytes."""

import zlib
from collections.abc import Callable

from onelane.wire.framing import RESOURCE_EXHAUSTED, WINDOW_BITS, BadWire

SLICE = 64 * 1024
"""Compressed bytes that are given to zlib at once."""


class Packed(bytes):
    """A compressed message, and as much of it as `advance` has unpacked."""

    def __new__(cls, data: bytes, encoding: bytes, limit: int) -> "Packed":
        return super().__new__(cls, data)

    def __init__(self, data: bytes, encoding: bytes, limit: int) -> None:
        """limit: bytes of the message at most, unpacked."""
        self.translation: Callable[[bytes], bytes] | None = None
        """What makes the message of gRPC from what was unpacked, such as JSON. Raises BadWire."""
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
            BadWire: the message is over the limit (RESOURCE_EXHAUSTED), malformed (INTERNAL), or cannot be translated.
                So does every further call.
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
        if self.translation is not None:
            try:
                self._chunks = [self.translation(self.message())]
            except BadWire as error:
                self._fail(error)
        self.is_whole = True

    def _fail(self, error: BadWire) -> None:
        self._chunks, self._error = [], error
        raise error


def too_large(size: int, limit: int) -> BadWire:
    return BadWire(f"Received message larger than max ({size} vs. {limit})", code=RESOURCE_EXHAUSTED)
