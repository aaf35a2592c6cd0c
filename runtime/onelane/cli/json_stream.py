"""JSON values one after another in a text that arrives in pieces, as from a pipe or a terminal.

Promises: a value is handed out as soon as its last character is there; each character is looked at once; no value is
longer than the limit.
"""

import asyncio
import codecs
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

from onelane.errors import Invalid

MAX_VALUE = 64 * 1024 * 1024
"""Characters of one value."""
_SPACE = " \t\r\n"
_CHUNK = 65536


class JsonValues:
    """The texts of the values; what is wrong inside of one is for its parser to say."""

    def __init__(self, limit: int = MAX_VALUE) -> None:
        self._limit = limit
        self._pieces: list[str] = []
        self._length = 0
        self._depth = 0
        self._is_in_string = self._is_escaped = False

    def feed(self, piece: str) -> Iterator[str]:
        """The values that end in this piece.

        Raises:
            Invalid: one is longer than the limit.
        """
        start = 0
        for index, character in enumerate(piece):
            if self._is_end(character):
                self._keep(piece[start : index + 1])
                start = index + 1
                yield from self._take()
        self._keep(piece[start:])

    def finish(self) -> Iterator[str]:
        """The value that the end of the text ends, whole or not."""
        yield from self._take()

    def _is_end(self, character: str) -> bool:
        if self._is_in_string:
            self._is_in_string = self._is_escaped or character != '"'
            self._is_escaped = character == "\\" and not self._is_escaped
            return not self._is_in_string and self._depth == 0
        if character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth = max(0, self._depth - 1)
            return self._depth == 0
        # A space ends a number or a word; between values it ends nothing.
        return self._depth == 0 and character in _SPACE

    def _keep(self, text: str) -> None:
        self._length += len(text)
        if self._length > self._limit:
            raise Invalid(f"a JSON value is longer than {self._limit} characters")
        if text:
            self._pieces.append(text)

    def _take(self) -> Iterator[str]:
        value = "".join(self._pieces).strip(_SPACE)
        self._pieces.clear()
        self._length = self._depth = 0
        self._is_in_string = self._is_escaped = False
        if value:
            yield value


async def standard_input() -> AsyncIterator[str]:
    """The texts of the values of this process's standard input, each as soon as it is there.

    Raises:
        Invalid: it is no UTF-8, or a value is too long.
    """
    values, decoder = JsonValues(), codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := await _read():
            for value in values.feed(decoder.decode(chunk)):
                yield value
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise Invalid(f"standard input is no UTF-8: {error}") from error
    for value in values.finish():
        yield value


async def _read() -> bytes:
    """The next bytes of standard input, by a thread that this process does not wait for at its end: a terminal may
    never send any, and a file cannot be polled."""
    loop = asyncio.get_running_loop()
    chunk: asyncio.Future[bytes] = loop.create_future()

    def settle(outcome: bytes) -> None:
        if not chunk.done():
            chunk.set_result(outcome)

    def read() -> None:
        try:
            outcome = os.read(0, _CHUNK)
        except OSError:
            outcome = b""
        with suppress(RuntimeError):
            # The loop may be closed.
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=read, name="onelane-stdin", daemon=True).start()
    return await chunk
