"""The lingering close of a socket: our side is shut, the client may still send, and closes.

Closed at once with unread bytes in its buffer, a socket sends a reset, which can overtake our last frames.
"""

import asyncio
from collections.abc import Callable

MAX_S = 0.5
"""How long the client may take to close."""
MAX_BYTES = 64 * 1024
"""Bytes that are read and dropped meanwhile; a client that sends more is cut off."""


class Lingering(asyncio.Protocol):
    """Takes the place of a connection's protocol once its last bytes have been written."""

    def __init__(self, transport: asyncio.Transport, lost: Callable[[Exception | None], None]) -> None:
        """lost: called once the socket is closed."""
        self._transport = transport
        self._lost = lost
        self._bytes_left = MAX_BYTES
        self._timer = asyncio.get_running_loop().call_later(MAX_S, transport.close)

    def data_received(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._lost(error)
