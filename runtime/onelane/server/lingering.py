"""The lingering close of a socket: our side is shut, the client may still send, and closes.

Closed at once with unread bytes in its buffer, a socket sends a reset, which can overtake our last frames.
"""

import asyncio
from collections.abc import Callable

MAX_S = 0.5
"""How long the client may take to close."""
MAX_BYTES = 64 * 1024
"""Bytes that are read and dropped meanwhile; a client that sends more is cut off."""
HTTP1_MAX_S, HTTP1_MAX_BYTES = 2.0, 8 * 1024 * 1024
"""The same in HTTP/1.1, which has no windows: a client that is answered in the middle of its request has already sent
what the buffers of both sockets hold, and sees the answer once it has."""


class Lingering(asyncio.Protocol):
    """Takes the place of a connection's protocol once its last bytes have been written."""

    def __init__(
        self,
        transport: asyncio.Transport,
        lost: Callable[[Exception | None], None],
        *,
        is_http1: bool = False,
    ) -> None:
        """lost: called once the socket is closed."""
        self._transport = transport
        self._lost = lost
        self._bytes_left = HTTP1_MAX_BYTES if is_http1 else MAX_BYTES
        max_s = HTTP1_MAX_S if is_http1 else MAX_S
        self._timer = asyncio.get_running_loop().call_later(max_s, transport.close)

    def data_received(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._lost(error)
