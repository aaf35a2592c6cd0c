"""How a channel connects and keeps its connections."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dialling:
    """How a channel connects and keeps its connections. The defaults are gRPC's."""

    initial_backoff_s: float = 1.0
    max_backoff_s: float = 120.0
    connect_s: float = 20.0
    """How long one attempt may take, the server's hello included."""
    keepalive_s: float | None = None
    """Quiet seconds after which a ping asks whether the server is there; None for never."""
    ping_timeout_s: float = 20.0
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest message taken; a larger one fails its call with RESOURCE_EXHAUSTED."""
    max_connections: int = 8
    """Connections at once, where one has as many calls as the server allows."""
    max_waiting: int = 10_000
    """Calls that may wait for a connection; one more fails with RESOURCE_EXHAUSTED."""
    tls: ssl.SSLContext | None = None
    """See `onelane.tls.client_context`; None for cleartext."""
    reach: Mapping[str, str] | None = None
    """host:port → the target that is dialled instead; for tests, and for what stands between."""
    authority: str = ""
    """What `:authority` says, and the name that the server's certificate must have; the target's host where empty."""
