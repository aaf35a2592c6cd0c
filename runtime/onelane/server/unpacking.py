"""Unpacks the compressed messages of one shard: in pieces, one in each turn of the loop, the connections in turn.

A few bytes of gzip make megabytes, and zlib takes milliseconds for them: in one go they would hold up the lane, and
those of one client every other's. So a message that is not small waits here, after its call has been admitted.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from onelane.wire.framing import BadWire
from onelane.wire.packed import Packed

UNPACKED_PIECE = 64 * 1024
"""Bytes that are unpacked in one turn of the loop, in some 0.2 ms."""
SMALL = 16 * 1024
"""Bytes of a message that is unpacked at once."""


class Unpacking:
    """One message that is being unpacked."""

    def __init__(
        self, packed: Packed, *, grown: Callable[[int], bool], ended: Callable[[BadWire | None], None]
    ) -> None:
        """grown: told of so many bytes more; whether the message is still wanted. ended: called once, with the failure
        where the message cannot be unpacked."""
        self.packed = packed
        self._grown = grown
        self._ended = ended

    def advance(self) -> bool:
        """Unpack a piece; whether that was the last."""
        before = self.packed.size
        try:
            is_whole = self.packed.advance(UNPACKED_PIECE)
        except BadWire as error:
            self._ended(error)
            return True
        if not self._grown(self.packed.size - before):
            return True
        if is_whole:
            self._ended(None)
        return is_whole


class Unpacker:
    """See the module. Owned by one listener."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: OrderedDict[Any, deque[Unpacking]] = OrderedDict()
        """Connection → its messages; the connection whose turn is next comes first."""
        self._is_scheduled = False

    def add(self, connection: object, unpacking: Unpacking) -> None:
        """Unpack a message after those of its connection that wait already."""
        self._waiting.setdefault(connection, deque()).append(unpacking)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._is_scheduled = False
        connection, messages = self._waiting.popitem(last=False)
        try:
            if messages[0].advance():
                messages.popleft()
        finally:
            # Also where what follows on a message has failed: the others go on.
            if messages:
                self._waiting[connection] = messages
            self._schedule()
