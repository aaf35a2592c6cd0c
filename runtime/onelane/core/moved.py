"""A stream whose key has moved to another shard: how a server says so, and what a reader of our stubs may be given."""

from collections.abc import Iterable
from dataclasses import dataclass

MOVED = "onelane-moved"
"""Trailer of a stream that ends because its key has moved, with the epoch of the placement by which it has."""


@dataclass(frozen=True, slots=True)
class Moved:
    """In place of a message, for a reader that asked for marks: the stream has ended here, as its key has moved.

    The messages after it come from another stream, of the same request; what happened in between is in neither.
    """

    epoch: int
    """Of the placement by which the key has moved; -1 where the server has not named one."""


def moved_epoch(trailers: Iterable[tuple[str, object]]) -> int | None:
    """The epoch in a stream's trailers; None where it has not ended for a move."""
    for name, value in trailers:
        if name == MOVED:
            text = str(value)
            return int(text) if text.isdecimal() and len(text) < 20 else -1
    return None
