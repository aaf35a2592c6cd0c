"""The time limits of clients' connections: which connection is cut off, asked to leave, or pinged, and why.

Pure: `NativeListener` looks at every connection in one sweep, instead of one timer for each, and acts. A client that
begins slowly (its preface, the frame that it is in the middle of) is cut off; one that is idle or old is sent a GOAWAY,
which fails no call.
"""

from dataclasses import dataclass
from typing import Protocol

from onelane.config import App

SWEEPS = 4
"""How often a time limit is checked before it is reached."""
MIN_SWEEP_S, MAX_SWEEP_S = 0.02, 5.0


class TimedConnection(Protocol):
    """What the time limits need to know of a connection. Times are in monotonic seconds."""

    opened_at: float
    heard_at: float
    """When bytes came last."""
    framed_at: float
    """When it was last known that no frame or header block was incomplete."""
    pinged_at: float
    """When the keepalive ping was sent; 0 unless its answer is due."""
    asked_at: float
    """When the ping was sent that a client cannot answer in the middle of a header block; 0 unless it is due."""
    has_request: bool
    """Its first request has come."""

    @property
    def has_settings(self) -> bool:
        """The preface and the first SETTINGS have come."""

    @property
    def has_calls(self) -> bool:
        """A stream is open."""

    @property
    def is_reached(self) -> bool:
        """The machine of the client has received all that was sent."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Of one app, from its settings."""

    handshake_s: float
    preface_s: float
    headers_s: float
    first_request_s: float | None
    message_s: float
    keepalive_s: float | None
    ping_timeout_s: float
    max_idle_s: float | None
    max_age_s: float | None

    @classmethod
    def of(cls, settings: App) -> "TimeLimits":
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    @property
    def sweep_s(self) -> float:
        """Between two looks at all connections."""
        limits: list[float | None] = [getattr(self, name) for name in self.__dataclass_fields__]
        shortest = min(limit for limit in limits if limit is not None)
        return min(MAX_SWEEP_S, max(MIN_SWEEP_S, shortest / SWEEPS))

    def breach(self, connection: TimedConnection, now: float) -> str:
        """Why a connection must be cut off: `preface`, `headers`, `ping`, or "" ."""
        pinged_at, asked_at = connection.pinged_at, connection.asked_at
        if pinged_at and connection.heard_at < pinged_at and now - pinged_at > self.ping_timeout_s:
            return "ping"
        if not connection.has_settings:
            return "preface" if now - connection.opened_at > self.preface_s else ""
        if asked_at and connection.framed_at < asked_at and now - asked_at > self.headers_s:
            # A client that cannot be reached now may be back in a minute: it is no slow one.
            is_slow = connection.heard_at >= asked_at or connection.is_reached
            return "headers" if is_slow else ""
        return ""

    def goodbye(self, connection: TimedConnection, now: float) -> str:
        """Why a connection is sent a GOAWAY: `first_request`, `idle`, `age`, or ""."""
        age = now - connection.opened_at
        if not connection.has_request and self.first_request_s is not None and age > self.first_request_s:
            return "first_request"
        if self.max_idle_s is not None and not connection.has_calls and now - connection.heard_at > self.max_idle_s:
            return "idle"
        return "age" if self.max_age_s is not None and age > self.max_age_s else ""

    def is_keepalive_due(self, connection: TimedConnection, now: float) -> bool:
        return (
            not connection.pinged_at and self.keepalive_s is not None and (now - connection.heard_at > self.keepalive_s)
        )

    def is_question_due(self, connection: TimedConnection, now: float) -> bool:
        """Whether the client may have been in the middle of a header block for `headers_s`."""
        framed_at = connection.framed_at
        return not connection.asked_at and connection.heard_at > framed_at and now - framed_at > self.headers_s
