"""TCP ports of the loopback address for a program that opens its port itself."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved() -> Iterator[int]:
    """A port on which nobody listens, and that the system gives to nobody else while this lasts.

    It stays bound, without listening: a client that connects is refused, and a server that binds it with SO_REUSEADDR,
    as those of Go, asyncio, grpcio and http.server do, can listen on it.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        yield port
