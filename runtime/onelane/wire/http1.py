"""The server's end of one HTTP/1.1 connection, sans-I/O, on h11: each request is a stream, one after another.

`Http1Connection` is a `ServerConnection` whose session is HTTP/1.1's in place of HTTP/2's: limits, back-pressure and
the end of calls are the same. Only requests of `wire.web` come by it; gRPC needs HTTP/2.

Promises: one request at a time, those that come before its answer wait, in order; nothing that a client sends raises; a
request whose length could be read in two ways is refused, and the connection closed.
"""

import re
from collections.abc import Callable
from typing import Any

import h11

from onelane.wire import header_size
from onelane.wire.framing import Headers, HeaderTuple
from onelane.wire.http2 import ErrorCode, StreamEnded
from onelane.wire.limits import UNLIMITED, Limits
from onelane.wire.server import Ended, Event, MoreToWrite, Pong, ServerConnection, Stream, WebTranslator

MAX_WRITE = 256 * 1024
"""Bytes of an answer that one `take` returns: more would lie in the transport, where they are not counted."""
MAX_PIPELINED = 64 * 1024
"""Bytes of further requests that are read before the answer of the one under way."""
_BAD_REQUEST, _VERSION_NOT_SUPPORTED = 400, 505
_NO_BODY = (204, 304)
_REQUEST_LINE = re.compile(rb"\r?\n?[^ \r\n]+ [^\r\n]+ HTTP/\d")


class Http1Session:
    """What `ServerConnection` needs of HTTP/2, for HTTP/1.1."""

    def __init__(self, limits: Limits, throttle: Callable[[bool], None]) -> None:
        """throttle: told whether to stop reading."""
        self.is_over = False
        self.sent_error = 0
        self.number = 0
        """Of the request under way, or of the last one."""
        self.is_answering = False
        """A request is under way."""
        self.finished: list[int] = []
        """Requests that have been answered in full, since the last look."""
        self.pings = 0
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_metadata)
        self._throttle = throttle
        self._is_throttled = False
        self._window = limits.window
        self._unread = 0
        """Bytes of the body that have not been acknowledged."""
        self._pipelined = 0
        """Bytes that came before the answer of the request under way."""
        self._is_leaving = False
        self._speaks_http = True
        self._out = bytearray()
        self._next: Any = None
        """An event of h11 that has been looked at, and not been returned."""

    # Reading

    def feed(self, data: bytes) -> None:
        if self.is_over:
            return
        if self._parser.their_state is h11.DONE:
            self._pipelined += len(data)
        self._parser.receive_data(data)

    def next_event(self) -> Any:
        """The next event of h11; None where there is none now. Raises h11.RemoteProtocolError."""
        if self.is_over:
            return None
        if self._next is not None:
            event, self._next = self._next, None
            return event
        head = b"" if self.number else self._parser.trailing_data[0]
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError:
            self._speaks_http = bool(self.number) or _REQUEST_LINE.match(head) is not None
            raise
        if event is h11.NEED_DATA or event is h11.PAUSED:
            self._regulate()
            return None
        if isinstance(event, h11.Data):
            self._unread += len(event.data)
        elif isinstance(event, h11.Request) and not _has_body(event):
            # Now, so that the connection stays open where the request is refused.
            self._next = self._parser.next_event()
        return event

    def open(self, event: Any) -> Stream:
        """The stream of a request, not translated yet."""
        self.number += 2
        self.is_answering = True
        headers = _headers_of(event)
        path = dict(headers)[b":path"]
        size = header_size.size_of(headers)
        return Stream(self.number, False, headers, None, path, (), None, size, _VERSION_NOT_SUPPORTED)

    def acknowledge(self, amount: int, number: int) -> None:
        self._unread -= amount
        self._regulate()

    def _regulate(self) -> None:
        """Stop reading where too much is unread, and go on when it is less."""
        if self._is_throttled:
            if self._unread * 2 <= self._window and self._pipelined <= MAX_PIPELINED:
                self._is_throttled = False
                self._throttle(False)
        elif self._unread > self._window or self._pipelined > MAX_PIPELINED:
            self._is_throttled = True
            self._throttle(True)

    @property
    def is_inside_head(self) -> bool:
        """Whether the headers of a request are incomplete."""
        return self._parser.their_state is h11.IDLE and bool(self._parser.trailing_data[0])

    # Answers

    def send_response(self, number: int, headers: Headers, *, end_stream: bool = False) -> None:
        if number != self.number or self._parser.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise StreamEnded("the request has been answered")
        status = int(headers[0][1])
        fields = list(headers[1:])
        if end_stream and status not in _NO_BODY:
            fields.append((b"content-length", b"0"))
        if self._is_leaving or self._parser.their_state is not h11.DONE:
            # Of a request that has not been read to its end nobody knows where the next one begins.
            fields.append((b"connection", b"close"))
        self._out += self._parser.send(h11.Response(status_code=status, headers=fields)) or b""
        if end_stream:
            self._finish()

    def send_data(self, number: int, data: bytes, *, end_stream: bool = False) -> None:
        if number != self.number or self._parser.our_state is not h11.SEND_BODY:
            raise StreamEnded("the request has been answered")
        if data:
            self._out += self._parser.send(h11.Data(data=data)) or b""
        if end_stream:
            self._finish()

    def end_stream(self, number: int) -> None:
        self.send_data(number, b"", end_stream=True)

    def refuse(self, status: int) -> None:
        """The client has broken HTTP: say so, if nothing has been said, and close. One that does not speak it is closed
        without a word: RFC 9113, section 3.4, has that for a wrong preface of HTTP/2."""
        self._is_leaving = True
        if not self._speaks_http:
            self.is_over = True
        elif self._parser.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            fields = [(b"content-length", b"0"), (b"connection", b"close")]
            self._out += self._parser.send(h11.Response(status_code=status, headers=fields)) or b""
            self._finish()
        self.is_answering = False

    def _finish(self) -> None:
        self._out += self._parser.send(h11.EndOfMessage()) or b""
        self.finished.append(self.number)
        self.is_answering = False

    def take(self) -> bytes:
        """The bytes to send now."""
        if self._parser.they_are_waiting_for_100_continue and self.is_answering:
            self._out += self._parser.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
        data = bytes(self._out[:MAX_WRITE])
        del self._out[:MAX_WRITE]
        if not self._out and not self.is_answering:
            self._next_cycle()
        return data

    def _next_cycle(self) -> None:
        """The request under way has been answered, and the answer taken: begin the next one, or end."""
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
            self._unread = self._pipelined = 0
            self._regulate()
        if self._is_leaving or self._parser.our_state is not h11.IDLE:
            self.is_over = True

    # Of the connection

    def queued(self, number: int) -> int:
        return len(self._out) if number == self.number else 0

    def queued_in_all(self) -> int:
        return len(self._out)

    def reset(self, number: int, error: int) -> None:
        """Without an error: its answer has been sent before it was read to its end, see `send_response`."""
        if error != ErrorCode.NO_ERROR and number == self.number:
            self._out.clear()
            self.is_answering = False
            self.is_over = True

    def ping(self, payload: bytes) -> None:
        """There is no ping: the answer is that no header is incomplete."""
        self.pings += 1

    def shutdown_notice(self) -> None:
        self._is_leaving = True

    def go_away(self, error: int = 0) -> None:
        self._is_leaving = True

    def is_filled(self, amount: int) -> bool:
        return False

    def share_window(self, number: int) -> None:
        pass

    def max_header_list(self) -> int:
        return UNLIMITED


