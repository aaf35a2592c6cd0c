"""The link of siblings, both ends: what is sent arrives, wherever it is cut; what breaks it ends it by a sentence."""

from collections.abc import Callable
from math import inf, nan

import pytest
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.wire import link_frames as link
from onelane.wire.client import Answered, ClientStream, Finished, GoingAway, Messages, Ready, WholeAnswer
from onelane.wire.client import ConnectionLost as ServerLost
from onelane.wire.framing import CANCELLED, INTERNAL, UNAVAILABLE, Headers, HeaderTuple, frame
from onelane.wire.http2 import ErrorCode, Limits
from onelane.wire.link_client import LinkClient
from onelane.wire.link_frames import HEAD, HELLO_FIELDS, MAGIC, NUMBER, write_block
from onelane.wire.link_server import ForwardedStream, LinkServer
from onelane.wire.server import ConnectionLost, Ended, Opened, Stream
from onelane.wire.server import Messages as Requests

from tests.wire.test_server import REQUEST

LIMITS = Limits(max_streams=20, window=1000, wide_window=2000, wide_streams=2, max_headers=50)
LARGE = 100_000
MARKED = [*REQUEST, (b"x-own", b"1"), (b"onelane-forwarded", b"12.5;3"), (b"grpc-timeout", b"5S")]
COMMON = ((b":path", b"/a/B"), (b"x-own", b"1"), (b"onelane-forwarded-peer", b"ipv4:1.2.3.4:5"))
SERVED = (("onelane-served", "s"),)


def ends() -> tuple[LinkClient, LinkServer]:
    """Two ends that have greeted each other."""
    client, server = LinkClient(LIMITS), LinkServer(LIMITS, max_message=LARGE)
    assert server.receive(client.take()) == []
    assert [type(event) for event in client.receive(server.take())] == [Ready]
    return client, server


def left(client: LinkClient, server: LinkServer) -> int:
    """What both ends still know of streams."""
    at_client, at_server = len(client.link.flows) + len(client.streams), len(server.link.flows) + len(server.streams)
    return at_client + at_server + len(server.answered)


def opened(server: LinkServer, data: bytes) -> list[Stream]:
    return [event.stream for event in server.receive(data) if isinstance(event, Opened)]


def write(common: HeaderTuple) -> Headers:
    return [(b":method", b"POST"), (b"content-type", b"application/grpc"), *common]


def forward(
    client: LinkClient,
    message: bytes = b"hi",
    common: HeaderTuple = COMMON,
    own: Headers | None = None,
    *,
    deadline_at: float | None = 12.5,
    is_unsampled: bool = False,
    limit: int = LARGE,
) -> ClientStream | None:
    """Forward a call in one frame, if its headers are known."""
    return client.forward(
        common,
        write,
        own or [],
        message,
        None,
        deadline_at=deadline_at,
        epoch=3,
        is_unsampled=is_unsampled,
        limit=limit,
    )


def known_ends() -> tuple[LinkClient, LinkServer]:
    """Two ends which know the headers and the trailers of calls that are forwarded."""
    client, server = ends()
    assert forward(client) is None
    assert not server.answer_whole(stream_of(client, server), b"", SERVED)
    return client, server


def stream_of(client: LinkClient, server: LinkServer) -> Stream:
    """A call that is forwarded, at its owner."""
    sent = forward(client)
    assert sent is not None
    (stream,) = opened(server, client.take())
    client.cancel(sent)
    return stream


def call(client: LinkClient, message: bytes = b"hi") -> ClientStream:
    stream = client.call(MARKED, frame(message), None, limit=LARGE)
    stream.keep_frames()
    return stream


