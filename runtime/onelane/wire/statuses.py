"""gRPC's statuses by number, as far as the wire speaks of them, and the errors that end a stream with one.

Not compiled: mypyc takes no class of two built-in bases.
"""

from onelane.errors import OnelaneError

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

_STATUS_NAMES = {
    INVALID_ARGUMENT: "INVALID_ARGUMENT",
    RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    UNIMPLEMENTED: "UNIMPLEMENTED",
    INTERNAL: "INTERNAL",
    UNAUTHENTICATED: "UNAUTHENTICATED",
    UNKNOWN: "UNKNOWN",
    UNAVAILABLE: "UNAVAILABLE",
}


class BadWire(OnelaneError):
    """The peer broke gRPC's protocol on one stream; `code` is the gRPC status to answer with."""

    status = "INTERNAL"

    def __init__(self, text: str, *, code: int = INTERNAL) -> None:
        super().__init__(text)
        self.code = code
        self.status = _STATUS_NAMES[code]  # type: ignore[misc]
        self.messages: list[bytes] = []
        """Complete messages that came before it in the same bytes."""


class BadMetadata(BadWire, ValueError):
    """Metadata that HTTP/2 cannot carry."""


class BadMetadataType(BadWire, TypeError):
    """Metadata of another type than pairs of a str, and a str or bytes."""
