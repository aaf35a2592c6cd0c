"""How a channel connects and keeps its connections."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onelane.wire.http2 import Limits

CLIENT_LIMITS = Limits(max_metadata=64 * 1024, window=1024 * 1024)
"""A wide window from the start: its program has asked for what comes."""


@dataclass(frozen=True, slots=True)
class Dialling:
    """How a channel connects and keeps its connections. The defaults are gRPC's."""

    initial_backoff_s: float = 1.0
    max_backoff_s: float = 120.0
    connect_s: float | None = 20.0
    """How long one attempt may take, up to the server's SETTINGS; None for as long as the socket is open."""
    keepalive_s: float | None = None
    """Seconds without a byte from the server after which a ping is sent; None for never."""
    ping_timeout_s: float = 20.0
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest message that is received; a larger one fails its call with RESOURCE_EXHAUSTED."""
    max_connections: int = 8
    """Connections at once, where one has as many calls as the server allows."""
    max_waiting: int = 10_000
    """Calls that may wait for a connection; a further one fails with RESOURCE_EXHAUSTED."""
    tls: ssl.SSLContext | None = None
    """See `onelane.client_context`; None for cleartext."""
    resolver_overrides: Mapping[str, str] | None = None
    """host:port → the target that is dialled instead; for tests, and for a proxy in between."""
    authority: str = ""
    """Value of `:authority`, and the name that the server's certificate must have; the target's host where empty."""
    own_user_only: bool = False
    """Connect to a Unix socket only where a process of this user, or of root, listens."""
    check_peer: Callable[[asyncio.BaseTransport], object] | None = None
    """Looks at each connection by TCP before it takes a call; an OSError that it raises refuses the peer."""
    reads_to_end: bool = False
    """Where a write fails, read what the server sent before it closed: answers, and by its GOAWAY which calls it has
    not begun. For Unix sockets in cleartext."""
    offers_link: bool = False
    """Speak the link of siblings (`wire/link`) where the server does, else HTTP/2."""
    limits: Limits = CLIENT_LIMITS
    """What a server may make one connection hold."""


DEFAULT_DIALLING = Dialling()
APP_DIALLING = Dialling(initial_backoff_s=0.1, max_backoff_s=0.5, keepalive_s=30.0, ping_timeout_s=5.0)
"""To the shards of an app. They are restarted within moments, so reconnect soon."""


class NoLink(ConnectionError):
    """The sibling has not answered on the link: it may be of a release that has none, or serve by grpcio."""
