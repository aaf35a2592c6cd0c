"""What an outgoing call carries of the call that it is made in, on each way out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.client.propagation import forwarded, forwarded_apart, outgoing, repeated, write_common
from onelane.core import hop
from onelane.core.context import TaskContext, TurnContext
from onelane.core.hop import HOP_HEADERS, Hop, write_client
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.core.turns import CHAIN, Turns
from onelane.wire.link_headers import headers_apart

NOW = 100.0
TRACE = TraceContext("a" * 32, "b" * 16, True, "vendor=1")
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
CONTEXT = TaskContext("/a.B/C", deadline_at=NOW + 5, outgoing_chain="0001@s-0/a.B/C")


def sent(metadata: Any = (), timeout_s: float | None = None, **call: Any) -> tuple[Any, float | None]:
    arguments = {"context": None, "trace": None, "baggage": ""} | call
    return outgoing(metadata, timeout_s, now=lambda: NOW, **arguments)


def test_a_call_outside_of_any_goes_as_its_caller_made_it() -> None:
    metadata = (("x-own", "1"), ("traceparent", "own"), ("baggage", "own=1"))
    assert sent(metadata, 3.0) == (metadata, 3.0)
    assert sent() == ((), None)


def test_it_carries_trace_baggage_and_chain_beside_its_own_metadata() -> None:
    metadata, _ = sent((("x-own", "1"), ("x-own-bin", b"\0")), context=CONTEXT, trace=TRACE, baggage="k=v")
    assert metadata == (
        ("x-own", "1"),
        ("x-own-bin", b"\0"),
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=1"),
        ("baggage", "k=v"),
        (CHAIN, CONTEXT.outgoing_chain),
    )


def test_a_trace_takes_the_place_of_one_that_the_caller_wrote_by_hand() -> None:
    own = (("traceparent", "own"), ("tracestate", "own"), ("x-own", "1"))
    metadata, _ = sent(own, trace=TRACE._replace(tracestate=""))
    assert metadata == (("x-own", "1"), ("traceparent", TRACEPARENT))


def test_an_unsampled_trace_gets_its_ids_where_it_leaves() -> None:
    (name, value), *more = sent(trace=UNSAMPLED)[0]
    assert (name, value[-3:], more) == ("traceparent", "-00", [])
    assert int(value[3:35], 16)


def test_the_chain_names_the_turns_that_the_call_is_inside_of() -> None:
    turns = Turns("s-0", draw=iter(range(7, 99)).__next__, per_key=9, in_all=9)
    turn = turns.enter("key", "a.B/C", "", object())
    assert turn is not None
    metadata, timeout_s = sent(context=TurnContext(None, turn))
    assert (metadata, timeout_s) == (((CHAIN, f"{7:016x}@s-0/a.B/C"),), None)


timeouts = st.none() | st.floats(0, 1000)


@given(timeouts, st.none() | st.floats(NOW - 1000, NOW + 1000))
def test_a_deadline_only_shrinks_and_is_never_below_zero(timeout_s: float | None, deadline_at: float | None) -> None:
    _, allowed_s = sent((), timeout_s, context=TaskContext("/a.B/C", deadline_at=deadline_at))
    if timeout_s is None and deadline_at is None:
        assert allowed_s is None
        return
    assert allowed_s is not None
    assert allowed_s >= 0
    assert timeout_s is None or allowed_s <= timeout_s
    assert deadline_at is None or allowed_s <= max(0.0, deadline_at - NOW)


def test_another_attempt_carries_the_same_and_says_how_many_came_before() -> None:
    metadata, _ = sent((("x-own", "1"),), context=CONTEXT, trace=TRACE, baggage="k=v")
    for attempts in (1, 2):
        assert repeated(metadata, attempts) == (*metadata, ("grpc-previous-rpc-attempts", str(attempts)))


class ClientsCall:
    """A call to be sent on."""

    method = "/a.B/C"

    def __init__(self, *headers: tuple[bytes, bytes], deadline_at: float | None = None) -> None:
        self.deadline_at = deadline_at
        self._headers = headers

    def time_remaining(self) -> float | None:
        return None if self.deadline_at is None else self.deadline_at - NOW

    def client_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._headers

    def headers_apart(self) -> Any:
        return headers_apart(self.client_headers(), self.identity_headers(), self.method)

    def identity_headers(self) -> list[tuple[bytes, bytes]]:
        return write_client("ipv4:1.2.3.4:5", {"x509_common_name": [b"me"]})


def end_to_end(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Of the headers with which a call is sent on, those between gRPC's own and the hop's."""
    sent = forwarded(ClientsCall(*headers), TRACE, epoch=7)
    return [pair for pair in sent[6:] if pair[0] not in HOP_HEADERS]


def test_a_forwarded_call_keeps_its_headers_as_they_came() -> None:
    headers = (
        (b"x-own", "ü\ty".encode()),
        (b"x*!", b"\xff\xfe"),
        (b"x-own-bin", b"AA,AQ=="),
        (b"x-own", b"again"),
        (b"traceparent", b"the caller's"),
        (b"grpc-accept-encoding", b"identity,deflate"),
        (CHAIN.encode(), b"0001@s-0/m"),
    )
    assert end_to_end(*headers) == list(headers)


@pytest.mark.parametrize(
    "name",
    [
        b":path",
        b"te",
        b"content-type",
        b"content-length",
        b"host",
        b"grpc-timeout",
        b"grpc-encoding",
        *sorted(HOP_HEADERS),
    ],
)
def test_headers_of_one_hop_alone_are_not_forwarded(name: bytes) -> None:
    assert end_to_end((name, b"theirs"), (b"x-own", b"1")) == [(b"x-own", b"1")]


def test_a_forwarded_call_tells_the_owner_of_its_client_its_deadline_and_the_span_of_the_hop() -> None:
    headers = dict(forwarded(ClientsCall(deadline_at=NOW + 1.5), TRACE, epoch=7))
    assert hop.read(headers) == Hop(
        "ipv4:1.2.3.4:5", {"x509_common_name": [b"me"]}, NOW + 1.5, TRACE._replace(tracestate=""), epoch=7
    )
    assert headers[b"grpc-timeout"] == b"1500000u"


class Secret(tuple[bytes, bytes]):
    """Stands for a header that its sender marks as secret: the wire gives such ones a type of their own."""

    __slots__ = ()


def test_what_is_told_in_two_parts_is_what_is_told_in_one() -> None:
    secret = Secret((b"authorization", b"Bearer x"))
    call = ClientsCall((b"x-own", b"1"), (b"traceparent", b"2"), secret, (b"grpc-timeout", b"5S"), (b":path", b"/x/Y"))
    common, own = forwarded_apart(call, TRACE)
    sampled = (hop.HOP_TRACE, TRACEPARENT.encode())
    assert own == [(b"traceparent", b"2"), secret, sampled]
    assert type(own[1]) is Secret
    in_fields = {hop.HOP_MARK, b"grpc-timeout"}
    headers: list[Any] = forwarded(call, TRACE, epoch=7)
    assert Secret in map(type, headers)
    whole = [pair for pair in headers if pair[0] not in in_fields]
    assert sorted([*write_common(common), *own]) == sorted(whole)


@pytest.mark.parametrize("trace", [None, UNSAMPLED])
def test_calls_without_a_trace_have_all_their_headers_in_common(trace: TraceContext | None) -> None:
    first, second = (forwarded_apart(ClientsCall((b"x-own", b"1"), deadline_at=NOW + n), trace) for n in (1, 2))
    assert first == second
    assert first[1] == []
