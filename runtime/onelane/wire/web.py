"""Requests of other protocols than gRPC's, as streams of gRPC.

A request that is no `application/grpc` leaves the path of gRPC's calls where its headers are looked at. What it is, a
translator says (`ServerConnection`'s `web`): it makes a `WebStream`, which has the headers that a gRPC client would
have sent, reports gRPC's messages, and takes gRPC's answer. So a call is the same call from there on, whatever its
client speaks.
"""

from typing import Any, ClassVar, Protocol

from onelane.wire.framing import BadWire, Headers, HeaderTuple
from onelane.wire.server import Stream


class RequestBody(Protocol):
    """The body of a request, from bytes to messages of gRPC. As `Deframer`, but for its end."""

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes; returns the messages that they complete. Raises BadWire."""

    def end(self) -> list[bytes]:
        """The last bytes have come; returns the messages that this completes. Raises BadWire."""

    @property
    def is_whole(self) -> bool:
        """Whether the request may end here without `end`."""

    @property
    def buffered(self) -> int:
        """Bytes of what is not complete."""


class WebAnswer(Protocol):
    """The answer of a request, from gRPC's to that of its protocol. What comes after its end is dropped."""

    def begin(self, encoding: bytes, metadata: Headers) -> None:
        """The initial metadata. encoding: gRPC's name of the compression; b"" for none."""

    def send(self, encoding: bytes, frame: bytes) -> None:
        """One message with gRPC's prefix. Begins the answer, if nothing has."""

    def finish(self, code: int, details: str, trailers: Headers) -> None:
        """The status, and the end."""


class WebStream(Stream):
    """One request of another protocol. See the module."""

    is_web: ClassVar[bool] = True
    __slots__ = ("_answer", "_body")

    def __init__(
        self,
        request: Stream,
        path: bytes,
        headers: HeaderTuple,
        application: HeaderTuple,
        timeout: float | None,
        body: Any,
        answer: Any,
    ) -> None:
        """headers: those of gRPC that stand for the request's; application: of these, the application's metadata.
        body: see `RequestBody`. answer: see `WebAnswer`."""
        super().__init__(request.id, request.ended, headers, None, path, application, timeout, request.size, 0)
        self._body: Any = body
        self._answer: Any = answer

    def feed(self, data: bytes, limit: int) -> list[bytes]:
        if self._body is None:
            return []
        messages: list[bytes] = self._body.feed(data)
        if messages:
            self.waits_since = 0.0
        return messages

    def end(self) -> list[bytes]:
        if self._body is None:
            raise BadWire("the request ended in the middle of a message")
        body, self._body = self._body, None
        messages: list[bytes] = body.end()
        return messages

    def discard_partial(self) -> None:
        self._body = None

    def discard_rest(self) -> None:
        self._body = None

    @property
    def buffered(self) -> int:
        return 0 if self._body is None else int(self._body.buffered)

    @property
    def missing(self) -> int:
        # Not known of all protocols: the window is not widened for one message.
        return 0

    @property
    def is_whole(self) -> bool:
        return self._body is None or bool(self._body.is_whole)

    def begin_answer(self, metadata: Headers) -> None:
        self._answer.begin(self.encoding, metadata)

    def send_translated(self, frame: bytes) -> None:
        self._answer.send(self.encoding, frame)

    def finish_answer(self, code: int, details: str, trailers: Headers) -> None:
        self._answer.finish(code, details, trailers)
