"""Cuts the bytes that come over a link into frames, after the greeting with which each end begins. See `link`."""

from onelane.wire.limits import Limits
from onelane.wire.link_frames import (
    HEAD,
    HELLO,
    HELLO_FIELDS,
    MAGIC,
    MAX_FRAME,
    NEWEST,
    OLDEST,
    WHOLE,
    WITH_HEADERS,
    Frame,
    LinkBroken,
)

PeerLimits = tuple[int, int, int]
"""Credit of a stream, bytes of the largest header list, concurrent streams."""


class FrameReader:
    """See the module. Holds the beginning of at most one frame."""

    def __init__(self, limits: Limits) -> None:
        self.peer_limits: PeerLimits | None = None
        """Of the peer's HELLO; None before."""
        self._largest_with_headers = limits.max_metadata * 4 + WHOLE + 64
        self._rest = bytearray()
        """The first bytes of a frame that is not complete."""
        self._wanted = 0
        """Bytes of it, as far as they are known."""

    def read(self, data: bytes | memoryview, frames: list[Frame]) -> None:
        """Add the frames that these bytes complete to `frames`.

        Raises:
            LinkBroken: the peer does not speak the link, or a frame is too long.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
        elif not isinstance(data, bytes):
            data = bytes(data)
        at = 0 if self.peer_limits is not None else self._greet(data)
        if at >= 0:
            self._cut(data, at, frames)

    def _greet(self, data: bytes) -> int:
        """Read the peer's MAGIC and HELLO; returns the bytes that they have, -1 where they are not complete."""
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise LinkBroken("the peer does not speak the link")
        begin = len(MAGIC) + HEAD.size
        if len(data) >= begin:
            length, _, kind, _ = HEAD.unpack_from(data, len(MAGIC))
            if kind != HELLO or not HELLO_FIELDS.size <= length <= MAX_FRAME:
                raise LinkBroken("the first frame is no HELLO")
            begin += length
        if len(data) < begin:
            self._keep(data, begin)
            return -1
        newest, oldest, window, headers, streams = HELLO_FIELDS.unpack_from(data, len(MAGIC) + HEAD.size)
        if newest < OLDEST or oldest > NEWEST:
            spoken = f"the peer speaks versions {oldest} to {newest} of the link, this shard {OLDEST} to {NEWEST}"
            raise LinkBroken(spoken)
        self.peer_limits = (window, headers, streams)
        return begin

    def _cut(self, data: bytes, at: int, frames: list[Frame]) -> None:
        end = len(data)
        while end - at >= HEAD.size:
            length, stream, kind, flags = HEAD.unpack_from(data, at)
            begin = at + HEAD.size
            if length > MAX_FRAME and length > self._largest(kind):
                raise LinkBroken(f"a frame of kind {kind} has {length} bytes, at most {self._largest(kind)}")
            if end - begin < length:
                self._keep(data[at:], HEAD.size + length)
                return
            at = begin + length
            frames.append((kind, flags, stream, data[begin:at]))
        if at < end:
            self._keep(data[at:], HEAD.size)

    def _keep(self, data: bytes, wanted: int) -> None:
        self._rest += data
        self._wanted = wanted

    def _largest(self, kind: int) -> int:
        return self._largest_with_headers if kind in WITH_HEADERS else MAX_FRAME
