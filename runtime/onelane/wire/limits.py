"""Limits on what a peer may make one connection hold, for either wire below `http2`."""

from dataclasses import dataclass

UNLIMITED = 2**31 - 1
HEADERS_FRAME = 16 * 1024
"""Bytes of headers that every peer sends in one frame, RFC 9113, section 4.2."""
FIRST_CONNECTION_WINDOW = 65_535
"""The window with which every connection begins. Its receiver can only enlarge it, RFC 9113, section 6.9.2."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a peer may make one connection hold."""

    max_streams: int = 1024
    """Concurrent streams that the peer may open."""
    window: int = 256 * 1024
    """Flow-control window of a stream: bytes that the peer may send before they are acknowledged. Every stream that
    nobody reads may fill it. (Of 64 KiB, it would make a call of 200 KiB a tenth dearer.)"""
    wide_window: int = 1024 * 1024
    """The window of a stream that its reader reads, or whose message is larger than `window`. See `Http2.widen`."""
    wide_streams: int = 32
    """Streams that may have a `wide_window` at once; further ones keep their `window`."""
    connection_window: int = UNLIMITED
    """Flow-control window of the connection: FIRST_CONNECTION_WINDOW or more. By default it holds nobody back: a stream
    that nobody reads would use it up, and so stop every other call of its connection."""
    max_metadata: int = 16 * 1024
    """Bytes of one header block, decoded. Four times as much ends the connection."""
    resets: tuple[int, int] = (1000, 33)
    """Streams that the peer may reset: as a burst, and per second."""
    max_headers: int = 1024
    """Fields of one header block."""
    max_continuations: int = 8
    """Frames in which one header block goes on, at least: see `continuations`."""
    sent_metadata: int = 0
    """See `max_sent_metadata`; 0 for four times `max_metadata`."""

    def __post_init__(self) -> None:
        if self.connection_window < FIRST_CONNECTION_WINDOW:
            # libnghttp2 takes a smaller one, and then gives back bytes of it that nobody has acknowledged.
            raise ValueError(f"connection_window: at least {FIRST_CONNECTION_WINDOW}, not {self.connection_window}")

    @property
    def continuations(self) -> int:
        """Frames in which one header block may go on: as many as the largest one needs."""
        return max(self.max_continuations, self.max_metadata * 4 // HEADERS_FRAME)

    @property
    def max_sent_metadata(self) -> int:
        """Bytes of one header block of ours; libnghttp2 sends none that is larger."""
        return self.sent_metadata or self.max_metadata * 4


SIBLING_LIMITS = Limits(
    max_streams=UNLIMITED,
    window=64 * 1024,
    wide_window=256 * 1024,
    wide_streams=256,
    max_metadata=2 * 1024 * 1024,
    resets=(UNLIMITED, UNLIMITED),
    max_headers=64 * 1024,
    max_continuations=1024,
)
"""Between the shards of one app. One connection carries the calls of many clients, each within its own limits: what one
of them does not read, cancels or sends may hold up no other. A header block has the client's metadata and more. Calls
that are forwarded and not read hold one window each at the shard of their client."""