def raw(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEAD.pack(len(payload), stream, kind, flags) + payload


def hello(newest: int = 1, oldest: int = 1, more: bytes = b"") -> bytes:
    return MAGIC + raw(link.HELLO, 0, HELLO_FIELDS.pack(newest, oldest, 1000, 10_000, 20) + more)


def request(stream: int, message: bytes = b"", flags: int = 0, headers: bytes = write_block(REQUEST)) -> bytes:
    return raw(link.REQUEST, stream, NUMBER.pack(len(headers)) + headers + message, flags)


def test_a_small_call_is_one_frame_each_way() -> None:
    client, server = known_ends()
    server.receive(client.take())
    client.receive(server.take())
    sent = forward(client)
    assert sent is not None
    data = client.take()
    assert HEAD.unpack_from(data)[0] == len(data) - HEAD.size < 40, "one frame, without the headers that are known"
    (event,) = server.receive(data)
    assert isinstance(event, Opened)
    assert isinstance(event.stream, ForwardedStream)
    assert event.message == b"hi"
    assert event.stream.headers == tuple(write(COMMON))
    assert event.stream.metadata() == ((("x-own", "1"),), None), "its deadline is the one that its client has"
    assert (event.stream.deadline_at, event.stream.epoch, event.stream.trace) == (12.5, 3, None)
    assert event.stream.client.peer == "ipv4:1.2.3.4:5"
    server.answer_whole(event.stream, b"first", SERVED)
    client.receive(server.take())
    again = forward(client)
    assert again is not None
    (stream,) = opened(server, client.take())
    assert server.answer_whole(stream, b"ho", SERVED)
    data = server.take()
    assert HEAD.unpack_from(data)[0] == len(data) - HEAD.size < 40
    assert client.receive(data) == [WholeAnswer(again, b"ho", SERVED)]
    assert left(client, server) == 0


def test_headers_of_one_call_alone_come_beside_those_that_are_known() -> None:
    client, server = known_ends()
    own = [(b"x-trace", b"2"), (b"onelane-forwarded-trace", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
    forward(client, own=own, deadline_at=None)
    forward(client, is_unsampled=True)
    first, second = opened(server, client.take())
    assert isinstance(first, ForwardedStream)
    assert isinstance(second, ForwardedStream)
    assert first.metadata() == ((("x-own", "1"), ("x-trace", "2")), None)
    assert first.deadline_at is None
    assert first.trace == TraceContext("a" * 32, "b" * 16, True)
    assert second.metadata() == ((("x-own", "1"),), None), "the other call has none of them"
    assert second.trace is UNSAMPLED


@pytest.mark.parametrize(("text", "seconds"), [(b"5S", 5.0), (b"250m", 0.25)])
def test_a_call_that_is_not_forwarded_has_its_timeout(text: bytes, seconds: float) -> None:
    client, server = ends()
    client.call([*REQUEST, (b"grpc-timeout", text)], frame(b"hi"), None, limit=LARGE)
    (stream,) = opened(server, client.take())
    assert stream.metadata() == ((), seconds)


@pytest.mark.parametrize("is_framed", [True, False])
@pytest.mark.parametrize("size", [0, 5, 20_000, 70_000])
def test_a_message_of_any_size_arrives_whole_in_both_directions(size: int, is_framed: bool) -> None:
    client, server = ends()
    sent, message = call(client, b"x" * size), b"x" * size
    requests, events = list[bytes](), list[object]()
    answered = None
    for _ in range(400):
        for event in server.receive(client.take()):
            if isinstance(event, Opened) and event.message is not None:
                requests.append(event.message)
                answered = event.stream
            elif isinstance(event, Requests):
                requests += event.messages
                answered = event.stream if event.last else None
        if answered is not None and answered.id in server.streams:
            if is_framed:
                server.send_message(answered, frame(message))
            else:
                server.send_uncompressed(answered, message)
            server.finish(answered, 0)
        events += client.receive(server.take())
    assert requests == [message]
    assert [answer for event in events if isinstance(event, Messages) for answer in event.messages] == [frame(message)]
    assert isinstance(events[-1], Finished)
    assert (events[-1].stream, events[-1].code) == (sent, 0)
    assert left(client, server) == 0
    assert server.held == client.link.queued_in_all() == 0


def test_wherever_the_bytes_are_cut_their_events_are_the_same() -> None:
    client = LinkClient(LIMITS)
    client.link._reader.peer_limits = (1000, 10_000, 20)
    call(client)
    streaming = client.open(MARKED, None, limit=LARGE)
    client.send_message(streaming, frame(b"one") + frame(b"two"))
    client.end(streaming)
    client.cancel(call(client))
    client.link.ping(b"pingpong")
    data = client.take()

    def outcome(*pieces: bytes) -> list[object]:
        server = LinkServer(LIMITS, max_message=LARGE)
        events = [event for piece in pieces for event in server.receive(piece)]
        seen: list[object] = []
        for event in events:
            if isinstance(event, Requests):
                # Of one stream, however many events they are.
                seen += [(event.stream.id, message) for message in event.messages]
            else:
                stream = getattr(event, "stream", None)
                seen.append((type(event), stream and stream.id, getattr(event, "message", None)))
        assert server.take().endswith(raw(link.PONG, 0, b"pingpong"))
        return seen

    whole = outcome(data)
    assert len(whole) > 4
    for at in range(1, len(data)):
        assert outcome(data[:at], data[at:]) == whole, at
    assert outcome(*(data[n : n + 1] for n in range(len(data)))) == whole


@pytest.mark.parametrize("newest", [1, 9])
def test_an_end_of_a_newer_release_is_understood_where_it_speaks_this_version_too(newest: int) -> None:
    client, server = LinkClient(LIMITS), LinkServer(LIMITS, max_message=LARGE)
    assert [type(event) for event in client.receive(hello(newest, 1, b"more"))] == [Ready]
    assert server.receive(hello(newest, 1, b"more") + request(1, frame(b"hi"), link.ENDS))


@pytest.mark.parametrize(
    "greeting",
    [
        hello(9, 2),
        hello(0, 0),
        b"\0\0\x12\x04\0\0\0\0\0",
        MAGIC + raw(link.PING, 0, b"12345678"),
        MAGIC + raw(link.HELLO),
    ],
    ids=["only newer versions", "only older versions", "HTTP/2", "no HELLO", "an empty HELLO"],
)
def test_an_end_with_which_there_is_no_link_is_known_as_such(greeting: bytes) -> None:
    client = LinkClient(LIMITS)
    (lost,) = client.receive(greeting)
    assert isinstance(lost, ServerLost)
    assert client.has_no_link
    client.take()
    assert client.link.is_over


def test_versions_that_do_not_meet_are_named() -> None:
    server = LinkServer(LIMITS, max_message=LARGE)
    (lost,) = server.receive(hello(9, 2))
    assert isinstance(lost, ConnectionLost)
    assert "versions 2 to 9 of the link, this shard 1 to 1" in lost.reason
    assert b"versions 2 to 9" in server.take(), "the other end is told, too"


BLOCK = write_block(REQUEST)
KNOWN = raw(link.KNOWN, 0, BLOCK)
BAD_IDENTITY = write_block([*REQUEST, (b"onelane-forwarded-identity", b"{")])


def forwarded(block: int, *, deadline: float = 1.0, own: int = 0, message: bytes = b"hi") -> bytes:
    fields = link.CALL_FIELDS.pack(block, deadline, 1, own)
    return raw(link.CALL, 1, fields + message, link.ENDS | link.HAS_DEADLINE)


ABUSE: dict[str, tuple[bytes, str]] = {
    "a frame that is too long": (HEAD.pack(70_000, 1, link.DATA, 0), "has 70000 bytes, at most 65536"),
    "headers that are too long": (HEAD.pack(2**31, 1, link.REQUEST, 0), "has 2147483648 bytes"),
    "an unknown kind": (raw(99, 1, b"x"), "kind 99"),
    "kind 0": (raw(0, 1, b"x"), "kind 0"),
    "a second HELLO": (raw(link.HELLO, 0, b"x" * 16), "kind 1"),
    "an answer": (raw(link.ANSWER, 1, NUMBER.pack(0)), f"kind {link.ANSWER}"),
    "a call with headers that were not sent": (forwarded(7), "the headers 7, which were not sent"),
    "a call without lengths": (raw(link.CALL, 1, b"abc"), "shorter than its kind"),
    "a call that is shorter than its headers": (KNOWN + forwarded(0, own=900), "no message in one frame"),
    "a call that is too large": (KNOWN + forwarded(0, message=b"x" * 16_385), "no message in one frame"),
    "a call whose deadline is no number": (KNOWN + forwarded(0, deadline=nan), "the deadline nan"),
    "a call whose deadline never comes": (KNOWN + forwarded(0, deadline=inf), "the deadline inf"),
    "a stream twice by calls": (KNOWN + forwarded(0) + forwarded(0), "stream 1 was opened after stream 1"),
    "too many headers to remember": (raw(link.KNOWN, 256, BLOCK), "the number 256, at most 255"),
    "large headers to remember": (raw(link.KNOWN, 0, b"x" * 2049), "2049 bytes, at most 2048"),
    "bad headers to remember": (raw(link.KNOWN, 0, BLOCK[:-1]), "longer than its block"),
    "a bad identity to remember": (raw(link.KNOWN, 0, BAD_IDENTITY), "headers to be remembered"),
    "a request without lengths": (raw(link.REQUEST, 1, b"abc"), "shorter than its kind"),
    "a request whose headers are longer": (raw(link.REQUEST, 1, NUMBER.pack(900) + BLOCK), "longer than its frame"),
    "a header that is longer than its block": (request(1, headers=BLOCK[:-1]), "longer than its block"),
    "a header without lengths": (request(1, headers=BLOCK + b"abc"), "shorter than its lengths"),
    "too many headers": (request(1, headers=write_block([(b"a", b"b")] * 51)), "more than 50 headers"),
    "a stream twice": (request(1) + request(1), "stream 1 was opened after stream 1"),
    "stream 0": (request(0), "stream 0 was opened"),
    "too many streams": (b"".join(map(request, range(1, 22))), "more than 20 streams"),
    "more than its credit": (request(1) + raw(link.DATA, 1, frame(b"x" * 996)), "1 bytes more than its credit"),
    "data after the end": (request(1, flags=link.ENDS) + raw(link.DATA, 1, b"x"), "which it had ended"),
    "credit without a number": (raw(link.CREDIT, 1, b"x"), "shorter than its kind"),
    "a reset without a number": (request(1) + raw(link.RESET, 1, b""), "shorter than its kind"),
    "pings that nobody reads": (raw(link.PING, 0, b"12345678") * 1001, "1000 pings"),
}


@pytest.mark.parametrize("name", ABUSE)
def test_what_breaks_the_link_ends_it_with_a_sentence(name: str) -> None:
    data, sentence = ABUSE[name]
    server = LinkServer(LIMITS, max_message=LARGE)
    events = server.receive(hello())
    events += server.receive(data)
    assert [event for event in events if isinstance(event, ConnectionLost)] == events[-1:]
    assert isinstance(events[-1], ConnectionLost)
    assert sentence in events[-1].reason
    assert sentence.encode() in server.take()
    assert server.link.is_over
    assert server.receive(request(30)) == []
    assert server.take() == b""


@pytest.mark.parametrize("pair", [(b"A\xff", b"1"), (b"a", b"1\r\nb: 2")], ids=["name", "value"])
def test_a_header_that_http2_does_not_take_ends_its_call_alone(pair: tuple[bytes, bytes]) -> None:
    """A stranger may have sent it, by way of the grpcio listener."""
    client, server = known_ends()
    server.receive(client.take())
    client.receive(server.take())
    odd = (*COMMON, pair)
    assert forward(client, common=odd) is None
    in_own, in_common = forward(client, own=[pair]), forward(client, common=odd)
    in_request = client.call([*REQUEST, pair], frame(b"hi"), None, limit=LARGE)
    good = forward(client)
    (stream,) = opened(server, client.take())
    events = client.receive(server.take())
    assert [(e.stream, e.code) for e in events if isinstance(e, Finished)] == [
        (sent, INTERNAL) for sent in (in_own, in_common, in_request)
    ]
    assert len(events) == 3
    assert good is not None
    assert stream.id == good.id, "and no other"


ODD_ANSWERS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "a request": (request, "kind 2"),
    "a whole answer to a call in parts": (lambda n: raw(link.KNOWN) + raw(link.ANSWER, n, bytes(4)), "takes none"),
    "trailers that HTTP/2 does not take": (
        lambda n: raw(link.TRAILERS, n, write_block([(b"grpc-status", b"0"), (b"a", b"\n")]), link.ENDS),
        "that HTTP/2 does not take",
    ),
    "trailers that were not sent": (lambda n: raw(link.ANSWER, n, NUMBER.pack(9)), "trailers 9, which were not"),
    "too many trailers to remember": (lambda n: raw(link.KNOWN, 256), "the number 256, at most 255"),
    "bad trailers to remember": (lambda n: raw(link.KNOWN, 0, write_block([(b"a-bin", b"*")])), "to be remembered"),
    "headers twice": (lambda n: raw(link.HEADERS, n, link.RESPONSE_BLOCK) * 2, "initial metadata twice"),
    "a GOAWAY without numbers": (lambda n: raw(link.GOAWAY, 0, b"x"), "shorter than its kind"),
}


@pytest.mark.parametrize("name", ODD_ANSWERS)
def test_a_server_that_breaks_the_link_loses_it(name: str) -> None:
    data, sentence = ODD_ANSWERS[name]
    client, _ = ends()
    events = client.receive(data(call(client).id))
    assert isinstance(events[-1], ServerLost)
    assert sentence in events[-1].reason


def test_a_server_that_ends_its_link_says_why() -> None:
    client, server = ends()
    server.receive(raw(99))
    events = client.receive(server.take())
    assert [type(event) for event in events] == [GoingAway, ServerLost]
    assert isinstance(events[-1], ServerLost)
    assert "kind 99" in events[-1].reason


def test_an_end_that_does_not_read_is_sent_no_more_than_its_credit() -> None:
    client, server = ends()
    client.open(MARKED, None, limit=LARGE)
    (stream,) = opened(server, client.take())
    for _ in range(50):
        server.send_message(stream, frame(b"x" * 195))
    assert len(server.take()) < 1000 + 200
    assert server.link.queued(stream.id) == 50 * 200 - 1000
    server.finish(stream, 0)
    assert server.answered, "its end waits, too"
    server.receive(raw(link.RESET, stream.id, NUMBER.pack(ErrorCode.CANCEL)))
    assert server.link.queued_in_all() == 0
    assert len(server.link.flows) + len(server.answered) == 0


def test_a_flood_of_cancelled_calls_leaves_nothing() -> None:
    client, server = ends()
    for n in range(5_000):
        stream = call(client) if n % 2 else client.open(MARKED, None, limit=LARGE)
        events = server.receive(client.take())
        client.cancel(stream)
        events += server.receive(client.take())
        assert [type(event) for event in events] == [Opened, Ended]
    server.take()
    assert left(client, server) == 0


def test_headers_of_many_clients_are_not_remembered_for_ever() -> None:
    client, server = ends()
    for n in range(1_000):
        for _ in range(2):
            stream = forward(client, common=(*COMMON, (b"x-client", b"%d" % n)))
        assert stream is not None
        (sent,) = opened(server, client.take())
        assert sent.value(b"x-client") == b"%d" % n
        client.cancel(stream)
    assert len(client._sent._numbers) <= link.MAX_KNOWN
    assert len(server._known) <= link.MAX_KNOWN


def test_headers_that_come_but_once_take_the_place_of_none_that_are_known() -> None:
    client, _ = known_ends()
    client.take()
    for n in range(200):
        assert forward(client, common=((b"x-client", b"%d" % n),)) is None
    assert forward(client) is not None
    assert client.take().startswith(HEAD.pack(26, 2, link.CALL, 3)[8:], 8), "known as before"


@pytest.mark.parametrize("size", [16 * 1024, 16 * 1024 + 1])
def test_only_a_small_message_goes_in_one_frame(size: int) -> None:
    client, server = known_ends()
    stream = stream_of(client, server)
    assert (forward(client, b"x" * size) is not None) == (size <= 16 * 1024)
    server.answer_whole(stream, b"", SERVED)
    assert server.answer_whole(stream, b"x" * size, SERVED) == (size <= 16 * 1024)


def test_a_reset_ends_a_call_with_the_status_of_its_error() -> None:
    client, server = ends()
    refused, cancelled = call(client), call(client)
    first, second = opened(server, client.take())
    server.refuse(first)
    server.http2.reset(second.id, ErrorCode.CANCEL)
    events = client.receive(server.take())
    assert [(e.stream, e.code, e.unprocessed) for e in events if isinstance(e, Finished)] == [
        (refused, UNAVAILABLE, True),
        (cancelled, CANCELLED, False),
    ]


def test_a_goodbye_leaves_calls_that_were_begun_and_names_those_that_were_not() -> None:
    client, server = ends()
    begun = call(client)
    (stream,) = opened(server, client.take())
    server.http2.go_away()
    late = call(client)
    assert opened(server, client.take()) == []
    server.send_message(stream, frame(b"ho"))
    server.finish(stream, 0)
    events = client.receive(server.take())
    assert [(e.stream, e.unprocessed) for e in events if isinstance(e, Finished)] == [(late, True), (begun, False)]
    assert not client.can_call


def test_a_failure_and_initial_metadata_come_as_they_do_over_http2() -> None:
    client, server = ends()
    failing = call(client)
    (stream,) = opened(server, client.take())
    server.send_headers(stream, (("x-first", "1"),))
    server.finish(stream, 5, "no such room", (("x-last-bin", b"\0\1"),))
    assert client.receive(server.take()) == [
        Answered(failing, (("x-first", "1"),)),
        Finished(failing, 5, "no such room", (("x-last-bin", b"\0\1"),)),
    ]