class Http1Connection(ServerConnection):
    """See the module."""

    def __init__(
        self, limits: Limits, *, max_message: int, web: WebTranslator, throttle: Callable[[bool], None]
    ) -> None:
        self._session = Http1Session(limits, throttle)
        super().__init__(limits, max_message=max_message, unpacks=False, web=web, session=self._session)

    def receive(self, data: bytes | memoryview) -> list[Event]:
        self._session.feed(bytes(data))
        return self._next_events()

    def _next_events(self) -> list[Event]:
        events: list[Event] = []
        arrived: dict[int, Any] = {}
        session = self._session
        try:
            while (event := session.next_event()) is not None:
                if isinstance(event, h11.Request):
                    self.has_settings = True
                    stream = session.open(event)
                    if fault := _fault_of(event):
                        session.refuse(fault)
                        break
                    self._open(stream, events)
                elif isinstance(event, h11.Data):
                    self._data(session.number, bytes(event.data), False, events, arrived)
                elif isinstance(event, h11.EndOfMessage):
                    self._data(session.number, b"", True, events, arrived)
                else:
                    break
        except h11.RemoteProtocolError as error:
            self.has_settings = True
            self._drop_request(events)
            session.refuse(error.error_status_hint)
        return events

    def _drop_request(self, events: list[Event]) -> None:
        """The request under way cannot be read on: its call ends."""
        stream = self.streams.pop(self._session.number, None)
        if stream is not None:
            self._acknowledge(stream)
            events.append(Ended(stream, ErrorCode.PROTOCOL_ERROR))

    def take(self) -> bytes:
        session = self._session
        data = session.take()
        self._answered_early = ()
        if session.queued_in_all():
            self.late.append(MoreToWrite())
        else:
            for number in session.finished:
                self.answered.pop(number, None)
            session.finished.clear()
        if session.pings and not session.is_inside_head:
            session.pings = 0
            self.late.append(Pong())
        if not session.is_answering:
            self.late += self._next_events()
        if len(self.answered) != self.untaken:
            self.count_untaken()
        if not self._told_from < self.held + session.queued_in_all() < self._told_to:
            self.weigh()
        return data


def _headers_of(event: Any) -> HeaderTuple:
    """The headers of a request, as HTTP/2 has them."""
    target: bytes = event.target
    authority = dict(event.headers).get(b"host", b"")
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        # RFC 9112, section 3.2.2: the absolute form counts, whatever `host` says.
        authority, slash, path = target.partition(b"://")[2].partition(b"/")
        target = slash + path or b"/"
    pseudo = ((b":method", event.method), (b":scheme", b"http"), (b":path", target), (b":authority", authority))
    return (*pseudo, *((bytes(name), bytes(value)) for name, value in event.headers))


def _has_body(event: Any) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in event.headers
    )


def _fault_of(event: Any) -> int:
    """The HTTP status of a request that is not to be read; 0 without a fault."""
    if event.http_version not in (b"1.0", b"1.1"):
        return _VERSION_NOT_SUPPORTED
    names = [name for name, _ in event.headers]
    # A proxy may have read another length of it. RFC 9112, section 6.3.
    is_ambiguous = b"transfer-encoding" in names and (b"content-length" in names or event.http_version != b"1.1")
    return _BAD_REQUEST if is_ambiguous else 0
